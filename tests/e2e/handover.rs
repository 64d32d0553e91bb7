//! What happens while one server makes place for the next: nothing of it is lost, and nothing stays.

use std::time::Duration;

use crate::harness::{Server, can_run, kill_9, try_exchange, until};

/// Until the old server has begun to make place.
fn until_asked(log: &std::path::Path) {
    until("the server to be asked", Duration::from_secs(20), || {
        std::fs::read_to_string(log)
            .unwrap_or_default()
            .contains("another server waits for this one's place")
            .then_some(())
    });
}

#[test]
fn an_end_in_the_meantime_is_told_once() {
    if !can_run("handover::an_end_in_the_meantime_is_told_once") {
        return;
    }
    let mut server = Server::start(&["--idle-timeout", "1s"]);
    server.deploy("mortal", &["--min-instances", "1"]);
    server.deploy("slow", &["--set-env-vars", "HELLO_START=sleep:3000"]);
    server.until_instances("mortal", 1);
    server.until_instances("slow", 0);
    let pid = u32::try_from(server.instance_pids("mortal")[0]).unwrap();
    let (address, log) = (server.http, server.log_path());
    let mut old = std::thread::scope(|scope| {
        // The place is not given up before it is answered.
        let waits = scope.spawn(move || {
            let raw = "GET / HTTP/1.1\r\nhost: slow.localhost\r\nconnection: close\r\n\r\n";
            try_exchange(address, raw)
        });
        until("the slow one to start", Duration::from_secs(20), || {
            (!server.instance_states("slow").is_empty()).then_some(())
        });
        scope.spawn(move || {
            until_asked(&log);
            kill_9(pid);
        });
        let old = server.replace_beside();
        assert_eq!(waits.join().unwrap().unwrap().0, 200);
        old
    });
    assert!(old.wait().unwrap().success());
    let told = || server.ok(&["logs", "mortal"]).matches("signal 9").count();
    until("the end to be told", Duration::from_secs(10), || {
        (told() > 0).then_some(())
    });
    server.until_instances("mortal", 1);
    assert_eq!(told(), 1, "{}", server.ok(&["logs", "mortal"]));
    server.finish();
}

#[test]
fn what_goes_on_in_an_earlier_server_ends_with_down() {
    if !can_run("handover::what_goes_on_in_an_earlier_server_ends_with_down") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("long", &[]);
    let address = server.http;
    std::thread::scope(|scope| {
        let waits = scope.spawn(move || {
            let raw =
                "GET /sleep?ms=100000 HTTP/1.1\r\nhost: long.localhost\r\nconnection: close\r\n\r\n";
            try_exchange(address, raw)
        });
        until("the request to be inside", Duration::from_secs(20), || {
            let explained = server.explain("long");
            let revisions = explained["revisions"].as_array()?;
            let inside = |revision: &serde_json::Value| revision["inFlight"].as_u64() > Some(0);
            revisions.iter().any(inside).then_some(())
        });
        let mut old = server.replace_beside();
        assert!(old.try_wait().unwrap().is_none(), "it has a request");
        server.expect_warning("cut off");
        server.finish();
        assert!(old.try_wait().unwrap().is_some(), "it outlived `down`");
        let answer = waits.join().unwrap();
        assert!(answer.is_err() || answer.unwrap().0 != 200, "it was cut");
    });
}
