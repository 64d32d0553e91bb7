//! What survives the death of the keeper, of the server and of both, and another build in their place.

use std::time::Duration;

use utsuwa_model::instance::Exit;
use utsuwa_runtime::Driver;

use super::busybox::possible;
use super::keeper_world::{self, World};

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

/// Keeper and spawners; the spawners while nobody can replace them.
pub(super) async fn kill_everything(
    world: &World,
    status: &utsuwa_runtime::keeper::protocol::Status,
) {
    let keeper = rustix::process::Pid::from_raw(i32::try_from(status.pid).unwrap()).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::STOP).unwrap();
    for pid in status.spawner_pids.iter().chain([&status.pid]) {
        keeper_world::kill(*pid);
    }
    keeper_world::until("silence", async || world.status().is_none()).await;
}

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
    assert!(keeper_world::tells_of_sigkill(&exit), "{exit:?}");
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

/// The starter keeps what its heap has; who takes the keeper's place in its process doesn't, nor what that one starts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_that_was_the_starter_gives_memory_back() {
    if !possible("a_keeper_that_was_the_starter_gives_memory_back") {
        return;
    }
    let world = World::new();
    let server = world.server().await;
    let keeps = |pid: u32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
        environment
            .split(|byte| *byte == 0)
            .any(|one| one.starts_with(b"MALLOC_CONF="))
    };
    let status = server.driver.status().await.unwrap();
    let starter = status.spawner_pids[0];
    assert!(keeps(starter) && !keeps(status.pid));
    keeper_world::kill(status.pid);
    keeper_world::until("its successor", async || {
        let status = world.status();
        status.is_some_and(|now| now.pid == starter && now.spawner_pids.len() == 2)
    })
    .await;
    let status = world.status().unwrap();
    assert!(!keeps(status.pid), "the keeper");
    assert!(keeps(status.spawner_pids[0]), "its starter");
    assert!(!keeps(status.spawner_pids[1]), "its housekeeper");
    world.down();
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
    let hungry = world.spec("sleep 0.3; exec tail /dev/zero");
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
