//! The keeper with real sandboxes: starts, ends, logs and sockets, and what survives its own and the server's death. Need
//! root; skipped by name otherwise.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "tests"
)]

mod busybox;
mod keeper_group;
mod keeper_gvisor;
mod keeper_killed;
mod keeper_lets_go;
mod keeper_limits;
mod keeper_parked;
mod keeper_protocol;
mod keeper_sockets;
mod keeper_spawners;
mod keeper_survives;
mod keeper_tiers;
mod keeper_trails;
mod keeper_world;
#[path = "../../../tests/skip.rs"]
mod skip;

use std::time::Duration;

use busybox::possible;
use keeper_world::World;
use utsuwa_model::instance::Exit;
use utsuwa_runtime::Driver;

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
        follow: true,
        ..ReadOptions::default()
    };
    let records = LogReader::new(&world.config.logs_dir())
        .read(&spec.revision.service, options)
        .filter(|record| std::future::ready(!matches!(record, Ok(LogRecord::Present))));
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
