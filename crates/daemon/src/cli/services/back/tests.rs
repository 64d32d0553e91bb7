use super::*;

fn revision(container: &Value) -> Value {
    json!({"containers": [container], "timeout": "300s", "maxInstanceRequestConcurrency": 80,
        "scaling": {"maxInstanceCount": 100}})
}

/// With those of variables.
fn all_flags(from: &Value, to: &Value) -> Vec<String> {
    let variables = Variables::between(from, to);
    let all = [flags(from, to).as_slice(), variables.put_back().as_slice()].concat();
    [all.as_slice(), variables.remove.as_slice()].concat()
}

#[test]
fn each_setting_that_differs_has_its_flag_and_no_other() {
    let good = revision(&json!({
        "image": "r.example/x@sha256:1", "ports": [{"name": "http1", "containerPort": 8080}],
        "resources": {"limits": {"cpu": "1", "memory": "512Mi"}, "cpuIdle": true, "startupCpuBoost": true},
        "env": [{"name": "A", "value": "1"}, {"name": "B", "value": "x,y"}],
    }));
    assert!(all_flags(&good, &good).is_empty());
    let bad = json!({
        "containers": [{
            "image": "r.example/y@sha256:2", "ports": [{"name": "h2c", "containerPort": 9}], "command": ["/no"], "args": ["a"],
            "resources": {"limits": {"cpu": "500m", "memory": "64Mi"}, "cpuIdle": false},
            "env": [{"name": "A", "value": "1"}, {"name": "C", "value": "3"}],
        }],
        "timeout": "5s", "maxInstanceRequestConcurrency": 1, "sessionAffinity": true,
        "scaling": {"minInstanceCount": 2, "maxInstanceCount": 3}, "executionEnvironment": "EXECUTION_ENVIRONMENT_GEN1",
        "annotations": {ZYGOTE: "true", "autoscaling.knative.dev/window": "6s"},
    });
    assert_eq!(
        all_flags(&bad, &good),
        [
            "--image r.example/x@sha256:1",
            "--port 8080",
            "--no-use-http2",
            "--command=''",
            "--args=''",
            "--memory 512Mi",
            "--cpu 1",
            "--timeout 300",
            "--min-instances 0",
            "--max-instances default",
            "--execution-environment gen2",
            "--cpu-throttling",
            "--cpu-boost",
            "--no-session-affinity",
            "--no-zygote",
            "--concurrency default",
            "--annotations=autoscaling.knative.dev/window=",
            "--update-env-vars='^@^B=x,y'",
            "--remove-env-vars=C",
        ]
    );
    assert!(flags(&good, &bad).contains(&"--command=/no".to_owned()));
    assert!(
        flags(&good, &bad).contains(&"--annotations=autoscaling.knative.dev/window=6s".to_owned())
    );
}

/// A flag that is proposed and refused would be worse than none.
#[test]
fn what_is_proposed_can_be_typed_and_leads_back() {
    let good = revision(
        &json!({"image": "a", "resources": {"cpuIdle": true, "startupCpuBoost": true},
        "env": [{"name": "A", "value": "x,y"}, {"name": "B", "value": "@"}, {"name": "E", "value": ""}]}),
    );
    let bad = json!({"containers": [{"image": "b", "command": ["/no"], "args": ["-c", "a,b"],
        "ports": [{"name": "h2c", "containerPort": 9}], "env": [{"name": "C", "value": "3"}],
        "resources": {"limits": {"cpu": "2", "memory": "64Mi"}, "cpuIdle": false}}],
        "timeout": "5s", "maxInstanceRequestConcurrency": 7, "scaling": {"minInstanceCount": 2, "maxInstanceCount": 3},
        "annotations": {"autoscaling.knative.dev/window": "6s", "a.dev/x": "a,b"}});
    let with = |cpu: &str, concurrency: u32| {
        let mut one = revision(&json!({"image": "a", "resources": {"limits": {"cpu": cpu}}}));
        one["maxInstanceRequestConcurrency"] = json!(concurrency);
        one
    };
    // Each has the default of its CPU: 80 with half a CPU is refused, and 1 with a whole one would stay.
    let (half, whole) = (with("500m", 1), with("1", 80));
    for (from, to) in [
        (&bad, &good),
        (&good, &bad),
        (&whole, &half),
        (&half, &whole),
    ] {
        let flags = all_flags(from, to).join("\n");
        let words: Vec<String> = flags
            .split('\n')
            .flat_map(|flag| flag.splitn(2, ' '))
            .map(|word| word.replace('\'', ""))
            .collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let service = json!({"template": from});
        let sent = crate::cli::deploy::sent(&words, service).unwrap();
        let left = all_flags(&sent["template"], to);
        assert!(left.is_empty(), "{flags}\nleaves {left:?}");
        // As written, whatever the default would make of it.
        let concurrency = |template: &Value| template["maxInstanceRequestConcurrency"].as_u64();
        let left = concurrency(&sent["template"]).filter(|left| *left != 0);
        assert!(
            left.is_none_or(|left| Some(left) == concurrency(to)),
            "{flags}\nleaves {left:?}"
        );
    }
}

/// Such were taken once: one can be removed, and none brought back.
#[test]
fn no_annotation_is_proposed_that_is_refused() {
    let with = |annotations: Value| {
        let mut one = revision(&json!({"image": "a"}));
        one["annotations"] = annotations;
        one
    };
    let plain = with(json!({}));
    let old = with(json!({"autoscaling.knative.dev/windw": "6s"}));
    let other = with(json!({"autoscaling.knative.dev/windw": "7s", "a.dev/x": "1"}));
    let annotations = |from: &Value, to: &Value| all_flags(from, to).join(" ");
    assert_eq!(annotations(&plain, &old), "");
    assert_eq!(annotations(&old, &other), "--annotations=a.dev/x=1");
    let gone = "--annotations=autoscaling.knative.dev/windw=";
    assert_eq!(annotations(&old, &plain), gone);
}

/// A note of a deploy ends in the logs of whatever deploys, and a value may be a key.
#[test]
fn values_of_variables_are_told_only_to_who_asks() {
    let with = |command: &str, env: Value| {
        revision(&json!({"image": "a", "command": [command], "env": env}))
    };
    let serving = with(
        "/a",
        json!([{"name": "API_KEY", "value": "s3cret"}, {"name": "V", "value": "s4cret"}]),
    );
    let failed = with(
        "/b",
        json!([{"name": "API_KEY", "value": "new"}, {"name": "W", "value": "s5cret"}]),
    );
    let whole = Back {
        to: Some("web-00001-abc".to_owned()),
        flags: flags(&failed, &serving),
        variables: Variables::between(&failed, &serving),
    };
    let described = whole.words("web").unwrap();
    let put_back = "utsuwa deploy web --command=/a --update-env-vars=API_KEY=s3cret,V=s4cret --remove-env-vars=W";
    assert!(described.ends_with(put_back), "{described}");
    let noted = whole.words_without_values("web").unwrap();
    assert!(noted.ends_with("Back to all else that web-00001-abc has: utsuwa deploy web --command=/a --remove-env-vars=W"), "{noted}");
    assert!(
        noted.contains("variables API_KEY, V back: `utsuwa services describe web`"),
        "{noted}"
    );
    let only = Back {
        variables: Variables {
            remove: None,
            ..whole.variables
        },
        ..Back::default()
    };
    let alone = only.words_without_values("web").unwrap();
    assert!(
        alone.ends_with("`utsuwa services describe web`."),
        "{alone}"
    );
    for said in [noted, alone] {
        assert!(!said.contains("cret"), "{said}");
    }
}

#[test]
fn the_way_back_names_where_it_leads() {
    let failed = json!({"containers": [{"image": "x", "command": ["/no"], "resources": {"startupCpuBoost": true}}]});
    let fresh = Back::to_defaults(&failed);
    let said = fresh.words("web").unwrap();
    assert!(said.ends_with("defaults: --command=''"), "{said}");
    let back = Back {
        to: Some("web-00001-abc".to_owned()),
        flags: vec!["--memory 1Gi".to_owned()],
        ..Back::default()
    };
    assert_eq!(back.words("web"), back.words_without_values("web"));
    let said = back.words("web").unwrap();
    assert!(
        said.ends_with("what web-00001-abc has: utsuwa deploy web --memory 1Gi"),
        "{said}"
    );
    assert_eq!(Back::default().words("web"), None);
}
