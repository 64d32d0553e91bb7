//! Volumes in memory: where they are seen, how large they get, and images that try to put them elsewhere.

use std::fs;
use std::os::unix::fs::symlink;

use utsuwa_model::instance::{InstanceSpec, MemoryVolume, MountPoint};
use utsuwa_model::quantity::MemoryBytes;
use utsuwa_runtime::spawner::protocol::SpawnError;

use super::busybox::possible;
use super::launcher_world::{End, World};

fn point(path: &str) -> MountPoint {
    MountPoint {
        path: path.to_owned(),
        sub_path: String::new(),
        read_only: false,
    }
}

fn volume(mib: u64, mounts: Vec<MountPoint>) -> MemoryVolume {
    MemoryVolume {
        size: MemoryBytes(mib << 20),
        mounts,
        shared: String::new(),
    }
}

fn spec(world: &World, script: &str, volumes: Vec<MemoryVolume>) -> InstanceSpec {
    InstanceSpec {
        volumes,
        group: None,
        ..world.spec(&["sh", "-c", script])
    }
}

#[test]
fn volumes_are_small_file_systems_of_the_instance() {
    if !possible("volumes_are_small_file_systems_of_the_instance") {
        return;
    }
    let mut world = World::new();
    // As a user that is not root: everybody may write.
    let mut one = spec(
        &world,
        "grep ' /cache/deep ' /proc/self/mountinfo; echo kept > /cache/deep/file; cat /cache/deep/file; ls -ld /cache/deep; \
         dd if=/dev/zero of=/cache/deep/big bs=64k count=100 2>&1; stat -c %s /cache/deep/big; \
         i=0; while :; do : > /cache/deep/$i || break; i=$((i+1)); done 2>&1",
        vec![volume(4, vec![point("//cache/./deep/")])],
    );
    one.process.user = "www".to_owned();
    let (output, end, kills) = world.run(one);
    let options = output.lines().next().unwrap_or_default();
    for option in ["nosuid", "nodev", "tmpfs", "size=4096k", "mode=777"] {
        assert!(options.contains(option), "{option} in {output}");
    }
    assert!(output.contains("kept\ndrwxrwxrwx"), "{output}");
    let size: u64 = output.lines().find_map(|line| line.parse().ok()).unwrap();
    assert!((3 << 20..=4 << 20).contains(&size), "{size}: {output}");
    assert!(output.contains("No space left"), "{output}");
    assert!(end != End::Signal(9) && kills == 0, "{end:?} {kills}");

    // What is in it counts against the memory of the instance, here 64 MiB.
    let all = "cat /dev/zero > /cache/big; echo not reached";
    let (output, _, kills) = {
        let spec = spec(&world, all, vec![volume(512, vec![point("/cache")])]);
        world.run(spec)
    };
    assert!(kills > 0, "{output}");
}

#[test]
fn volumes_are_seen_in_parts_in_several_places_and_below_each_other() {
    if !possible("volumes_are_seen_in_parts_in_several_places_and_below_each_other") {
        return;
    }
    let mut world = World::new();
    let part = |path: &str, sub: &str, read_only| MountPoint {
        sub_path: sub.to_owned(),
        read_only,
        ..point(path)
    };
    let volumes = vec![
        // Named before what it lies in.
        volume(1, vec![point("/a/below/deep")]),
        volume(
            2,
            vec![
                part("/a", "", true),
                part("/b", "some/part", false),
                part("/c", "some/part", false),
            ],
        ),
    ];
    let script = "echo seen > /b/file; cat /c/file /a/some/part/file; (: > /a/new) 2>&1; echo deep > /a/below/deep/file; \
                  ls /a /a/below/deep; grep -c tmpfs.utsuwa /proc/self/mountinfo; ls -ld /b; umount /b 2>&1; ls /empty 2>&1";
    let (output, end, _) = {
        let spec = spec(&world, script, volumes);
        world.run(spec)
    };
    for expected in [
        "seen\nseen\n",
        "Read-only file system",
        "/a:\nbelow\nsome\n",
        "/a/below/deep:\nfile\n",
        "drwxrwxrwx",
        "Operation not permitted",
        "/empty: No such file",
    ] {
        assert!(output.contains(expected), "{expected:?} in {output}");
    }
    assert_ne!(end, End::Signal(9));
}

/// What every instance has is written into them first: names, hosts, a directory for everybody, the working directory.
#[test]
fn volumes_that_may_only_be_read_may_lie_anywhere() {
    if !possible("volumes_that_may_only_be_read_may_lie_anywhere") {
        return;
    }
    let mut world = World::new();
    let volumes = ["/etc", "/tmp", "/srv"].map(|path| {
        let read_only = true;
        volume(
            1,
            vec![MountPoint {
                read_only,
                ..point(path)
            }],
        )
    });
    let script = "pwd; cat /etc/resolv.conf; ls -ld /tmp; for d in /etc /tmp /srv/here; do (: > $d/new) 2>&1; done";
    let mut one = spec(&world, script, volumes.into());
    one.process.cwd = "/srv/here".to_owned();
    let (output, _, _) = world.run(one);
    assert!(
        output.starts_with("/srv/here\nnameserver 169.254.169.254\ndrwxrwxrwt"),
        "{output}"
    );
    let refused = output.matches("Read-only file system").count();
    assert_eq!(refused, 3, "{output}");
}

#[test]
fn links_in_the_image_put_no_volume_outside_its_root_or_over_the_system() {
    if !possible("links_in_the_image_put_no_volume_outside_its_root_or_over_the_system") {
        return;
    }
    let mut world = World::new();
    let outside = tempfile::tempdir().unwrap();
    let canary = outside.path().join("canary");
    fs::write(&canary, "untouched").unwrap();
    let there = outside.path().to_owned();
    let links = world.make_layer(1, move |root| {
        for (name, target) in [
            ("proc-link", "/proc"),
            ("sys-link", "../../../../sys/fs"),
            ("dev-link", "/dev/shm"),
            ("magic", "/proc/self/root"),
            ("magic-file", "/proc/1/fd/0"),
            ("circle", "circle"),
            ("dangling", "/nothing/there"),
            ("root-link", "/.."),
            ("inside", "../../../srv"),
            ("chain", "inside/../inside"),
        ] {
            symlink(target, root.join(name)).unwrap();
        }
        symlink(&there, root.join("host")).unwrap();
        fs::write(root.join("file"), "no directory").unwrap();
    });
    let mut start = |path: &str, script: &str| {
        let mut spec = spec(&world, script, vec![volume(1, vec![point(path)])]);
        spec.rootfs.layers.push(links.clone());
        world.start(spec).map(|mut instance| {
            let mut output = String::new();
            std::io::Read::read_to_string(&mut instance.output, &mut output).unwrap();
            world.end(instance.sandbox);
            output
        })
    };
    for (path, word) in [
        ("/proc-link", "into /proc, /sys, /dev"),
        ("/proc-link/self", "into /proc, /sys, /dev"),
        ("/sys-link/cgroup", "into /proc, /sys, /dev"),
        ("/dev-link", "into /proc, /sys, /dev"),
        ("/proc/1", "into /proc, /sys, /dev"),
        ("/magic", "into /proc"),
        ("/magic/etc", "into /proc"),
        ("/magic-file", "into /proc"),
        ("/circle", "in a circle"),
        ("/dangling", "to where nothing is"),
        ("/host", "to where nothing is"),
        ("/host/canary", "to where nothing is"),
        ("/root-link", "the root itself"),
        ("/file", "not a directory"),
        ("/file/below", "not a directory"),
    ] {
        let error = start(path, "true").err();
        assert!(
            matches!(&error, Some(SpawnError::Rootfs { path: at, why }) if at == path && why.contains(word)),
            "{path}: {error:?}"
        );
    }
    for path in ["/inside", "/chain", "/chain/new"] {
        let output = start(path, "cat /proc/self/mountinfo; ls /srv").unwrap();
        let here = output.lines().find(|line| line.contains("mode=777"));
        assert!(
            here.is_some_and(|line| line.contains(" /srv ") || line.contains(" /srv/new ")),
            "{path}: {output}"
        );
    }
    assert_eq!(fs::read_to_string(&canary).unwrap(), "untouched");
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 1);
}
