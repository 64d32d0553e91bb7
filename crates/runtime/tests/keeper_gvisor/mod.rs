//! Instances on gVisor, as the keeper sees them: called, frozen, stopped, adopted, and nothing left. Need root and runsc.

use std::fs;
use std::path::Path;
use std::time::Duration;

use utsuwa_model::instance::{Exit, InstanceSpec, Kernel, Tier};
use utsuwa_runtime::{Driver, DriverError};

use crate::busybox::runsc_possible as possible;
use crate::keeper_world::{UID_BASE, World, kill, until};

fn spec(world: &mut World, script: &str) -> InstanceSpec {
    InstanceSpec {
        kernel: Kernel::Gvisor,
        ..world.spec(script)
    }
}

const SERVES: &str =
    "trap 'echo bye; exit 3' TERM; httpd -p 8080 -h /www; echo up; while :; do sleep 0.05; done";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_on_gvisor_is_called_frozen_thawed_and_stopped() {
    if !possible("an_instance_on_gvisor_is_called_frozen_thawed_and_stopped") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let one = spec(&mut world, SERVES);
    let id = one.id.clone();
    let phases = server.driver.start(one.clone()).await.unwrap();
    println!("{phases:?}");
    assert!(server.get(&id).await.contains("hello from inside"));
    let usage = server.driver.usage(&id).await.unwrap();
    println!("{usage:?}");
    assert!(
        usage.memory_bytes < one.limits.memory.0 + (64 << 20),
        "{usage:?}"
    );
    // Its socket is no door to anybody else, whatever address it is told to connect to.
    let (socket, _) = server.driver.socket(&id).await.unwrap();
    let cable = socket2::SockRef::from(&socket).device().unwrap();
    assert!(
        cable.is_some_and(|name| !name.is_empty()),
        "bound to its cable"
    );
    nothing_of_it_has_privileges(server.driver.list().await.unwrap()[0].pid);
    server.driver.freeze(&id).await.unwrap();
    until("it is frozen", async || {
        server.driver.list().await.unwrap()[0].tier == Tier::Frozen
    })
    .await;
    let refused = server.driver.reclaim(&id).await;
    assert!(
        matches!(&refused, Err(DriverError::Refused(why)) if why.contains("gVisor")),
        "{refused:?}"
    );
    server.driver.thaw(&id).await.unwrap();
    assert!(server.get(&id).await.contains("hello from inside"));
    // Frozen again when the stop comes.
    server.driver.freeze(&id).await.unwrap();
    let stop = server.driver.stop(id.clone(), Duration::from_secs(30));
    stop.await.unwrap();
    let (ended, exit, lines) = server.exit().await;
    assert_eq!((ended, exit), (id, Exit::Code(3)));
    assert_eq!(lines, ["up", "bye"]);
    world.down();
}

/// Of all processes in the cgroup of `first`: none is root of the host, gains anything, or calls what no filter looks at; and the
/// first, which outlives `runsc`, has no capability even over its own namespaces.
fn nothing_of_it_has_privileges(first: u32) {
    let memberships = fs::read_to_string(format!("/proc/{first}/cgroup")).unwrap();
    let directory = memberships
        .lines()
        .find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            let hierarchy = Path::new("/sys/fs/cgroup").join(controllers);
            let directory = hierarchy.join(path.trim_start_matches('/'));
            (matches!(controllers, "" | "pids") && path != "/").then_some(directory)
        })
        .unwrap();
    let processes = fs::read_to_string(directory.join("cgroup.procs")).unwrap();
    let mut seen = 0;
    for pid in processes.lines() {
        let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
            continue;
        };
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().split_whitespace().next().unwrap().to_owned()
        };
        let uid: u32 = of("Uid:").parse().unwrap();
        assert!((UID_BASE..UID_BASE + 65_536).contains(&uid), "{status}");
        assert_eq!(
            (of("NoNewPrivs:"), of("Seccomp:")),
            ("1".into(), "2".into()),
            "{status}"
        );
        if pid == first.to_string() {
            assert_eq!(of("CapPrm:"), "0000000000000000", "{status}");
        }
        seen += 1;
    }
    assert!(
        seen >= 4,
        "the first, runsc, its kernel and its file server: {seen}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_later_keeper_adopts_an_instance_on_gvisor() {
    if !possible("a_later_keeper_adopts_an_instance_on_gvisor") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let one = spec(&mut world, SERVES);
    let id = one.id.clone();
    server.driver.start(one).await.unwrap();
    assert!(server.get(&id).await.contains("hello from inside"));
    let before = server.driver.list().await.unwrap()[0].pid;
    let keeper = server.driver.status().await.unwrap().pid;
    kill(keeper);
    until("another keeper answers", async || {
        world
            .status()
            .is_some_and(|status| status.pid != keeper || status.instances == 1)
    })
    .await;
    assert!(server.get(&id).await.contains("hello from inside"));
    let listed = server.driver.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].pid), (1, before));
    server
        .driver
        .stop(id.clone(), Duration::from_secs(30))
        .await
        .unwrap();
    let (ended, ..) = server.exit().await;
    assert_eq!(ended, id);

    // What a program on gVisor did to itself, in the words of the host's kernel; killed, it leaves nothing either.
    let crash = spec(&mut world, "kill -SEGV $$");
    server.driver.start(crash.clone()).await.unwrap();
    let (ended, exit, _) = server.exit().await;
    assert_eq!((ended, exit), (crash.id, Exit::Signal(11)));
    let greedy = spec(&mut world, "tail /dev/zero & while :; do sleep 0.05; done");
    server.driver.start(greedy.clone()).await.unwrap();
    let (ended, exit, _) = server.exit().await;
    let limit = greedy.limits.memory;
    assert_eq!((ended, exit), (greedy.id, Exit::OutOfMemory { limit }));
    let running = spec(&mut world, SERVES);
    server.driver.start(running).await.unwrap();
    world.down();
}
