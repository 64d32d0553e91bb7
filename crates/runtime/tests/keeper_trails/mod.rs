//! Somebody goes ahead of a start: what an instance looked up is known to the kernel in the next one before its program asks.

use std::fs;
use std::time::Duration;

use tokio::time::Instant;
use utsuwa_model::InstanceId;
use utsuwa_runtime::Driver;
use utsuwa_runtime::sandbox::trail;

use crate::busybox::possible;
use crate::keeper_world::{Server, World, until};

/// More than it takes to be worth going ahead.
const FILES: usize = 200;
/// The kernel says now and then that it doesn't know what it does: a look that may not wait gives way to whoever changes something.
const MISSED: usize = 10;
/// A walk takes a millisecond or two.
const WALK: Duration = Duration::from_secs(1);
/// The same program in all instances: only the first, told so by its environment, looks at any of the files.
const LOOK: &str =
    "[ -n \"$LOOK\" ] && cat /many/* >/dev/null; trap 'exit 0' TERM; while :; do sleep 0.01; done";

async fn pid(server: &Server, id: &InstanceId) -> u32 {
    let listed = server.driver.list().await.unwrap();
    listed.iter().find(|found| found.id == *id).unwrap().pid
}

/// Whether the kernel has entries for the files in the root file system of `pid`, without looking any of them up.
fn are_known(pid: u32, owner: u32) -> bool {
    // In a thread of its own, which it takes rights from.
    let looking = std::thread::Builder::new().spawn(move || trail::of(pid, owner).unwrap());
    let known = looking.unwrap().join().unwrap();
    let files = trail::paths(&known).filter(|path| path.starts_with("many/file-"));
    files.count() >= FILES - MISSED
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_looked_up_is_known_in_the_next_before_it_asks() {
    if !possible("what_an_instance_looked_up_is_known_in_the_next_before_it_asks") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let many = world.make_layer(7, |root| {
        fs::create_dir_all(root.join("many")).unwrap();
        for number in 0..FILES {
            fs::write(root.join(format!("many/file-{number}")), "x").unwrap();
        }
    });
    let spec_of = |world: &mut World, uid_base: u32| {
        let mut spec = world.spec(LOOK);
        spec.rootfs.layers.push(many.clone());
        spec.rootfs.uid_base = uid_base;
        spec
    };
    let base = crate::keeper_world::UID_BASE;
    let mut first = spec_of(&mut world, base);
    first.process.env.push("LOOK=1".to_owned());
    let id = first.id.clone();
    server.driver.start(first).await.unwrap();
    let looked = pid(&server, &id).await;
    until("it has looked at all", async || are_known(looked, base)).await;
    server.driver.freeze(&id).await.unwrap();

    // What is learnt is learnt beside: the next start may come too early, one of those after it doesn't.
    until("one starts with somebody ahead of it", async || {
        let spec = spec_of(&mut world, base);
        let id = spec.id.clone();
        server.driver.start(spec).await.unwrap();
        let (pid, began) = (pid(&server, &id).await, Instant::now());
        until("a walk is over", async || {
            are_known(pid, base) || began.elapsed() >= WALK
        })
        .await;
        are_known(pid, base)
    })
    .await;

    // Another service with the same image and the same program has nothing of it.
    let other = base + 0x1_0000;
    let spec = spec_of(&mut world, other);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    let (pid, began) = (pid(&server, &id).await, Instant::now());
    until("a walk would be over", async || {
        assert!(!are_known(pid, other));
        began.elapsed() >= WALK
    })
    .await;
    world.down();
}
