//! Several containers in one instance, from the API to the log.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{PARENT, Server, can_run, kill_9, until};

/// `app` takes requests and waits for `side`, which listens on port 7000.
fn pair(side_env: &[(&str, &str)]) -> Value {
    let mut env = vec![json!({"name": "PORT", "value": "7000"})];
    env.extend(
        side_env
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value})),
    );
    json!({
        "containers": [
            {
                "name": "side", "image": "utsuwa.local/hello", "env": env,
                "resources": {"limits": {"cpu": "1", "memory": "256Mi"}},
                "startupProbe": {"tcpSocket": {"port": 7000}, "periodSeconds": 1, "failureThreshold": 60},
                "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            },
            {
                "name": "app", "image": "utsuwa.local/hello", "ports": [{"containerPort": 9000}], "dependsOn": ["side"],
                "volumeMounts": [{"name": "shared", "mountPath": "/seen"}],
            },
        ],
        "volumes": [{"name": "shared", "emptyDir": {"sizeLimit": "1Mi"}}],
    })
}

/// Deploys and answers the finished operation.
fn deploy(server: &Server, template: &Value) -> Value {
    let path = format!("{PARENT}/services/pair");
    let (status, operation) = server.api_call("PATCH", &path, &json!({ "template": template }));
    assert_eq!(status, 200, "{operation}");
    let name = operation["name"].as_str().unwrap().to_owned();
    until("the deploy to be done", Duration::from_secs(60), || {
        let (_, answer) = server.api_get(&format!("/run/v2/{name}"));
        (answer["done"] == json!(true)).then_some(answer)
    })
}

/// Host process id of the program with this variable.
fn pid_of(variable: &str) -> Option<u32> {
    let variable = format!("\0{variable}\0");
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let mut found = processes.filter(|entry| {
        let environ = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let environ = String::from_utf8_lossy(&environ).into_owned();
        format!("\0{environ}").contains(&variable) && environ.contains("K_SERVICE=pair\0")
    });
    found.next()?.file_name().to_str()?.parse().ok()
}

fn pids() -> Option<[u32; 2]> {
    Some([pid_of("PORT=9000")?, pid_of("PORT=7000")?])
}

#[test]
fn a_sidecar_serves_its_app_and_shares_its_life() {
    if !can_run("containers::a_sidecar_serves_its_app_and_shares_its_life") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("pair", &[]);
    let done = deploy(&server, &pair(&[]));
    assert!(done["error"].is_null(), "{done}");
    let (_, shown) = server.api_get(&format!("{PARENT}/services/pair"));
    assert_eq!(
        shown["template"]["containers"][1]["dependsOn"],
        json!(["side"])
    );

    let reached = server.get("pair", "/egress?url=127.0.0.1:7000").1;
    assert!(reached.starts_with("ok"), "{reached}");
    assert!(server.get("pair", "/env").1.contains("9000"));
    let [app, side] = until("both run", Duration::from_secs(20), pids);
    let seen = |pid: u32, path: &str| std::fs::exists(format!("/proc/{pid}/root{path}")).unwrap();
    let written = server.get("pair", "/write?path=/seen/word&kb=1").1;
    assert!(written.starts_with("ok"), "{written}");
    assert!(seen(side, "/shared/word") && !seen(side, "/seen/word"));

    server.kill_9();
    server.up();
    assert_eq!(server.get("pair", "/").0, 200);
    assert_eq!(pids(), Some([app, side]), "adopted whole");
    let said = server.ok(&["logs", "pair"]);
    for (name, port) in [("side", 7000), ("app", 9000)] {
        let (name, listens) = (format!(" {name} "), format!("hello listens on port {port}"));
        assert!(
            said.lines()
                .any(|line| line.contains(&name) && line.contains(&listens)),
            "{said}"
        );
    }

    kill_9(side);
    until("the end is told by name", Duration::from_secs(20), || {
        let said = server.ok(&["logs", "pair"]);
        said.contains("The container \"side\" was ended by signal 9 (SIGKILL); its instance has ended with it.")
            .then_some(())
    });
    assert_eq!(server.get("pair", "/").0, 200, "by another one");
    let [next, _] = pids().unwrap();
    assert_ne!(next, app);

    let done = deploy(&server, &pair(&[("HELLO_START", "exit:7")]));
    let why = done["error"]["message"].as_str().unwrap_or_default();
    assert!(
        why.contains("The container \"side\" exited with status 7"),
        "{done}"
    );
    assert_eq!(server.get("pair", "/").0, 200, "the one before serves");
    let mut circle = pair(&[]);
    circle["containers"][0]["dependsOn"] = json!(["app"]);
    let path = format!("{PARENT}/services/pair");
    let (status, answer) = server.api_call("PATCH", &path, &json!({ "template": circle }));
    assert_eq!(status, 400);
    let answer = answer.to_string();
    assert!(
        answer.contains("template.containers[0].dependsOn")
            && answer.contains("side -> app -> side"),
        "{answer}"
    );
    server.finish();
}

/// `side` has no probe, and wants the port of `app` some time after its start: it ends then.
fn clashing(after_ms: u32) -> Value {
    let late = format!("sleep:{after_ms}");
    let mut template = pair(&[("PORT", "9000"), ("HELLO_START", &late)]);
    let [side, app] = &mut template["containers"].as_array_mut().unwrap()[..] else {
        panic!("a pair")
    };
    let env = side["env"].as_array_mut().unwrap();
    env.remove(0);
    let side = side.as_object_mut().unwrap();
    side.remove("startupProbe");
    app.as_object_mut().unwrap().remove("dependsOn");
    // Frozen it would sleep on.
    app["resources"] = json!({"cpuIdle": false});
    template["scaling"] = json!({"minInstanceCount": 1});
    template
}

#[test]
fn a_sidecar_that_never_stays_is_told_of() {
    if !can_run("containers::a_sidecar_that_never_stays_is_told_of") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("pair", &[]);
    // Long after the app was reached, and well within the time that the deploy watches.
    let done = deploy(&server, &clashing(60));
    let why = done["error"]["message"].as_str().unwrap_or_default();
    assert!(
        why.contains("The container \"side\" exited with status 1")
            && why.contains("listen on port 9000"),
        "{done}"
    );
    assert_eq!(server.get("pair", "/").0, 200, "the one before serves");

    // It stays as long as the deploy watches, and never much longer.
    let done = deploy(&server, &clashing(1500));
    assert!(done["error"].is_null(), "{done}");
    until("the trouble is described", Duration::from_secs(30), || {
        let said = server.ok(&["services", "describe", "pair"]);
        let told = said.contains("State:    ready")
            && said.contains("does not stay up: its last ")
            && said.contains("the container \"side\" exited with status 1")
            && said.contains("`utsuwa logs pair` shows");
        told.then_some(())
    });
    server.finish();
}
