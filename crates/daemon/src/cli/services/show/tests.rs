use super::*;

fn about(ran: bool) -> About<'static> {
    About {
        callers: "everybody",
        ran,
        way: None,
        trouble: Vec::new(),
    }
}

#[test]
fn a_template_that_does_not_serve_says_so() {
    let head = |service: &Value| {
        let lines = service_lines(service, &about(true));
        let found = lines.into_iter().find(|l| l.starts_with("Template:"));
        found.unwrap()
    };
    let mut service = json!({
        "latestCreatedRevision": "s/revisions/web-2",
        "terminalCondition": {"state": "CONDITION_SUCCEEDED"},
        "trafficStatuses": [
            {"revision": "s/revisions/web-1", "percent": 100},
            {"revision": "s/revisions/web-2", "tag": "next"},
        ],
    });
    assert_eq!(
        head(&service),
        "Template: (of web-2, which gets no part of the traffic)"
    );
    service["terminalCondition"]["state"] = json!("CONDITION_FAILED");
    assert_eq!(
        head(&service),
        "Template: (of web-2, which failed and does not serve)"
    );
    let way = Some("Back: so".to_owned());
    let lines = service_lines(&service, &About { way, ..about(true) });
    assert!(lines.iter().any(|l| l.ends_with("Back: so")), "{lines:?}");
    for (key, value) in [
        ("latestCreatedRevision", json!("s/revisions/web-1")),
        ("reconciling", json!(true)),
        ("trafficStatuses", json!([])),
    ] {
        let mut fine = service.clone();
        fine[key] = value;
        assert_eq!(head(&fine), "Template:", "{key}");
    }
}

#[test]
fn an_address_that_is_switched_off_is_said_to_be_and_not_shown() {
    let mut service = json!({
        "name": "projects/p/locations/r/services/web",
        "uri": "http://web.localhost:8080",
        "urls": ["http://web.localhost:8080", "https://web.localhost:8443"],
    });
    let head = |service: &Value| service_lines(service, &about(true))[1..3].join("\n");
    assert_eq!(
        head(&service),
        "URL:      http://web.localhost:8080\n          https://web.localhost:8443"
    );
    assert_eq!(address(&service), "http://web.localhost:8080");

    service = json!({
        "name": "projects/p/locations/r/services/web",
        "defaultUriDisabled": true,
        "urls": ["https://www.example.com"],
        "trafficStatuses": [{"revision": "s/revisions/web-2", "tag": "next"}],
    });
    let text = head(&service);
    for part in [
        "URL:      its own is switched off",
        "--default-url`",
        "\n          https://www.example.com",
    ] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(address(&service), "https://www.example.com");
    assert!(traffic_lines(&service)[1].ends_with("web-2  tag next"));
    service["urls"] = json!([]);
    assert_eq!(address(&service), "off");
}

#[test]
fn a_service_is_described_as_gcloud_would() {
    let service = json!({
        "name": "projects/p/locations/r/services/hello",
        "uri": "http://hello.localhost:8080",
        "terminalCondition": {"state": "CONDITION_SUCCEEDED"},
        "latestReadyRevision": "projects/p/locations/r/services/hello/revisions/hello-1",
        "scaling": {"minInstanceCount": 1},
        "template": {
            "timeout": "300s",
            "maxInstanceRequestConcurrency": 80,
            "scaling": {"maxInstanceCount": 10},
            "containers": [{
                "image": "r.example/x",
                "ports": [{"name": "h2c", "containerPort": 9000}],
                "resources": {"limits": {"cpu": "1", "memory": "512Mi"}},
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "valueSource": {"secretKeyRef": {"secret": "s"}}},
                ],
            }],
        },
    });
    let text = service_lines(&service, &about(true)).join("\n");
    for part in [
        "Port:            9000 (HTTP/2)",
        "Memory:          512Mi",
        "CPU:             1",
        "Concurrency:     80",
        "Timeout:         300s",
        "Startup probe:   TCP on port 9000, within 240s (default)",
        "Min instances:   0",
        "Max instances:   10",
        "Scaling:  automatic, at least 1 instance\n",
        "    A              1",
        "    B              (secret s)",
        "Ingress:  all",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains("serves"), "{text}");

    assert!(
        !text.contains("Execution:") && !text.contains("Labels:"),
        "{text}"
    );

    let mut odd = service.clone();
    odd["labels"] = json!({"team": "a", "tier": "b"});
    odd["description"] = json!("what it is for");
    odd["template"]["executionEnvironment"] = json!("EXECUTION_ENVIRONMENT_GEN1");
    odd["template"]["annotations"] =
        json!({"utsuwa.local/refuse-scanners": "true", "client.knative.dev/nonce": "x"});
    odd["template"]["containers"][0]["resources"]["cpuIdle"] = json!(false);
    let text = service_lines(&odd, &about(true)).join("\n");
    for part in [
        "CPU:             1 (also between requests)",
        "CPU boost:       none at the start",
        "Execution:       gen1 (gVisor)",
        "Option:          refuse-scanners=true",
        "Labels:   team=a, tier=b",
        "About:    what it is for",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
    assert!(!text.contains("nonce"), "{text}");

    let mut bare = service.clone();
    bare["template"] =
        json!({"containers": [{"image": "x", "resources": {"limits": {"cpu": "500m"}}}]});
    let text = service_lines(&bare, &about(true)).join("\n");
    for part in [
        "Port:            8080",
        "Memory:          512Mi",
        "CPU:             500m",
        "Concurrency:     1",
        "Timeout:         300s",
        "Max instances:   100",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[test]
fn a_failure_is_listed_with_its_reason_and_what_to_do() {
    let mut service = json!({
        "name": "projects/p/locations/r/services/bad",
        "terminalCondition": {
            "state": "CONDITION_FAILED",
            "reason": "REVISION_FAILED",
            "message": format!("Image 'nowhere' not found. {}\nMore.", "x".repeat(80)),
        },
    });
    assert_eq!(state(&service), "serves nothing");
    assert_eq!(reason(&service), "Image 'nowhere' not found.");
    let revision = |reason: &str| {
        json!({"conditions": [
            {"type": "Active", "state": "CONDITION_FAILED", "reason": "NO_DEPLOYMENT"},
            {"type": "Ready", "state": "CONDITION_FAILED", "reason": reason},
        ]})
    };
    assert!(nothing_ran(&revision("CONTAINER_MISSING")));
    assert!(!nothing_ran(&revision("UNKNOWN")));
    let mut unstarted = revision("HEALTH_CHECK_CONTAINER_ERROR");
    assert!(!nothing_ran(&unstarted));
    unstarted["conditions"][1]["message"] = json!(format!("{NOT_STARTED} no /app"));
    assert!(nothing_ran(&unstarted));
    let text = service_lines(&service, &about(false)).join("\n");
    assert!(text.contains(&"x".repeat(80)), "described whole: {text}");
    assert!(text.contains("utsuwa services delete bad"), "{text}");
    assert!(text.contains("no revision of it ever became ready"));
    assert!(text.contains("nothing is routed"), "{text}");
    assert!(!text.contains("utsuwa logs"), "it wrote nothing: {text}");

    service["latestReadyRevision"] = json!("projects/p/locations/r/services/bad/revisions/bad-1");
    assert_eq!(state(&service), "last deploy failed");
    service["terminalCondition"]["message"] = json!(
        "Revision 'bad-2' is not ready and cannot serve traffic. The container exited.\n\nMore."
    );
    assert_eq!(reason(&service), "The container exited.");
    let text = service_lines(&service, &about(true)).join("\n");
    assert!(text.contains("What served before still serves."), "{text}");
    service["terminalCondition"] = json!({"state": "CONDITION_SUCCEEDED"});
    assert_eq!(state(&service), "ready");
    assert_eq!(reason(&service), "");
}
