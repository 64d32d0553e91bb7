//! What a newcomer meets in the first hour: mistakes are named while there is still time, and the message says what to do.

use std::process::{Command, Stdio};
use std::time::Duration;

use crate::harness::{Server, can_run, until};

#[test]
fn an_app_on_another_port_is_told_of_while_its_deploy_waits() {
    if !can_run("first_hour::an_app_on_another_port_is_told_of_while_its_deploy_waits") {
        return;
    }
    let server = Server::start(&[]);
    let said = server.data_dir().parent().unwrap().join("said");
    let mut deploy = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args([
            "deploy",
            "wrong",
            "--image",
            "utsuwa.local/hello",
            "--quiet",
        ])
        .args(["--set-env-vars", "HELLO_LISTEN=0.0.0.0:9999"])
        .args(["--api", &format!("http://{}", server.api)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let word = "The container listens on 0.0.0.0:9999, not on port 8080 (PORT): set `--port 9999`, or let it read PORT.";
    // The probe goes on for 240 s.
    until("the early word", Duration::from_secs(30), || {
        std::fs::read_to_string(&said)
            .unwrap()
            .contains(word)
            .then_some(())
    });
    until("how long it goes on", Duration::from_secs(10), || {
        let said = std::fs::read_to_string(&said).unwrap();
        let goes_on = "The deploy goes on trying up to 240 s after the container's start. Ctrl-C ends this command and not the deploy;";
        (said.matches(goes_on).count() == 1).then_some(())
    });
    assert!(deploy.try_wait().unwrap().is_none(), "it still waits");
    deploy.kill().unwrap();
    deploy.wait().unwrap();
    let shown = server.ok(&["services", "describe", "wrong"]);
    assert!(shown.contains(word), "{shown}");
    let why = server.ok(&["services", "describe", "wrong", "--why"]);
    assert!(why.contains(word), "{why}");
    let logged = server.ok(&["logs", "wrong"]);
    assert_eq!(logged.matches(word).count(), 1, "{logged}");

    // Who does what it says is served.
    server.deploy("wrong", &["--port", "9999"]);
    assert_eq!(server.get("wrong", "/").0, 200);
    server.finish();
}

#[test]
fn a_check_knows_what_the_data_directory_is_made_for() {
    if !can_run("first_hour::a_check_knows_what_the_data_directory_is_made_for") {
        return;
    }
    let mut server = Server::start(&["--region", "us-central1"]);
    let dir = server.data_dir().display().to_string();
    let check = |more: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
            .args(["config", "check", "--data-dir", &dir])
            .args(more)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code(), said)
    };
    assert_eq!(check(&[]).0, Some(0), "{}", check(&[]).1);
    assert_eq!(check(&["--region", "us-central1"]).0, Some(0));
    let (code, said) = check(&["--region", "europe-west1"]);
    assert_eq!(code, Some(2), "{said}");
    for part in [
        "region = \"europe-west1\" (flag --region)",
        "\"us-central1\"",
    ] {
        assert!(said.contains(part), "{part} is missing in {said}");
    }
    // Not given again, it is what it was, and not the built-in default.
    server.kill_9();
    server.forget_flags();
    server.up();
    let shown = server.ok(&["config", "show", "--running", "--format", "json"]);
    assert!(shown.contains("us-central1"), "{shown}");
    server.finish();
}
