//! Restarts, kills and upgrades under load: nothing acknowledged is lost, nothing that runs is restarted, nobody is refused.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Server, Tally, can_run, kill_9, try_exchange, until};

#[test]
fn a_killed_server_loses_nothing_and_refuses_nobody() {
    if !can_run("lifecycle::a_killed_server_loses_nothing_and_refuses_nobody") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("kept", &["--min-instances", "1"]);
    server.until_instances("kept", 1);
    let pids = server.instance_pids("kept");
    let stop = AtomicBool::new(false);
    let load = Tally::default();
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| load.ask(&stop, server_http(&server), "kept"));
        }
        until("load to flow", Duration::from_secs(5), || {
            (load.answered() > 20).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
    });
    let address = server.http;
    let stop = AtomicBool::new(false);
    let load = Tally::default();
    let back = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| load.ask(&stop, address, "kept"));
        }
        server.kill_9();
        let back = server.up();
        let before = load.answered();
        until("answers to flow again", Duration::from_secs(5), || {
            (load.answered() > before + 20).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
        back
    });
    println!("ready again {back:?} after kill −9");
    assert_eq!(load.take().refused, 0, "connections were refused");
    assert!(back < Duration::from_secs(1), "{back:?}");
    assert_eq!(
        server.instance_pids("kept"),
        pids,
        "instances must keep their process ids"
    );
    server.finish();
}

fn server_http(server: &Server) -> std::net::SocketAddr {
    server.http
}

#[test]
fn numbered_lines_survive_every_kill() {
    if !can_run("lifecycle::numbered_lines_survive_every_kill") {
        return;
    }
    let mut server = Server::start(&[]);
    server.expect_warning("keeper");
    // The sample writes lines on request; 2,000 lines of some 60 bytes are more than a pipe holds.
    server.deploy("writer", &["--min-instances", "1"]);
    server.until_instances("writer", 1);
    let pids = server.instance_pids("writer");
    let mut written = 0;
    let mut write = |server: &Server| {
        assert_eq!(
            server
                .get(
                    "writer",
                    &format!("/log?severity=INFO&message=batch-{written}-&lines=2000")
                )
                .0,
            200
        );
        written += 1;
    };
    write(&server);
    server.kill_9();
    server.up();
    write(&server);
    kill_9(server.keeper_pid().unwrap());
    until("a new keeper", Duration::from_secs(10), || {
        server.keeper_pid()
    });
    until("the service to answer", Duration::from_secs(10), || {
        (server.get("writer", "/").0 == 200).then_some(())
    });
    write(&server);
    let keeper = server.keeper_pid().unwrap();
    server.kill_9();
    kill_9(keeper);
    server.up();
    until("the service to answer", Duration::from_secs(10), || {
        (server.get("writer", "/").0 == 200).then_some(())
    });
    write(&server);
    assert_eq!(
        server.instance_pids("writer"),
        pids,
        "instances must keep their process ids"
    );
    let lines = until("all lines", Duration::from_secs(20), || {
        let lines = server.ok(&["logs", "writer", "--tail", "100000", "--format", "json"]);
        (lines.matches("batch-3-").count() >= 2000).then_some(lines)
    });
    let mut sequences: BTreeMap<u64, usize> = BTreeMap::new();
    let mut batches: BTreeMap<String, usize> = BTreeMap::new();
    for line in lines
        .lines()
        .filter_map(|l| serde_json::from_str::<serde_json::Value>(l).ok())
        .filter(|l| l["stream"] == "stdout")
    {
        let sequence = line["sequence"]
            .as_u64()
            .or_else(|| line["sequence"].as_str()?.parse().ok())
            .unwrap();
        *sequences.entry(sequence).or_default() += 1;
        if let Some(batch) = line["text"]
            .as_str()
            .and_then(|t| t.split("batch-").nth(1))
            .and_then(|t| t.split('-').next())
        {
            *batches.entry(batch.to_owned()).or_default() += 1;
        }
    }
    assert!(sequences.values().all(|n| *n == 1), "a line was told twice");
    assert_eq!(
        batches.values().copied().collect::<Vec<_>>(),
        vec![2000; 4],
        "{batches:?}"
    );
    server.finish();
}

#[test]
fn another_build_takes_over_without_refusing_anybody() {
    if !can_run("lifecycle::another_build_takes_over_without_refusing_anybody") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("upgraded", &["--min-instances", "1"]);
    server.until_instances("upgraded", 1);
    let pids = server.instance_pids("upgraded");
    let copy = server.data_dir().parent().unwrap().join("utsuwa-other");
    std::fs::copy(env!("CARGO_BIN_EXE_utsuwa"), &copy).unwrap();
    let address = server.http;
    let stop = AtomicBool::new(false);
    let load = Tally::default();
    std::thread::scope(|scope| {
        scope.spawn(|| load.ask(&stop, address, "upgraded"));
        // An orderly restart: SIGTERM, the old one drains, the new one is already there.
        assert!(
            Command::new("kill")
                .arg(server.pid().to_string())
                .status()
                .unwrap()
                .success()
        );
        server.wait_end();
        server.use_program(&copy);
        server.up();
        let before = load.answered();
        until("answers to flow", Duration::from_secs(5), || {
            (load.answered() > before + 20).then_some(())
        });
        stop.store(true, Ordering::Relaxed);
    });
    let count = load.take();
    assert_eq!(count.refused, 0, "connections were refused");
    assert_eq!(count.broken, Vec::<String>::new(), "requests were broken");
    assert_eq!(server.instance_pids("upgraded"), pids);
    server.finish();
}

#[test]
fn a_server_takes_anothers_place_under_load() {
    if !can_run("lifecycle::a_server_takes_anothers_place_under_load") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("taken", &["--min-instances", "1"]);
    server.until_instances("taken", 1);
    let pids = server.instance_pids("taken");
    let copy = server.data_dir().parent().unwrap().join("utsuwa-other");
    std::fs::copy(env!("CARGO_BIN_EXE_utsuwa"), &copy).unwrap();
    let address = server.http;
    let stop = AtomicBool::new(false);
    let load = Tally::default();
    let more = |load: &Tally| {
        let before = load.answered();
        until("answers to flow", Duration::from_secs(5), || {
            (load.answered() > before + 20).then_some(())
        });
    };
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| load.ask(&stop, address, "taken"));
        }
        // A request that was there before is let finish by the server that took it.
        let long = scope.spawn(move || {
            let raw =
                "GET /sleep?ms=1500 HTTP/1.1\r\nhost: taken.localhost\r\nconnection: close\r\n\r\n";
            try_exchange(address, raw)
        });
        more(&load);
        // The same build, then another one.
        assert!(server.replace().success());
        more(&load);
        server.use_program(&copy);
        assert!(server.replace().success());
        more(&load);
        stop.store(true, Ordering::Relaxed);
        assert_eq!(long.join().unwrap().unwrap().0, 200);
    });
    let count = load.take();
    assert_eq!(count.refused, 0, "connections were refused");
    assert_eq!(count.broken, Vec::<String>::new(), "requests were broken");
    assert_eq!(server.instance_pids("taken"), pids);
    // Where nothing runs there is nothing to replace, and that is no error.
    server.kill_9();
    server.up();
    server.finish();
}

#[test]
fn acknowledged_deploys_survive_kill_9() {
    if !can_run("lifecycle::acknowledged_deploys_survive_kill_9") {
        return;
    }
    let mut server = Server::start(&[]);
    for round in 0..3 {
        let name = format!("deploy-{round}");
        let (status, answer) = server.api_call(
            "POST",
            &format!("{}/services?serviceId={name}", crate::harness::PARENT),
            &serde_json::json!({"invokerIamDisabled": true, "template": {"containers": [{"image": "utsuwa.local/hello"}]}}),
        );
        assert_eq!(status, 200, "{answer}");
        server.kill_9();
        server.up();
        until(
            "the deploy to be finished after the kill",
            Duration::from_secs(20),
            || (server.get(&name, "/").0 == 200).then_some(()),
        );
    }
    server.finish();
}

#[test]
fn forty_instances_survive_a_restart() {
    if !can_run("lifecycle::forty_instances_survive_a_restart") {
        return;
    }
    let mut server = Server::start(&[]);
    let names: Vec<String> = (0..40).map(|i| format!("kept-{i}")).collect();
    for name in &names {
        server.ok(&[
            "deploy",
            name,
            "--image",
            "utsuwa.local/hello",
            "--min-instances",
            "1",
            "--no-allow-unauthenticated",
        ]);
    }
    let pids = |server: &Server| {
        names
            .iter()
            .map(|name| server.instance_pids(name))
            .collect::<Vec<_>>()
    };
    until("every instance to run", Duration::from_secs(30), || {
        pids(&server)
            .iter()
            .all(|p| p.len() == 1 && p[0] != 0)
            .then_some(())
    });
    let before = pids(&server);
    server.kill_9();
    let back = server.up();
    println!("ready again {back:?} after kill −9 with 40 instances");
    assert_eq!(pids(&server), before);
    server.finish();
}

/// A lock of the script that calls `up`, say: held by a keeper it would never be free again.
#[test]
fn what_the_caller_has_open_is_not_kept() {
    if !can_run("lifecycle::what_the_caller_has_open_is_not_kept") {
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let (marker, script) = (place.path().join("marker"), place.path().join("caller"));
    let text = format!(
        "#!/bin/sh\nexec 9>{}\nexec {} \"$@\"\n",
        marker.display(),
        env!("CARGO_BIN_EXE_utsuwa")
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let server = Server::start_as(&script, &[]);
    let holds = |pid: u32| {
        std::fs::read_dir(format!("/proc/{pid}/fd"))
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok())
            .any(|path| path == marker)
    };
    assert!(marker.exists());
    let others: Vec<_> = server.roles().into_iter().skip(1).collect();
    assert_eq!(others.len(), 3, "{others:?}");
    for (role, pid) in others {
        assert!(!holds(pid), "the {role} holds a descriptor of the caller's");
    }
    server.finish();
}
