//! Parked instances: what waits does so until it is told, and what doesn't is not taken for one that does.
//!
//! The image's `python3` is a script that speaks as the bootstrap does; the bootstrap itself is tested with a real one
//! (`zygote_boot`, and end to end).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use utsuwa_model::instance::{Exit, InstanceSpec, Zygote};
use utsuwa_runtime::{Driver, DriverError};

use crate::busybox::possible;
use crate::keeper_world::{World, tells_of_sigkill, until};

/// Waits for the signal as the bootstrap does, then runs what it was given after `-c`.
const WAITS: &str = "trap 'go=1' USR1; printf P >&100; exec 100>&-; while [ -z \"$go\" ]; do sleep 0.01; done; eval \"$2\"";

/// An instance of `python3 -c WHAT`, where `python3` is the script `python`.
fn spec(world: &mut World, number: u8, python: &str, what: &str, zygote: Zygote) -> InstanceSpec {
    let layer = world.make_layer(number, |root| {
        fs::create_dir(root.join("bin")).unwrap();
        let file = root.join("bin/python3");
        fs::write(&file, format!("#!/bin/sh\n{python}\n")).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(0o755)).unwrap();
    });
    let mut spec = world.spec_of(&["python3", "-c", what]);
    spec.rootfs.layers.push(layer);
    spec.zygote = Some(zygote);
    spec
}

fn park() -> Zygote {
    let modules = vec!["re".to_owned()];
    Zygote::Park { modules }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_instance_waits_until_it_is_let_go_on() {
    if !possible("a_parked_instance_waits_until_it_is_let_go_on") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = spec(&mut world, 0x21, WAITS, "echo went; exit 5", park());
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    let listed = server.driver.list().await.unwrap();
    assert_eq!((listed.len(), listed[0].parked), (1, true));
    let environment = fs::read(format!("/proc/{}/environ", listed[0].pid)).unwrap();
    let environment = String::from_utf8_lossy(&environment).into_owned();
    assert!(
        environment.contains("PYTHONPATH=/proc/self/fd/101\0"),
        "{environment}"
    );
    server.no_more_exits().await;

    // Another server finds it as it is.
    drop(server);
    let mut server = world.server().await;
    assert!(server.driver.list().await.unwrap()[0].parked);
    server.driver.go_on(&id).await.unwrap();
    let (ended, exit, lines) = server.exit().await;
    assert_eq!((ended, exit), (id.clone(), Exit::Code(5)));
    assert_eq!(lines, ["went"]);
    let gone = server.driver.go_on(&id).await;
    assert!(matches!(gone, Err(DriverError::NotFound(_))), "{gone:?}");
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_goes_on_once_and_a_killed_keeper_leaves_it_parked() {
    if !possible("it_goes_on_once_and_a_killed_keeper_leaves_it_parked") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let counts = "trap 'echo again' USR1; echo went; while :; do sleep 0.01; done";
    let spec = spec(&mut world, 0x22, WAITS, counts, park());
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    let keeper = world.status().unwrap().pid;
    crate::keeper_world::kill(keeper);
    until("another keeper", async || {
        world.status().is_some_and(|status| status.pid != keeper)
    })
    .await;
    assert!(server.driver.list().await.unwrap()[0].parked);
    server.driver.go_on(&id).await.unwrap();
    server
        .driver
        .go_on(&id)
        .await
        .expect("asking again is no error");
    assert!(!server.driver.list().await.unwrap()[0].parked);
    let mut server = server;
    server
        .driver
        .stop(id.clone(), Duration::ZERO)
        .await
        .unwrap();
    let (_, exit, lines) = server.exit().await;
    assert!(tells_of_sigkill(&exit), "{exit:?}");
    assert!(lines.iter().all(|line| line != "again"), "{lines:?}");
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_wait_is_refused_with_the_reason_and_ended() {
    if !possible("what_does_not_wait_is_refused_with_the_reason_and_ended") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let cases = [
        (
            "printf 'Rimporting x started 1 thread\\033[31m' >&100; while :; do sleep 1; done",
            "importing x started 1 thread [31m",
        ),
        ("exit 0", "ended or ran another one"),
        (
            "printf XYZ >&100; while :; do sleep 1; done",
            "ended or ran another one",
        ),
    ];
    for (number, (python, why)) in (0x23..).zip(cases) {
        let spec = spec(&mut world, number, python, "", park());
        let refused = server.driver.start(spec).await;
        assert!(
            matches!(&refused, Err(DriverError::Refused(text)) if text.contains(why)),
            "{why}: {refused:?}"
        );
    }
    // What isn't Python never runs.
    let mut other = world.spec("echo ran");
    other.zygote = Some(park());
    let refused = server.driver.start(other).await;
    assert!(
        matches!(&refused, Err(DriverError::Refused(text)) if text.contains("begin with exec")),
        "{refused:?}"
    );
    assert!(server.driver.list().await.unwrap().is_empty());
    server.no_more_exits().await;
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_instance_imports_is_learnt_while_it_runs() {
    if !possible("what_an_instance_imports_is_learnt_while_it_runs") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let python = "echo re >&100; echo flask.app >&100; eval \"$2\"";
    let spec = spec(&mut world, 0x27, python, "sleep 1000", Zygote::Learn);
    let id = spec.id.clone();
    server.driver.start(spec).await.unwrap();
    assert!(!server.driver.list().await.unwrap()[0].parked);
    let names = vec!["re".to_owned(), "flask.app".to_owned()];
    until("both names", async || {
        server.driver.learnt(&id) == Some(Ok(names.clone()))
    })
    .await;
    server
        .driver
        .stop(id.clone(), Duration::ZERO)
        .await
        .unwrap();
    server.exit().await;
    assert_eq!(server.driver.learnt(&id), None, "gone with it");

    // One that can't be looked at runs as always.
    let mut other = world.spec_of(&["sleep", "1000"]);
    other.zygote = Some(Zygote::Learn);
    let id = other.id.clone();
    server.driver.start(other).await.unwrap();
    let learnt = server.driver.learnt(&id);
    assert!(
        matches!(&learnt, Some(Err(why)) if why.contains("not Python")),
        "{learnt:?}"
    );
    // It can't fill more than it was given.
    let floods = spec_flood(&mut world);
    let id = floods.id.clone();
    server.driver.start(floods).await.unwrap();
    until("all that fits", async || {
        let learnt = server.driver.learnt(&id);
        matches!(&learnt, Some(Ok(names)) if names.len() > 50_000)
    })
    .await;
    world.down();
}

fn spec_flood(world: &mut World) -> InstanceSpec {
    spec(world, 0x28, "yes mod >&100; sleep 1000", "", Zygote::Learn)
}
