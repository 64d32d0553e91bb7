//! Liveness and readiness probes on real instances.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{PARENT, Server, can_run, until};

/// Longer than any turn takes here: three checks, one a second, and a start.
const TURN: Duration = Duration::from_secs(20);

fn probe() -> Value {
    json!({"httpGet": {"path": "/healthz"}, "periodSeconds": 1, "failureThreshold": 2})
}

/// Adds `probes` to the one container of the sample.
fn set(server: &Server, name: &str, probes: &Value) {
    // With CPU between requests: a frozen instance isn't asked.
    let mut container = json!({
        "image": "utsuwa.local/hello",
        "resources": {"limits": {"cpu": "1"}, "cpuIdle": false},
    });
    let members = container.as_object_mut().unwrap();
    members.extend(probes.as_object().unwrap().clone());
    let (status, operation) = server.api_call(
        "PATCH",
        &format!("{PARENT}/services/{name}"),
        &json!({"template": {"containers": [container], "scaling": {"maxInstanceCount": 1}}}),
    );
    assert_eq!(status, 200, "{operation}");
    let operation = operation["name"].as_str().unwrap().to_owned();
    until("the deploy to be done", TURN, || {
        let (_, answer) = server.api_get(&format!("/run/v2/{operation}"));
        assert!(answer["error"].is_null(), "{answer}");
        (answer["done"] == json!(true)).then_some(())
    });
}

fn said(server: &Server, name: &str, words: &str) {
    until(&format!("{words:?} in the log"), TURN, || {
        server.ok(&["logs", name]).contains(words).then_some(())
    });
}

fn state(server: &Server, name: &str) -> String {
    let explained = server.explain(name);
    let revisions = explained["revisions"].as_array().unwrap();
    let mut states = revisions
        .iter()
        .flat_map(|revision| revision["instances"].as_array().unwrap())
        .map(|instance| instance["state"].as_str().unwrap().to_owned());
    states.next().unwrap_or_default()
}

#[test]
fn a_sick_instance_is_taken_out_and_ended_as_its_probes_say() {
    if !can_run("health::a_sick_instance_is_taken_out_and_ended_as_its_probes_say") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("app", &[]);
    set(&server, "app", &json!({"livenessProbe": probe()}));
    assert_eq!(server.get("app", "/healthz").0, 200);
    server.until_instances("app", 1);
    let before = server.instance_pids("app");
    assert_eq!(server.get("app", "/health?set=sick").0, 200);
    // In flight until the probe has failed twice.
    assert_eq!(server.get("app", "/sleep?ms=60000").0, 503);
    let after = until("another instance", TURN, || {
        assert_eq!(server.get("app", "/healthz").0, 200, "the new one is well");
        Some(server.instance_pids("app")).filter(|now| now.len() == 1 && *now != before)
    });
    assert_ne!(after, before);
    said(
        &server,
        "app",
        "The liveness probe failed 2 times in a row: GET /healthz on port 8080; the last time: HTTP status 503 Service Unavailable.",
    );

    set(&server, "app", &json!({"readinessProbe": probe()}));
    assert_eq!(server.get("app", "/healthz").0, 200);
    // The revision before leaves.
    server.until_instances("app", 1);
    let before = server.instance_pids("app");
    assert_eq!(server.get("app", "/health?set=sick&ms=5000").0, 200);
    until("not ready", TURN, || {
        (state(&server, "app") == "not ready").then_some(())
    });
    assert_eq!(server.instance_pids("app"), before, "it is kept");
    let why = server.ok(&["services", "describe", "app", "--why"]);
    for words in [
        "not ready since ",
        "its readiness probe fails since ",
        "GET /healthz on port 8080; last answer: HTTP status 503 Service Unavailable",
    ] {
        assert!(why.contains(words), "{words:?} in {why}");
    }
    // Waits for it to be well again, since nobody else may be started.
    assert_eq!(server.get("app", "/").0, 200);
    assert_eq!(state(&server, "app"), "ready");
    assert_eq!(server.instance_pids("app"), before);
    said(
        &server,
        "app",
        "The instance gets no new requests until it succeeds 2 times in a row.",
    );
    server.finish();
}
