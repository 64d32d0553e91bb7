//! The housekeeper's network: an instance has one, and its rules on the host are watched over.

use std::io::Read;
use std::time::{Duration, Instant};

use utsuwa_runtime::network::NetConfig;
use utsuwa_runtime::spawner::protocol::{Op, Reply};

use crate::busybox::possible;
use crate::launcher_world::{End, World, wait};

/// A world with a network, and its id.
fn networked() -> (String, World) {
    let id = World::id();
    let network = NetConfig {
        id: id.clone(),
        ingress_ports: vec![80],
        allow: Vec::new(),
        mtu: None,
    };
    (id, World::with_network(Some(network)))
}

#[test]
fn an_instance_has_its_network() {
    if !possible("an_instance_has_its_network") {
        return;
    }
    let (id, mut world) = networked();
    let script = "ip -o addr; ip route; nc -l -p 80 -e echo answered & until nc ::1 80; do kill -0 $! || exit 1; done";
    let mut spec = world.spec(&["sh", "-c", script]);
    spec.process.user = "www".to_owned();
    let mut instance = world.start(spec).unwrap();
    let address = instance.sandbox.net.address.to_string();
    let mut output = String::new();
    instance.output.read_to_string(&mut output).unwrap();
    assert_eq!(wait(&instance.sandbox.pidfd), End::Code(0), "{output}");
    assert!(
        output.contains("eth0") && output.contains(&address) && output.contains("default via"),
        "{output}"
    );
    assert!(
        output.contains("answered"),
        "port 80 as another user than root: {output}"
    );
    assert!(!instance.sandbox.sockets.is_empty());
    world.end(instance.sandbox);
    drop(world);
    utsuwa_runtime::network::Gateway::tear_down(&id).unwrap();
}

#[test]
fn the_housekeeper_sets_the_rules_of_the_network_again() {
    if !possible("the_housekeeper_sets_the_rules_of_the_network_again") {
        return;
    }
    let (id, mut world) = networked();
    // It answers, so it has set all up.
    let (result, _) = world.housekeeper.ask(Op::RemoveOldLogs, &[]);
    assert_eq!(result, Ok(Reply::Done));
    let nft = |what: &str| {
        let table = format!("utsuwa-{id}");
        let mut nft = std::process::Command::new("nft");
        nft.args([what, "table", "inet", &table]).output().unwrap()
    };
    for _ in 0..2 {
        // Others' changes at the same moment may make it fail.
        while !nft("delete").status.success() {
            assert!(nft("list").status.success(), "somebody else took it");
        }
        let begin = Instant::now();
        while !nft("list").status.success() {
            assert!(begin.elapsed() < Duration::from_secs(10), "still gone");
        }
        eprintln!("gone for {:?} at most", begin.elapsed());
    }
    drop(world);
    utsuwa_runtime::network::Gateway::tear_down(&id).unwrap();
}
