//! Instances of several containers: one network, one life, walls and limits for each.

mod rest;

use std::fs;
use std::time::Duration;

use tokio::time::timeout;
use utsuwa_model::instance::{Exit, Group, InstanceSpec, MemoryVolume, MountPoint, Sidecar, Tier};
use utsuwa_model::quantity::MemoryBytes;
use utsuwa_runtime::sandbox::reclaim::swap;
use utsuwa_runtime::{Driver, DriverError, InstanceEvent};

use crate::busybox::possible;
use crate::keeper_tiers::zram::Zram;
use crate::keeper_world::{PATIENCE, Server, World, at_rest, kill, until};
use crate::skip::skip;

/// An instance whose containers are called `app`, `one`, `two`, …; the first takes requests.
fn group(world: &mut World, scripts: &[&str]) -> InstanceSpec {
    let mut spec = world.spec(scripts[0]);
    let names = ["one", "two", "three"];
    let sidecars = scripts[1..].iter().zip(names).map(|(script, name)| {
        let one = world.spec(script);
        Sidecar {
            name: name.to_owned(),
            waits: false,
            rootfs: one.rootfs,
            process: one.process,
            limits: one.limits,
            volumes: Vec::new(),
            host_dirs: Vec::new(),
        }
    });
    spec.group = Some(Group {
        name: "app".to_owned(),
        waits: false,
        sidecars: sidecars.collect(),
    });
    spec
}

fn sidecar(spec: &mut InstanceSpec, index: usize) -> &mut Sidecar {
    &mut spec.group.as_mut().unwrap().sidecars[index]
}

/// Host process id of the program that was started with this argument.
fn pid_of(marker: &str) -> u32 {
    // Its children are called like it until they execute something.
    pids_of(marker, 1)[0]
}

/// The first `count` of the programs that were started with this argument.
fn pids_of(marker: &str, count: usize) -> Vec<u32> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(marker) {
            let name = entry.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
    }
    found.sort_unstable();
    found.truncate(count);
    assert_eq!(found.len(), count, "{marker}");
    found
}

fn namespace(pid: u32, kind: &str) -> String {
    let path = format!("/proc/{pid}/ns/{kind}");
    fs::read_link(path).unwrap().display().to_string()
}

/// A line of `/proc/PID/status`.
fn status(pid: u32, name: &str) -> String {
    let all = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = all.lines().find(|line| line.starts_with(name));
    line.unwrap_or_default().to_owned()
}

/// What is mounted where and how, in order; whose file system it is differs.
fn mounts(pid: u32) -> Vec<String> {
    let table = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
    let line = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let kind = line.split(" - ").nth(1)?.split(' ').next()?;
        Some(format!("{} {} {kind}", words[4], words[5]))
    };
    table.lines().filter_map(line).collect()
}

async fn next_exit(server: &mut Server) -> (String, Exit, Vec<String>) {
    let InstanceEvent::Exited {
        id,
        container,
        exit,
        last_lines,
        ..
    } = timeout(PATIENCE, server.events.recv())
        .await
        .expect("an exit in time")
        .unwrap();
    server.driver.acknowledge(&id).await.unwrap();
    (container, exit, last_lines)
}

/// What a container has written to its standard output.
fn log_of(world: &World, spec: &InstanceSpec, container: &str) -> String {
    let path = format!("{}.out-{container}.0", spec.id);
    fs::read_to_string(world.logs_of_service().join(path)).unwrap_or_default()
}

async fn says(world: &World, spec: &InstanceSpec, container: &str, what: &str) {
    until(what, async || log_of(world, spec, container).contains(what)).await;
}

/// Both have installed their handlers.
async fn ready(world: &World, spec: &InstanceSpec) {
    for container in 0..=spec.sidecars().len() {
        says(world, spec, spec.container_name(container), "ready").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_containers_share_loopback_and_nothing_else() {
    if !possible("two_containers_share_loopback_and_nothing_else") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let app = "until wget -q -O - http://127.0.0.1:7000/hello; do sleep 0.01; done; echo mine > /mine; cat /etc/hosts; \
               echo all; : marker-app; sleep 600; true";
    let one = ": marker-one; httpd -f -p 127.0.0.1:7000 -h /www; true";
    let spec = group(&mut world, &[app, one]);
    server.driver.start(spec.clone()).await.unwrap();
    says(&world, &spec, "app", "all").await;
    let log = log_of(&world, &spec, "app");
    assert!(log.contains("hello from inside"), "{log}");
    assert!(log.contains("127.0.0.1 app\n127.0.0.1 one\n"), "{log}");
    let (first, second) = (pid_of("marker-app"), pid_of("marker-one"));
    let file = |pid: u32, path: &str| format!("/proc/{pid}/root{path}");
    assert!(fs::exists(file(first, "/mine")).unwrap());
    assert!(!fs::exists(file(second, "/mine")).unwrap());
    for kind in ["net", "user"] {
        assert_eq!(namespace(first, kind), namespace(second, kind), "{kind}");
    }
    for kind in ["pid", "mnt", "ipc", "uts", "cgroup"] {
        assert_ne!(namespace(first, kind), namespace(second, kind), "{kind}");
    }
    for wall in [
        "Seccomp:",
        "CapEff:",
        "CapPrm:",
        "CapBnd:",
        "CapInh:",
        "CapAmb:",
        "NoNewPrivs:",
        "Uid:",
        "Gid:",
        "Groups:",
    ] {
        assert_eq!(status(first, wall), status(second, wall), "{wall}");
    }
    assert!(status(second, "Seccomp:").ends_with('2'));
    let limits = |pid: u32| fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert_eq!(limits(first), limits(second));
    let masks = mounts(first);
    assert!(
        masks.iter().any(|one| one.starts_with("/proc/sys ro")),
        "{masks:?}"
    );
    assert_eq!(masks, mounts(second));
    let usage = server.driver.usage(&spec.id).await.unwrap();
    assert!(usage.pids >= 4, "two shells, and what each runs: {usage:?}");
    server
        .driver
        .stop(spec.id.clone(), Duration::ZERO)
        .await
        .unwrap();
    let (container, exit, _) = next_exit(&mut server).await;
    assert_eq!((container.as_str(), exit), ("app", Exit::Signal(9)));
    world.down();
}

/// Says when it is ready, and goodbye when it is asked to end.
const POLITE: &str =
    "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done; : marker-polite";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_one_is_the_end_of_all_and_names_it() {
    if !possible("the_end_of_one_is_the_end_of_all_and_names_it") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let ends = "echo last words; exit 7";
    let mut greedy = group(&mut world, &[POLITE, "tail /dev/zero"]);
    sidecar(&mut greedy, 0).limits.memory = MemoryBytes(24 << 20);
    let limit = MemoryBytes(24 << 20);
    for (spec, container, exit, lines) in [
        (
            group(&mut world, &[POLITE, POLITE, ends]),
            "two",
            Exit::Code(7),
            vec!["last words"],
        ),
        (
            group(&mut world, &[ends, POLITE]),
            "app",
            Exit::Code(7),
            vec!["last words"],
        ),
        (greedy, "one", Exit::OutOfMemory { limit }, vec![]),
    ] {
        server.driver.start(spec.clone()).await.unwrap();
        let (who, how, said) = next_exit(&mut server).await;
        assert_eq!((who.as_str(), &how), (container, &exit));
        assert_eq!(said, lines);
        let stop = server.driver.stop(spec.id.clone(), Duration::ZERO);
        stop.await.expect("stopping a gone one is no error");
        assert!(server.driver.list().await.unwrap().is_empty());
    }
    server.no_more_exits().await;
    world.down();
}

/// Gone, or a zombie that nobody has reaped.
fn has_ended(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).map_or(true, |stat| {
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_asks_each_container_and_waits_for_all() {
    if !possible("a_stop_asks_each_container_and_waits_for_all") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    let spec = group(&mut world, &[POLITE, POLITE, "echo ready; sleep 600; true"]);
    server.driver.start(spec.clone()).await.unwrap();
    ready(&world, &spec).await;
    let stop = server.driver.stop(spec.id.clone(), PATIENCE);
    timeout(PATIENCE / 2, stop)
        .await
        .expect("before its grace is over")
        .unwrap();
    let (container, exit, _) = next_exit(&mut server).await;
    assert_eq!((container.as_str(), exit), ("app", Exit::Code(3)));
    for polite in ["app", "one"] {
        assert!(log_of(&world, &spec, polite).contains("bye"), "{polite}");
    }

    let stubborn = "trap 'echo not yet' TERM; echo ready; while :; do sleep 0.01; done";
    let spec = group(&mut world, &[POLITE, stubborn]);
    server.driver.start(spec.clone()).await.unwrap();
    ready(&world, &spec).await;
    let grace = Duration::from_millis(300);
    server.driver.stop(spec.id.clone(), grace).await.unwrap();
    let (_, exit, _) = next_exit(&mut server).await;
    assert_eq!(exit, Exit::Code(3));
    assert!(log_of(&world, &spec, "one").contains("not yet"));
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_waits_is_started_when_asked_for_and_finds_the_shared_volume() {
    if !possible("one_that_waits_is_started_when_asked_for_and_finds_the_shared_volume") {
        return;
    }
    let mut world = World::new();
    let mut server = world.server().await;
    // The one that takes requests waits for the other.
    let app = "echo ready; cat /seen/deep/word; echo no > /seen/deep/word || echo closed; sleep 600; true";
    let one = "echo kept > /own/word; echo ready; sleep 600; true";
    let mut spec = group(&mut world, &[app, one]);
    let seen = |path: &str, sub: &str, read_only| MemoryVolume {
        size: MemoryBytes(1 << 20),
        mounts: vec![MountPoint {
            path: path.to_owned(),
            sub_path: sub.to_owned(),
            read_only,
        }],
        shared: "cache".to_owned(),
    };
    spec.group.as_mut().unwrap().waits = true;
    spec.volumes = vec![seen("/seen/deep", "part", true)];
    sidecar(&mut spec, 0).volumes = vec![seen("/own", "part", false)];
    server.driver.start(spec.clone()).await.unwrap();
    says(&world, &spec, "one", "ready").await;
    assert_eq!(log_of(&world, &spec, "app"), "");
    let refused = server.driver.freeze(&spec.id).await;
    assert!(refused.is_err(), "it starts: {refused:?}");
    server.driver.start_container(&spec.id, 0).await.unwrap();
    let again = server.driver.start_container(&spec.id, 0).await;
    again.expect("starting it again is no error");
    says(&world, &spec, "app", "closed").await;
    assert_eq!(log_of(&world, &spec, "app"), "ready\nkept\nclosed\n");

    let none = server.driver.start_container(&spec.id, 2).await;
    assert!(matches!(none, Err(DriverError::Refused(_))), "{none:?}");
    server
        .driver
        .stop(spec.id.clone(), Duration::ZERO)
        .await
        .unwrap();
    next_exit(&mut server).await;
    let gone = server.driver.start_container(&spec.id, 1).await;
    assert!(matches!(gone, Err(DriverError::NotFound(_))), "{gone:?}");

    // What can't be started ends what was, and its name is told.
    let mut spec = group(&mut world, &[POLITE, "true"]);
    sidecar(&mut spec, 0).waits = true;
    sidecar(&mut spec, 0).process.args = vec!["missing".to_owned()];
    server.driver.start(spec.clone()).await.unwrap();
    let why = server
        .driver
        .start_container(&spec.id, 1)
        .await
        .unwrap_err();
    assert!(why.to_string().contains("container \"one\": "), "{why}");
    next_exit(&mut server).await;
    sidecar(&mut spec, 0).waits = false;
    spec.id = "f".repeat(32).parse().unwrap();
    let why = server.driver.start(spec).await.unwrap_err();
    assert!(why.to_string().contains("container \"one\": "), "{why}");
    server.no_more_exits().await;
    world.down();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_whole_ends_with_its_server() {
    if !possible("who_is_not_whole_ends_with_its_server") {
        return;
    }
    let mut world = World::new();
    let server = world.server().await;
    let whole = group(&mut world, &[POLITE, POLITE]);
    let mut part = group(&mut world, &[POLITE, POLITE]);
    sidecar(&mut part, 0).waits = true;
    server.driver.start(whole.clone()).await.unwrap();
    server.driver.start(part.clone()).await.unwrap();
    let mut next = world.server().await;
    let (container, _, _) = next_exit(&mut next).await;
    assert_eq!(container, "app");
    let listed = next.driver.list().await.unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].id, whole.id);

    // Nobody knows how far a start was whose keeper died.
    part.id = "e".repeat(32).parse().unwrap();
    next.driver.start(part.clone()).await.unwrap();
    kill(world.status().unwrap().pid);
    let (_, exit, _) = next_exit(&mut next).await;
    assert!(matches!(exit, Exit::Unknown { .. }), "{exit:?}");
    let listed = next.driver.list().await.unwrap();
    assert_eq!(listed.len(), 1);

    // Names become parts of file names.
    let mut wrong = group(&mut world, &[POLITE, POLITE]);
    sidecar(&mut wrong, 0).name = "../../out".to_owned();
    let refused = next.driver.start(wrong).await;
    assert!(
        matches!(refused, Err(DriverError::Refused(_))),
        "{refused:?}"
    );
    world.down();
}
