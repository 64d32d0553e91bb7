//! Apps and images that do not work: the deploy says why in words the user can act on, and what served before still serves.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{PARENT, Server, can_run, host_architecture, pack, until};

/// How Cloud Run says that nothing can be reached at the port.
const NOT_LISTENING: &str =
    "failed to start and listen on the port defined provided by the PORT=8080 environment variable";

/// A service that works, whose next revisions will not.
fn with_good(name: &str) -> Server {
    let server = Server::start(&[]);
    server.deploy(name, &["--set-env-vars", "V=good"]);
    server
}

/// A template of the sample with variables, given up on after two seconds.
fn hello(env: &[(&str, &str)]) -> Value {
    let env: Vec<Value> = env
        .iter()
        .map(|(name, value)| json!({"name": name, "value": value}))
        .collect();
    json!({"containers": [{
        "image": "utsuwa.local/hello",
        "env": env,
        "startupProbe": {"timeoutSeconds": 2, "periodSeconds": 2, "failureThreshold": 1, "tcpSocket": {}},
    }]})
}

/// Asks for the template; answers the operation.
fn change(server: &Server, name: &str, template: &Value) -> Value {
    let (status, operation) = server.api_call(
        "PATCH",
        &format!("{PARENT}/services/{name}"),
        &json!({"template": template}),
    );
    assert_eq!(status, 200, "{operation}");
    operation
}

/// Waits for an operation; answers its error message, `None` if it succeeded.
fn outcome(server: &Server, operation: &Value) -> Option<String> {
    let name = operation["name"].as_str().unwrap();
    let done = until("the operation to be done", Duration::from_secs(60), || {
        let (status, answer) = server.api_call(
            "POST",
            &format!("/run/v2/{name}:wait"),
            &json!({"timeout": "30s"}),
        );
        assert_eq!(status, 200, "{answer}");
        (answer["done"] == json!(true)).then_some(answer)
    });
    done["error"]["message"].as_str().map(str::to_owned)
}

/// The deploy of `template` fails with all of `words`, and the good revision still serves.
fn fails(server: &Server, name: &str, template: &Value, words: &[&str]) {
    let operation = change(server, name, template);
    let said = outcome(server, &operation).unwrap_or_else(|| panic!("{template} was deployed"));
    for word in words {
        assert!(
            said.contains(word),
            "{template}: {word:?} is missing in: {said}"
        );
    }
    still_good(server, name);
}

fn still_good(server: &Server, name: &str) {
    let (status, body) = server.get(name, "/env");
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        serde_json::from_str::<Value>(&body).unwrap()["V"],
        json!("good")
    );
}

#[test]
fn apps_that_can_not_be_reached() {
    if !can_run("bad_apps::apps_that_can_not_be_reached") {
        return;
    }
    let server = with_good("app");
    fails(
        &server,
        "app",
        &hello(&[("HELLO_LISTEN", "127.0.0.1:8080")]),
        &[
            NOT_LISTENING,
            "The app listens on 127.0.0.1:8080 only",
            "it must listen on 0.0.0.0:8080",
        ],
    );
    fails(
        &server,
        "app",
        &hello(&[("HELLO_LISTEN", "0.0.0.0:9999")]),
        &[
            NOT_LISTENING,
            "The container listens on 0.0.0.0:9999, not on port 8080 (PORT): set `--port 9999`",
        ],
    );
    fails(
        &server,
        "app",
        &hello(&[("HELLO_START", "never-listen")]),
        &[NOT_LISTENING],
    );
    let mut http2 = hello(&[]);
    http2["containers"][0]["ports"] = json!([{"name": "h2c", "containerPort": 8080}]);
    fails(
        &server,
        "app",
        &http2,
        &[
            "answers in HTTP/1.1",
            "its port is named h2c",
            "deploy it with --no-use-http2",
        ],
    );
    // Slow, but in time: that is no failure.
    let operation = change(
        &server,
        "app",
        &hello(&[("HELLO_START", "sleep:700"), ("V", "good")]),
    );
    assert_eq!(outcome(&server, &operation), None);
    still_good(&server, "app");
    // Who asks for no check gets none: running is enough, and a request finds out.
    let mut unchecked = hello(&[("HELLO_START", "never-listen")]);
    unchecked["healthCheckDisabled"] = json!(true);
    let operation = change(&server, "app", &unchecked);
    assert_eq!(outcome(&server, &operation), None);
    assert_eq!(server.get("app", "/env").0, 503);
    server.finish();
}

#[test]
fn apps_that_end_at_their_start() {
    if !can_run("bad_apps::apps_that_end_at_their_start") {
        return;
    }
    let server = with_good("app");
    fails(
        &server,
        "app",
        &hello(&[("HELLO_START", "exit:0")]),
        &["PORT=8080", "exited with status 0"],
    );
    fails(
        &server,
        "app",
        &hello(&[("HELLO_START", "exit:3")]),
        &["PORT=8080", "exited with status 3"],
    );
    let mut template = hello(&[]);
    template["containers"][0]["command"] = json!(["nothing-here"]);
    fails(&server, "app", &template, &["nothing-here", "PATH"]);
    template["containers"][0]["command"] = json!(["/no/such/program"]);
    fails(&server, "app", &template, &["/no/such/program"]);
    server.finish();
}

#[test]
fn images_that_can_not_run_here() {
    if !can_run("bad_apps::images_that_can_not_run_here") {
        return;
    }
    let mut server = with_good("app");
    let dir = tempfile::tempdir().unwrap();
    let deploy = |server: &Server, archive: &Path, words: &[&str]| {
        let image = format!("oci-archive:{}", archive.display());
        let output = server.utsuwa(&["deploy", "app", "--image", &image]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is missing in: {said}");
        }
        still_good(server, "app");
    };
    let stranger = Layout {
        user: "nobody-here",
        ..Layout::default()
    }
    .write(dir.path(), "stranger");
    deploy(&server, &stranger, &["nobody-here", "/etc/passwd"]);
    let foreign = Layout {
        architecture: "s390x",
        ..Layout::default()
    }
    .write(dir.path(), "foreign");
    deploy(&server, &foreign, &["s390x", host_architecture()]);
    let index = Layout {
        architecture: "s390x",
        platforms: true,
        ..Layout::default()
    }
    .write(dir.path(), "index");
    deploy(&server, &index, &["s390x", host_architecture()]);
    server.expect_warning("127.0.0.1:1");
    let output = server.utsuwa(&["deploy", "nowhere", "--image", "127.0.0.1:1/x:y"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.code() == Some(1) && said.contains("127.0.0.1:1"),
        "{said}"
    );
    assert!(said.contains("can't be pulled yet, trying again"), "{said}");
    server.finish();
}

#[test]
fn of_two_deploys_at_once_the_later_wins() {
    if !can_run("bad_apps::of_two_deploys_at_once_the_later_wins") {
        return;
    }
    let server = with_good("app");
    let operations: Vec<Value> = std::thread::scope(|scope| {
        let ask = |value: &'static str| {
            scope.spawn({
                let server = &server;
                move || {
                    change(
                        server,
                        "app",
                        &hello(&[("V", value), ("HELLO_START", "sleep:300")]),
                    )
                }
            })
        };
        let both = [ask("left"), ask("right")];
        both.into_iter().map(|one| one.join().unwrap()).collect()
    });
    let outcomes: Vec<Option<String>> = operations
        .iter()
        .map(|operation| outcome(&server, operation))
        .collect();
    let (_, service) = server.api_get(&format!("{PARENT}/services/app"));
    assert_eq!(service["generation"], json!("3"), "{service}");
    let settled = until("the service to be settled", Duration::from_secs(30), || {
        let (_, service) = server.api_get(&format!("{PARENT}/services/app"));
        (service["reconciling"] != json!(true) && service["observedGeneration"] == json!("3"))
            .then_some(service)
    });
    assert_eq!(
        settled["terminalCondition"]["state"],
        json!("CONDITION_SUCCEEDED"),
        "{settled}"
    );
    let value = settled["template"]["containers"][0]["env"]
        .as_array()
        .unwrap()
        .iter()
        .find(|v| v["name"] == json!("V"))
        .unwrap()["value"]
        .clone();
    until("the later one to serve", Duration::from_secs(10), || {
        let body = server.get("app", "/env").1;
        (serde_json::from_str::<Value>(&body).unwrap()["V"] == value).then_some(())
    });
    assert_eq!(
        settled["latestReadyRevision"], settled["latestCreatedRevision"],
        "{settled}"
    );
    // The earlier one may have been told that it was overtaken, never that it failed for another reason.
    assert!(outcomes.contains(&None), "{outcomes:?}");
    let (_, operations) = server.api_get(&format!("{}/operations", PARENT));
    assert!(
        operations["operations"]
            .as_array()
            .unwrap()
            .iter()
            .all(|operation| operation["done"] == json!(true)),
        "{operations}"
    );
    server.finish();
}

#[test]
fn a_deploy_goes_on_over_a_restart() {
    if !can_run("bad_apps::a_deploy_goes_on_over_a_restart") {
        return;
    }
    let mut server = with_good("app");
    let mut deploy = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args([
            "deploy",
            "app",
            "--set-env-vars",
            "V=next,HELLO_START=sleep:1500",
            "--api",
            &format!("http://{}", server.api),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // The command has its answer when it says so: stored, as a look at the service would tell, is earlier.
    let mut said = BufReader::new(deploy.stderr.take().unwrap());
    let mut accepted = String::new();
    while !accepted.contains("Deploying") {
        assert_ne!(said.read_line(&mut accepted).unwrap(), 0, "{accepted}");
    }
    server.kill_9();
    // Nobody is refused meanwhile: the keeper holds the socket, and who comes waits for the next server.
    let asked = std::thread::scope(|scope| {
        let asked = scope.spawn({
            let api = server.api;
            let raw = format!(
                "GET {PARENT}/services/app HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
            );
            move || crate::harness::try_exchange(api, &raw)
        });
        server.up();
        asked.join().unwrap()
    });
    assert_eq!(asked.unwrap().0, 200);
    let status = until("the command to end", Duration::from_secs(60), || {
        deploy.try_wait().unwrap()
    });
    said.read_to_string(&mut accepted).unwrap();
    assert!(status.success(), "{accepted}");
    until("the new revision to serve", Duration::from_secs(10), || {
        let body = server.get("app", "/env").1;
        (serde_json::from_str::<Value>(&body).ok()?["V"] == json!("next")).then_some(())
    });
    server.finish();
}

#[test]
fn a_command_does_not_wait_for_ever_for_a_dead_server() {
    if !can_run("bad_apps::a_command_does_not_wait_for_ever_for_a_dead_server") {
        return;
    }
    let mut server = Server::start(&[]);
    server.kill_9();
    let refused = server.utsuwa(&["services", "list"]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(3), "{said}");
    assert!(
        said.contains("does not answer") && said.contains("utsuwa up"),
        "{said}"
    );
    server.finish();
}

/// An OCI archive with busybox in it.
pub(crate) struct Layout {
    pub(crate) user: &'static str,
    pub(crate) architecture: &'static str,
    /// The index itself lists it under its platform.
    pub(crate) platforms: bool,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            user: "",
            architecture: host_architecture(),
            platforms: false,
        }
    }
}

impl Layout {
    pub(crate) fn write(&self, dir: &Path, name: &str) -> PathBuf {
        let root = dir.join(format!("{name}-root"));
        std::fs::create_dir_all(root.join("bin")).unwrap();
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
        std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
        let config =
            json!({"User": self.user, "Entrypoint": ["/bin/busybox", "httpd", "-f", "-p", "8080"]});
        pack(&root, &config, self.architecture, self.platforms)
    }
}
