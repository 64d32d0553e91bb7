//! The spawners with real namespaces, cgroups and mounts. Need root; skipped by name otherwise.

mod busybox;
mod launcher_contract;
mod launcher_gvisor;
mod launcher_host_dirs;
mod launcher_layers;
mod launcher_network;
mod launcher_unpack;
mod launcher_volumes;
mod launcher_world;
#[path = "../../../tests/skip.rs"]
mod skip;

use std::fs;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::time::{Duration, Instant};

use busybox::possible;
use launcher_world::{End, UID_BASE, World, wait};
use utsuwa_model::quantity::{MemoryBytes, MilliCpu};
use utsuwa_runtime::sandbox::has_sigterm_handler;
use utsuwa_runtime::sandbox::process::IMAGE_BASE;
use utsuwa_runtime::spawner::protocol::{Op, Reply, SpawnError};

macro_rules! root_test {
    ($(#[$doc:meta])* fn $name:ident($world:ident) $body:block) => {
        $(#[$doc])*
        #[test]
        fn $name() {
            if possible(stringify!($name)) {
                let mut $world = World::new();
                $body
            }
        }
    };
}

root_test! {
    fn an_instance_is_confined(world) {
        let output = world.script(
            "echo pid=$$; cat /proc/self/uid_map; id; grep -E 'Cap|NoNewPrivs|Seccomp:|Sig' /proc/self/status; hostname; pwd; env; \
             ls -ld /tmp; ulimit -n; umask; cat /proc/self/oom_score_adj; ls /proc | grep -c '^[0-9]'; ls -l /proc/self/fd",
        );
        for expected in [
            "pid=1\n", &format!("0  {UID_BASE}      65536\n"), "uid=0(root) gid=0(root)", "NoNewPrivs:\t1", "Seccomp:\t2",
            "CapPrm:\t00000000800005fb", "CapBnd:\t00000000800005fb", "CapAmb:\t0000000000000000", "CapInh:\t0000000000000000",
            "SigBlk:\t0000000000000000", "SigIgn:\t0000000000000000", "GREETING=hello", "HOME=/root\n", "\nlocalhost\n/\n",
            "drwxrwxrwt", "\n0022\n500\n", "0 -> /dev/null", "PATH=/usr/local/sbin:",
        ] {
            assert!(output.contains(expected), "{expected:?} is missing in\n{output}");
        }
        let files: u64 = output.lines().find_map(|line| line.parse().ok().filter(|n| *n > 1000)).unwrap();
        assert!(files <= 25_000, "{files} open files");
    }
}

root_test! {
    fn host_facts_are_hidden_and_what_is_visible_is_read_only(world) {
        let output = world.script(
            "for f in /proc/keys /proc/timer_list /proc/kcore /proc/interrupts; do [ -e $f ] && echo $f $(head -c 10 $f | wc -c); done; \
             ls /sys/firmware /proc/acpi; \
             for f in /proc/sys/kernel/hostname /proc/sysrq-trigger /sys/kernel/mm/transparent_hugepage/enabled \
                /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max /dev/new /sys/fs/cgroup/new; \
             do (echo 1 > $f) 2>/dev/null && echo WRITTEN $f; done; \
             mount -t tmpfs none /tmp 2>&1; umount /proc/keys 2>&1; umount /proc 2>&1; chroot / true 2>&1; unshare -U true 2>&1; \
             mknod /tmp/disk b 8 0 2>&1; mknod /tmp/pipe p && echo pipe made; cat /sys/fs/cgroup/memory*/memory.limit_in_bytes \
             /sys/fs/cgroup/memory.max 2>/dev/null; cat /etc/resolv.conf /etc/hosts; (: <> /dev/ptmx) && echo pty made; \
             [ -e /sys/fs/cgroup/memory.max ] || ls /sys/fs/cgroup; find /sys/fs/cgroup -mindepth 2 -type d",
        );
        assert!(!output.contains("WRITTEN"), "{output}");
        for line in output.lines().filter(|line| line.starts_with("/proc/") && !line.ends_with(':')) {
            assert!(line.ends_with(" 0"), "{line}");
        }
        let refused = output.lines().filter(|line| line.contains("ermitted") || line.contains("denied")).count();
        assert_eq!(refused, 6, "mount, 2 umount, chroot, unshare, mknod of a disk: {output}");
        if output.contains("cpuacct") {
            assert!(output.contains("cpuset"), "the Java VM needs it: {output}");
        }
        assert!(!output.contains("utsuwa-"), "cgroups of others are seen: {output}");
        for expected in ["pipe made", "pty made", "67108864", "nameserver 169.254.169.254", "127.0.0.1 localhost"] {
            assert!(output.contains(expected), "{expected:?} is missing in\n{output}");
        }
    }
}

root_test! {
    /// Links and pipes where an instance's files go lead nowhere but into the image, or end with a clear word.
    fn links_in_the_image_lead_nowhere(world) {
        let canary = tempfile::NamedTempFile::new().unwrap();
        fs::write(canary.path(), "untouched").unwrap();
        let diff_id = world.make_layer(1, |root| {
            fs::create_dir_all(root.join("etc")).unwrap();
            symlink(canary.path(), root.join("etc/resolv.conf")).unwrap();
            symlink("../../../../../../etc/passwd", root.join("etc/hosts")).unwrap();
        });
        let mut spec = world.spec(&["sh", "-c", "cat /etc/resolv.conf; head -n 1 /etc/hosts; ls -l /etc"]);
        spec.rootfs.layers.push(diff_id);
        let (output, end, _) = world.run(spec);
        assert!(output.contains("169.254.169.254") && output.contains("127.0.0.1 localhost") && !output.contains("->"), "{output}");
        assert_eq!(end, End::Code(0));
        assert_eq!(fs::read_to_string(canary.path()).unwrap(), "untouched");

        for (number, name) in [(2, "proc"), (3, "sys"), (4, "dev")] {
            let diff_id = world.make_layer(number, |root| symlink("/tmp", root.join(name)).unwrap());
            let mut spec = world.spec(&["true"]);
            spec.rootfs.layers.push(diff_id);
            let error = world.start(spec).err().unwrap();
            assert!(matches!(&error, SpawnError::Rootfs { path, why } if *path == format!("/{name}") && why.contains("symbolic link")), "{error:?}");
        }
        let diff_id = world.make_layer(5, |root| fs::write(root.join("tmp"), "a file").unwrap());
        let mut spec = world.spec(&["true"]);
        spec.rootfs.layers.push(diff_id);
        let error = world.start(spec).err().unwrap();
        assert!(matches!(&error, SpawnError::Rootfs { path, .. } if path == "/tmp"), "{error:?}");
    }
}

root_test! {
    fn users_are_those_of_the_image(world) {
        let mut as_user = |user: &str| {
            let mut spec = world.spec(&["sh", "-c", "id; echo $HOME; grep CapPrm /proc/self/status; echo x > /srv/new; echo ok > /dev/stdout"]);
            spec.process.user = user.to_owned();
            world.start(spec).map(|mut instance| {
                let mut output = String::new();
                instance.output.read_to_string(&mut output).unwrap();
                wait(&instance.sandbox.pidfd);
                world.end(instance.sandbox);
                output
            })
        };
        let output = as_user("www").unwrap();
        for expected in ["uid=33(www) gid=34(www) groups=44(media)", "/srv\n", "CapPrm:\t0000000000000000", "ermission denied", "\nok\n"] {
            assert!(output.contains(expected), "{expected:?} is missing in\n{output}");
        }
        assert!(as_user("33:44").unwrap().contains("uid=33(www) gid=44(media)"));
        assert!(as_user("12345").unwrap().contains("uid=12345 gid=0(root)"));
        let error = as_user("nobody-here").unwrap_err();
        assert!(matches!(&error, SpawnError::UserNotFound { user, .. } if user == "nobody-here"), "{error:?}");
    }
}

root_test! {
    fn what_can_not_be_run_is_said_in_words(world) {
        let mut error_of = |args: &[&str]| {
            let spec = world.spec(args);
            world.start(spec).err().unwrap()
        };
        let error = error_of(&["no-such-program"]);
        assert!(matches!(&error, SpawnError::CommandNotFound { searched, .. } if searched.contains("/usr/bin")), "{error:?}");
        assert!(matches!(error_of(&["/srv/missing"]), SpawnError::CommandNotFound { .. }));
        assert!(matches!(error_of(&["/srv/plain"]), SpawnError::PermissionDenied { ref why, .. } if why.contains("chmod +x")));
        assert!(matches!(error_of(&["/srv"]), SpawnError::PermissionDenied { ref why, .. } if why.contains("directory")));
        assert!(matches!(error_of(&["/srv/text"]), SpawnError::NotExecutable { ref why, .. } if why.contains("#!")));
        assert!(matches!(error_of(&["/srv/foreign"]), SpawnError::NotExecutable { ref why, .. } if why.contains("--platform")));
        assert!(matches!(error_of(&["/srv/no-interpreter"]), SpawnError::InterpreterNotFound { ref interpreter, .. } if interpreter == "/usr/bin/nothing"));
        assert!(matches!(error_of(&["/srv/windows"]), SpawnError::InterpreterNotFound { ref advice, .. } if advice.contains("carriage return")));
        assert!(matches!(error_of(&[]), SpawnError::Invalid { ref field, .. } if field == "command"));
        assert!(matches!(error_of(&["true", "nul\0inside"]), SpawnError::Invalid { ref field, .. } if field == "args"));
        let long = "x".repeat(120 * 1024);
        let many: Vec<&str> = std::iter::once("true").chain(std::iter::repeat_n(long.as_str(), 60)).collect();
        assert!(matches!(error_of(&many), SpawnError::ArgumentsTooLong { bytes } if bytes > 7_000_000));
        let mut spec = world.spec(&["true"]);
        spec.process.cwd = "relative".to_owned();
        assert!(matches!(world.start(spec).err().unwrap(), SpawnError::Invalid { ref field, .. } if field == "workingDir"));
        let mut spec = world.spec(&["true"]);
        spec.rootfs.layers.push(format!("sha256:{}", "ee".repeat(32)));
        assert!(matches!(world.start(spec).err().unwrap(), SpawnError::LayerMissing { .. }));
        let mut spec = world.spec(&["true"]);
        spec.rootfs.uid_base = 0;
        assert!(matches!(world.start(spec).err().unwrap(), SpawnError::Invalid { .. }));
    }
}

root_test! {
    fn environment_and_working_directory(world) {
        let mut spec = world.spec(&["mine"]);
        spec.process.args = vec!["sh".into(), "-c".into(), "pwd; env".into()];
        spec.process.cwd = "/made/for/me".into();
        spec.process.env = vec!["A=1".into(), "PATH=/nowhere:/bin".into(), "A=2".into(), "HOME=/mine".into(), format!("BIG={}", "y".repeat(100_000))];
        let (output, end, _) = world.run(spec);
        assert_eq!(end, End::Code(0));
        for expected in ["/made/for/me\n", "\nA=2\n", "\nPATH=/nowhere:/bin\n", "\nHOME=/mine\n", "yyyy"] {
            assert!(output.contains(expected), "{expected:?} is missing in\n{output}");
        }
        assert!(!output.contains("A=1"));
    }
}

root_test! {
    fn files_are_in_memory_and_limited(world) {
        let spec = world.spec(&["sh", "-c", "dd if=/dev/zero of=/big bs=1M count=500 2>&1; stat -c %s /big"]);
        let (output, end, kills) = world.run(spec);
        // Files and the program share one limit: either the file system is full, or the writer is ended for the memory; on
        // cgroup v2 the whole instance then ends with it.
        assert!(output.contains("No space left") || kills > 0, "{output} {end:?}");
        if !(kills > 0 && end == End::Signal(9)) {
            let size: u64 = output.lines().find_map(|line| line.parse().ok()).unwrap();
            assert!((32 << 20..=64 << 20).contains(&size), "{output}");
        }
        let output = world.script("dd if=/dev/zero of=/big bs=1M count=30 2>&1; stat -c %s /big; rm /big; echo again > /bin/new && cat /bin/new");
        assert!(output.contains("\n31457280\n") && output.ends_with("again\n"), "{output}");
        // The layer below is as it was.
        assert!(!world.layer(0).0.join("big").exists());
        assert!(!world.layer(0).0.join("bin/new").exists());
        assert_eq!(fs::metadata(world.layer(0).0.join("bin/busybox")).unwrap().uid(), IMAGE_BASE);

        let mut spec = world.spec(&["sh", "-c", "i=0; while :; do : > /tmp/$i || break; i=$((i+1)); done; echo made $i"]);
        spec.limits.memory = MemoryBytes(256 << 20);
        // 65,536 inodes for 256 MiB; the count stops there and not at the host's memory.
        let (output, end, _) = world.run(spec);
        let made: u64 = output.split(['/', ':']).find_map(|part| part.parse().ok()).unwrap_or(0);
        assert!(output.contains("No space left") && (60_000..=65_536).contains(&made), "{output} {end:?}");
    }
}

root_test! {
    /// After a start the file system of the next one is made, of the same size; a start that wants another size gets its own.
    fn what_is_made_ahead_has_the_size_that_is_asked_for(world) {
        let mounts = format!("/proc/{}/mountinfo", world.starter.pid());
        let ahead = || -> Vec<String> {
            let mounts = fs::read_to_string(&mounts).unwrap();
            mounts.lines().filter(|line| line.contains("utsuwa-upper")).map(str::to_owned).collect()
        };
        for mib in [64, 64, 128, 64] {
            let mut spec = world.spec(&["sh", "-c", "grep ' /dev/shm ' /proc/self/mountinfo; ls -ld / /dev/shm; echo x > /new && cat /new"]);
            spec.limits.memory = MemoryBytes(mib << 20);
            let size = format!("size={}k,", mib << 10);
            let (output, end, _) = world.run(spec);
            assert!(output.contains(&size) && output.ends_with("x\n"), "{size} {output}");
            assert_eq!(output.matches("drwxrwxrwt").count(), 1, "{output}");
            assert_eq!(end, End::Code(0));
            let deadline = Instant::now() + Duration::from_secs(10);
            while !matches!(&ahead()[..], [one] if one.contains(&size)) {
                assert!(Instant::now() < deadline, "{size}: {:?}", ahead());
                std::thread::yield_now();
            }
        }
    }
}

root_test! {
    fn running_out_of_memory_is_recognised(world) {
        let spec = world.spec(&["sh", "-c", "x=x; while :; do x=$x$x; done"]);
        let (_, end, kills) = world.run(spec);
        assert_eq!(end, End::Signal(9));
        assert!(kills >= 1, "{kills} kills counted");
        let spec = world.spec(&["true"]);
        let (_, end, kills) = world.run(spec);
        assert_eq!((end, kills), (End::Code(0), 0));
    }
}

root_test! {
    fn processes_are_limited_and_end_with_the_first(world) {
        let mut spec = world.spec(&["sh", "-c", "i=0; while [ $i -lt 30 ]; do sleep 100 & i=$((i+1)); done 2>&1; echo all"]);
        spec.limits.pids = 10;
        let (output, _, _) = world.run(spec);
        assert!(output.contains("can't fork"), "{output}");
        // `run` checked that the cgroup could be removed: nothing of it runs on.
    }
}

root_test! {
    fn use_is_measured_and_cpu_limited(world) {
        let mut spec = world.spec(&["sh", "-c", "while :; do :; done"]);
        spec.limits.cpu = MilliCpu(200);
        let instance = world.start(spec).unwrap();
        let cgroup = &instance.sandbox.cgroup;
        let began = Instant::now();
        let before = cgroup.usage().unwrap();
        // 60 ms of CPU at 200m are the rest of one period, all of the next and some of a third; unlimited they take 60 ms.
        while cgroup.usage().unwrap().cpu_us < before.cpu_us + 60_000 {
            assert!(began.elapsed() < Duration::from_secs(20), "it got no CPU");
            std::thread::yield_now();
        }
        assert!(began.elapsed() > Duration::from_millis(100), "{:?}", began.elapsed());
        let usage = cgroup.usage().unwrap();
        assert!(usage.pids == 1 && usage.memory_bytes > 0, "{usage:?}");
        world.end(instance.sandbox);
    }
}

root_test! {
    fn a_handler_for_the_end_is_seen(world) {
        for (script, expected) in [("echo ready; read x < /dev/full; while :; do :; done", false), ("trap 'exit 3' TERM; echo ready; while :; do :; done", true)] {
            let spec = world.spec(&["sh", "-c", script]);
            let mut instance = world.start(spec).unwrap();
            let mut ready = [0; 6];
            instance.output.read_exact(&mut ready).unwrap();
            assert_eq!(has_sigterm_handler(instance.sandbox.pid).unwrap(), expected, "{script}");
            if expected {
                rustix::process::pidfd_send_signal(&instance.sandbox.pidfd, rustix::process::Signal::TERM).unwrap();
                assert_eq!(wait(&instance.sandbox.pidfd), End::Code(3));
            }
            world.end(instance.sandbox);
        }
    }
}

root_test! {
    fn layers_lie_over_each_other(world) {
        let low = world.make_layer(1, |root| {
            fs::create_dir_all(root.join("d/e")).unwrap();
            fs::write(root.join("d/low"), "low").unwrap();
            fs::write(root.join("both"), "low").unwrap();
        });
        let high = world.make_layer(2, |root| fs::write(root.join("both"), "high").unwrap());
        let hide = world.make_layer(3, |root| {
            fs::create_dir(root.join("d")).unwrap();
            rustix::fs::mknodat(rustix::fs::CWD, root.join("d/low"), rustix::fs::FileType::CharacterDevice, 0o600.into(), 0).unwrap();
        });
        let mut spec = world.spec(&["sh", "-c", "cat /both; ls /d; stat -c '%u:%g' /both /d"]);
        // The base twice, as images with equal layers have it.
        spec.rootfs.layers.extend([low, high, hide, world.layer(0).1]);
        let (output, ..) = world.run(spec);
        assert_eq!(output, "highe\n0:0\n0:0\n");
    }
}

root_test! {
    fn roles_keep_to_their_work_and_removal_is_idempotent(world) {
        let (result, _) = world.starter.ask(Op::MakeSandbox { sandbox: 1 }, &[]);
        assert!(matches!(result, Err(SpawnError::WrongRole { .. })));
        for _ in 0..2 {
            let (result, _) = world.housekeeper.ask(Op::DestroySandbox { sandbox: 77 }, &[]);
            assert_eq!(result.unwrap(), Reply::Done);
        }
        let diff_id = world.make_layer(9, |root| fs::write(root.join("x"), "").unwrap());
        let rootfs = utsuwa_model::instance::RootfsSpec { layers: vec![diff_id.clone()], uid_base: UID_BASE };
        assert_eq!(world.starter.ask(Op::Prepare { rootfs }, &[]).0.unwrap(), Reply::Done);
        for _ in 0..2 {
            assert_eq!(world.starter.ask(Op::RemoveLayer { diff_id: diff_id.clone() }, &[]).0.unwrap(), Reply::Done);
            assert_eq!(world.housekeeper.ask(Op::RemoveLayer { diff_id: diff_id.clone() }, &[]).0.unwrap(), Reply::Done);
        }
        assert!(!world.layer(9).0.exists());
    }
}

root_test! {
    fn starts_are_fast_and_overlap(world) {
        let count = 40;
        let sandboxes: Vec<_> = (0..count).map(|_| world.make()).collect();
        let mut times = Vec::new();
        let (mut rootfs, mut exec) = (Vec::new(), Vec::new());
        let mut instances = Vec::new();
        for sandbox in sandboxes {
            let spec = world.spec(&["/bin/sleep", "1000"]);
            let began = Instant::now();
            let instance = world.start_in(sandbox, spec).unwrap();
            times.push(began.elapsed());
            rootfs.push(instance.phases.rootfs);
            exec.push(instance.phases.exec);
            instances.push(instance);
        }
        for list in [&mut times, &mut rootfs, &mut exec] {
            list.sort();
        }
        let at = |list: &[Duration], percent: usize| list[(list.len() - 1) * percent / 100].as_micros();
        println!("start of a pooled sandbox, request to exec, {count} times: p50 {} µs, p95 {} µs", at(&times, 50), at(&times, 95));
        println!("  of it root file system p50 {} µs, the rest p50 {} µs", at(&rootfs, 50), at(&exec, 50));
        for instance in instances {
            world.end(instance.sandbox);
        }
        let began = Instant::now();
        let sandboxes: Vec<_> = (0..20).map(|_| world.make()).collect();
        println!("making a sandbox: {} µs each", began.elapsed().as_micros() / 20);
        let began = Instant::now();
        let mut waiting = std::collections::BTreeSet::new();
        for sandbox in &sandboxes {
            let pipe = rustix::pipe::pipe().unwrap();
            let spec = world.spec(&["/bin/sleep", "1000"]);
            let op = Op::Start { sandbox: sandbox.number, pid: sandbox.pid, spec: Box::new(spec), net: sandbox.net.clone(), member: None, limited: false };
            waiting.insert(world.starter.send(op, &[sandbox.control.as_fd(), pipe.1.as_fd(), pipe.1.as_fd()]));
        }
        while !waiting.is_empty() {
            let (response, _) = world.starter.receive();
            assert!(matches!(response.result, Ok(Reply::Started { .. })), "{response:?}");
            assert!(waiting.remove(&response.id), "answered once");
        }
        println!("20 starts at once: all after {} µs", began.elapsed().as_micros());
        for sandbox in sandboxes {
            world.end(sandbox);
        }
    }
}
