//! What is wrong, unknown or not built is said in the API's own words.

use super::*;

#[tokio::test]
async fn wrong_fields_are_named_in_v1s_words() {
    let bench = Bench::new();
    type Row = (&'static str, Value, &'static str);
    let rows: Vec<Row> = vec![
        (
            "/metadata/name",
            json!("Hello"),
            "metadata.name: not a DNS 1035 label",
        ),
        (
            "/metadata/name",
            json!("a".repeat(50)),
            "metadata.name: not a DNS 1035 label",
        ),
        ("/metadata/name", json!(""), "metadata.name: missing"),
        ("/kind", json!("Job"), "kind: must be \"Service\""),
        ("/spec", Value::Null, "spec: missing"),
        (
            "/spec/template/spec/containers",
            json!([]),
            "spec.template.spec.containers: missing",
        ),
        (
            "/spec/template/spec/containers",
            json!({}),
            "spec.template.spec.containers: must be a list",
        ),
        (
            "/spec/template/spec/containers/0/image",
            json!("A B"),
            "spec.template.spec.containers[0].image: Failed to parse",
        ),
        (
            "/spec/template/spec/containers/0/env",
            json!([{"name": "PORT", "value": "1"}]),
            "spec.template.spec.containers[0].env: The following reserved env names were provided: PORT.",
        ),
        (
            "/spec/template/spec/containers/0/ports",
            json!([{"containerPort": 70000}]),
            "spec.template.spec.containers[0].ports[0].containerPort: expected 1 <= 70000 <= 65535",
        ),
        (
            "/spec/template/spec/containers/0/ports",
            json!([{"containerPort": "x"}]),
            "spec.template.spec.containers[0].ports[0].containerPort: must be a whole number",
        ),
        (
            "/spec/template/spec/containers/0/resources/limits",
            json!({"cpu": "3"}),
            "spec.template.spec.containers[0].resources.limits.cpu: Invalid value",
        ),
        (
            "/spec/template/spec/containers/0/securityContext",
            json!({"runAsUser": 1}),
            "spec.template.spec.containers[0].securityContext: must not set the field(s): securityContext",
        ),
        (
            "/spec/template/spec/containers/0/startupProbe",
            json!({"exec": {"command": ["x"]}}),
            "spec.template.spec.containers[0].startupProbe.exec: must not set",
        ),
        (
            "/spec/template/spec/containers/0/livenessProbe",
            json!({"tcpSocket": {"port": 8080}}),
            "spec.template.spec.containers[0].livenessProbe.tcpSocket: is for startup probes only",
        ),
        (
            "/spec/template/spec/containers/0/livenessProbe",
            json!({"httpGet": {"path": "/"}, "successThreshold": 2}),
            "spec.template.spec.containers[0].livenessProbe.successThreshold: must be 1, not 2",
        ),
        (
            "/spec/template/spec/containers/0/env",
            json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "1"}}}]),
            "spec.template.spec.containers[0].env[0].valueFrom.secretKeyRef: secrets are not built",
        ),
        (
            "/spec/template/spec/volumes",
            json!([{"name": "b", "csi": {"driver": "gcsfuse.run.googleapis.com"}}]),
            "spec.template.spec.volumes[0].csi: volumes of kind csi are not built",
        ),
        (
            "/spec/template/spec/initContainers",
            json!([{}]),
            "spec.template.spec.initContainers: must not set",
        ),
        (
            "/spec/template/spec/timeoutSeconds",
            json!(3601),
            "spec.template.spec.timeoutSeconds: expected 0 <= 3601 <= 3600",
        ),
        (
            "/spec/template/spec/timeoutSeconds",
            json!(-1),
            "spec.template.spec.timeoutSeconds: expected 0 <= -1",
        ),
        (
            "/spec/template/spec/containerConcurrency",
            json!(1001),
            "spec.template.spec.containerConcurrency: expected 0 <= 1001 <= 1000",
        ),
        (
            "/spec/template/metadata/name",
            json!("other-1"),
            "spec.template.metadata.name: \"other-1\" must have prefix \"wrong-\"",
        ),
        (
            "/spec/template/metadata/annotations/autoscaling.knative.dev~1minScale",
            json!("many"),
            "spec.template.metadata.annotations[autoscaling.knative.dev/minScale]: invalid value",
        ),
        (
            "/metadata/annotations/autoscaling.knative.dev~1minScale",
            json!("1"),
            "metadata.annotations[autoscaling.knative.dev/minScale]: autoscaling annotations must be put under",
        ),
        (
            "/spec/traffic",
            json!([{"percent": 50, "latestRevision": true}]),
            "spec.traffic: Traffic targets sum to 50, want 100",
        ),
        (
            "/spec/traffic",
            json!([{"percent": 100, "revisionName": "wrong-x"}]),
            "spec.traffic[0].revisionName: Revision \"wrong-x\"",
        ),
        (
            "/spec/traffic",
            json!([{"percent": 100, "url": "http://x"}]),
            "spec.traffic[0].url: must not be set",
        ),
    ];
    for (pointer, value, expected) in rows {
        let mut body = hello("wrong");
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[last.replace("~1", "/")] = value;
        let answer = bench.call("POST", SERVICES, body).await;
        let (status, name, message) = error(&answer);
        assert_eq!(
            (status, name),
            (400, "INVALID_ARGUMENT"),
            "{pointer}: {answer:?}"
        );
        assert!(
            message.starts_with(expected),
            "{pointer}: expected {expected:?}, said {message:?}"
        );
        let violation = &answer.1["error"]["details"][0];
        assert_eq!(
            violation["@type"],
            "type.googleapis.com/google.rpc.BadRequest"
        );
        assert!(expected.starts_with(violation["fieldViolations"][0]["field"].as_str().unwrap()));
    }
    assert_eq!(
        get(&bench, SERVICES).await["items"],
        json!([]),
        "nothing was written"
    );
    let answer = bench.call("POST", SERVICES, json!("text")).await;
    assert_eq!(error(&answer).0, 400);
}

/// Every part of a request replaced by every kind of JSON: an answer in Google's words each time, never an internal error.
#[tokio::test]
async fn nothing_that_is_sent_breaks_us() {
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(k, v)| {
                    pointers(v, &format!("{at}/{}", k.replace('/', "~1")), found)
                });
            }
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(i, v)| pointers(v, &format!("{at}/{i}"), found)),
            _ => {}
        }
    }
    let bench = Bench::new();
    let mut whole = hello("whole");
    whole["metadata"]["resourceVersion"] = json!("1");
    whole["spec"]["traffic"] =
        json!([{"percent": 100, "latestRevision": true, "tag": "a", "revisionName": ""}]);
    let container = &mut whole["spec"]["template"]["spec"]["containers"][0];
    container["env"] = json!([{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "1"}}}]);
    container["ports"] = json!([{"name": "h2c", "containerPort": 1}]);
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v", "readOnly": true}]);
    container["startupProbe"] = json!({"httpGet": {"path": "/", "port": 1, "httpHeaders": [{"name": "a", "value": "b"}]}, "periodSeconds": 1});
    container["livenessProbe"] = json!({"grpc": {"port": 1, "service": "s"}});
    whole["spec"]["template"]["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s", "items": [{"key": "1", "path": "p", "mode": 1}]}}, {"name": "w", "emptyDir": {"medium": "Memory"}}]);
    let mut all = Vec::new();
    pointers(&whole, "", &mut all);
    assert!(all.len() > 60);
    let kinds = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\u{7f}é"),
        json!([]),
        json!([null]),
        json!({}),
        json!({"a": [1]}),
    ];
    for pointer in &all {
        for kind in &kinds {
            let mut body = whole.clone();
            *body.pointer_mut(pointer).unwrap() = kind.clone();
            let (status, answer) = bench
                .call("POST", &format!("{SERVICES}?dryRun=all"), body)
                .await;
            assert!(
                status == 200 || status == 400,
                "{pointer} = {kind}: {status} {answer}"
            );
        }
    }
}

#[tokio::test]
async fn what_isnt_built_says_so_and_the_rest_isnt_there() {
    let bench = Bench::new();
    for (path, status, name) in [
        (
            "/run/apis/run.googleapis.com/v1/namespaces/demo/jobs",
            400,
            "UNIMPLEMENTED",
        ),
        (
            "/run/apis/domains.cloudrun.com/v1/namespaces/demo/nothing",
            400,
            "UNIMPLEMENTED",
        ),
        (
            "/run/v1/projects/demo/locations/asia-northeast1/jobs",
            400,
            "UNIMPLEMENTED",
        ),
        (
            "/run/apis/serving.knative.dev/v1/namespaces/demo/nothing",
            404,
            "NOT_FOUND",
        ),
        (
            "/run/apis/serving.knative.dev/v1/namespaces/Demo/services",
            400,
            "INVALID_ARGUMENT",
        ),
        (
            "/run/v1/projects/demo/locations/Tokyo!/services",
            400,
            "INVALID_ARGUMENT",
        ),
        (
            "/run/v1/projects/demo/locations/r/services/%zz",
            400,
            "INVALID_ARGUMENT",
        ),
    ] {
        let answer = bench.call("GET", path, Value::Null).await;
        assert_eq!(
            (error(&answer).0, error(&answer).1),
            (status, name),
            "{path}: {answer:?}"
        );
    }
}
