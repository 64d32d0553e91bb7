//! Instances follow requests: bursts, limits, many wakes at once, ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::harness::{Server, can_run, until};

/// One wake: the ingress asks once for a first instance, whoever else comes waits with it. How many instances the loops then start,
/// one for each that is needed and within the maximum, is another matter.
#[test]
fn two_hundred_at_once_wake_once_and_stay_within_max() {
    if !can_run("scale::two_hundred_at_once_wake_once_and_stay_within_max") {
        return;
    }
    let server = Server::start(&["--idle-timeout", "6s"]);
    server.deploy("burst", &["--concurrency", "80", "--max-instances", "2"]);
    server.until_instances("burst", 0);
    let before = wakes(&server, "burst");
    let mut seen = BTreeSet::new();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let calls: Vec<_> = (0..200)
            .map(|_| scope.spawn(|| server.get("burst", "/sleep?ms=300").0))
            .collect();
        while !calls.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            // A process id of 0 is an instance whose program doesn't run yet.
            seen.extend(
                server
                    .instance_pids("burst")
                    .into_iter()
                    .filter(|pid| *pid != 0),
            );
        }
        calls.into_iter().map(|c| c.join().unwrap()).collect()
    });
    assert!(statuses.iter().all(|s| *s == 200), "{statuses:?}");
    assert!((1..=2).contains(&seen.len()), "instances seen: {seen:?}");
    assert_eq!(wakes(&server, "burst") - before, 1, "{}", server.log());
    let log = server.log();
    let told: Vec<&str> = log.lines().filter(|l| l.contains("cold start")).collect();
    assert_eq!(
        told.len(),
        seen.len(),
        "one for each instance that was started for a request: {told:#?}"
    );
    // It counts: who comes after everything is asleep again wakes again.
    server.until_instances("burst", 0);
    assert_eq!(server.get("burst", "/").0, 200);
    assert_eq!(wakes(&server, "burst") - before, 2);
    server.finish();
}

/// How often requests to a service asked for a first instance.
fn wakes(server: &Server, service: &str) -> u64 {
    let named = format!("service_name=\"{service}\"");
    let metrics = server.metrics();
    let lines = metrics
        .lines()
        .filter(|line| line.starts_with("utsuwa_wakes_total{") && line.contains(&named));
    lines
        .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
        .sum()
}

#[test]
fn twenty_sleeping_services_wake_at_once() {
    if !can_run("scale::twenty_sleeping_services_wake_at_once") {
        return;
    }
    let server = Server::start(&["--idle-timeout", "6s"]);
    let names: Vec<String> = (0..20).map(|i| format!("many-{i}")).collect();
    for name in &names {
        server.deploy(name, &[]);
    }
    for name in &names {
        server.until_instances(name, 0);
    }
    let started = Instant::now();
    std::thread::scope(|scope| {
        for name in &names {
            let server = &server;
            scope.spawn(move || assert_eq!(server.get(name, "/").0, 200, "{name}"));
        }
    });
    let took = started.elapsed();
    println!("20 services woken at once: last answer after {took:?}");
    assert!(took < Duration::from_secs(6), "{took:?}");
    server.finish();
}

#[test]
fn an_instance_that_ends_is_reported_in_words_and_replaced() {
    if !can_run("scale::an_instance_that_ends_is_reported_in_words_and_replaced") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("mortal", &["--memory", "128Mi"]);
    let (status, body) = server.get("mortal", "/exit?code=7");
    assert!(matches!(status, 200 | 503), "{status} {body}");
    until("the exit to be in the log", Duration::from_secs(10), || {
        server
            .ok(&["logs", "mortal"])
            .contains("exited with status 7")
            .then_some(())
    });
    until("a new instance to answer", Duration::from_secs(20), || {
        (server.get("mortal", "/").0 == 200).then_some(())
    });
    let (status, body) = server.get("mortal", "/alloc?mb=400");
    assert_eq!(status, 500, "{body}");
    until(
        "the memory limit to be in the log",
        Duration::from_secs(10),
        || {
            server
                .ok(&["logs", "mortal"])
                .contains("Memory limit of 128 MiB exceeded with 128 MiB used.")
                .then_some(())
        },
    );
    until(
        "a new instance to answer again",
        Duration::from_secs(20),
        || (server.get("mortal", "/").0 == 200).then_some(()),
    );
    server.finish();
}

#[test]
fn why_tells_the_reason() {
    if !can_run("scale::why_tells_the_reason") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("asked", &["--min-instances", "1"]);
    server.until_instances("asked", 1);
    // The call that proved it may still be in the numbers of the first looks.
    let mut why = String::new();
    let mut latest = String::new();
    until("a look at an idle minimum", Duration::from_secs(20), || {
        why = server.ok(&["services", "describe", "asked", "--why"]);
        let first = |line: &str| line.split("  ").next().map(str::to_owned);
        let revision = why
            .lines()
            .filter_map(first)
            .find(|id| id.starts_with("asked-"))?;
        latest = format!("latest is {revision}: what was deployed last is ready");
        why.contains("because want 1: the minimum\n").then_some(())
    });
    let because: Vec<&str> = why
        .lines()
        .filter_map(|line| line.strip_prefix("  because "))
        .collect();
    let [count, which, _how_awake, last] = because[..] else {
        panic!("{why}");
    };
    assert_eq!(
        [count, which, last],
        ["want 1: the minimum", "nothing to do", &latest],
        "{why}"
    );
    let kept = ": there are never fewer than 1 instance (minimum)\n";
    assert!(why.contains(kept), "{why}");
    server.finish();
}
