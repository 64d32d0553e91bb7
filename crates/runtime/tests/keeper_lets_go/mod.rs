//! What the keeper prepares for services, and what is left of it when they go.

use std::fs;
use std::path::Path;
use std::time::Duration;

use tokio::task::JoinSet;
use utsuwa_model::instance::Exit;
use utsuwa_runtime::{Driver, DriverError};

use super::busybox::possible;
use super::keeper_world::{World, until};

const SIZE: u32 = 65_536;

fn is_copying(shifted: &Path) -> bool {
    fs::read_dir(shifted)
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().contains(".partial"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_that_lacks_copies_has_them_made_and_holds_up_nobody() {
    if !possible("a_start_that_lacks_copies_has_them_made_and_holds_up_nobody") {
        return;
    }
    let mut world = World::with(|config| config.copy_layers = true);
    let mut server = world.server().await;
    let many = world.make_layer(1, |root| {
        fs::create_dir(root.join("many")).unwrap();
        for number in 0..5_000 {
            fs::write(root.join(format!("many/{number:04}")), "x").unwrap();
        }
    });
    let quick = world.spec("echo quick");
    server.driver.prepare(quick.rootfs.clone()).await.unwrap();
    let mut slow = world.spec("ls /many | tail -n 1");
    slow.rootfs.layers.push(many.clone());
    slow.rootfs.uid_base += SIZE;
    let shifted = world.config.data_dir.join("images/shifted");
    let copies = |base: u32| shifted.join(base.to_string());

    let (driver, spec) = (server.driver.clone(), slow.clone());
    let mut starting = JoinSet::new();
    starting.spawn(async move { driver.start(spec).await });
    until("copying", async || {
        is_copying(&copies(slow.rootfs.uid_base))
    })
    .await;
    server.driver.start(quick.clone()).await.unwrap();
    assert_eq!(server.exit().await.2, ["quick"]);
    assert!(
        starting.try_join_next().is_none(),
        "the other one is still being copied"
    );
    starting.join_next().await.unwrap().unwrap().unwrap();
    let (id, exit, lines) = server.exit().await;
    assert_eq!((id, exit), (slow.id.clone(), Exit::Code(0)));
    assert_eq!(lines, ["4999"]);

    // Stopped while its layers are copied: it never runs, and nothing waits for it.
    let mut stopped = world.spec("echo never");
    stopped.rootfs.layers.push(many);
    stopped.rootfs.uid_base += 2 * SIZE;
    let (driver, spec) = (server.driver.clone(), stopped.clone());
    let mut starting = JoinSet::new();
    starting.spawn(async move { driver.start(spec).await });
    until("copying", async || {
        is_copying(&copies(stopped.rootfs.uid_base))
    })
    .await;
    let refused = server.driver.release(stopped.rootfs.uid_base).await;
    assert!(
        matches!(refused, Err(DriverError::Exhausted(_))),
        "{refused:?}"
    );
    server
        .driver
        .stop(stopped.id.clone(), Duration::ZERO)
        .await
        .unwrap();
    let started = starting.join_next().await.unwrap().unwrap();
    let error = started.unwrap_err();
    assert!(error.to_string().contains("stopped before"), "{error}");
    server.no_more_exits().await;

    for base in [slow.rootfs.uid_base, stopped.rootfs.uid_base] {
        server.driver.release(base).await.unwrap();
        assert!(!copies(base).exists());
    }
    assert!(copies(quick.rootfs.uid_base).exists(), "another's stay");
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_go_with_their_service_once_nobody_writes() {
    if !possible("logs_go_with_their_service_once_nobody_writes") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = world.spec("echo one; while :; do sleep 0.01; done");
    let service = spec.revision.service.clone();
    server.driver.start(spec.clone()).await.unwrap();
    let place = world.logs_of_service();
    until("the line to be stored", async || place.exists()).await;
    let refused = server.driver.remove_logs(&service, None).await;
    assert!(
        matches!(refused, Err(DriverError::Exhausted(_))),
        "{refused:?}"
    );
    assert!(place.exists());
    server.driver.stop(spec.id, Duration::ZERO).await.unwrap();
    server.exit().await;
    for _ in 0..2 {
        server.driver.remove_logs(&service, None).await.unwrap();
    }
    let left: Vec<_> = fs::read_dir(world.config.logs_dir())
        .unwrap()
        .flatten()
        .flat_map(|entry| fs::read_dir(entry.path()).unwrap())
        .collect();
    assert!(left.is_empty(), "{left:?}");
    world.down();
}
