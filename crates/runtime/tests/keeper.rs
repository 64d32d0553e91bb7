//! The keeper with real sandboxes: starts, ends, logs and sockets, and what survives its own and the server's death. Need
//! root; skipped by name otherwise.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "tests"
)]

mod busybox;
mod keeper_lets_go;
mod keeper_protocol;
mod keeper_spawners;
mod keeper_world;
#[path = "../../../tests/skip.rs"]
mod skip;

use std::time::Duration;

use busybox::possible;
use keeper_world::World;
use serde_json::json;
use utsuwa_model::instance::Exit;
use utsuwa_runtime::Driver;
use utsuwa_runtime::client::InternalEvent;
use utsuwa_runtime::keeper::protocol::VERSION;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_starts_is_listed_and_ends_once() {
    if !possible("an_instance_starts_is_listed_and_ends_once") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = world.spec("echo one; echo two >&2; read line; exit 7");
    let id = spec.id.clone();
    let phases = server.driver.start(spec.clone()).await.unwrap();
    println!("{phases:?}");
    let (ended, exit, lines) = server.exit().await;
    assert_eq!((ended, exit), (id.clone(), Exit::Code(7)));
    assert_eq!(lines, ["one", "two"]);

    let spec = world.spec("trap 'echo bye; exit 3' TERM; while :; do sleep 0.01; done");
    let phases = server.driver.start(spec.clone()).await.unwrap();
    println!("{phases:?}");
    server
        .driver
        .start(spec.clone())
        .await
        .expect("starting a running one again is no error");
    let listed = server.driver.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, spec.id);
    let usage = server.driver.usage(&spec.id).await.unwrap();
    assert!(usage.memory_bytes > 0 && usage.pids > 0, "{usage:?}");
    let half = utsuwa_model::quantity::MilliCpu(500);
    server.driver.set_cpu(&spec.id, half).await.unwrap();
    let listed = server.driver.list().await.unwrap();
    assert_eq!(listed[0].limits.cpu, half, "the new limit is observed");
    assert_eq!(keeper_world::cpu_quota(listed[0].pid), 50_000);
    keeper_world::until("the handler", async || {
        utsuwa_runtime::sandbox::has_sigterm_handler(listed[0].pid).unwrap()
    })
    .await;
    server
        .driver
        .stop(spec.id.clone(), Duration::from_secs(10))
        .await
        .unwrap();
    let (ended, exit, lines) = server.exit().await;
    assert_eq!((ended, exit), (spec.id.clone(), Exit::Code(3)));
    assert_eq!(lines, ["bye"]);
    server
        .driver
        .stop(spec.id, Duration::from_secs(10))
        .await
        .expect("stopping a gone one is no error");
    server.no_more_exits().await;
    assert!(server.driver.list().await.unwrap().is_empty());
    world.down();
}

/// `1`, `2`, … without a hole or a repetition.
fn assert_counted(text: &str, at_least: usize) {
    let mut expected = 0_usize;
    for line in text.lines() {
        expected += 1;
        assert_eq!(line, expected.to_string(), "line {expected} of the log");
    }
    assert!(expected >= at_least, "only {expected} lines");
}

fn raw_log(world: &World, name: &str) -> String {
    let mut names: Vec<_> = std::fs::read_dir(world.logs_of_service())
        .map(|all| all.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default();
    names.retain(|path: &std::path::PathBuf| {
        let file = path.file_name().unwrap().to_str().unwrap();
        file.starts_with(name) && !file.ends_with(".idx") && !file.ends_with(".dropped")
    });
    names.sort_by_key(|path| {
        path.extension()
            .unwrap()
            .to_str()
            .unwrap()
            .parse::<u64>()
            .unwrap()
    });
    names
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect()
}

const COUNTER: &str =
    "i=0; while :; do i=$((i+1)); echo $i; [ $((i%50)) = 0 ] && sleep 0.005; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_keeper_and_a_killed_server_lose_nothing() {
    if !possible("a_killed_keeper_and_a_killed_server_lose_nothing") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let counter = world.spec(COUNTER);
    let web = world.spec_of(&["httpd", "-f", "-p", "8080", "-h", "/www"]);
    for spec in [&counter, &web] {
        server.driver.start(spec.clone()).await.unwrap();
    }
    assert!(server.get(&web.id).await.contains("hello from inside"));
    let listener = server.driver.listen("http", "127.0.0.1:0").await.unwrap();
    let address = std::net::TcpListener::from(listener.try_clone().unwrap())
        .local_addr()
        .unwrap();
    let name = format!("{}.out", counter.id);
    let before: Vec<u32> = server
        .driver
        .list()
        .await
        .unwrap()
        .iter()
        .map(|seen| seen.pid)
        .collect();
    let mut lines = 0;
    // Keeper, server, both: twice each.
    for round in 0..6 {
        keeper_world::until("more lines", async || {
            raw_log(&world, &name).lines().count() > lines + 200
        })
        .await;
        lines = raw_log(&world, &name).lines().count();
        let status = server.driver.status().await.unwrap();
        let began = std::time::Instant::now();
        match round % 3 {
            0 => keeper_world::kill(status.pid),
            1 => {
                // A server that dies says nothing; its successor just connects.
                drop(server);
                server = world.server().await;
            }
            _ => {
                drop(server);
                keeper_world::kill(status.pid);
                std::net::TcpStream::connect(address).expect("the listening socket lives on");
                server = world.server().await;
            }
        }
        let after = server.driver.status().await.unwrap();
        println!("round {round}: answered again after {:?}", began.elapsed());
        assert!(began.elapsed() < keeper_world::a_second());
        assert_eq!(after.pid == status.pid, round % 3 == 1);
        assert_eq!(after.instances, 2, "{after:?}");
        let again = server.driver.listen("http", "127.0.0.1:0").await.unwrap();
        assert_eq!(
            std::net::TcpListener::from(again).local_addr().unwrap(),
            address
        );
        let pids: Vec<u32> = server
            .driver
            .list()
            .await
            .unwrap()
            .iter()
            .map(|seen| seen.pid)
            .collect();
        assert_eq!(pids, before, "instances keep their processes");
        assert!(server.get(&web.id).await.contains("hello from inside"));
    }
    server
        .driver
        .stop(counter.id.clone(), Duration::ZERO)
        .await
        .unwrap();
    let (id, exit, last) = server.exit().await;
    assert_eq!(id, counter.id);
    // It isn't the child of this keeper, so only a kernel that tells strangers knows.
    let known = utsuwa_runtime::sandbox::probe::probe()
        .exit_by_pidfd
        .is_ok();
    assert!(
        exit == Exit::Signal(9) || (!known && matches!(exit, Exit::Unknown { .. })),
        "{exit:?}"
    );
    let log = raw_log(&world, &name);
    assert_counted(&log, 1200);
    assert_eq!(last.last().unwrap(), log.lines().last().unwrap());
    server.no_more_exits().await;
    let report = world.down();
    assert_eq!(
        (report.instances_stopped, report.problems.len()),
        (1, 0),
        "{report:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ends_that_nobody_watched_are_told_once() {
    if !possible("ends_that_nobody_watched_are_told_once") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    // One ends by itself once the server is gone, one while the keeper is dead, one runs out of memory.
    let late = world.spec("read line < /tmp/never || sleep 0.3; echo last words; exit 5");
    let hungry = world.spec("sleep 0.3; x=$(yes | head -c 200000000); echo survived");
    let killed = world.spec("while :; do sleep 1; done");
    for spec in [&late, &hungry, &killed] {
        server.driver.start(spec.clone()).await.unwrap();
    }
    let status = server.driver.status().await.unwrap();
    let victim = server
        .driver
        .list()
        .await
        .unwrap()
        .iter()
        .find(|seen| seen.id == killed.id)
        .unwrap()
        .pid;
    drop(server);
    keeper_world::kill(status.pid);
    keeper_world::kill(victim);
    keeper_world::until("all three ends", async || {
        world
            .status()
            .is_some_and(|status| status.exits_unacknowledged == 3)
    })
    .await;
    // Another keeper reads them from its records.
    keeper_world::kill(world.status().unwrap().pid);
    let mut server = world.server().await;
    let mut exits = std::collections::BTreeMap::new();
    for _ in 0..3 {
        let (id, exit, lines) = server.exit().await;
        assert!(exits.insert(id, (exit, lines)).is_none(), "told twice");
    }
    assert_eq!(
        exits[&late.id].1,
        ["last words", "sh: can't open /tmp/never: no such file"]
    );
    // How they ended is known from Linux 6.15 on, or while nobody else reaped them.
    let told = |exit: &Exit, wanted: &Exit| exit == wanted || matches!(exit, Exit::Unknown { .. });
    println!("{exits:?}");
    assert!(told(&exits[&late.id].0, &Exit::Code(5)), "{exits:?}");
    assert!(told(&exits[&killed.id].0, &Exit::Signal(9)), "{exits:?}");
    assert_eq!(
        exits[&hungry.id].0,
        Exit::OutOfMemory {
            limit: hungry.limits.memory
        }
    );
    server.no_more_exits().await;
    drop(server);
    let mut server = world.server().await;
    server.no_more_exits().await;
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_reaches_those_who_mind_it() {
    if !possible("sigterm_reaches_those_who_mind_it") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let deaf = world.spec("while :; do sleep 1; done");
    let stubborn = world.spec("trap 'echo not yet' TERM; while :; do sleep 0.01; done");
    for (spec, grace, at_least, signal) in [(&deaf, 10_000, 0, 9), (&stubborn, 300, 300, 9)] {
        server.driver.start(spec.clone()).await.unwrap();
        let pid = server.driver.list().await.unwrap()[0].pid;
        if at_least > 0 {
            keeper_world::until("the handler", async || {
                utsuwa_runtime::sandbox::has_sigterm_handler(pid).unwrap()
            })
            .await;
        }
        let began = std::time::Instant::now();
        server
            .driver
            .stop(spec.id.clone(), Duration::from_millis(grace))
            .await
            .unwrap();
        let took = began.elapsed();
        assert!(
            took >= Duration::from_millis(at_least)
                && took < Duration::from_millis(at_least + 2000),
            "{took:?}"
        );
        let (id, exit, _) = server.exit().await;
        assert_eq!((id, exit), (spec.id.clone(), Exit::Signal(signal)));
    }
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pool_refills_and_a_bad_start_says_why() {
    if !possible("the_pool_refills_and_a_bad_start_says_why") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let specs: Vec<_> = (0..6)
        .map(|_| world.spec("while :; do sleep 1; done"))
        .collect();
    let starts = specs.iter().map(|spec| server.driver.start(spec.clone()));
    for phases in futures_util::future::join_all(starts).await {
        println!("{:?}", phases.unwrap());
    }
    keeper_world::until("a larger pool", async || {
        let status = server.driver.status().await.unwrap();
        status.pool_target >= 8 && status.pool_ready >= 8
    })
    .await;
    let bad = world.spec_of(&["no-such-program"]);
    let error = server
        .driver
        .start(bad)
        .await
        .expect_err("not there")
        .to_string();
    assert!(error.contains("no-such-program"), "{error}");
    server.no_more_exits().await;
    assert_eq!(server.driver.list().await.unwrap().len(), 6);
    let report = world.down();
    assert_eq!(report.instances_stopped, 6);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_housekeeper_that_can_not_begin_says_why() {
    if !possible("a_housekeeper_that_can_not_begin_says_why") {
        return;
    }
    // No network can be made under this name.
    let world = World::with(|config| {
        if let Some(net) = &mut config.net {
            net.id = "Not An Id".to_owned();
        }
    });
    keeper_world::until("an error of the pool", async || {
        world
            .status()
            .is_some_and(|status| status.pool_error.contains("Not An Id"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_another_version_is_answered() {
    if !possible("a_client_of_another_version_is_answered") {
        return;
    }
    let world = World::new();
    let hello = |version: u32, oldest: u32| {
        json!({"hello": {
            "version": version, "oldest": oldest, "build": "later", "data_id": world.config.id, "kind": "visitor",
            "something_new": true,
        }})
    };
    let refused = world.speak(&[hello(VERSION + 1, VERSION + 1)]);
    let reason = refused[0]["refused"]["reason"].as_str().unwrap();
    assert!(reason.contains("speaks protocol"), "{reason}");
    assert_eq!(refused.len(), 1, "the connection ended");
    let answers = world.speak(&[
        hello(VERSION + 1, VERSION),
        json!({"request": {"id": 7, "op": {"levitate": {"height": 3}}}}),
        json!({"request": {"id": 8, "op": {"stop": {"identity": "x"}}}}),
        json!({"request": {"id": 9, "op": "status"}}),
    ]);
    assert_eq!(answers[0]["welcome"]["version"], VERSION);
    let of = |index: usize| &answers[index]["reply"]["result"]["Err"]["not_understood"]["op"];
    assert_eq!((of(1), of(2)), (&json!("levitate"), &json!("stop")));
    let status = &answers[3]["reply"]["result"]["Ok"]["status"];
    assert!(status["pid"].is_u64(), "the session goes on: {answers:?}");
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_build_takes_over_with_everything() {
    if !possible("another_build_takes_over_with_everything") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let counter = world.spec(COUNTER);
    server.driver.start(counter.clone()).await.unwrap();
    let listener =
        std::net::TcpListener::from(server.driver.listen("api", "[::1]:0").await.unwrap());
    let before = server.driver.status().await.unwrap();
    world.config.build = "another".to_owned();
    let began = std::time::Instant::now();
    utsuwa_runtime::keeper::ensure_keeper(&world.config).unwrap();
    println!("replaced after {:?}", began.elapsed());
    let after = server.driver.status().await.unwrap();
    assert_eq!(
        (after.pid, after.build.as_str()),
        (before.pid, "another"),
        "the same process, so it is still the parent"
    );
    assert_eq!(after.listeners, before.listeners);
    std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let newer = world.server().await;
    server.driver.superseded().await;
    let refused = server
        .driver
        .list()
        .await
        .expect_err("superseded")
        .to_string();
    assert!(refused.contains("another server"), "{refused}");
    drop(server);
    server = newer;
    assert_eq!(server.driver.list().await.unwrap().len(), 1);
    server
        .driver
        .stop(counter.id.clone(), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(server.exit().await.1, Exit::Signal(9));
    assert_counted(&raw_log(&world, &format!("{}.out", counter.id)), 1);
    world.down();
}

/// Keeper and spawners; the spawners while nobody can replace them.
async fn kill_everything(world: &World, status: &utsuwa_runtime::keeper::protocol::Status) {
    let keeper = rustix::process::Pid::from_raw(i32::try_from(status.pid).unwrap()).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::STOP).unwrap();
    for pid in status.spawner_pids.iter().chain([&status.pid]) {
        keeper_world::kill(*pid);
    }
    keeper_world::until("silence", async || world.status().is_none()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_up_adopts_when_everything_of_ours_was_killed() {
    if !possible("the_next_up_adopts_when_everything_of_ours_was_killed") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let counter = world.spec(COUNTER);
    let mortal = world.spec("while :; do sleep 1; done");
    for spec in [&counter, &mortal] {
        server.driver.start(spec.clone()).await.unwrap();
    }
    let status = server.driver.status().await.unwrap();
    let pids = server.driver.list().await.unwrap();
    let pid_of = |id| pids.iter().find(|seen| seen.id == id).unwrap().pid;
    let (counter_pid, mortal_pid) = (pid_of(counter.id.clone()), pid_of(mortal.id.clone()));
    drop(server);
    kill_everything(&world, &status).await;
    keeper_world::kill(mortal_pid);
    utsuwa_runtime::keeper::ensure_keeper(&world.config).unwrap();
    let mut server = world.server().await;
    let (id, exit, _) = server.exit().await;
    assert_eq!(id, mortal.id);
    assert!(
        matches!(exit, Exit::Unknown { .. } | Exit::Signal(9)),
        "{exit:?}"
    );
    let listed = server.driver.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].pid), (1, counter_pid));
    let name = format!("{}.out", counter.id);
    let before = raw_log(&world, &name).lines().count();
    keeper_world::until("more lines", async || {
        raw_log(&world, &name).lines().count() > before + 100
    })
    .await;
    server
        .driver
        .stop(counter.id.clone(), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(server.exit().await.0, counter.id);
    server.no_more_exits().await;
    assert_counted(&raw_log(&world, &name), 100);
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_knows_callers_by_their_sockets() {
    if !possible("a_server_knows_callers_by_their_sockets") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = world.spec("while :; do echo hello | nc -w 1 169.254.169.254 80; sleep 0.05; done");
    server.driver.start(spec.clone()).await.unwrap();
    // The gateway's namespace outlives all of ours only where it can be held in the mount namespace of PID 1.
    let rounds = if std::fs::read_link("/proc/1/ns/mnt").is_ok() {
        4
    } else {
        3
    };
    println!("{rounds} rounds of 4");
    for round in 0..rounds {
        let mut sockets = std::collections::BTreeMap::new();
        let mut assigned = None;
        while assigned.is_none_or(|sandbox| !sockets.contains_key(&sandbox)) {
            match tokio::time::timeout(keeper_world::PATIENCE, server.internal.recv())
                .await
                .unwrap()
                .unwrap()
            {
                InternalEvent::Attached {
                    sandbox,
                    net,
                    sockets: found,
                } => {
                    assert_eq!(net.sockets.len(), found.len());
                    sockets.insert(sandbox, found);
                }
                InternalEvent::Assigned {
                    sandbox, instance, ..
                } => {
                    assert_eq!(instance, spec.id);
                    assigned = Some(sandbox);
                }
                InternalEvent::Gone { .. }
                | InternalEvent::Refusals { .. }
                | InternalEvent::Exited(_) => {}
            }
        }
        let own = sockets.remove(&assigned.unwrap()).unwrap();
        let (_, ingress) = own
            .into_iter()
            .find(|(role, _)| {
                matches!(
                    role,
                    utsuwa_runtime::network::SocketRole::Ingress { port: 80 }
                )
            })
            .expect("an ingress socket");
        let listener = std::net::TcpListener::from(ingress);
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        tokio::time::timeout(keeper_world::PATIENCE, listener.accept())
            .await
            .expect("a call in time")
            .unwrap();
        // A new server gets them from the same keeper, from one that took over, and from one that found nobody.
        drop(listener);
        drop(sockets);
        if round + 1 == rounds {
            break;
        }
        let status = server.driver.status().await.unwrap();
        drop(server);
        match round {
            0 => {}
            1 => keeper_world::kill(status.pid),
            _ => {
                kill_everything(&world, &status).await;
                utsuwa_runtime::keeper::ensure_keeper(&world.config).unwrap();
            }
        }
        server = world.server().await;
    }
    drop(server);
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_lines_are_read_whole_and_once() {
    use futures_util::StreamExt;
    use utsuwa_runtime::logs::{LogReader, LogRecord, ReadOptions};
    if !possible("large_lines_are_read_whole_and_once") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    // Lines of 1 byte to 200 kB, as fast as they go, with the keeper killed in between.
    let spec = world.spec("i=0; while [ $i -lt 60 ]; do i=$((i+1)); head -c $((i*i*55)) /dev/zero | tr '\\0' x; echo; sleep 0.01; done");
    server.driver.start(spec.clone()).await.unwrap();
    let options = ReadOptions {
        tail: None,
        follow: true,
    };
    let records = LogReader::new(&world.config.logs_dir()).read(&spec.revision.service, options);
    tokio::pin!(records);
    for number in 1..=60_u64 {
        let record = tokio::time::timeout(keeper_world::PATIENCE, records.next())
            .await
            .expect("a line in time");
        let LogRecord::Line(line) = record.unwrap().unwrap() else {
            panic!("nothing was dropped")
        };
        assert_eq!(
            (line.sequence, line.text.len() as u64),
            (number, number * number * 55)
        );
        if number % 20 == 0 {
            keeper_world::kill(world.status().unwrap().pid);
        }
    }
    let (id, exit, _) = server.exit().await;
    assert_eq!(id, spec.id);
    assert!(
        matches!(exit, Exit::Code(0) | Exit::Unknown { .. }),
        "{exit:?}"
    );
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_lost_a_process_for_memory_ends_whole() {
    if !possible("an_instance_that_lost_a_process_for_memory_ends_whole") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    // The first process goes on, as a server does that starts another worker.
    let greedy = world.spec("tail /dev/zero & while :; do sleep 0.05; done");
    server.driver.start(greedy.clone()).await.unwrap();
    let (id, exit, _) = server.exit().await;
    assert_eq!(
        (id, exit),
        (
            greedy.id,
            Exit::OutOfMemory {
                limit: greedy.limits.memory
            }
        )
    );
    // The same under a keeper that took the instance over, before or after it happened.
    let later = world.spec("(sleep 0.3; tail /dev/zero) & while :; do sleep 0.05; done");
    server.driver.start(later.clone()).await.unwrap();
    keeper_world::kill(server.driver.status().await.unwrap().pid);
    let (id, exit, _) = server.exit().await;
    assert_eq!(
        (id, exit),
        (
            later.id,
            Exit::OutOfMemory {
                limit: later.limits.memory
            }
        )
    );
    server.no_more_exits().await;
    world.down();
}

/// A probe that comes before the program listens costs no other socket.
#[tokio::test]
async fn a_socket_whose_connection_was_refused_serves_again() {
    use std::os::fd::AsFd;
    if !possible("a_socket_whose_connection_was_refused_serves_again") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let spec = world.spec_of(&["httpd", "-f", "-p", "8080", "-h", "/www"]);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    server.get(&id).await;
    let inode = |socket: &std::os::fd::OwnedFd| rustix::fs::fstat(socket.as_fd()).unwrap().st_ino;
    let (socket, mut address) = server.driver.socket(&id).await.unwrap();
    let first = inode(&socket);
    let port = address.port();
    address.set_port(9);
    let socket = std::net::TcpStream::from(socket);
    let same = socket.try_clone().unwrap();
    let refused = tokio::net::TcpSocket::from_std_stream(socket)
        .connect(address)
        .await;
    assert_eq!(
        refused.unwrap_err().kind(),
        std::io::ErrorKind::ConnectionRefused,
        "nobody listens on port 9"
    );
    server.driver.give_back(&id, same.into());
    let (socket, mut address) = server.driver.socket(&id).await.unwrap();
    assert_eq!(inode(&socket), first, "the same one");
    address.set_port(port);
    tokio::net::TcpSocket::from_std_stream(std::net::TcpStream::from(socket))
        .connect(address)
        .await
        .expect("it connects like a new one");
    world.down();
}
