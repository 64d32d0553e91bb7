//! Spawners that die or can't work, and what becomes of what they were doing.

use std::fs;
use std::path::Path;

use rustix::process::{Pid, Signal, kill_process};
use utsuwa_runtime::Driver;
use utsuwa_runtime::sandbox::cgroup::Cgroups;

use super::busybox::possible;
use super::keeper_world::{World, until};

/// Numbers of sandboxes that were begun and have no process yet.
fn unfinished(sandboxes: &Path) -> Vec<u32> {
    let all = fs::read_dir(sandboxes).unwrap().flatten();
    let begun = all.filter(|entry| !entry.path().join("process.json").exists());
    begun
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_housekeeper_was_making_is_removed_by_the_next() {
    if !possible("what_a_killed_housekeeper_was_making_is_removed_by_the_next") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    until("a full pool", async || {
        let status = server.driver.status().await.unwrap();
        status.pool_ready >= status.pool_target && status.pool_making == 0
    })
    .await;
    let status = server.driver.status().await.unwrap();
    let housekeeper = Pid::from_raw(i32::try_from(status.spawner_pids[1]).unwrap()).unwrap();
    kill_process(housekeeper, Signal::STOP).unwrap();
    // Takes a sandbox, so that another one is asked for.
    let spec = world.spec("while :; do sleep 1; done");
    server.driver.start(spec).await.unwrap();
    let sandboxes = world.config.runtime_dir().join("sandboxes");
    until("a sandbox to be asked for", async || {
        !unfinished(&sandboxes).is_empty()
    })
    .await;
    let begun = unfinished(&sandboxes);
    // So far it has come when it dies.
    let cgroups = Cgroups::open(&world.config.id).unwrap();
    for number in &begun {
        cgroups.sandbox(*number).create().unwrap();
    }
    kill_process(housekeeper, Signal::KILL).unwrap();
    until("nothing of them is left", async || {
        let left = cgroups.list();
        begun
            .iter()
            .all(|n| !left.contains(n) && !sandboxes.join(n.to_string()).exists())
    })
    .await;
    until("a full pool again", async || {
        let status = server.driver.status().await.unwrap();
        status.pool_ready >= status.pool_target
    })
    .await;
    server.no_more_exits().await;
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
    until("a larger pool", async || {
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
    until("an error of the pool", async || {
        world
            .status()
            .is_some_and(|status| status.pool_error.contains("Not An Id"))
    })
    .await;
}

/// How nice a process is, and of which session.
fn nice_and_session(pid: u32) -> (i32, u32) {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Its name, in parentheses, may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(')')
        .unwrap()
        .1
        .split_whitespace()
        .collect();
    (fields[16].parse().unwrap(), fields[3].parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spawners_go_first_and_what_they_start_does_not() {
    if !possible("spawners_go_first_and_what_they_start_does_not") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let spec = world.spec("while :; do sleep 1; done");
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    let instance = server.driver.pid(&id).unwrap();
    assert_eq!(nice_and_session(instance), (0, instance));
    let capabilities = fs::read_to_string("/proc/self/status").unwrap();
    let held = capabilities.lines().find_map(|l| l.strip_prefix("CapEff:"));
    let held = u64::from_str_radix(held.unwrap().trim(), 16).unwrap();
    // In a container, root may lack CAP_SYS_NICE.
    let nice = if held & (1 << 23) == 0 { 0 } else { -10 };
    for spawner in server.driver.status().await.unwrap().spawner_pids {
        assert_eq!(nice_and_session(spawner), (nice, spawner));
    }
    drop(server);
    world.down();
}
