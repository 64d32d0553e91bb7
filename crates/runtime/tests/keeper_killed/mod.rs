//! Helpers killed in the middle of a start and of a stop: whoever asked is told, nothing is left, and the next start works.

use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use utsuwa_model::instance::Exit;
use utsuwa_runtime::{Driver, DriverError, InstanceEvent};

use super::busybox::possible;
use super::keeper_world::{self, Server, World, until};

const LIVES: &str = "while :; do sleep 1; done";

async fn full_pool(server: &Server) {
    until("a full pool", async || {
        let status = server.driver.status().await.unwrap();
        status.pool_ready >= status.pool_target && status.pool_making == 0
    })
    .await;
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(i32::try_from(number).unwrap()).unwrap()
}

/// The starter takes no request any more when it dies: the start it was given fails in words, and the next one has another.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_starter_killed_while_it_starts_an_instance() {
    if !possible("a_starter_killed_while_it_starts_an_instance") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    full_pool(&server).await;
    let starter = pid(server.driver.status().await.unwrap().spawner_pids[0]);
    kill_process(starter, Signal::STOP).unwrap();
    let lost = world.spec(LIVES);
    let killed = async {
        until("the start to be under way", async || {
            server.driver.status().await.unwrap().instances == 1
        })
        .await;
        kill_process(starter, Signal::KILL).unwrap();
    };
    let (answer, ()) = tokio::join!(server.driver.start(lost), killed);
    let error = answer.expect_err("nobody started it").to_string();
    println!("told: {error}");
    assert!(
        error.contains("the spawner process ended") && error.contains("try again"),
        "{error}"
    );
    let next = world.spec(LIVES);
    server.driver.start(next.clone()).await.unwrap();
    let listed = server.driver.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, next.id);
    let report = world.down();
    assert_eq!(report.instances_stopped, 1);
}

/// Ten starts are under way when the keeper dies: each is answered, and what runs afterwards is what the next keeper lists.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_killed_while_instances_start() {
    if !possible("a_keeper_killed_while_instances_start") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    full_pool(&server).await;
    let keeper = server.driver.status().await.unwrap().pid;
    let specs: Vec<_> = (0..10).map(|_| world.spec(LIVES)).collect();
    let starts = specs.iter().map(|spec| server.driver.start(spec.clone()));
    let killed = async {
        until("starts to be under way", async || {
            world.status().is_none_or(|status| status.instances > 0)
        })
        .await;
        keeper_world::kill(keeper);
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(starts), killed);
    let mut running = Vec::new();
    for (spec, answer) in specs.iter().zip(answers) {
        match answer {
            Ok(_) => running.push(spec.id.clone()),
            Err(error) => println!("told: {error}"),
        }
    }
    let after = server.driver.status().await.unwrap();
    assert_ne!(after.pid, keeper);
    let listed = server.driver.list().await.unwrap();
    for id in &running {
        assert!(
            listed.iter().any(|seen| seen.id == *id),
            "{id} was started and is not there"
        );
    }
    // A start that failed may be asked for again, as the loops do with another id.
    let next = world.spec(LIVES);
    server.driver.start(next.clone()).await.unwrap();
    world.down();
}

/// The keeper dies while the starter is about to start an instance whose sandbox dies, too: nothing ran, so that the start, which
/// is asked for again, is a start and not an instance that has ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sandbox_that_died_with_the_keeper_before_its_program_ran() {
    if !possible("a_sandbox_that_died_with_the_keeper_before_its_program_ran") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    full_pool(&server).await;
    let status = server.driver.status().await.unwrap();
    let (keeper, starter) = (status.pid, pid(status.spawner_pids[0]));
    kill_process(starter, Signal::STOP).unwrap();
    let spec = world.spec(LIVES);
    let record = world.config.runtime_dir().join("instances");
    let record = record.join(format!("{}.json", spec.id));
    let killed = async {
        until("the start to be under way", async || {
            server.driver.status().await.unwrap().instances == 1
        })
        .await;
        let text = std::fs::read(&record).unwrap();
        let record: serde_json::Value = serde_json::from_slice(&text).unwrap();
        keeper_world::kill(keeper);
        let sandbox = record["process"]["pid"].as_u64().unwrap();
        keeper_world::kill(u32::try_from(sandbox).unwrap());
        kill_process(starter, Signal::CONT).unwrap();
    };
    let (answer, ()) = tokio::join!(server.driver.start(spec.clone()), killed);
    // A slow machine's keeper may come too late for the first one's patience.
    let answer = match answer {
        Err(DriverError::Unavailable(_)) => server.driver.start(spec.clone()).await,
        other => other,
    };
    answer.expect("it has not run yet");
    let listed = server.driver.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, spec.id);
    server.no_more_exits().await;
    world.down();
}

/// The keeper dies while an instance has its time to end: it ends all the same, and its end is told once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keeper_killed_while_an_instance_stops() {
    if !possible("a_keeper_killed_while_an_instance_stops") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = world.spec("trap 'echo told' TERM; while :; do sleep 0.01; done");
    server.driver.start(spec.clone()).await.unwrap();
    let instance = server.driver.list().await.unwrap()[0].pid;
    until("the handler", async || {
        utsuwa_runtime::sandbox::has_sigterm_handler(instance).unwrap()
    })
    .await;
    let keeper = server.driver.status().await.unwrap().pid;
    let killed = async {
        until("the signal to be there", async || {
            let logs = std::fs::read_dir(world.logs_of_service())
                .into_iter()
                .flatten();
            let mut texts = logs
                .flatten()
                .filter_map(|file| std::fs::read(file.path()).ok());
            texts.any(|text| text.windows(4).any(|part| part == b"told"))
        })
        .await;
        keeper_world::kill(keeper);
    };
    let grace = Duration::from_millis(1500);
    let (answer, ()) = tokio::join!(server.driver.stop(spec.id.clone(), grace), killed);
    println!("told: {answer:?}");
    assert_ne!(server.driver.status().await.unwrap().pid, keeper);
    // As the loops do: what is not known to have ended is stopped again.
    server
        .driver
        .stop(spec.id.clone(), Duration::from_millis(100))
        .await
        .unwrap();
    let (ended, exit, _) = server.exit().await;
    assert_eq!(ended, spec.id);
    assert!(
        matches!(exit, Exit::Signal(9) | Exit::Unknown { .. }),
        "{exit:?}"
    );
    server.no_more_exits().await;
    assert!(server.driver.list().await.unwrap().is_empty());
    world.down();
}

/// A keeper dies whose housekeeper stands still in the middle of something: it is ended before the next one begins, so that no two
/// of them make the same things.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_housekeepers_one_works() {
    if !possible("of_two_housekeepers_one_works") {
        return;
    }
    let world = World::new();
    let server = world.server().await;
    full_pool(&server).await;
    let before = server.driver.status().await.unwrap();
    let housekeeper = pid(before.spawner_pids[1]);
    let its_end = pidfd_open(housekeeper, PidfdFlags::empty()).unwrap();
    kill_process(housekeeper, Signal::STOP).unwrap();
    keeper_world::kill(before.pid);
    until("another keeper", async || {
        world.status().is_some_and(|now| now.pid != before.pid)
    })
    .await;
    let mut polled = [PollFd::new(&its_end, PollFlags::IN)];
    let ended = poll(&mut polled, Some(&Timespec::default())).unwrap();
    assert_eq!(ended, 1, "it is there beside the next one");
    until("a full pool of the next one", async || {
        let status = world.status().unwrap();
        status.pool_ready >= status.pool_target && status.pool_making == 0
    })
    .await;
    world.down();
}

/// The housekeeper dies while it is to remove what an instance leaves: the stop is answered all the same, and nothing is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_housekeeper_killed_while_an_instance_stops() {
    if !possible("a_housekeeper_killed_while_an_instance_stops") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    full_pool(&server).await;
    let spec = world.spec(LIVES);
    server.driver.start(spec.clone()).await.unwrap();
    full_pool(&server).await;
    let housekeeper = server.driver.status().await.unwrap().spawner_pids[1];
    kill_process(pid(housekeeper), Signal::STOP).unwrap();
    let stop = server.driver.stop(spec.id.clone(), Duration::ZERO);
    let killed = async {
        let (ended, exit, _) = server_exit(&mut server.events).await;
        assert_eq!((ended, exit), (spec.id.clone(), Exit::Signal(9)));
        kill_process(pid(housekeeper), Signal::KILL).unwrap();
    };
    let (answer, ()) = tokio::join!(stop, killed);
    answer.expect("the next one removes it");
    server.driver.acknowledge(&spec.id).await.unwrap();
    let next = world.spec(LIVES);
    server.driver.start(next).await.unwrap();
    server.no_more_exits().await;
    let report = world.down();
    assert_eq!(report.instances_stopped, 1);
}

/// Both spawners die while an instance runs: it goes on, is listed, can be reached and stopped.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spawners_killed_while_an_instance_runs() {
    if !possible("spawners_killed_while_an_instance_runs") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = world.spec_of(&["httpd", "-f", "-p", "8080", "-h", "/www"]);
    server.driver.start(spec.clone()).await.unwrap();
    assert!(server.get(&spec.id).await.contains("hello from inside"));
    let before = server.driver.status().await.unwrap();
    for spawner in &before.spawner_pids {
        keeper_world::kill(*spawner);
    }
    until("others in their place", async || {
        let now = server.driver.status().await.unwrap().spawner_pids;
        now.len() == 2 && now.iter().all(|one| !before.spawner_pids.contains(one))
    })
    .await;
    assert_eq!(server.driver.status().await.unwrap().pid, before.pid);
    assert!(server.get(&spec.id).await.contains("hello from inside"));
    let next = world.spec(LIVES);
    server.driver.start(next.clone()).await.unwrap();
    server
        .driver
        .stop(spec.id.clone(), Duration::ZERO)
        .await
        .unwrap();
    assert_eq!(server.exit().await.0, spec.id);
    let listed = server.driver.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, next.id);
    world.down();
}

async fn server_exit(
    events: &mut tokio::sync::broadcast::Receiver<InstanceEvent>,
) -> (utsuwa_model::InstanceId, Exit, Vec<String>) {
    let InstanceEvent::Exited {
        id,
        exit,
        last_lines,
        ..
    } = tokio::time::timeout(keeper_world::PATIENCE, events.recv())
        .await
        .expect("an exit in time")
        .unwrap();
    (id, exit, last_lines)
}
