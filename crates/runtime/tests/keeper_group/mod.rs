//! Instances of several containers: one network, one life, walls and limits for each.

use std::fs;
use std::time::Duration;

use tokio::time::timeout;
use utsuwa_model::instance::{Exit, Group, InstanceSpec, Sidecar};
use utsuwa_runtime::{Driver, InstanceEvent};

use crate::busybox::possible;
use crate::keeper_world::{PATIENCE, Server, World, until};

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
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if String::from_utf8_lossy(&command).contains(marker) {
            let name = entry.file_name();
            found.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
    }
    // Its children are called like it until they execute something.
    found.into_iter().min().unwrap()
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
        "Seccomp:", "CapEff:", "CapPrm:", "CapBnd:", "CapInh:", "CapAmb:", "NoNewPrivs:", "Uid:", "Gid:", "Groups:",
    ] {
        assert_eq!(status(first, wall), status(second, wall), "{wall}");
    }
    assert!(status(second, "Seccomp:").ends_with('2'));
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
