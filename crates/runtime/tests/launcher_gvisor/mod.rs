//! Instances on gVisor's kernel. Need root and runsc; skipped by name otherwise.

use std::io::{BufRead, BufReader, Read};
use std::time::Instant;

use rustix::process::{Signal, pidfd_send_signal};
use utsuwa_model::instance::{InstanceSpec, Kernel, MemoryVolume, MountPoint};
use utsuwa_model::quantity::MemoryBytes;
use utsuwa_runtime::sandbox::has_sigterm_handler;
use utsuwa_runtime::spawner::protocol::SpawnError;

use crate::busybox::runsc_possible as possible;
use crate::launcher_world::{End, World, wait};

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
         grep Cap /proc/self/status; echo kept > /new; cat /new; echo again > /dev/stdout; \
         mount -t tmpfs none /tmp 2>&1; chroot / true 2>&1; exit 7",
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
        "\n25000\n",
        "CapEff:\t00000000800005fb",
        "\nkept\n",
        "\nagain\n",
        "mount: permission denied",
        "chroot: can't",
    ] {
        assert!(
            output.contains(expected),
            "{expected:?} is missing in\n{output}"
        );
    }
    assert_eq!(end, End::Code(7), "{output}");
}

#[test]
fn users_directories_and_programs_are_as_with_the_hosts_kernel() {
    if !possible("users_directories_and_programs_are_as_with_the_hosts_kernel") {
        return;
    }
    let mut world = World::new();
    let mut www = spec(
        &world,
        "id; pwd; grep CapEff /proc/self/status; touch /srv/closed/x; touch /root-only; touch /tmp/mine && ls -n /tmp/mine",
    );
    www.process.user = "www".to_owned();
    www.process.cwd = "/made/for/it".to_owned();
    let (output, ..) = world.run(www);
    for expected in [
        "uid=33(www) gid=34(www) groups=44(media)",
        "/made/for/it",
        "CapEff:\t0000000000000000",
        "/srv/closed/x: Permission denied",
        "/root-only: Permission denied",
        "33       34",
    ] {
        assert!(
            output.contains(expected),
            "{expected:?} is missing in\n{output}"
        );
    }
    // The same words as for programs that the host's kernel refuses.
    for args in [
        &["nothing-of-this-name"][..],
        &["/bin/nothing"],
        &["/srv/plain"],
        &["/srv/text"],
        &["/srv/no-interpreter"],
        &["/srv/windows"],
        &["/srv/foreign"],
        &["/srv"],
        &[""],
    ] {
        let host = world.spec(args);
        let gvisor = InstanceSpec {
            kernel: Kernel::Gvisor,
            ..host.clone()
        };
        let [host, gvisor] = [host, gvisor].map(|one| world.start(one).err().unwrap());
        assert_eq!(host, gvisor, "{args:?}");
    }
    let mut unknown = spec(&world, "true");
    unknown.process.user = "nobody-here".to_owned();
    let error = world.start(unknown).err().unwrap();
    assert!(
        matches!(error, SpawnError::UserNotFound { .. }),
        "{error:?}"
    );
    let mut closed = spec(&world, "true");
    closed.process.user = "www".to_owned();
    let diff_id = world.make_layer(1, |root| {
        use std::os::unix::fs::PermissionsExt;
        std::fs::create_dir(root.join("closed")).unwrap();
        std::fs::set_permissions(root.join("closed"), std::fs::Permissions::from_mode(0o700))
            .unwrap();
    });
    closed.rootfs.layers.push(diff_id);
    closed.process.cwd = "/closed".to_owned();
    let error = world.start(closed).err().unwrap();
    assert!(
        matches!(&error, SpawnError::Invalid { field, .. } if field == "workingDir"),
        "{error:?}"
    );
}

#[test]
fn sigterm_reaches_the_program_on_gvisor_also_while_it_comes_up() {
    if !possible("sigterm_reaches_the_program_on_gvisor_also_while_it_comes_up") {
        return;
    }
    let mut world = World::new();
    let script = "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done";
    let instance = world.start(spec(&world, script)).unwrap();
    assert!(has_sigterm_handler(instance.sandbox.pid).unwrap());
    let mut output = BufReader::new(instance.output);
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    pidfd_send_signal(&instance.sandbox.pidfd, Signal::TERM).unwrap();
    assert_eq!(wait(&instance.sandbox.pidfd), End::Code(3));
    output.read_to_string(&mut line).unwrap();
    assert_eq!(line, "ready\nbye\n");
    world.end(instance.sandbox);

    // Without a handler, and before there is anything to signal: it ends all the same, long before it would be killed.
    let mut early = world
        .start(spec(&world, "while :; do sleep 1; done"))
        .unwrap();
    let began = Instant::now();
    pidfd_send_signal(&early.sandbox.pidfd, Signal::TERM).unwrap();
    assert_eq!(wait(&early.sandbox.pidfd), End::Code(128 + 15));
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
    let mut said = String::new();
    early.output.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    world.end(early.sandbox);
}

#[test]
fn ends_of_programs_on_gvisor_are_told_apart() {
    if !possible("ends_of_programs_on_gvisor_are_told_apart") {
        return;
    }
    let mut world = World::new();
    let of = |world: &mut World, script: &str| {
        let one = spec(world, script);
        let (_, end, kills) = world.run(one);
        (end, kills > 0)
    };
    assert_eq!(of(&mut world, "true"), (End::Code(0), false));
    assert_eq!(of(&mut world, "kill -SEGV $$"), (End::Code(139), false));
    let (end, killed) = of(&mut world, "exec tail /dev/zero");
    assert!(
        matches!(end, End::Code(137) | End::Signal(9)) && killed,
        "{end:?} {killed}"
    );
    // What it forks is bounded, and ends with it.
    let (end, killed) = of(
        &mut world,
        "i=0; while [ $i -lt 300 ]; do sleep 100 & i=$((i+1)); done",
    );
    assert!(end != End::Code(0) || !killed, "{end:?}");
}

#[test]
fn volumes_are_the_same_on_gvisor() {
    if !possible("volumes_are_the_same_on_gvisor") {
        return;
    }
    let mut world = World::new();
    let point = |path: &str, sub_path: &str, read_only| MountPoint {
        path: path.to_owned(),
        sub_path: sub_path.to_owned(),
        read_only,
    };
    let volumes = vec![
        MemoryVolume {
            size: MemoryBytes(4 << 20),
            mounts: vec![point("/a", "", false), point("/b/deep", "part", true)],
            shared: String::new(),
        },
        MemoryVolume {
            size: MemoryBytes(1 << 20),
            mounts: vec![point("/tmp", "", false)],
            shared: String::new(),
        },
    ];
    let script = "echo one > /a/part/file; cat /b/deep/file; (echo no > /b/deep/other) 2>&1; \
        dd if=/dev/zero of=/a/big bs=64k count=100 2>&1; stat -c %s /a/big; \
        dd if=/dev/zero of=/tmp/big bs=64k count=100 2>&1; stat -c %s /tmp/big; echo two > /a/part/file; cat /b/deep/file";
    let mut one = spec(&world, script);
    one.volumes = volumes;
    one.process.user = "www".to_owned();
    let (output, ..) = world.run(one);
    for expected in ["one\n", "Read-only", "No space", "\n1048576\n", "two\n"] {
        assert!(
            output.contains(expected),
            "{expected:?} is missing in\n{output}"
        );
    }
}
