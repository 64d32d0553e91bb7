//! Which groups of containers are taken.

use utsuwa_model::instance::{
    Group as Containers, Kernel, Limits, ProcessSpec, RootfsSpec, Sidecar,
};
use utsuwa_model::quantity::{MemoryBytes, MilliCpu};

use super::*;

fn spec(sidecars: &[&str]) -> InstanceSpec {
    let rootfs = RootfsSpec {
        layers: Vec::new(),
        uid_base: 0x2000_0000,
    };
    let process = ProcessSpec {
        args: vec!["/app".to_owned()],
        env: Vec::new(),
        cwd: String::new(),
        user: String::new(),
    };
    let limits = Limits {
        cpu: MilliCpu(1000),
        memory: MemoryBytes(64 << 20),
        pids: 64,
    };
    let sidecar = |name: &&str| Sidecar {
        name: (*name).to_owned(),
        waits: false,
        rootfs: rootfs.clone(),
        process: process.clone(),
        limits,
        volumes: Vec::new(),
        host_dirs: Vec::new(),
    };
    InstanceSpec {
        id: "a".repeat(32).parse().unwrap(),
        revision: "demo/local/hello/hello-00001-abc".parse().unwrap(),
        group: Some(Containers {
            name: "app".to_owned(),
            waits: false,
            sidecars: sidecars.iter().map(sidecar).collect(),
        }),
        rootfs,
        process,
        limits,
        port: 8080,
        volumes: Vec::new(),
        host_dirs: Vec::new(),
        kernel: Kernel::Host,
        zygote: None,
    }
}

#[test]
fn names_are_plain_and_distinct_and_ids_the_same() {
    let alone = InstanceSpec {
        group: None,
        ..spec(&[])
    };
    assert_eq!(check(&alone), Ok(()));
    assert_eq!(check(&spec(&["side", "other-2"])), Ok(()));
    let many = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];
    assert_eq!(check(&spec(&many[1..])), Ok(()));
    let long = "x".repeat(64);
    for wrong in [
        &["app"][..],
        &["side", "side"],
        &[""],
        &["../../etc"],
        &["a.b"],
        &["Side"],
        &[long.as_str()],
        &many,
    ] {
        let refused = check(&spec(wrong));
        assert!(matches!(refused, Err(KeeperError::Refused(_))), "{wrong:?}");
    }
    let mut strangers = spec(&["side"]);
    strangers.group.as_mut().unwrap().sidecars[0]
        .rootfs
        .uid_base += 65_536;
    assert!(check(&strangers).is_err());
}
