//! Bad input: a clear error that names the field or file and says what to do, and nothing lost or half done.

use std::process::Stdio;

use serde_json::json;

use crate::harness::{PARENT, Server, can_run};

/// A deploy that must be refused with exit status 1 and all of `words` in its message.
fn refused(server: &Server, args: &[&str], words: &[&str]) {
    let output = server.utsuwa(args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: {word:?} is missing in: {said}");
    }
}

#[test]
fn wrong_fields_are_named() {
    if !can_run("bad_input::wrong_fields_are_named") {
        return;
    }
    let server = Server::start(&[]);
    let image = ["--image", "utsuwa.local/hello"];
    let deploy = |name: &'static str, more: &[&'static str]| -> Vec<&'static str> { [&["deploy", name][..], &image[..], more].concat() };
    refused(&server, &deploy("Bad_Name", &[]), &["Bad_Name"]);
    refused(&server, &deploy("a", &["--concurrency", "1001"]), &["oncurrency", "1000"]);
    refused(&server, &deploy("a", &["--timeout", "3601"]), &["imeout", "3600"]);
    refused(&server, &deploy("a", &["--memory", "lots"]), &["memory", "lots"]);
    refused(&server, &deploy("a", &["--cpu", "900"]), &["cpu"]);
    refused(&server, &deploy("a", &["--set-env-vars", "PORT=1"]), &["PORT"]);
    refused(&server, &deploy("a", &["--min-instances", "5", "--max-instances", "2"]), &["min", "max"]);
    refused(&server, &deploy("a", &["--annotations", "autoscaling.knative.dev/window=1s"]), &["window", "6s"]);
    let (status, answer) = server.api_call(
        "POST",
        &format!("{PARENT}/services?serviceId=a"),
        &json!({"template": {"containers": [{"image": "utsuwa.local/hello"}]}, "traffic": [{"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 60}]}),
    );
    assert_eq!((status, &answer["error"]["status"]), (400, &json!("INVALID_ARGUMENT")), "{answer}");
    assert!(answer.to_string().contains("60"), "{answer}");
    let (_, listed) = server.api_get(&format!("{PARENT}/services"));
    assert_eq!(listed["services"].as_array().map_or(0, Vec::len), 0, "nothing may be half made: {listed}");
    server.finish();
}

#[test]
fn images_and_programs_that_do_not_work_say_why() {
    if !can_run("bad_input::images_and_programs_that_do_not_work_say_why") {
        return;
    }
    let mut server = Server::start(&[]);
    server.expect_warning("127.0.0.1:1");
    refused(&server, &["deploy", "nowhere", "--image", "127.0.0.1:1/x:y"], &["127.0.0.1:1"]);
    let hello = ["--image", "utsuwa.local/hello"];
    let deploy = |name: &'static str, more: &[&'static str]| -> Vec<&'static str> { [&["deploy", name][..], &hello[..], more].concat() };
    refused(&server, &deploy("no-command", &["--command", "nothing-here"]), &["nothing-here"]);
    refused(&server, &deploy("wrong-port", &["--port", "81", "--set-env-vars", "LISTEN_PORT=82"]), &["PORT=81"]);
    server.finish();
}

#[test]
fn two_servers_on_one_data_directory() {
    if !can_run("bad_input::two_servers_on_one_data_directory") {
        return;
    }
    let server = Server::start(&[]);
    let beside = Server::start(&[]);
    beside.deploy("beside", &[]);
    assert_eq!(beside.get("beside", "/").0, 200);
    // The same directory at other addresses is a second server, not a restart.
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args(["up", "--listen-api", "127.0.0.1:0", "--listen-http", "127.0.0.1:0", "--data-dir"])
        .arg(server.data_dir())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("another server") && said.contains(&server.pid().to_string()), "{said}");
    drop_second(beside);
    server.finish();
}

/// The one that was started second counts the first one's objects as "before", so it must be finished first.
fn drop_second(beside: Server) {
    beside.finish();
}

#[test]
fn broken_configuration_and_taken_ports() {
    if !can_run("bad_input::broken_configuration_and_taken_ports") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_utsuwa")).args(args).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let file = dir.path().join("broken.toml");
    std::fs::write(&file, "listen-api = \"0.0.0.0:99\"\ndomian = 1\n").unwrap();
    let (code, said) = run(&["config", "check", "--config", &file.to_string_lossy()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("broken.toml") && said.contains("domian"), "{said}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let data = dir.path().join("data");
    let (code, said) = run(&["up", "--data-dir", &data.to_string_lossy(), "--listen-api", &address, "--listen-http", "127.0.0.1:0"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&address), "{said}");
    run(&["down", "--data-dir", &data.to_string_lossy()]);
    let (code, said) = run(&["services", "list", "--api", "http://127.0.0.1:1"]);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("127.0.0.1:1") && said.contains("utsuwa up"), "{said}");
}
