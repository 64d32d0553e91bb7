//! From an image to an answer.

use std::time::Duration;

use serde_json::json;

use crate::harness::{Server, can_run, until};

#[test]
fn the_sample_is_deployed_woken_and_sleeps_again() {
    if !can_run("deploy::the_sample_is_deployed_woken_and_sleeps_again") {
        return;
    }
    let server = Server::start(&[]);
    let printed = server.deploy(
        "hello",
        &["--annotations", "autoscaling.knative.dev/window=6s"],
    );
    assert!(
        printed.contains(&format!("http://hello.localhost:{}", server.http.port())),
        "{printed}"
    );
    server.until_instances("hello", 0);
    let (status, head, body) = server.request("hello", "GET / HTTP/1.1\r\nhost: hello.localhost\r\nx-utsuwa-timing: 1\r\nconnection: close\r\n\r\n");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("hello"), "{body}");
    let timing = head
        .lines()
        .find(|l| l.to_lowercase().starts_with("server-timing:"))
        .unwrap_or_else(|| panic!("no server-timing in {head}"));
    for phase in ["decide", "sandbox", "rootfs", "exec", "listen", "answer"] {
        assert!(timing.contains(phase), "{phase} is missing in {timing}");
    }
    assert_eq!(server.instance_pids("hello").len(), 1);
    server.until_instances("hello", 0);
    server.finish();
}

#[test]
fn the_container_contract_of_the_environment() {
    if !can_run("deploy::the_container_contract_of_the_environment") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy(
        "contract",
        &["--set-env-vars", "COLOUR=blue,EMPTY=", "--port", "9000"],
    );
    let (status, body) = server.get("contract", "/env");
    assert_eq!(status, 200, "{body}");
    let env: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        (&env["PORT"], &env["K_SERVICE"], &env["K_CONFIGURATION"]),
        (&json!("9000"), &json!("contract"), &json!("contract"))
    );
    assert!(
        env["K_REVISION"]
            .as_str()
            .unwrap()
            .starts_with("contract-00001-"),
        "{env}"
    );
    assert_eq!(
        (&env["COLOUR"], &env["EMPTY"]),
        (&json!("blue"), &json!(""))
    );
    let (_, headers) = server.get("contract", "/headers");
    let headers = headers.to_lowercase();
    for header in [
        "x-forwarded-for",
        "x-forwarded-proto",
        "forwarded",
        "traceparent",
        "x-cloud-trace-context",
        "contract.localhost",
    ] {
        assert!(headers.contains(header), "{header} is missing in {headers}");
    }
    server.finish();
}

#[test]
fn a_private_service_answers_403_and_wakes_nothing() {
    if !can_run("deploy::a_private_service_answers_403_and_wakes_nothing") {
        return;
    }
    let server = Server::start(&["--idle-timeout", "6s"]);
    server.ok(&[
        "deploy",
        "closed",
        "--image",
        "utsuwa.local/hello",
        "--no-allow-unauthenticated",
    ]);
    server.until_instances("closed", 0);
    let (status, body) = server.get("closed", "/");
    assert_eq!(status, 403, "{body}");
    assert_eq!(server.instance_pids("closed").len(), 0);
    until(
        "the refusal to be in the log",
        Duration::from_secs(10),
        || {
            let log = server.ok(&["logs", "closed"]);
            (log.contains(" 403 ") && log.contains("was not authenticated")).then_some(())
        },
    );
    assert_eq!(server.get("nobody", "/").0, 404);
    server.finish();
}

#[test]
fn traffic_is_split_tagged_and_pinned() {
    if !can_run("deploy::traffic_is_split_tagged_and_pinned") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy(
        "split",
        &["--set-env-vars", "V=one", "--revision-suffix", "one"],
    );
    server.deploy(
        "split",
        &[
            "--set-env-vars",
            "V=two",
            "--revision-suffix",
            "two",
            "--no-traffic",
            "--tag",
            "next",
        ],
    );
    let version = |name: &str| {
        serde_json::from_str::<serde_json::Value>(&server.get(name, "/env").1).unwrap()["V"].clone()
    };
    assert_eq!(version("split"), json!("one"));
    assert_eq!(version("next---split"), json!("two"));
    server.ok(&[
        "services",
        "update-traffic",
        "split",
        "--to-revisions",
        "split-one=50,split-two=50",
    ]);
    until("both revisions to answer", Duration::from_secs(30), || {
        let seen: Vec<_> = (0..20).map(|_| version("split")).collect();
        (seen.contains(&json!("one")) && seen.contains(&json!("two"))).then_some(())
    });
    server.ok(&["services", "update-traffic", "split", "--to-latest"]);
    until(
        "everything to go to the latest",
        Duration::from_secs(10),
        || {
            (0..20)
                .all(|_| version("split") == json!("two"))
                .then_some(())
        },
    );
    server.finish();
}

#[test]
fn a_failed_deploy_changes_nothing_that_serves() {
    if !can_run("deploy::a_failed_deploy_changes_nothing_that_serves") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("steady", &["--set-env-vars", "V=good"]);
    let failed = server.utsuwa(&[
        "deploy",
        "steady",
        "--set-env-vars",
        "V=bad",
        "--command",
        "/no/such/program",
    ]);
    assert_eq!(failed.status.code(), Some(1));
    let said = String::from_utf8_lossy(&failed.stderr).into_owned();
    for word in [
        "/no/such/program",
        "what served before still serves",
        "the next deploy begins from there",
        "How to put the variables V back: `utsuwa services describe steady`",
        "has: utsuwa deploy steady --command=''",
    ] {
        assert!(said.contains(word), "{word} is missing in: {said}");
    }
    // Nothing was started, so nothing was written.
    assert!(!said.contains("utsuwa logs"), "{said}");
    // A value may be a key, and this a log that others read.
    assert!(!said.contains("good"), "{said}");
    let shown = server.ok(&["services", "describe", "steady"]);
    for word in [
        "which failed and does not serve)",
        "utsuwa deploy steady --command='' --update-env-vars=V=good",
    ] {
        assert!(shown.contains(word), "{word} is missing in: {shown}");
    }
    let (status, body) = server.get("steady", "/env");
    assert_eq!(status, 200, "{body}");
    assert!(body.contains("good") && !body.contains("bad"), "{body}");
    let described = server.ok(&["services", "describe", "steady", "--format", "json"]);
    let described: serde_json::Value = serde_json::from_str(&described).unwrap();
    assert_eq!(
        described["terminalCondition"]["state"],
        json!("CONDITION_FAILED")
    );
    assert_ne!(
        described["latestReadyRevision"],
        described["latestCreatedRevision"]
    );
    // What was proposed leads back.
    server.deploy("steady", &["--command=", "--update-env-vars=V=good"]);
    server.finish();
}

#[test]
fn deleting_leaves_nothing() {
    if !can_run("deploy::deleting_leaves_nothing") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("gone", &[]);
    assert_eq!(server.get("gone", "/").0, 200);
    server.ok(&["services", "delete", "gone", "--quiet"]);
    until("the host to be unknown", Duration::from_secs(10), || {
        (server.get("gone", "/").0 == 404).then_some(())
    });
    let (status, _) = server.api_get(&format!("{}/services/gone", crate::harness::PARENT));
    assert_eq!(status, 404);
    let (_, revisions) =
        server.api_get(&format!("{}/services/-/revisions", crate::harness::PARENT));
    assert_eq!(
        revisions["revisions"].as_array().map_or(0, Vec::len),
        0,
        "{revisions}"
    );
    server.finish();
}

#[test]
fn lines_of_an_instance_can_be_read() {
    if !can_run("deploy::lines_of_an_instance_can_be_read") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("talker", &[]);
    assert_eq!(
        server
            .get("talker", "/log?severity=ERROR&message=over-here&lines=3")
            .0,
        200
    );
    let lines = until("the lines to be there", Duration::from_secs(10), || {
        let lines = server.ok(&["logs", "talker", "--format", "json"]);
        (lines.matches("over-here").count() >= 3).then_some(lines)
    });
    let sequences: Vec<u64> = lines
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter(|l| l["stream"] == "stdout")
        .filter_map(|l| {
            l["sequence"]
                .as_u64()
                .or_else(|| l["sequence"].as_str()?.parse().ok())
        })
        .collect();
    assert!(sequences.windows(2).all(|w| w[0] < w[1]), "{sequences:?}");
    server.finish();
}
