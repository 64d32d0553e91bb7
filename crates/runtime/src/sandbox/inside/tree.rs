//! The sandbox's tree of mounts: built around the stage in the waiting room, moved onto the image's root at launch.
//!
//! Owns: what is mounted where, what is hidden and what is read-only. Doesn't: make the image's root (`rootfs`), switch ids.
//! Invariants 1, 2 and 4 of [`super`] are kept here.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags,
};

use super::Plan;
use crate::sandbox::walls::Wall;
use crate::sandbox::{stage, sys};
use crate::spawner::SpawnError;

/// Hidden: bound over with `/dev/null` (files) or an empty directory. Facts about or handles on the host.
const HIDDEN: [&str; 13] = [
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
    "sys/firmware",
    "sys/devices/virtual/powercap",
    "sys/kernel/debug",
];
/// Visible and read-only.
const READ_ONLY: [&str; 5] = [
    "proc/bus",
    "proc/fs",
    "proc/irq",
    "proc/sys",
    "proc/sysrq-trigger",
];

/// Terminals of one instance: room for every shell somebody debugs with, while the kernel has 3,072 for all instances.
const TERMINALS: &str = "64";

/// The trees prepared in the waiting room, by descriptors on their roots.
pub(super) struct Prepared {
    proc: OwnedFd,
    sys: OwnedFd,
    dev: OwnedFd,
    /// A directory of the stage, which nobody can reach by a path once the image's root lies over it.
    pub(super) hidden: OwnedFd,
}

/// Makes the stage the root of this mount namespace and attaches proc, sys and dev, masks included.
pub(super) fn build(plan: &Plan) -> Result<Prepared, SpawnError> {
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|e| SpawnError::sys("mount", e, "make mounts private"))?;
    // Made while the host's own are still visible: the kernel refuses new ones to a namespace that sees none in full.
    let proc = new_mount("proc", &[], MountAttrFlags::empty())?;
    let sysfs = new_mount("sysfs", &[], read_only(Wall::Masks))?;
    let cgroups = cgroup_mounts(plan)?;
    let devices = stage::DEVICES.map(|name| {
        (
            name,
            clone_tree(rustix::fs::CWD, Path::new("/dev").join(name)),
        )
    });

    let root = clone_tree(rustix::fs::CWD, &plan.stage)?;
    let attributes = read_only(Wall::Masks)
        .union(MountAttrFlags::MOUNT_ATTR_NOSUID)
        .bits();
    sys::mount_setattr(root.as_fd(), u64::from(attributes), None, false)
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
    if Wall::Masks.stands() {
        mask()?;
    }
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
        hidden: rustix::fs::open(
            "/empty",
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map_err(|e| SpawnError::sys("open", e, "/empty"))?,
    })
}

/// The instance's view of its cgroup, read-only: programs size themselves by it (Java, Go, Node).
fn cgroup_mounts(plan: &Plan) -> Result<Vec<(PathBuf, OwnedFd)>, SpawnError> {
    let target = Path::new("/sys/fs/cgroup");
    let Some(controllers) = &plan.v1_controllers else {
        return Ok(vec![(
            target.to_owned(),
            new_mount("cgroup2", &[], read_only(Wall::Cgroup))?,
        )]);
    };
    let directory = clone_tree(rustix::fs::CWD, plan.stage.join("cgroup"))?;
    let attributes = u64::from(MountAttrFlags::MOUNT_ATTR_RDONLY.bits());
    sys::mount_setattr(directory.as_fd(), attributes, None, false)
        .map_err(|e| SpawnError::sys("mount_setattr", e, "cgroup"))?;
    let mut mounts = vec![(target.to_owned(), directory)];
    for controller in controllers {
        let options: Vec<(&str, Option<&str>)> =
            controller.split(',').map(|name| (name, None)).collect();
        mounts.push((
            target.join(controller),
            new_mount("cgroup", &options, read_only(Wall::Cgroup))?,
        ));
    }
    Ok(mounts)
}

/// The attribute, as long as the wall it belongs to stands.
fn read_only(wall: Wall) -> MountAttrFlags {
    if wall.stands() {
        MountAttrFlags::MOUNT_ATTR_RDONLY
    } else {
        MountAttrFlags::empty()
    }
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

/// Puts the root on top of the stage and what was prepared into it. With `one_id` there is no group of terminals.
pub(super) fn enter(
    root: &OwnedFd,
    shm: &OwnedFd,
    prepared: &Prepared,
    one_id: bool,
) -> Result<(), SpawnError> {
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
    let mut pts_options = vec![
        ("newinstance", None),
        ("ptmxmode", Some("0666")),
        ("mode", Some("0620")),
    ];
    if !one_id {
        pts_options.push(("gid", Some("5")));
    }
    if Wall::Cgroup.stands() {
        pts_options.push(("max", Some(TERMINALS)));
    }
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
pub(super) fn mount_point(root: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, SpawnError> {
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

fn new_mount(
    kind: &str,
    options: &[(&str, Option<&str>)],
    extra: MountAttrFlags,
) -> Result<OwnedFd, SpawnError> {
    let mut attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC | extra;
    if kind != "devpts" {
        attributes |= MountAttrFlags::MOUNT_ATTR_NODEV;
    }
    mount_with(kind, options, attributes)
}

/// A file system that is attached nowhere yet.
pub(super) fn mount_with(
    kind: &str,
    options: &[(&str, Option<&str>)],
    attributes: MountAttrFlags,
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
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| SpawnError::sys("fsmount", e, context()))
}

pub(super) fn clone_tree(at: impl AsFd, path: impl AsRef<Path>) -> Result<OwnedFd, SpawnError> {
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

pub(super) fn attach(
    tree: &OwnedFd,
    at: impl AsFd,
    path: impl AsRef<Path>,
) -> Result<(), SpawnError> {
    let path = path.as_ref();
    rustix::mount::move_mount(tree, c"", at, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(|e| SpawnError::sys("move_mount", e, path.display().to_string()))
}

pub(super) fn attach_at(tree: &OwnedFd, target: &OwnedFd, name: &str) -> Result<(), SpawnError> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, c"", target, c"", flags)
        .map_err(|e| SpawnError::sys("move_mount", e, format!("/{name}")))
}
