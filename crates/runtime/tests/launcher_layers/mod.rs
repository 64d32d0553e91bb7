//! Layers with the ids of many services: how long mounts are kept, and copies where ids can't be mapped.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use utsuwa_model::instance::RootfsSpec;
use utsuwa_runtime::sandbox::process::IMAGE_BASE;
use utsuwa_runtime::spawner::protocol::{Op, Reply, SpawnError};

use super::busybox::possible;
use super::launcher_world::{End, UID_BASE, World};

const SIZE: u32 = 65_536;
/// What the starter keeps of layer mounts.
const KEPT: usize = 1_000;

/// Mounts of layers in the starter's namespace: their names are one or two letters below its own tmpfs.
fn layer_mounts(world: &World) -> usize {
    let table = fs::read_to_string(format!("/proc/{}/mountinfo", world.starter.pid())).unwrap();
    table
        .lines()
        .filter_map(|line| line.split(' ').nth(4)?.split_once("/run/mounts/"))
        .filter(|(_, name)| name.len() <= 2)
        .count()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen in time");
        std::thread::yield_now();
    }
}

fn prepare(world: &mut World, rootfs: &RootfsSpec) -> Duration {
    let began = Instant::now();
    let op = Op::Prepare {
        rootfs: rootfs.clone(),
    };
    assert_eq!(world.starter.ask(op, &[]).0.unwrap(), Reply::Done);
    began.elapsed()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[test]
fn layer_mounts_are_let_go_of_and_made_again() {
    if !possible("layer_mounts_are_let_go_of_and_made_again") {
        return;
    }
    let mut world = World::new();
    let mut layers = vec![world.layer(0).1];
    layers.extend((1..10).map(|number| world.make_layer(number, |_| {})));
    let rootfs = |service: u32| RootfsSpec {
        layers: layers.clone(),
        uid_base: UID_BASE + service * SIZE,
    };
    for service in 0..150 {
        prepare(&mut world, &rootfs(service));
    }
    // The first one is in use: its instance keeps what it has.
    let script = "trap 'cat /srv/plain; exit' TERM; echo ready; while :; do sleep 0.01; done";
    let mut spec = world.spec(&["sh", "-c", script]);
    spec.rootfs = rootfs(0);
    let mut running = world.start(spec).unwrap();
    let mut ready = [0; 6];
    running.output.read_exact(&mut ready).unwrap();
    until("letting go", || layer_mounts(&world) <= KEPT);
    assert!(layer_mounts(&world) > KEPT / 2, "no more than needed");

    let evicted: Vec<u32> = (1..21).collect();
    let cold = median(
        evicted
            .iter()
            .map(|n| prepare(&mut world, &rootfs(*n)))
            .collect(),
    );
    let warm = median(
        evicted
            .iter()
            .map(|n| prepare(&mut world, &rootfs(*n)))
            .collect(),
    );
    println!(
        "ten layers of one service: {} µs when they are mounted, {} µs when they were let go of",
        warm.as_micros(),
        cold.as_micros()
    );
    assert!(warm < cold, "those were mounted again: {warm:?} {cold:?}");
    until("letting go", || layer_mounts(&world) <= KEPT);

    // A service that is deleted leaves nothing, and its ids may be another's at once.
    let before = layer_mounts(&world);
    let uid_base = rootfs(20).uid_base;
    let released = world.starter.ask(Op::ReleaseIds { uid_base }, &[]).0;
    assert_eq!(released.unwrap(), Reply::Done);
    let mut spec = world.spec(&["cat", "/srv/plain"]);
    spec.rootfs = rootfs(20);
    assert_eq!(world.run(spec), ("plain text".to_owned(), End::Code(0), 0));
    let released = world.starter.ask(Op::ReleaseIds { uid_base }, &[]).0;
    assert_eq!(released.unwrap(), Reply::Done);
    until("letting go", || layer_mounts(&world) <= before - 10);

    let pidfd = &running.sandbox.pidfd;
    rustix::process::pidfd_send_signal(pidfd, rustix::process::Signal::TERM).unwrap();
    let mut output = String::new();
    running.output.read_to_string(&mut output).unwrap();
    assert_eq!(output, "plain text", "a running instance keeps its own");
    world.end(running.sandbox);
}

#[test]
fn layers_are_copied_where_ids_cannot_be_mapped() {
    if !possible("layers_are_copied_where_ids_cannot_be_mapped") {
        return;
    }
    let mut world = World::that_copies();
    let diff_id = world.make_layer(1, |root| {
        fs::create_dir(root.join("opt")).unwrap();
        fs::write(root.join("opt/file"), "copied").unwrap();
    });
    let mut spec = world.spec(&["sh", "-c", "cat /opt/file; stat -c %u:%g /opt/file"]);
    spec.rootfs.layers.push(diff_id.clone());

    // Nothing is copied in a start. It gives everything back and may be repeated.
    let sandbox = world.make();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let op = Op::Start {
        sandbox: sandbox.number,
        pid: sandbox.pid,
        spec: Box::new(spec.clone()),
        net: sandbox.net.clone(),
        member: None,
        limited: false,
    };
    let given = [sandbox.control.as_fd(), writer.as_fd(), writer.as_fd()];
    let (result, returned) = world.starter.ask(op.clone(), &given);
    assert!(
        matches!(result, Err(SpawnError::NotPrepared { .. })),
        "{result:?}"
    );
    assert_eq!(returned.len(), 3);
    drop(writer);

    let rootfs = spec.rootfs.clone();
    for _ in 0..2 {
        let op = Op::Prepare {
            rootfs: rootfs.clone(),
        };
        assert_eq!(world.housekeeper.ask(op, &[]).0.unwrap(), Reply::Done);
    }
    let given: Vec<_> = returned.iter().map(AsFd::as_fd).collect();
    let (result, _) = world.starter.ask(op, &given);
    assert!(matches!(result, Ok(Reply::Started { .. })), "{result:?}");
    drop(given);
    drop(returned);
    let output = std::io::read_to_string(fs::File::from(reader)).unwrap();
    assert_eq!(output, "copied0:0\n");
    world.end(sandbox);

    let copies = world.images.join(format!("shifted/{UID_BASE}"));
    let file = copies.join("01".repeat(32)).join("opt/file");
    assert_eq!(fs::metadata(&file).unwrap().uid(), UID_BASE);
    assert_eq!(
        fs::metadata(world.layer(1).0.join("opt/file"))
            .unwrap()
            .uid(),
        IMAGE_BASE
    );
    for _ in 0..2 {
        for spawner in [&mut world.starter, &mut world.housekeeper] {
            let op = Op::ReleaseIds { uid_base: UID_BASE };
            assert_eq!(spawner.ask(op, &[]).0.unwrap(), Reply::Done);
        }
    }
    assert!(!copies.exists());
    let left: Vec<_> = fs::read_dir(world.images.join("shifted"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");

    // A layer that goes takes its copies along, and what is missing is said by name.
    let op = Op::Prepare { rootfs };
    assert_eq!(
        world.housekeeper.ask(op.clone(), &[]).0.unwrap(),
        Reply::Done
    );
    let remove = Op::RemoveLayer {
        diff_id: diff_id.clone(),
    };
    assert_eq!(world.housekeeper.ask(remove, &[]).0.unwrap(), Reply::Done);
    assert!(!file.exists() && !world.layer(1).0.exists());
    assert_eq!(
        world.housekeeper.ask(op, &[]).0,
        Err(SpawnError::LayerMissing { diff_id })
    );
}

/// A layer of many files takes long to copy; sandboxes are made meanwhile.
#[test]
fn copying_stands_in_nobodys_way() {
    if !possible("copying_stands_in_nobodys_way") {
        return;
    }
    let mut world = World::that_copies();
    let small = world.spec(&["cat", "/srv/plain"]);
    let prepare = |rootfs: &RootfsSpec| Op::Prepare {
        rootfs: rootfs.clone(),
    };
    let op = prepare(&small.rootfs);
    assert_eq!(world.housekeeper.ask(op, &[]).0.unwrap(), Reply::Done);
    let large = world.make_layer(1, |root| {
        for number in 0..5_000 {
            fs::write(root.join(format!("{number}")), "x").unwrap();
        }
    });
    let mut rootfs = small.rootfs.clone();
    rootfs.layers.push(large);
    let copying = world.housekeeper.send(prepare(&rootfs), &[]);
    // Its answer would come first if it were served in order; `make` takes none but its own.
    let sandbox = world.make();
    let (response, _) = world.housekeeper.receive();
    assert_eq!((response.id, response.result), (copying, Ok(Reply::Done)));
    let mut instance = world.start_in(sandbox, small).unwrap();
    let mut output = String::new();
    instance.output.read_to_string(&mut output).unwrap();
    assert_eq!(output, "plain text");
    world.end(instance.sandbox);
    let copies = world.images.join(format!("shifted/{UID_BASE}"));
    let count = fs::read_dir(copies.join("01".repeat(32))).unwrap().count();
    assert_eq!(count, 5_000);
}

#[test]
fn a_hundred_layers_are_possible() {
    if !possible("a_hundred_layers_are_possible") {
        return;
    }
    let mut world = World::new();
    let mut spec = world.spec(&["sh", "-c", "cat /n; ls / | grep -c only"]);
    for number in 1..=120 {
        let diff_id = world.make_layer(number, |root| {
            fs::write(root.join("n"), number.to_string()).unwrap();
            fs::write(root.join(format!("only{number}")), "").unwrap();
        });
        spec.rootfs.layers.push(diff_id);
    }
    let (output, ..) = world.run(spec);
    assert_eq!(output, "120120\n");
}
