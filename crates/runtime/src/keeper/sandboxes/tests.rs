use std::fs::File;

use super::super::adopt::no_network;
use super::super::core::now;
use super::super::spawners::tests::Imagined;
use super::*;

fn failed() -> Result<Reply, SpawnError> {
    Err(SpawnError::SandboxGone {
        detail: "no network".to_owned(),
    })
}

/// All that is asked for together fails together; what was begun of it is removed.
fn fail_together(world: &mut Imagined) {
    world.keeper.refill_not_before = None;
    world.keeper.refill();
    let together = world.keeper.making.len();
    assert_eq!(together, MAKING);
    for _ in 0..together {
        world.answer(failed());
    }
    for _ in 0..together {
        world.answer(Ok(Reply::Done));
    }
    assert!(world.keeper.making.is_empty());
}

#[test]
fn what_fails_together_is_one_failure() {
    let mut world = Imagined::new();
    for failures in 1..4 {
        fail_together(&mut world);
        assert_eq!(world.keeper.pool_failures, failures);
        let pause = world.keeper.refill_not_before.unwrap() - now();
        assert!(pause <= Duration::from_millis(50 << failures), "{pause:?}");
    }
}

#[test]
fn a_success_ends_the_pause() {
    let mut world = Imagined::new();
    fail_together(&mut world);
    assert!(world.keeper.refill_not_before.is_some());
    let mut process = std::process::Command::new("cat")
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let pid = process.id();
    let pidfd = rustix::process::pidfd_open(
        super::super::spawners::to_pid(pid).unwrap(),
        rustix::process::PidfdFlags::empty(),
    );
    let file = || OwnedFd::from(File::open("/dev/null").unwrap());
    let net = no_network();
    let number = world.keeper.free_number();
    world.keeper.records.make_sandbox(number).unwrap();
    world.keeper.made(
        number,
        Ok(Reply::Made { pid, net }),
        vec![pidfd.unwrap(), file(), file()],
    );
    assert_eq!(world.keeper.pool_error, "");
    assert_eq!(world.keeper.ready.len(), 1);
    assert_eq!(world.keeper.pool_failures, 0);
    assert_eq!(world.keeper.refill_not_before, None);
    process.kill().unwrap();
    process.wait().unwrap();
}
