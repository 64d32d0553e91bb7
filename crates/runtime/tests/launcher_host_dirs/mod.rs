//! Directories of the host in instances: which there are, as whom, and what leads out of them.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "tests"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use utsuwa_model::host_dir::HostDir;
use utsuwa_model::instance::{HostMount, InstanceSpec, MountPoint};
use utsuwa_runtime::spawner::protocol::SpawnError;

use super::busybox::possible;
use super::launcher_world::{End, UID_BASE, World};

/// Somebody of the host who owns what services may write.
const OWNER: u32 = 4321;
const SECRET: &str = "of the host alone";

/// `open/` may be written, `shown/` belongs to root and may be read; `secret` lies beside them.
struct Ground {
    directory: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        // Not /tmp: that may be a tmpfs, whose ids older kernels can't map.
        let directory = tempfile::Builder::new()
            .prefix("utsuwa-host-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let ground = Self { directory };
        for name in ["open", "open/part", "shown"] {
            fs::create_dir(ground.at(name)).unwrap();
        }
        fs::write(ground.at("secret"), SECRET).unwrap();
        fs::write(ground.at("shown/model"), "weights").unwrap();
        fs::write(ground.at("shown/private"), "of root").unwrap();
        private(&ground.at("shown/private"));
        fs::write(ground.at("open/other"), "of another").unwrap();
        private(&ground.at("open/other"));
        for name in ["open", "open/part"] {
            chown(ground.at(name), Some(OWNER), Some(OWNER)).unwrap();
        }
        ground
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.at(name).to_str().unwrap().to_owned()
    }

    fn rules(&self) -> Vec<HostDir> {
        [format!("{}:rw", self.path("open")), self.path("shown")]
            .iter()
            .map(|rule| rule.parse().unwrap())
            .collect()
    }

    fn mount(&self, rule: &str, beneath: &str, at: &str) -> HostMount {
        HostMount {
            rule: self.path(rule),
            beneath: beneath.to_owned(),
            read_only: false,
            mounts: vec![MountPoint {
                path: at.to_owned(),
                sub_path: String::new(),
                read_only: false,
            }],
        }
    }
}

fn private(path: &Path) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

fn spec(world: &World, script: &str, host_dirs: Vec<HostMount>) -> InstanceSpec {
    InstanceSpec {
        host_dirs,
        ..world.spec(&["sh", "-c", script])
    }
}

fn refusal(world: &mut World, host_dirs: Vec<HostMount>) -> String {
    let spec = spec(world, "true", host_dirs);
    match world.start(spec).err() {
        Some(SpawnError::Invalid { field, why }) if field == "volumes" => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_allowed_is_seen_and_written_as_its_owner() {
    if !possible("what_is_allowed_is_seen_and_written_as_its_owner") {
        return;
    }
    let ground = Ground::new();
    let mut world = World::that_allows(ground.rules());
    let mounts = vec![
        ground.mount("open", "", "/data"),
        ground.mount("shown", "", "/models/deep"),
    ];
    let script = "grep -E ' (/data|/models/deep) ' /proc/self/mountinfo | cut -d' ' -f5,6; cat /models/deep/model /models/deep/private; \
                  echo; echo new > /data/new; mkdir /data/dir; stat -c '%n %u:%g' /data /data/new /data/other; \
                  cat /data/other 2>&1; (: > /models/deep/x) 2>&1; (: > /models/deep/model) 2>&1; chown 33:34 /data/new; \
                  mknod /data/null c 1 3 2>&1; chown 65535 /data/dir && echo given";
    let (output, end, _) = world.run(spec(&world, script, mounts));
    assert_eq!(end, End::Code(0), "{output}");
    for expected in [
        "/data rw,nosuid,nodev",
        "/models/deep ro,nosuid,nodev",
        // Root in the instance reads what is its owner's, here the host's root.
        "weightsof root\n",
        "/data 0:0\n/data/new 0:0\n/data/other 65534:65534\n",
        "can't open '/data/other': Permission denied",
        "given\n",
    ] {
        assert!(
            output.contains(expected),
            "{expected:?} is missing in\n{output}"
        );
    }
    assert_eq!(
        output.matches("Read-only file system").count(),
        2,
        "{output}"
    );
    let of = |name: &str| {
        let found = fs::metadata(ground.at(name)).unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!(fs::read_to_string(ground.at("open/new")).unwrap(), "new\n");
    assert_eq!(of("open/new"), (UID_BASE + 33, UID_BASE + 34));
    assert_eq!(of("open/dir"), (UID_BASE + 65_535, OWNER));
    assert!(!ground.at("open/null").exists());
    assert_eq!(
        fs::read_to_string(ground.at("shown/model")).unwrap(),
        "weights"
    );

    // What stays is there for the next one, and for another service as nobody's.
    fs::write(ground.at("open/mine"), "of the owner").unwrap();
    chown(ground.at("open/mine"), Some(OWNER), Some(OWNER)).unwrap();
    private(&ground.at("open/mine"));
    let mut other = spec(
        &world,
        "cat /data/mine; stat -c '%n %u:%g' /data/new",
        vec![ground.mount("open", "", "/data")],
    );
    other.rootfs.uid_base = UID_BASE + 0x10_0000;
    let (output, _, _) = world.run(other);
    assert_eq!(output, "of the owner/data/new 65534:65534\n");

    // A user that is not root of the instance: what the owner lets everybody do, and no more.
    let mut user = spec(
        &world,
        "cat /data/mine 2>&1; (echo x > /data/x) 2>&1; ls /data/part",
        vec![ground.mount("open", "", "/data")],
    );
    user.process.user = "www".to_owned();
    let (output, _, _) = world.run(user);
    assert_eq!(output.matches("ermission denied").count(), 2, "{output}");
}

#[test]
fn nothing_is_opened_but_what_a_rule_of_the_keepers_names() {
    if !possible("nothing_is_opened_but_what_a_rule_of_the_keepers_names") {
        return;
    }
    let ground = Ground::new();
    let mut world = World::that_allows(ground.rules());
    let mut root = ground.mount("open", "", "/data");
    // Not even what lies below a rule, if it is named as a rule; a request has no paths of its own.
    for path in [
        "/",
        "/etc",
        &ground.path(""),
        &ground.path("open/part"),
        &format!("{}/", ground.path("open")),
    ] {
        root.rule = path.to_owned();
        let why = refusal(&mut world, vec![root.clone()]);
        assert!(
            why.contains("not open to services")
                && why.contains(&format!("--allow-host-dir {path}")),
            "{why}"
        );
    }
    // Where root owns it, nobody writes, whatever the rule says.
    let rules = vec![format!("{}:rw", ground.path("shown")).parse().unwrap()];
    drop(world);
    let mut world = World::that_allows(rules);
    let why = refusal(&mut world, vec![ground.mount("shown", "", "/data")]);
    assert!(why.contains("belongs to root"), "{why}");
    let mut to_read = ground.mount("shown", "", "/data");
    to_read.mounts[0].read_only = true;
    let (output, ..) = world.run(spec(
        &world,
        "cat /data/model; (: > /data/x) 2>&1",
        vec![to_read],
    ));
    assert!(
        output.starts_with("weights") && output.contains("Read-only"),
        "{output}"
    );
}

#[test]
fn no_link_in_it_leads_out_of_it() {
    if !possible("no_link_in_it_leads_out_of_it") {
        return;
    }
    let ground = Ground::new();
    let mut world = World::that_allows(ground.rules());
    for (name, target) in [
        ("up", ".."),
        ("absolute", "/etc"),
        ("far", "../../../../../../../etc"),
        ("magic", "/proc/self/root"),
        ("circle", "circle"),
        ("around", "../open/part"),
        ("inside", "part"),
    ] {
        symlink(target, ground.at("open").join(name)).unwrap();
    }
    fs::write(ground.at("open/file"), "").unwrap();
    for (beneath, word) in [
        ("up", "a link leads out"),
        ("absolute", "a link leads out"),
        ("far", "a link leads out"),
        ("magic", "a link leads out"),
        ("around", "a link leads out"),
        ("up/shown", "a link leads out"),
        ("circle", "in a circle"),
        ("file", "not a directory"),
        ("missing", "not there"),
        ("..", "a link leads out"),
        ("../shown", "a link leads out"),
        ("part/../../shown", "a link leads out"),
        ("/etc", "not there"),
    ] {
        let why = refusal(&mut world, vec![ground.mount("open", beneath, "/data")]);
        assert!(why.contains(word), "{beneath}: {why}");
        let mut part = ground.mount("open", "", "/data");
        part.mounts[0].sub_path = beneath.to_owned();
        let why = refusal(&mut world, vec![part]);
        assert!(why.contains(word), "{beneath}: {why}");
    }
    // A service made the links itself, in one instance; they lead into its own root, and its next instance nowhere else.
    let make = "ln -s ../../../../../.. /data/out; ln -s /proc/1/root /data/proc; cat /data/out/secret /data/up/secret 2>&1; \
                cat /data/absolute/passwd; ls /data/proc/data";
    let (output, ..) = world.run(spec(&world, make, vec![ground.mount("open", "", "/data")]));
    assert!(
        !output.contains(SECRET) && output.contains("www:x:33") && output.contains("inside"),
        "{output}"
    );
    for name in ["out", "proc"] {
        assert!(ground.at("open").join(name).is_symlink());
        let why = refusal(&mut world, vec![ground.mount("open", name, "/data")]);
        assert!(why.contains("a link leads out"), "{why}");
    }
    let inside = ground.mount("open", "inside", "/data");
    let (output, ..) = world.run(spec(
        &world,
        "echo x > /data/made && echo written",
        vec![inside],
    ));
    assert_eq!(output, "written\n");
    assert!(ground.at("open/part/made").exists());
}

/// The launcher writes names, hosts and modes into every root: never into a directory of the host, wherever the image has it.
#[test]
fn nothing_of_the_launchers_is_written_into_it() {
    if !possible("nothing_of_the_launchers_is_written_into_it") {
        return;
    }
    let ground = Ground::new();
    let mut world = World::that_allows(ground.rules());
    let links = world.make_layer(1, |root| {
        fs::create_dir(root.join("data")).unwrap();
        symlink("/data", root.join("etc")).unwrap();
    });
    let mode = |name: &str| fs::metadata(ground.at(name)).unwrap().mode();
    let (before, names) = (mode("open"), list(&ground.at("open")));
    for (at, more) in [
        ("/etc", None),
        ("/tmp", None),
        ("/srv", None),
        ("/data", Some(links)),
    ] {
        let mut one = spec(
            &world,
            "ls /data /etc /tmp 2>/dev/null; true",
            vec![ground.mount("open", "", at)],
        );
        one.rootfs.layers.extend(more);
        let (output, end, _) = world.run(one);
        assert_eq!(end, End::Code(0), "{at}: {output}");
        assert_eq!(
            (mode("open"), list(&ground.at("open"))),
            (before, names.clone()),
            "{at}"
        );
    }
    // Nor is it put over the system, or outside the root, by a link in the image.
    let links = world.make_layer(2, |root| {
        symlink("/proc", root.join("to-proc")).unwrap();
        symlink("/..", root.join("to-root")).unwrap();
        symlink("/proc/self/fd", root.join("to-fd")).unwrap();
    });
    for at in ["/to-proc", "/to-root", "/to-fd", "/proc/1", "/sys/fs"] {
        let mut one = spec(&world, "true", vec![ground.mount("open", "", at)]);
        one.rootfs.layers.push(links.clone());
        let error = world.start(one).err();
        assert!(
            matches!(&error, Some(SpawnError::Rootfs { path, .. }) if path == at),
            "{at}: {error:?}"
        );
    }
    // A working directory that is a descriptor of the launcher's is none of the host's either.
    for number in 3..12 {
        let mut one = spec(&world, "ls", vec![ground.mount("open", "", "/data")]);
        one.process.cwd = format!("/proc/self/fd/{number}/made");
        let _ = world.start(one).map(|instance| world.end(instance.sandbox));
        assert_eq!(list(&ground.at("open")), names, "{number}");
    }
}

fn list(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}
