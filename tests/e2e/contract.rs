//! Knative's runtime contract, as its conformance tests check it (cloud-run-spec.md §5.2), one test a row and named by its number.
//!
//! Here: the rows about variables, requests and what a spec may ask for. What the launcher makes (files, limits, users) is in
//! `crates/runtime/tests/launcher_contract`; R15–R17 (probes) are in `health.rs` and `bad_apps.rs`.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{PARENT, Server, can_run, host_architecture, pack, until};
use crate::skip::here;

const V1: &str = "/run/apis/serving.knative.dev/v1/namespaces/demo/services";
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// What the sample shows at `path`, as JSON.
fn shown(server: &Server, name: &str, request: &str) -> Value {
    let (status, _, body) = server.request(name, request);
    assert_eq!(status, 200, "{body}");
    serde_json::from_str(&body).unwrap()
}

fn get(name: &str, path: &str, more: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: {name}.localhost\r\nconnection: close\r\n{more}\r\n")
}

/// TestMustEnvVars.
#[test]
fn r03_variables_that_must_be_there() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("app", &["--port", "8801"]);
    // It also listens there, or it would not answer.
    let env = shown(&server, "app", &get("app", "/env", ""));
    assert_eq!(env["PORT"], json!("8801"));
    server.finish();
}

/// TestShouldEnvVars.
#[test]
fn r04_variables_that_should_be_there() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("app", &["--set-env-vars", "MINE=yes"]);
    let env = shown(&server, "app", &get("app", "/env", ""));
    let (_, service) = server.api_get(&format!("{PARENT}/services/app"));
    let revision = service["latestReadyRevision"].as_str().unwrap();
    assert_eq!(env["K_SERVICE"], json!("app"));
    assert_eq!(env["K_CONFIGURATION"], json!("app"));
    assert_eq!(
        env["K_REVISION"],
        json!(revision.rsplit('/').next().unwrap())
    );
    assert_eq!(env["MINE"], json!("yes"));
    server.finish();
}

/// TestMustHaveHeadersSet.
#[test]
fn r05_headers_that_must_be_there() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("app", &[]);
    let headers = shown(&server, "app", &get("app", "/headers", ""));
    assert_eq!(headers["host"], json!("app.localhost"));
    // RFC 7239: pairs of a known name and a token or a quoted string.
    let forwarded = headers["forwarded"].as_str().unwrap();
    for element in forwarded.split(',') {
        for pair in element.trim().split(';') {
            let (name, value) = pair.split_once('=').unwrap();
            assert!(
                ["for", "by", "proto", "host"].contains(&name.to_lowercase().as_str()),
                "{forwarded}"
            );
            let quoted = value.len() > 2 && value.starts_with('"') && value.ends_with('"');
            let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            assert!(quoted || value.chars().all(token), "{forwarded}");
        }
    }
    server.finish();
}

/// TestShouldHaveHeadersSet.
#[test]
fn r06_headers_that_should_be_there() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("app", &[]);
    let headers = shown(
        &server,
        "app",
        &get("app", "/headers", "x-mine: As It Was; \"quoted\"\r\n"),
    );
    assert_eq!(headers["x-mine"], json!("As It Was; \"quoted\""));
    assert!(["http", "https"].contains(&headers["x-forwarded-proto"].as_str().unwrap()));
    let from = headers["x-forwarded-for"].as_str().unwrap();
    for address in from.split(',') {
        address.trim().parse::<std::net::IpAddr>().unwrap();
    }
    let trace = headers["traceparent"].as_str().unwrap();
    let lengths: Vec<usize> = trace.split('-').map(str::len).collect();
    assert_eq!(lengths, [2, 32, 16, 2], "{trace}");
    let hex = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
    assert!(
        trace.split('-').all(|part| part.chars().all(hex)),
        "{trace}"
    );
    server.finish();
}

/// An image with busybox whose `/srv/say` is run for each connection, which is its standard input and output.
fn line_reader(dir: &Path) -> String {
    let root = dir.join("lines");
    for directory in ["bin", "srv", "etc"] {
        std::fs::create_dir_all(root.join(directory)).unwrap();
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    let script = "#!/bin/busybox sh\nIFS= read -r line && echo \"first line: $line\" >&2\n";
    std::fs::write(root.join("srv/say"), script).unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(root.join("srv/say"), executable).unwrap();
    let entry = "/bin/busybox nc -ll -p $PORT -e /srv/say";
    let config = json!({"Entrypoint": ["/bin/busybox", "sh", "-c", entry]});
    let archive = pack(&root, &config, host_architecture(), false);
    format!("oci-archive:{}", archive.display())
}

/// TestProtocols: what the app is spoken to in, by the name of its port. That whole answers come back is the ingress's tests' work.
#[test]
fn r07_protocols() {
    if !can_run(here!()) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut server = Server::start(&[]);
    let image = line_reader(dir.path());
    for (name, more, expected) in [
        ("one", &["--no-use-http2"][..], "GET /seen HTTP/1.1"),
        ("unnamed", &[], "GET /seen HTTP/1.1"),
        ("two", &["--use-http2"], "PRI * HTTP/2.0"),
    ] {
        let args = [&["--image", image.as_str()][..], more].concat();
        server.deploy(name, &args);
        // It answers nothing that could be passed on.
        assert_eq!(server.get(name, "/seen").0, 503);
        let line = format!("first line: {expected}");
        until(&line, PATIENCE, || {
            server.ok(&["logs", name]).contains(&line).then_some(())
        });
    }
    server.expect_warning("first line");
    server.finish();
}

/// A service in Knative's form with `change` made to its one container.
fn service(change: impl FnOnce(&mut Value)) -> Value {
    let mut container = json!({"image": "utsuwa.local/hello"});
    change(&mut container);
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": "app", "namespace": "demo"},
        "spec": {"template": {"spec": {"containers": [container]}}},
    })
}

/// Each change must be refused with its field's name, and nothing made.
fn refused(server: &Server, changes: &[(&str, Value, &str)]) {
    for (field, value, words) in changes {
        let body = service(|container| container[*field] = value.clone());
        let (status, answer) = server.api_call("POST", V1, &body);
        assert_eq!(status, 400, "{field}: {answer}");
        let said = answer.to_string();
        assert!(
            said.contains(field) && said.contains(words),
            "{field}: {said}"
        );
    }
    assert_eq!(server.api_get(&format!("{V1}/app")).0, 404);
}

/// TestMustNotContainerConstraints.
#[test]
fn r11_what_a_container_must_not_ask_for() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    refused(
        &server,
        &[
            (
                "ports",
                json!([{"name": "arbitrary", "containerPort": 8080}]),
                "write h2c, http1 or nothing",
            ),
            (
                "volumeMounts",
                json!([{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]),
                "mountPropagation",
            ),
        ],
    );
    server.finish();
}

/// TestShouldNotContainerConstraints.
#[test]
fn r12_what_a_container_should_not_ask_for() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    let hook = json!({"exec": {"command": ["true"]}});
    refused(
        &server,
        &[
            ("lifecycle", json!({"postStart": hook}), "must not set"),
            ("lifecycle", json!({"preStop": hook}), "must not set"),
            (
                "ports",
                json!([{"containerPort": 8080}, {"containerPort": 8081}]),
                "ports",
            ),
            (
                "ports",
                json!([{"containerPort": 8080, "hostPort": 80}]),
                "hostPort",
            ),
            ("stdin", json!(true), "must not set"),
            ("stdinOnce", json!(true), "must not set"),
            ("tty", json!(true), "must not set"),
            (
                "securityContext",
                json!({"runAsUser": -10}),
                "securityContext",
            ),
        ],
    );
    server.finish();
}

/// TestSecretsViaEnv and TestConfigsViaEnv: neither is built, and neither is silently left out.
#[test]
fn r13_variables_from_secrets_and_config_maps() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    let from = |kind: &str| json!([{"name": "A", "valueFrom": {kind: {"name": "s", "key": "1"}}}]);
    refused(
        &server,
        &[
            ("env", from("secretKeyRef"), "secrets are not built"),
            ("env", from("configMapKeyRef"), "configMapKeyRef"),
            (
                "envFrom",
                json!([{"configMapRef": {"name": "s"}}]),
                "envFrom",
            ),
        ],
    );
    server.finish();
}
