//! Everything at once: load, deploys and an app that writes all the while, and under it the server is killed, then the keeper, then
//! both, then another build takes over; at the end nothing is left.

mod lines;
mod work;

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use crate::harness::{Count, Holding, PARENT, Server, can_run, kill_9, until};
use work::{Until, Work};

/// An explicit short window: asleep within seconds.
const WINDOW: (&str, &str) = ("autoscaling.knative.dev/window", "6s");
/// One is asked without end, one writes, one is deployed again and again, and four end while nobody watches.
const SERVICES: [&str; 7] = [
    "steady",
    "writer",
    "patched",
    "killed-alone",
    "exits-alone",
    "killed-both",
    "exits-both",
];
/// Serving again after a restart: the promise.
const BACK: Duration = Duration::from_secs(1);

#[test]
fn everything_at_once() {
    if !can_run("endurance::everything_at_once") {
        return;
    }
    let settings = tempfile::tempdir().unwrap();
    let config = settings.path().join("config.toml");
    // More than the writer writes here: what is missing was lost, not dropped.
    std::fs::write(&config, "log-budget = \"512Mi\"\n").unwrap();
    let mut server = Server::start(&["--config", &config.to_string_lossy()]);
    server.expect_warning("the keeper's connection ended");
    for name in SERVICES {
        let window = format!("{}={}", WINDOW.0, WINDOW.1);
        server.deploy(name, &["--annotations", &window]);
    }
    until_asleep(&server);
    let before = at_rest(&server);
    for name in SERVICES.iter().filter(|n| **n != "patched") {
        server.ok(&["deploy", name, "--min-instances", "1"]);
    }
    let pids: Vec<u32> = ["steady", "writer"].map(|n| pid(&server, n)).to_vec();
    let work = Work::new(server.api, server.http);
    std::thread::scope(|scope| {
        let _end = Until(&work);
        scope.spawn(|| work.ask());
        scope.spawn(|| work.ask());
        scope.spawn(|| work.deploy());
        scope.spawn(|| work.write());
        work.until_flowing();
        server_dies(&mut server, &work);
        keeper_dies(&server, &work);
        both_die(&mut server, &work);
        another_build(&mut server, &work);
    });
    let now: Vec<u32> = ["steady", "writer"].map(|n| pid(&server, n)).to_vec();
    assert_eq!(now, pids, "instances must keep their process ids");
    ends_are_told(&server);
    deploys_are_there(&server, &work);
    scaled_to_zero(&server, &before);
    // Last, since the server holds all of the past in memory while it is asked for it.
    lines::check(&server, &work.batches.lock());
    server.finish();
}

/// The process of the one instance of a service.
fn pid(server: &Server, name: &str) -> u32 {
    let found = until(
        &format!("{name} to run"),
        Duration::from_secs(30),
        || match server.instance_pids(name)[..] {
            [pid] if pid != 0 => Some(pid),
            _ => None,
        },
    );
    u32::try_from(found).unwrap()
}

/// Nobody is refused, and what had to be answered was. `killed`: requests that the dead server was answering may break.
fn settle(work: &Work, what: &str, killed: bool) {
    for (kind, tally) in [
        ("requests", &work.load),
        ("deploys", &work.api_calls),
        ("batches", &work.writes),
    ] {
        let Count {
            answered,
            refused,
            broken,
        } = tally.take();
        println!(
            "{what}: {answered} {kind} answered, {} broken",
            broken.len()
        );
        assert_eq!(refused, 0, "{what}: connections were refused");
        assert!(killed || broken.is_empty(), "{what}: {kind}: {broken:?}");
    }
}

/// Ends an instance by the network from its own inside: the server, whose way this would be, is down.
fn tell_to_exit(pid: u32, code: u8) {
    let ask = format!(
        "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /exit?code={code} HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n' >&3 && cat <&3"
    );
    let told = Command::new("nsenter")
        .args(["--net", "--target", &pid.to_string(), "bash", "-c", &ask])
        .output()
        .unwrap();
    assert!(
        !Path::new(&format!("/proc/{pid}/exe")).exists(),
        "process {pid} still runs: {told:?}"
    );
}

/// Starts the server and waits until everything flows; answers how long it took until a request was answered.
fn back(server: &mut Server, work: &Work, what: &str) {
    let answered = work.load.answered();
    let begun = Instant::now();
    let ready = server.up();
    until("an answer", Duration::from_secs(10), || {
        (work.load.answered() > answered).then_some(())
    });
    let serving = begun.elapsed();
    println!("{what}: ready after {ready:?}, serving after {serving:?}");
    assert!(serving < BACK, "{what}: serving again after {serving:?}");
    work.until_flowing();
}

fn server_dies(server: &mut Server, work: &Work) {
    let (killed, exits) = (pid(server, "killed-alone"), pid(server, "exits-alone"));
    settle(work, "before", false);
    work.until_writing();
    server.kill_9();
    kill_9(killed);
    tell_to_exit(exits, 7);
    back(server, work, "server killed");
    settle(work, "server killed", true);
}

fn keeper_dies(server: &Server, work: &Work) {
    let keeper = server.keeper_pid().unwrap();
    work.until_writing();
    kill_9(keeper);
    until("another keeper", Duration::from_secs(10), || {
        server.keeper_pid().filter(|pid| *pid != keeper)
    });
    work.until_flowing();
    settle(work, "keeper killed", false);
}

fn both_die(server: &mut Server, work: &Work) {
    let (killed, exits) = (pid(server, "killed-both"), pid(server, "exits-both"));
    let keeper = server.keeper_pid().unwrap();
    work.until_writing();
    server.kill_9();
    kill_9(keeper);
    kill_9(killed);
    tell_to_exit(exits, 9);
    back(server, work, "both killed");
    settle(work, "both killed", true);
}

/// An orderly end, and another file in its place.
fn another_build(server: &mut Server, work: &Work) {
    let copy = server.data_dir().parent().unwrap().join("utsuwa-other");
    std::fs::copy(env!("CARGO_BIN_EXE_utsuwa"), &copy).unwrap();
    work.until_writing();
    let told = Command::new("kill").arg(server.pid().to_string()).status();
    assert!(told.unwrap().success());
    server.wait_end();
    server.use_program(&copy);
    back(server, work, "upgraded");
    settle(work, "upgraded", false);
}

/// How those ended that died while nobody watched.
fn ends_are_told(server: &Server) {
    for (name, end) in [
        ("killed-alone", "was ended by signal 9"),
        ("exits-alone", "exited with status 7"),
        ("killed-both", "was ended by signal 9"),
        ("exits-both", "exited with status 9"),
    ] {
        let told = server
            .ok(&["logs", name, "--tail", "100000"])
            .matches(end)
            .count();
        assert_eq!(told, 1, "{name}: {end:?} must be told once");
    }
}

/// Every acknowledged deploy is there and answers; one that nobody acknowledged is either there as well or was never made.
fn deploys_are_there(server: &Server, work: &Work) {
    let deploys = work.deploys.lock().clone();
    let listed = made(server);
    println!(
        "{} deploys acknowledged, {} made, {} changes",
        deploys.acknowledged.len(),
        listed.len(),
        deploys.round
    );
    for name in &deploys.acknowledged {
        assert!(listed.contains(name), "{name} was acknowledged and is lost");
    }
    for name in &listed {
        let path = format!("{PARENT}/services/{name}");
        until(
            &format!("{name} to be ready"),
            Duration::from_secs(20),
            || {
                let (_, service) = server.api_get(&path);
                (service["terminalCondition"]["state"] == "CONDITION_SUCCEEDED").then_some(())
            },
        );
        let (status, body) = server.get(name, "/env");
        assert_eq!(status, 200, "{name}: {body}");
    }
    until("the last change to serve", Duration::from_secs(20), || {
        let (_, body) = server.get("patched", "/env");
        let serves: serde_json::Value = serde_json::from_str(&body).ok()?;
        // A later one may have been taken without its answer having come back.
        (serves["ROUND"].as_str()?.parse::<usize>().ok()? >= deploys.round).then_some(())
    });
    for name in &listed {
        let (status, answer) = server.api_call(
            "DELETE",
            &format!("{PARENT}/services/{name}"),
            &serde_json::Value::Null,
        );
        assert_eq!(status, 200, "{name}: {answer}");
    }
    until("the deletes to be done", Duration::from_secs(30), || {
        made(server).is_empty().then_some(())
    });
}

/// The services that the work made.
fn made(server: &Server) -> Vec<String> {
    let listed = server.ok(&["services", "list", "--format", "value(name)"]);
    listed
        .lines()
        .filter_map(|name| name.rsplit('/').next())
        .filter(|name| name.starts_with("made-"))
        .map(str::to_owned)
        .collect()
}

fn until_asleep(server: &Server) {
    let deadline = Instant::now() + Duration::from_secs(30);
    for name in SERVICES {
        until(&format!("{name} to sleep"), Duration::from_secs(35), || {
            let asleep = server.instance_pids(name).is_empty();
            assert!(
                asleep || Instant::now() < deadline,
                "{name} stays awake: {}",
                server.explain(name)
            );
            asleep.then_some(())
        });
    }
}

/// Descriptors that a role may hold besides: connections of the last questions that are just being closed. What the test does
/// dozens of times (deploys, ends of instances, batches, deletes) would exceed this if each left one behind.
const SPARE_DESCRIPTORS: usize = 3;
/// Memory that all roles together may have gained: what allocators keep of the busiest moment.
const SPARE_KIB: usize = 24 << 10;

/// A pool that is larger than it need be gets smaller every 10 s, and not before the last start is 10 s ago; what a sandbox costs
/// in descriptors is not to be seen here.
const POOL_CHANGES: Duration = Duration::from_secs(22);

/// What the roles hold once the pool has the size that it keeps while nothing happens.
fn at_rest(server: &Server) -> Holding {
    let mut last = (server.holding(), Instant::now());
    until("the pool to be at rest", Duration::from_secs(300), || {
        let now = server.holding();
        if now.sandboxes != last.0.sandboxes {
            last = (now, Instant::now());
        }
        (last.1.elapsed() > POOL_CHANGES).then_some(())
    });
    last.0
}

/// Asleep again, the roles hold what they held before, for the same services.
fn scaled_to_zero(server: &Server, before: &Holding) {
    for name in SERVICES.iter().filter(|n| **n != "patched") {
        server.ok(&["deploy", name, "--min-instances", "0"]);
    }
    until_asleep(server);
    let mut now = at_rest(server);
    println!("before {before:?}\nasleep {now:?}");
    assert_eq!(now.sandboxes, before.sandboxes, "the pool");
    until(
        "all descriptors to be closed",
        Duration::from_secs(20),
        || {
            now = server.holding();
            let within = |(role, held): (&&'static str, &usize)| {
                *held <= before.descriptors[role] + SPARE_DESCRIPTORS
            };
            now.descriptors.iter().all(within).then_some(())
        },
    );
    println!("now    {now:?}");
    let kib = |holding: &Holding| holding.private_kib.values().sum::<usize>();
    assert!(kib(&now) <= kib(before) + SPARE_KIB, "memory of the roles");
}
