use std::path::PathBuf;

use super::tree::parse_hierarchies;
use super::usage::keyed;
use super::*;
use crate::sandbox::sys::{self, Cloned};

const MOUNTS: &str = "\
24 1 0:22 / /sys/fs/cgroup rw - tmpfs tmpfs rw,mode=755
25 24 0:23 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
26 24 0:24 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory
27 24 0:25 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
28 24 0:26 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate
29 1 0:27 / /proc rw - proc proc rw
";

#[test]
fn hierarchies_are_read_from_mountinfo() {
    let found = parse_hierarchies(MOUNTS);
    let summary: Vec<(String, String, bool)> = found
        .iter()
        .map(|h| (h.mount.display().to_string(), h.controllers.join("+"), h.v2))
        .collect();
    let at = |name: &str| format!("/sys/fs/cgroup/{name}");
    assert_eq!(
        summary,
        [
            (at("cpu,cpuacct"), "cpu+cpuacct".to_owned(), false),
            (at("memory"), "memory".to_owned(), false),
            (at("systemd"), String::new(), false),
            (at("unified"), String::new(), true),
        ]
    );
}

#[test]
fn counters_are_found_by_their_whole_name() {
    let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
    assert_eq!(keyed(text, "oom_kill"), Some(7));
    assert_eq!(keyed(text, "under"), None);
}

#[test]
fn joined_hierarchies_are_used_once() {
    let directory = PathBuf::from("/sys/fs/cgroup/cpu,cpuacct/utsuwa-x");
    let tree = Tree::V1 {
        cpu: directory.clone(),
        cpuacct: directory,
        memory: PathBuf::from("/m/utsuwa-x"),
        pids: PathBuf::from("/p/utsuwa-x"),
        freezer: None,
    };
    assert_eq!(tree.directories().len(), 3);
    let without = SandboxCgroup { tree };
    assert!(matches!(
        without.freeze(),
        Err(FreezeError::Impossible(why)) if why.contains("mount")
    ));
    without.thaw().unwrap();
}

/// Without controllers (as beside v1) what belongs to v2 itself works: birth in a cgroup, freezing it, killing the frozen,
/// removing it.
#[test]
fn a_process_is_born_in_a_v2_cgroup_and_killed_with_it() {
    let mount = hierarchies()
        .unwrap()
        .into_iter()
        .find(|h| h.v2)
        .map(|h| h.mount);
    let Some(mount) = mount.filter(|_| rustix::process::geteuid().is_root()) else {
        crate::skip::skip(crate::skip::here!(), "needs root and a mounted cgroup2");
        return;
    };
    let root = mount.join(format!("utsuwa-test-{}", std::process::id()));
    let cgroup = SandboxCgroup {
        tree: Tree::V2 { root: root.clone() },
    };
    cgroup.create().unwrap();
    let target = cgroup.clone_target().unwrap().unwrap();
    use std::os::fd::AsFd;
    let cloned = sys::clone_process(0, false, Some(target.as_fd())).unwrap();
    let Cloned::Parent { pid, pidfd } = cloned else {
        // Waits to be killed; the pause is ended by the signal only.
        loop {
            std::thread::park();
        }
    };
    let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let awake = cgroup.is_frozen();
    cgroup.freeze().unwrap();
    let events = root.join("cgroup.events");
    let at_rest = || fs::read_to_string(&events).unwrap().contains("frozen 1");
    let began = std::time::Instant::now();
    while !at_rest() && began.elapsed() < std::time::Duration::from_secs(10) {
        std::thread::yield_now();
    }
    let frozen = (cgroup.is_frozen(), at_rest());
    cgroup.thaw().unwrap();
    let thawed = cgroup.is_frozen();
    cgroup.freeze().unwrap();
    let killed = cgroup.kill();
    crate::sandbox::process::reap(&pidfd);
    let removed = cgroup.remove();
    assert!(
        own.lines()
            .any(|l| l.starts_with("0::")
                && l.ends_with(root.file_name().unwrap().to_str().unwrap())),
        "{own}"
    );
    assert_eq!((awake, frozen, thawed), (false, (true, true), false));
    assert!(killed.unwrap());
    removed.unwrap();
    cgroup.remove().unwrap();
    cgroup.thaw().expect("what is gone needs no thaw");
    assert!(matches!(cgroup.freeze(), Err(FreezeError::Impossible(_))));
}

/// Plain files in the kernel's place.
#[test]
fn swap_never_holds_more_than_memory_may() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    let file = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    fs::write(root.join("memory.max"), "67108864\n").unwrap();
    fs::write(root.join("memory.swap.max"), "").unwrap();
    let cgroup = SandboxCgroup {
        tree: Tree::V2 { root: root.clone() },
    };
    cgroup.allow_swap(true).unwrap();
    assert_eq!(file("memory.swap.max"), "67108864");
    cgroup.allow_swap(false).unwrap();
    assert!(file("memory.swap.max").starts_with('0'));
}

/// What a cgroup of v1 is told of memory.
#[test]
fn v1_leaves_writing_out_to_us() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().to_owned();
    let files = [
        "cpu.cfs_quota_us",
        "memory.limit_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.swappiness",
        "pids.max",
    ];
    for name in files {
        fs::write(root.join(name), "").unwrap();
    }
    let tree = Tree::V1 {
        cpu: root.clone(),
        cpuacct: root.clone(),
        memory: root.clone(),
        pids: root.clone(),
        freezer: None,
    };
    let limits = Limits {
        cpu: utsuwa_model::quantity::MilliCpu(1000),
        memory: utsuwa_model::quantity::MemoryBytes(64 << 20),
        pids: 64,
    };
    SandboxCgroup { tree }.apply(&limits).unwrap();
    let told = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    assert_eq!(told("memory.memsw.limit_in_bytes"), "67108864");
    assert_eq!(told("memory.swappiness"), "0");
}

#[test]
fn a_users_cgroup_is_found_where_it_was_delegated() {
    let mount = tempfile::tempdir().unwrap();
    let manager = "user.slice/user@1000.service";
    let unit = format!("{manager}/app.slice/utsuwa.service");
    let make = |path: &str, controllers: &str| {
        let directory = mount.path().join(path);
        fs::create_dir_all(&directory).unwrap();
        for (file, text) in [
            ("cgroup.controllers", controllers),
            ("cgroup.procs", ""),
            ("cgroup.subtree_control", ""),
        ] {
            fs::write(directory.join(file), text).unwrap();
        }
    };
    let found = |own: &str| {
        let found = super::delegated::delegated_of(mount.path(), own)?;
        Some(
            found
                .strip_prefix(mount.path())
                .unwrap()
                .to_str()?
                .to_owned(),
        )
    };
    make(manager, "cpu memory pids");
    make(&unit, "cpu io memory pids");
    make(&format!("{unit}/server"), "cpu io memory pids");
    assert_eq!(
        found(&format!("{unit}/server")),
        Some(unit.clone()),
        "beside the leaf"
    );
    assert_eq!(
        found(&unit),
        Some(unit.clone()),
        "without a leaf, below itself"
    );
    let session = "user.slice/session-3.scope";
    make(session, "memory pids");
    assert_eq!(found(session), None, "one controller is missing");
    let direct = format!("{manager}/init.scope");
    make(&direct, "cpu memory pids");
    assert_eq!(
        found(&direct),
        Some(direct.clone()),
        "never what the manager itself has"
    );
    assert_eq!(found("gone.scope"), None);
}

#[test]
fn without_a_cgroup_everything_is_done_and_nothing_limited() {
    let none = SandboxCgroup { tree: Tree::None };
    none.create().unwrap();
    none.attach(1).unwrap();
    assert!(none.clone_target().unwrap().is_none());
    none.set_cpu(utsuwa_model::quantity::MilliCpu(500)).unwrap();
    none.thaw().unwrap();
    let refused = none.freeze().unwrap_err();
    assert!(
        matches!(&refused, FreezeError::Impossible(why) if why.contains("delegated")),
        "{refused}"
    );
    assert_eq!((none.oom_kills(), none.is_frozen()), (None, false));
    assert!(none.usage().is_err() && !none.kill().unwrap());
    none.remove().unwrap();
}
