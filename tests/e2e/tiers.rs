//! CPU during requests only: the idle stand still, and nobody who calls them notices.

use std::time::{Duration, Instant};

use crate::harness::{Server, can_run, until};

/// Longest time until an idle instance is frozen: a second, and the look after it.
const FROZEN_WITHIN: Duration = Duration::from_secs(20);

fn until_frozen(server: &Server, name: &str) {
    until(&format!("{name} to be frozen"), FROZEN_WITHIN, || {
        (server.instance_states(name) == ["frozen"]).then_some(())
    });
}

fn ticks(server: &Server, name: &str) -> u64 {
    let (status, text) = server.get(name, "/ticks");
    assert_eq!(status, 200, "{text}");
    text.trim().parse().unwrap()
}

/// Waits until the service has counted `more`.
fn until_ticks(server: &Server, name: &str, more: u64) {
    let first = ticks(server, name);
    until("the ticks", Duration::from_secs(60), || {
        (ticks(server, name) > first + more).then_some(())
    });
}

/// How often the threads of a process were given a CPU.
fn context_switches(pid: u64) -> u64 {
    let mut all = 0;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let counts = status
            .lines()
            .filter(|line| line.contains("ctxt_switches:"));
        all += counts
            .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
            .sum::<u64>();
    }
    all
}

/// One that stays, frozen as soon as it is idle: a boost would be used first.
const STAYS: [&str; 3] = ["--min-instances", "1", "--no-cpu-boost"];
const TICKS: [&str; 2] = ["--set-env-vars", "HELLO_TICK=5"];

#[test]
fn an_idle_instance_stands_still_and_answers_when_called() {
    if !can_run("tiers::an_idle_instance_stands_still_and_answers_when_called") {
        return;
    }
    let server = Server::start(&[]);
    let ticking = [&STAYS[..], &TICKS].concat();
    server.deploy("idle", &ticking);
    server.deploy("steady", &[&ticking[..], &["--no-cpu-throttling"]].concat());
    let before = ticks(&server, "idle");
    until_frozen(&server, "idle");
    // The other one's ticks are the clock: a few, so that what was running has come to rest, then two seconds of them.
    until_ticks(&server, "steady", 20);
    let pid = server.instance_pids("idle")[0];
    let switches = context_switches(pid);
    until_ticks(&server, "steady", 400);
    assert_eq!(
        context_switches(pid),
        switches,
        "it had CPU while it was idle"
    );
    assert_eq!(server.instance_states("steady"), ["ready"]);
    assert_eq!(server.instance_states("idle"), ["frozen"]);
    let asked = Instant::now();
    let after = ticks(&server, "idle");
    let took = asked.elapsed();
    println!("first answer of a frozen one after {took:?}");
    assert!(took < Duration::from_millis(500), "{took:?}");
    until("it to count on", Duration::from_secs(60), || {
        (ticks(&server, "idle") > after.max(before) + 10).then_some(())
    });
    let why = server.ok(&["services", "describe", "idle", "--why"]);
    assert!(why.contains("awake, "), "{why}");
    until_frozen(&server, "idle");
    let why = server.ok(&["services", "describe", "idle", "--why"]);
    // Foretold is what will happen on this machine.
    let (memory, never) = match utsuwa_runtime::sandbox::reclaim::swap() {
        Ok(_) => ("its memory is given back at ", "its memory is kept"),
        Err(_) => ("its memory is kept: ", "given back at"),
    };
    assert!(!why.contains(never), "{never:?} in {why}");
    for words in [
        " frozen since ",
        "because no request for 1s",
        memory,
        "there are never fewer than 1 instance (minimum)",
    ] {
        assert!(why.contains(words), "{words:?} in {why}");
    }
    server.finish();
}

#[test]
fn a_stream_keeps_its_instance_awake() {
    if !can_run("tiers::a_stream_keeps_its_instance_awake") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("stream", &STAYS);
    until_frozen(&server, "stream");
    let text = std::thread::scope(|scope| {
        let stream = scope.spawn(|| server.get("stream", "/stream?n=40&ms=100").1);
        until("the stream to begin", Duration::from_secs(10), || {
            (server.instance_states("stream") == ["ready"]).then_some(())
        });
        while !stream.is_finished() {
            let states = server.instance_states("stream");
            assert!(stream.is_finished() || states == ["ready"], "{states:?}");
        }
        stream.join().unwrap()
    });
    assert!(text.ends_with("40\n"), "{text}");
    until_frozen(&server, "stream");
    server.finish();
}

#[test]
fn a_frozen_instance_outlives_its_server_and_is_stopped_in_order() {
    if !can_run("tiers::a_frozen_instance_outlives_its_server_and_is_stopped_in_order") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("kept", &STAYS);
    until_frozen(&server, "kept");
    let pids = server.instance_pids("kept");
    server.kill_9();
    server.up();
    assert_eq!(server.get("kept", "/").0, 200);
    assert_eq!(server.instance_pids("kept"), pids);
    until_frozen(&server, "kept");
    // Another revision takes its place: it is told to end, and says so.
    server.deploy("kept", &[&STAYS[..], &["--set-env-vars", "V=2"]].concat());
    until("the farewell", Duration::from_secs(20), || {
        let lines = server.ok(&["logs", "kept", "--tail", "1000"]);
        lines.contains("hello received SIGTERM").then_some(())
    });
    until_frozen(&server, "kept");
    // Taken down while frozen.
    server.finish();
}
