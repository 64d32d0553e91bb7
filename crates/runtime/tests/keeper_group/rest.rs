//! Memory and rest of instances of several containers.

use super::*;

/// A sidecar runs out of memory, and the app that needs it is gone before anybody looked: it is the sidecar's end all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ran_out_of_memory_is_named_also_when_another_is_seen_to_end_first() {
    if !possible("who_ran_out_of_memory_is_named_also_when_another_is_seen_to_end_first") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let app = "echo ready; : marker-needs; sleep 600; true";
    let one =
        "echo ready; : marker-hungry; until [ -e /go ]; do sleep 0.01; done; exec tail /dev/zero";
    let mut spec = group(&mut world, &[app, one]);
    let limit = MemoryBytes(24 << 20);
    sidecar(&mut spec, 0).limits.memory = limit;
    server.driver.start(spec.clone()).await.unwrap();
    ready(&world, &spec).await;
    let (needs, hungry) = (pid_of("marker-needs"), pid_of("marker-hungry"));
    let keeper = i32::try_from(world.status().unwrap().pid).unwrap();
    let keeper = rustix::process::Pid::from_raw(keeper).unwrap();
    rustix::process::kill_process(keeper, rustix::process::Signal::STOP).unwrap();
    kill(needs);
    fs::write(format!("/proc/{hungry}/root/go"), "").unwrap();
    until("the kernel to kill it", async || has_ended(hungry)).await;
    rustix::process::kill_process(keeper, rustix::process::Signal::CONT).unwrap();
    let (container, exit, _) = next_exit(&mut server).await;
    assert_eq!(
        (container.as_str(), &exit),
        ("one", &Exit::OutOfMemory { limit })
    );
    // As its owner reads it.
    let line = exit.log_line(&container);
    assert!(
        line.contains("24 MiB") && line.contains("\"one\""),
        "{line}"
    );
    server.no_more_exits().await;
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_them_give_memory_back_and_get_it_again() {
    const NAME: &str = "all_of_them_give_memory_back_and_get_it_again";
    if !possible(NAME) {
        return;
    }
    let made = Zram::new();
    if swap().is_err() {
        return skip(NAME, "giving memory back needs zram or encrypted swap");
    }
    let mut world = World::new();
    let mut server = world.server().await;
    // In a variable of the shell, which has no children any more: pages that two share stay.
    let full = "x=$(head -c 16000000 /dev/zero | tr '\\0' x); trap 'echo ${#x}; exit 3' TERM; echo ready; : marker-full; \
                while :; do :; done";
    let spec = group(&mut world, &[full, full]);
    let id = spec.id.clone();
    server.driver.start(spec.clone()).await.unwrap();
    ready(&world, &spec).await;
    server.driver.freeze(&id).await.unwrap();
    for container in pids_of("marker-full", 2) {
        until("all come to rest", async || at_rest(container)).await;
    }
    let given = server.driver.reclaim(&id).await.unwrap();
    assert!(given.before_bytes > 32_000_000, "of both: {given:?}");
    assert!(given.after_bytes < given.before_bytes / 2, "{given:?}");
    assert_eq!(server.driver.list().await.unwrap()[0].tier, Tier::Reclaimed);
    server.driver.thaw(&id).await.unwrap();
    server.driver.stop(id, PATIENCE).await.unwrap();
    let (container, exit, _) = next_exit(&mut server).await;
    assert_eq!((container.as_str(), exit), ("app", Exit::Code(3)));
    for container in ["app", "one"] {
        let log = log_of(&world, &spec, container);
        assert!(
            log.contains("16000000"),
            "{container}: all of it came back: {log}"
        );
    }
    world.down();
    drop(made);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_of_them_are_frozen_and_live_on_without_their_keeper() {
    if !possible("all_of_them_are_frozen_and_live_on_without_their_keeper") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let busy = "echo ready; : marker-busy; trap 'echo bye; exit 3' TERM; while :; do :; done";
    let spec = group(&mut world, &[busy, busy]);
    server.driver.start(spec.clone()).await.unwrap();
    ready(&world, &spec).await;
    server.driver.freeze(&spec.id).await.unwrap();
    for container in pids_of("marker-busy", 2) {
        until("all come to rest", async || at_rest(container)).await;
    }
    kill(world.status().unwrap().pid);
    until("another keeper", async || world.status().is_some()).await;
    let tier = async || {
        let listed = server.driver.list().await.unwrap();
        listed.first().map(|found| found.tier)
    };
    until("it is still listed", async || {
        tier().await == Some(Tier::Frozen)
    })
    .await;
    server.driver.thaw(&spec.id).await.unwrap();
    server.driver.stop(spec.id.clone(), PATIENCE).await.unwrap();
    let (container, exit, _) = next_exit(&mut server).await;
    assert_eq!(container, "app");
    // The status of what isn't its child a keeper learns from Linux 6.15 on.
    assert!(
        matches!(exit, Exit::Code(3) | Exit::Unknown { .. }),
        "{exit:?}"
    );
    for name in ["app", "one"] {
        assert!(log_of(&world, &spec, name).contains("bye"), "{name}");
    }

    // One that ends under the next keeper ends all, and is named.
    let spec = group(
        &mut world,
        &[POLITE, "echo ready; : marker-short; sleep 600; true"],
    );
    server.driver.start(spec.clone()).await.unwrap();
    ready(&world, &spec).await;
    kill(world.status().unwrap().pid);
    until("another keeper", async || world.status().is_some()).await;
    kill(pid_of("marker-short"));
    let (container, _, _) = next_exit(&mut server).await;
    assert_eq!(container, "one");
    assert_eq!(world.status().unwrap().instances, 0);
    world.down();
}
