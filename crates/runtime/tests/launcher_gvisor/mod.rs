//! Instances on gVisor's kernel. Need root and runsc; skipped by name otherwise.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;

use utsuwa_model::instance::{InstanceSpec, Kernel, MemoryVolume, MountPoint};
use utsuwa_model::quantity::MemoryBytes;
use utsuwa_runtime::sandbox::has_sigterm_handler;
use utsuwa_runtime::spawner::protocol::SpawnError;

use crate::busybox::runsc_possible as possible;
use crate::launcher_world::{End, UID_BASE, World, wait};

fn spec(world: &World, script: &str) -> InstanceSpec {
    InstanceSpec {
        kernel: Kernel::Gvisor,
        ..world.spec(&["sh", "-c", script])
    }
}

#[test]
fn a_program_on_gvisor_sees_gvisors_kernel_and_its_image() {
    if !possible("a_program_on_gvisor_sees_gvisors_kernel_and_its_image") {
        return;
    }
    let mut world = World::new();
    let one = spec(
        &world,
        "dmesg; echo pid=$$; id; hostname; pwd; env; cat /etc/resolv.conf; ls -ld /tmp; ulimit -n; \
         grep -E 'Cap|NoNew' /proc/self/status; echo kept > /new; cat /new; df -k /new | tail -n 1; \
         echo again > /dev/stdout; ls -l /proc/self/fd; mount -t tmpfs none /tmp 2>&1; chroot / true 2>&1; exit 7",
    );
    let (output, end, _) = world.run(one);
    for expected in [
        "Starting gVisor",
        "pid=1\n",
        "uid=0(root) gid=0(root)",
        "\nlocalhost\n/\n",
        "GREETING=hello",
        "HOME=/root",
        "nameserver 169.254.169.254",
        "drwxrwxrwt",
        "CapEff:\t00000000800005fb",
        "\nkept\n",
        "\nagain\n",
        "ermitted",
    ] {
        assert!(
            output.contains(expected),
            "{expected:?} is missing in\n{output}"
        );
    }
    assert_eq!(end, End::Code(7), "{output}");
    println!("{output}");
}
