//! What happens in the sandbox's own process, from its birth in the pool to the program's first instruction.
//!
//! Owns: the two halves of becoming an instance. *Waiting room* ([`run`], before anybody needs it): everything that doesn't
//! depend on the service, the slow things above all. *Launch*: identity, root, files, privileges, exec.
//! Doesn't: decide anything; it does what [`Launch`] says and reports errors as values.
//!
//! Invariants
//! 1. Nothing that the image contains is looked at before the process has the instance's own ids and root; from then on
//!    links in the image can lead nowhere but into the image.
//! 2. Mount targets in the image are opened without following any link.
//! 3. No descriptor but 0, 1 and 2 survives exec, no signal is blocked or ignored, no privilege is left beyond [`KEPT`].
//! 4. After the waiting room, launching makes no `umount`: unmounting waits for the kernel's RCU.
//!
//! Failure: sent as [`FromSandbox::Failed`], then the process ends.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};
use serde::{Deserialize, Serialize};

use super::{files, process, program, seccomp, stage, sys, user};
use crate::spawner::SpawnError;
use crate::spawner::protocol::Channel;

/// What root in an instance may do, over its own files, ids and ports only: change owners and modes (package managers, apps
/// that prepare their directories), switch to another user (nginx, postgres), bind low ports, signal its processes, give up
/// privileges and put capabilities on files. Not among them: raw sockets, device nodes, chroot, tracing, anything SYS.
pub(crate) const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETPCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SETFCAP);

/// Open files per container (Cloud Run's limit).
const OPEN_FILES: u64 = 25_000;
/// Above the default 0, so that an app is chosen before the host's own services when the host runs out of memory.
const OOM_SCORE_ADJUSTMENT: &str = "500";
const SELF: i32 = 3;

/// Hidden: bound over with `/dev/null` (files) or an empty directory. Facts about or handles on the host.
const HIDDEN: [&str; 14] = [
    "proc/acpi",
    "proc/asound",
    "proc/interrupts",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/sched_debug",
    "proc/scsi",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sysrq-trigger",
    "sys/firmware",
    "sys/devices/virtual/powercap",
    "sys/kernel/debug",
];
/// Visible and read-only.
const READ_ONLY: [&str; 4] = ["proc/bus", "proc/fs", "proc/irq", "proc/sys"];

/// To the process in the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum ToSandbox {
    /// It is in its cgroups: go to the waiting room.
    Attached,
    /// Become an instance. Descriptors: `[root, shm, stdout, stderr]`.
    Launch(Launch),
}

/// The program and how to run it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Launch {
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: String,
    pub(crate) user: String,
}

/// From the process in the sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum FromSandbox {
    /// In the waiting room.
    Staged,
    /// The next thing is exec: end of file after this means it happened. `mounts`: time until the root was complete.
    Executing {
        mounts: Duration,
    },
    Failed(SpawnError),
}

/// What a sandbox's process knows from its maker.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) stage: PathBuf,
    /// v1 controllers to show under `/sys/fs/cgroup`; `None`: the v2 tree.
    pub(crate) v1_controllers: Option<Vec<String>>,
    pub(crate) filter: seccomp::Program,
}

/// The trees prepared in the waiting room, by descriptors on their roots.
struct Prepared {
    proc: OwnedFd,
    sys: OwnedFd,
    dev: OwnedFd,
}

/// The life of the process until exec. `control` is its end of the pair whose other end goes to the keeper.
pub(crate) fn run(control: &Channel, plan: &Plan) -> ! {
    if let Err(error) = live(control, plan) {
        let _ = control.send(&FromSandbox::Failed(error), &[]);
    }
    sys::leave(1)
}

fn live(control: &Channel, plan: &Plan) -> Result<(), SpawnError> {
    // Only the control socket stays, under a known number.
    sys::place(control.as_fd(), SELF).map_err(|e| SpawnError::sys("dup2", e, "control socket"))?;
    sys::close_from(SELF + 1)
        .map_err(|e| SpawnError::sys("close_range", e, "descriptors of the maker"))?;
    sys::cloexec_from(SELF).map_err(|e| SpawnError::sys("close_range", e, "control socket"))?;
    let own = sys::adopt(SELF).map_err(|e| SpawnError::sys("fcntl", e, "control socket"))?;
    let control = Channel::from(own);
    let result = wait_and_launch(&control, plan);
    if let Err(error) = result {
        let _ = control.send(&FromSandbox::Failed(error), &[]);
    }
    sys::leave(1)
}

fn wait_and_launch(control: &Channel, plan: &Plan) -> Result<(), SpawnError> {
    let lost = |what: &str| SpawnError::SandboxGone {
        detail: format!("its control socket closed while it waited for {what}"),
    };
    sys::reset_signals();
    let _ = rustix::process::setsid();
    rustix::thread::set_name(c"utsuwa-pooled").map_err(|e| SpawnError::sys("prctl", e, "name"))?;
    let received = control
        .receive::<ToSandbox>()
        .map_err(|e| SpawnError::sys("recvmsg", e, "control socket"))?;
    let Some((ToSandbox::Attached, _)) = received else {
        return Err(lost("its cgroup"));
    };
    let prepared = waiting_room(plan)?;
    control
        .send(&FromSandbox::Staged, &[])
        .map_err(|e| SpawnError::sys("sendmsg", e, "control socket"))?;

    let received = control
        .receive::<ToSandbox>()
        .map_err(|e| SpawnError::sys("recvmsg", e, "control socket"))?;
    let Some((ToSandbox::Launch(launch), descriptors)) = received else {
        return Err(lost("an instance"));
    };
    let begun = Instant::now();
    let [root, shm, stdout, stderr]: [OwnedFd; 4] = descriptors
        .try_into()
        .map_err(|_| lost("all of its descriptors"))?;
    become_mapped_root()?;
    enter_root(&root, &shm, &prepared)?;
    files::write_all()?;
    let mounts = begun.elapsed();
    let identity = user::look_up(&launch.user)?;
    let arguments = strings("args", &launch.args)?;
    if arguments.is_empty() {
        let why = "the image has no ENTRYPOINT or CMD and the service names no program: name one with --command".to_owned();
        return Err(SpawnError::Invalid {
            field: "command".to_owned(),
            why,
        });
    }
    let (environment, path) = environment(&launch.env, &identity.home)?;
    let cwd = if launch.cwd.is_empty() {
        "/"
    } else {
        launch.cwd.as_str()
    };
    make_working_directory(cwd)?;
    sys::place(stdout.as_fd(), 1).map_err(|e| SpawnError::sys("dup2", e, "standard output"))?;
    sys::place(stderr.as_fd(), 2).map_err(|e| SpawnError::sys("dup2", e, "standard error"))?;
    become_user(&identity)?;
    rustix::process::chdir(cwd).map_err(|e| SpawnError::Invalid {
        field: "workingDir".to_owned(),
        why: format!(
            "enter {cwd:?} as uid {}: {}",
            identity.uid,
            std::io::Error::from(e)
        ),
    })?;
    sys::cloexec_from(3).map_err(|e| SpawnError::sys("close_range", e, "before exec"))?;
    sys::install_seccomp(&plan.filter)
        .map_err(|e| SpawnError::sys("seccomp", e, "install the filter"))?;
    control
        .send(&FromSandbox::Executing { mounts }, &[])
        .map_err(|e| SpawnError::sys("sendmsg", e, "control socket"))?;
    Err(program::execute(
        &arguments,
        &environment,
        &path,
        identity.uid,
    ))
}

/// Everything that can be done before the service is known.
fn waiting_room(plan: &Plan) -> Result<Prepared, SpawnError> {
    process::write_file("/proc/self/oom_score_adj", OOM_SCORE_ADJUSTMENT)
        .map_err(|e| SpawnError::sys("write", e, "/proc/self/oom_score_adj"))?;
    // Until exec this is a copy of a privileged process's memory.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(|e| SpawnError::sys("prctl", e, "dumpable"))?;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWCGROUP)
        .map_err(|e| SpawnError::sys("unshare", e, "cgroup namespace"))?;
    rustix::system::sethostname(b"localhost")
        .map_err(|e| SpawnError::sys("sethostname", e, "localhost"))?;
    limit(rustix::process::Resource::Nofile, OPEN_FILES)?;
    limit(rustix::process::Resource::Core, 0)?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    for bit in 0..64 {
        let capability = CapabilitySet::from_bits_retain(1 << bit);
        // Numbers above the kernel's last capability are refused: nothing to drop there.
        if !KEPT.contains(capability) {
            let _ = rustix::thread::remove_capability_from_bounding_set(capability);
        }
    }
    rustix::thread::clear_ambient_capability_set()
        .map_err(|e| SpawnError::sys("prctl", e, "ambient capabilities"))?;
    rustix::thread::set_no_new_privs(true)
        .map_err(|e| SpawnError::sys("prctl", e, "no_new_privs"))?;
    build_tree(plan)
}

fn limit(resource: rustix::process::Resource, wanted: u64) -> Result<(), SpawnError> {
    let hard = rustix::process::getrlimit(resource)
        .maximum
        .unwrap_or(u64::MAX);
    let value = Some(wanted.min(hard));
    rustix::process::setrlimit(
        resource,
        rustix::process::Rlimit {
            current: value,
            maximum: value,
        },
    )
    .map_err(|e| SpawnError::sys("setrlimit", e, format!("{resource:?}")))
}

/// Makes the stage the root of this mount namespace and attaches proc, sys and dev, masks included.
fn build_tree(plan: &Plan) -> Result<Prepared, SpawnError> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|e| SpawnError::sys("mount", e, "make mounts private"))?;
    // Made while the host's own are still visible: the kernel refuses new ones to a namespace that sees none in full.
    let proc = new_mount("proc", &[], MountAttrFlags::empty())?;
    let sysfs = new_mount("sysfs", &[], MountAttrFlags::MOUNT_ATTR_RDONLY)?;
    let cgroups = cgroup_mounts(plan)?;
    let devices = stage::DEVICES.map(|name| {
        (
            name,
            clone_tree(rustix::fs::CWD, Path::new("/dev").join(name)),
        )
    });

    let root = clone_tree(rustix::fs::CWD, &plan.stage)?;
    let read_only = MountAttrFlags::MOUNT_ATTR_RDONLY
        .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
        .bits();
    sys::mount_setattr(root.as_fd(), u64::from(read_only), None, false)
        .map_err(|e| SpawnError::sys("mount_setattr", e, "stage"))?;
    attach(&root, rustix::fs::CWD, &plan.stage)?;
    rustix::process::fchdir(&root).map_err(|e| SpawnError::sys("fchdir", e, "stage"))?;
    rustix::process::pivot_root(".", ".").map_err(|e| SpawnError::sys("pivot_root", e, "stage"))?;
    rustix::mount::unmount(".", UnmountFlags::DETACH)
        .map_err(|e| SpawnError::sys("umount2", e, "the host's mounts"))?;
    rustix::process::chdir("/").map_err(|e| SpawnError::sys("chdir", e, "stage"))?;

    attach(&proc, rustix::fs::CWD, "/proc")?;
    attach(&sysfs, rustix::fs::CWD, "/sys")?;
    let dev = clone_tree(rustix::fs::CWD, "/dev")?;
    attach(&dev, rustix::fs::CWD, "/dev")?;
    for (name, device) in devices {
        attach(&device?, rustix::fs::CWD, Path::new("/dev").join(name))?;
    }
    for (target, cgroup) in cgroups {
        attach(&cgroup, rustix::fs::CWD, target)?;
    }
    mask()?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR, Mode::empty())
        .map_err(|e| SpawnError::sys("open", e, "/dev/null"))?;
    for number in 0..=2 {
        sys::place(null.as_fd(), number)
            .map_err(|e| SpawnError::sys("dup2", e, "standard streams"))?;
    }
    Ok(Prepared {
        proc: at_root_of("/proc")?,
        sys: at_root_of("/sys")?,
        dev: at_root_of("/dev")?,
    })
}

/// The instance's view of its cgroup, read-only: programs size themselves by it (Java, Go, Node).
fn cgroup_mounts(plan: &Plan) -> Result<Vec<(PathBuf, OwnedFd)>, SpawnError> {
    let target = Path::new("/sys/fs/cgroup");
    let Some(controllers) = &plan.v1_controllers else {
        return Ok(vec![(
            target.to_owned(),
            new_mount("cgroup2", &[], MountAttrFlags::MOUNT_ATTR_RDONLY)?,
        )]);
    };
    let directory = clone_tree(rustix::fs::CWD, plan.stage.join("cgroup"))?;
    let read_only = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    sys::mount_setattr(directory.as_fd(), read_only, None, false)
        .map_err(|e| SpawnError::sys("mount_setattr", e, "cgroup"))?;
    let mut mounts = vec![(target.to_owned(), directory)];
    for controller in controllers {
        let options: Vec<(&str, Option<&str>)> =
            controller.split(',').map(|name| (name, None)).collect();
        mounts.push((
            target.join(controller),
            new_mount("cgroup", &options, MountAttrFlags::MOUNT_ATTR_RDONLY)?,
        ));
    }
    Ok(mounts)
}

fn mask() -> Result<(), SpawnError> {
    for path in READ_ONLY {
        let Some(tree) = existing(path)? else {
            continue;
        };
        sys::mount_setattr(
            tree.as_fd(),
            u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits()),
            None,
            true,
        )
        .map_err(|e| SpawnError::sys("mount_setattr", e, path))?;
        attach(&tree, rustix::fs::CWD, Path::new("/").join(path))?;
    }
    for path in HIDDEN {
        let absolute = Path::new("/").join(path);
        let Ok(metadata) = std::fs::symlink_metadata(&absolute) else {
            continue;
        };
        let cover = clone_tree(
            rustix::fs::CWD,
            if metadata.is_dir() {
                "/empty"
            } else {
                "/dev/null"
            },
        )?;
        attach(&cover, rustix::fs::CWD, absolute)?;
    }
    Ok(())
}

fn existing(path: &str) -> Result<Option<OwnedFd>, SpawnError> {
    let absolute = Path::new("/").join(path);
    if std::fs::symlink_metadata(&absolute).is_err() {
        return Ok(None);
    }
    clone_tree(rustix::fs::CWD, absolute).map(Some)
}

/// The maker mapped 65,536 ids since the waiting room: take the first.
fn become_mapped_root() -> Result<(), SpawnError> {
    let context = "take the instance's own root";
    rustix::thread::set_thread_groups(&[]).map_err(|e| SpawnError::sys("setgroups", e, context))?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)
        .map_err(|e| SpawnError::sys("setresgid", e, context))?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
        .map_err(|e| SpawnError::sys("setresuid", e, context))
}

/// Puts the root on top of the stage and what was prepared into it.
fn enter_root(root: &OwnedFd, shm: &OwnedFd, prepared: &Prepared) -> Result<(), SpawnError> {
    attach(root, rustix::fs::CWD, "/")?;
    rustix::process::fchdir(root).map_err(|e| SpawnError::sys("fchdir", e, "the image's root"))?;
    rustix::process::chroot(".").map_err(|e| SpawnError::sys("chroot", e, "the image's root"))?;
    for (tree, name) in [
        (&prepared.proc, "proc"),
        (&prepared.sys, "sys"),
        (&prepared.dev, "dev"),
    ] {
        let target = mount_point(root.as_fd(), name)?;
        attach_at(tree, &target, name)?;
    }
    // Opened after the move: these belong to the tree, not to the image.
    let no_exec = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    let pts_options = [
        ("newinstance", None),
        ("ptmxmode", Some("0666")),
        ("mode", Some("0620")),
        ("gid", Some("5")),
    ];
    let pts = new_mount(
        "devpts",
        &pts_options,
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC,
    )?;
    attach(&pts, &prepared.dev, "pts")?;
    attach(&new_mount("mqueue", &[], no_exec)?, &prepared.dev, "mqueue")?;
    attach(shm, &prepared.dev, "shm")
}

/// The directory `name` of the image's root, made if missing, refused if it is anything but a directory.
fn mount_point(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, SpawnError> {
    let open = || {
        let how = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat2(
            root,
            name,
            how,
            Mode::empty(),
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
        )
    };
    let refused = |why: &str| SpawnError::Rootfs {
        path: format!("/{name}"),
        why: why.to_owned(),
    };
    let opened = match open() {
        Err(rustix::io::Errno::NOENT) => {
            rustix::fs::mkdirat(root, name, Mode::from_raw_mode(0o755))
                .map_err(|e| SpawnError::sys("mkdir", e, format!("/{name}")))?;
            open()
        }
        other => other,
    };
    opened.map_err(|errno| {
        let link = rustix::fs::readlinkat(root, name, Vec::new()).is_ok();
        match errno {
            rustix::io::Errno::LOOP | rustix::io::Errno::NOTDIR if link => {
                refused("it is a symbolic link in the image; it must be a directory, or missing")
            }
            rustix::io::Errno::NOTDIR => {
                refused("it is not a directory in the image; it must be one, or missing")
            }
            other => SpawnError::sys("openat2", other, format!("/{name}")),
        }
    })
}

fn make_working_directory(cwd: &str) -> Result<(), SpawnError> {
    let invalid = |why: String| SpawnError::Invalid {
        field: "workingDir".to_owned(),
        why,
    };
    if !cwd.starts_with('/') {
        return Err(invalid(format!("{cwd:?} is not absolute: begin it with /")));
    }
    match std::fs::create_dir_all(cwd) {
        Ok(()) => Ok(()),
        Err(error) => Err(invalid(format!("{cwd:?}: {error}"))),
    }
}

/// Gives up every privilege the program shall not have; order matters: groups and ids while they may still be set.
fn become_user(identity: &user::Identity) -> Result<(), SpawnError> {
    let context = || format!("become uid {} gid {}", identity.uid, identity.gid);
    let groups: Vec<Gid> = identity
        .groups
        .iter()
        .map(|gid| Gid::from_raw(*gid))
        .collect();
    let (uid, gid) = (Uid::from_raw(identity.uid), Gid::from_raw(identity.gid));
    rustix::thread::set_thread_groups(&groups)
        .map_err(|e| SpawnError::sys("setgroups", e, context()))?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)
        .map_err(|e| SpawnError::sys("setresgid", e, context()))?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)
        .map_err(|e| SpawnError::sys("setresuid", e, context()))?;
    let held = if identity.uid == 0 {
        KEPT
    } else {
        CapabilitySet::empty()
    };
    let sets = CapabilitySets {
        effective: held,
        permitted: held,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)
        .map_err(|e| SpawnError::sys("capset", e, context()))
}

fn strings(field: &str, values: &[String]) -> Result<Vec<CString>, SpawnError> {
    values
        .iter()
        .map(|value| {
            CString::new(value.as_str()).map_err(|_| SpawnError::Invalid {
                field: field.to_owned(),
                why: format!("{value:?} contains a NUL character, which no program can be given"),
            })
        })
        .collect()
}

/// One entry per name, the last given; PATH and HOME filled in where nobody set them. Also answers PATH.
fn environment(given: &[String], home: &str) -> Result<(Vec<CString>, String), SpawnError> {
    fn name(entry: &str) -> &str {
        entry.split_once('=').map_or(entry, |(name, _)| name)
    }
    let mut last: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for (index, entry) in given.iter().enumerate() {
        last.insert(name(entry), index);
    }
    let mut entries: Vec<String> = given
        .iter()
        .enumerate()
        .filter(|(index, entry)| last.get(name(entry)) == Some(index))
        .map(|(_, entry)| entry.clone())
        .collect();
    let path = match last
        .get("PATH")
        .and_then(|index| given[*index].split_once('='))
    {
        Some((_, path)) => path.to_owned(),
        None => {
            entries.push(format!("PATH={}", program::DEFAULT_PATH));
            program::DEFAULT_PATH.to_owned()
        }
    };
    if !last.contains_key("HOME") {
        entries.push(format!("HOME={home}"));
    }
    Ok((strings("env", &entries)?, path))
}

fn new_mount(
    kind: &str,
    options: &[(&str, Option<&str>)],
    extra: MountAttrFlags,
) -> Result<OwnedFd, SpawnError> {
    let context = || format!("mount {kind}");
    let fs = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| SpawnError::sys("fsopen", e, context()))?;
    for (key, value) in options {
        match value {
            Some(value) => rustix::mount::fsconfig_set_string(fs.as_fd(), *key, *value),
            None => rustix::mount::fsconfig_set_flag(fs.as_fd(), *key),
        }
        .map_err(|e| SpawnError::sys("fsconfig", e, format!("mount {kind}: {key}")))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())
        .map_err(|e| SpawnError::sys("fsconfig", e, context()))?;
    let mut attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC | extra;
    if kind != "devpts" {
        attributes |= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| SpawnError::sys("fsmount", e, context()))
}

fn clone_tree(at: impl AsFd, path: impl AsRef<Path>) -> Result<OwnedFd, SpawnError> {
    let path = path.as_ref();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_SYMLINK_NOFOLLOW;
    rustix::mount::open_tree(at, path, flags)
        .map_err(|e| SpawnError::sys("open_tree", e, path.display().to_string()))
}

/// A descriptor on the mount at `path`, to move it later.
fn at_root_of(path: &str) -> Result<OwnedFd, SpawnError> {
    rustix::mount::open_tree(rustix::fs::CWD, path, OpenTreeFlags::OPEN_TREE_CLOEXEC)
        .map_err(|e| SpawnError::sys("open_tree", e, path))
}

fn attach(tree: &OwnedFd, at: impl AsFd, path: impl AsRef<Path>) -> Result<(), SpawnError> {
    let path = path.as_ref();
    rustix::mount::move_mount(tree, c"", at, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| SpawnError::sys("move_mount", e, path.display().to_string()))
}

fn attach_at(tree: &OwnedFd, target: &OwnedFd, name: &str) -> Result<(), SpawnError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, c"", flags)
        .map_err(|e| SpawnError::sys("move_mount", e, format!("/{name}")))
}
