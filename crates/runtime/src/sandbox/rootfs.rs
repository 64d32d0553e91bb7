//! The root file system of one instance: layers below, memory above.
//!
//! Owns: mounting it in the starter, with the host's privileges. Doesn't: put it in place (`inside`), or prepare layers.
//!
//! Invariants
//! 1. All writes go to one tmpfs limited to the memory limit; what the instance writes is charged to its cgroup, because its
//!    own processes write it. `/dev/shm` is a directory of the same tmpfs.
//! 2. Nothing stays attached: descriptors carry the mounts, and they end with the instance's mount namespace.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, Uid};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags,
};

use super::sys;
use super::walls::Wall;
use crate::spawner::SpawnError;

/// The kernel takes mount options of the descriptor calls up to this many bytes.
const OPTION_LIMIT: usize = 255;
/// One inode per 4 KiB of memory, but enough for a small image's worth of files.
const BYTES_PER_INODE: u64 = 4096;
const INODES_AT_LEAST: u64 = 16_384;

/// How many files a file system in memory of `bytes` may have.
pub(crate) fn inodes(bytes: u64) -> u64 {
    (bytes / BYTES_PER_INODE).max(INODES_AT_LEAST)
}

/// What the sandbox attaches, and what to let go of afterwards.
#[derive(Debug)]
pub(crate) struct Rootfs {
    pub(crate) root: OwnedFd,
    pub(crate) shm: OwnedFd,
    /// Directory in the current directory where the tmpfs is still attached.
    pub(crate) upper: String,
}

/// A file system in memory for what an instance will write, with its directories; nobody's yet.
#[derive(Debug)]
pub(crate) struct Upper {
    /// Directory in the current directory.
    name: String,
    memory_bytes: u64,
}

impl Upper {
    /// Mounts it at `name`, which is made if need be.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the step. Nothing of it stays then.
    pub(crate) fn make(name: String, memory_bytes: u64) -> Result<Self, SpawnError> {
        match std::fs::create_dir(&name) {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                return Err(SpawnError::sys(
                    "mkdir",
                    error,
                    format!("upper directory {name}"),
                ));
            }
            _ => {}
        }
        let inodes = inodes(memory_bytes);
        let options = if Wall::Cgroup.stands() {
            format!("mode=755,size={memory_bytes},nr_inodes={inodes}")
        } else {
            "mode=755".to_owned()
        };
        let options = std::ffi::CString::new(options).expect("digits and letters");
        rustix::mount::mount(
            "utsuwa-upper",
            name.as_str(),
            "tmpfs",
            MountFlags::NOSUID | MountFlags::NODEV,
            options.as_c_str(),
        )
        .map_err(|e| {
            // Names are never used again.
            let _ = std::fs::remove_dir(&name);
            SpawnError::sys("mount", e, format!("tmpfs {}", options.to_string_lossy()))
        })?;
        match make_directories(&name) {
            Ok(()) => Ok(Self { name, memory_bytes }),
            Err(error) => {
                release(&name);
                Err(error)
            }
        }
    }

    /// Whether it is what an instance with so much memory has.
    pub(crate) fn fits(&self, memory_bytes: u64) -> bool {
        self.memory_bytes == memory_bytes
    }

    /// Nobody wants it: to be given to [`release`].
    pub(crate) fn into_name(self) -> String {
        self.name
    }
}

/// Mounts the overlay over `layers` (names in the current directory, topmost first) and `upper`. `marks`: where the overlay keeps
/// what it remembers of files.
///
/// # Errors
/// [`SpawnError::Sys`] naming the step. Nothing stays mounted then.
pub(crate) fn mount(
    layers: &[String],
    uid_base: u32,
    upper: Upper,
    marks: Marks,
) -> Result<Rootfs, SpawnError> {
    let upper = upper.into_name();
    match build(layers, uid_base, &upper, marks) {
        Ok((root, shm)) => Ok(Rootfs { root, shm, upper }),
        Err(error) => {
            release(&upper);
            Err(error)
        }
    }
}

/// Detaches the tmpfs from our own tree; the instance's overlay keeps it. Waits for the kernel's RCU: after the start.
pub(crate) fn release(upper: &str) {
    let _ = rustix::mount::unmount(upper, UnmountFlags::DETACH);
    let _ = std::fs::remove_dir(upper);
}

/// In every upper: name, mode, and whether it becomes the instance's own.
const DIRECTORIES: [(&str, u32, bool); 3] =
    [("u", 0o755, true), ("w", 0o755, false), ("s", 0o1777, true)];

fn make_directories(upper: &str) -> Result<(), SpawnError> {
    for (name, mode, _) in DIRECTORIES {
        let path = format!("{upper}/{name}");
        rustix::fs::mkdir(path.as_str(), Mode::from_raw_mode(mode))
            .map_err(|e| SpawnError::sys("mkdir", e, path.clone()))?;
        if mode > 0o777 {
            // mkdir's mode is cut by the umask.
            rustix::fs::chmod(path.as_str(), Mode::from_raw_mode(mode))
                .map_err(|e| SpawnError::sys("chmod", e, path.clone()))?;
        }
    }
    Ok(())
}

fn build(
    layers: &[String],
    uid_base: u32,
    upper: &str,
    marks: Marks,
) -> Result<(OwnedFd, OwnedFd), SpawnError> {
    let owner = (Some(Uid::from_raw(uid_base)), Some(Gid::from_raw(uid_base)));
    for (name, _, owned) in DIRECTORIES {
        if owned {
            let path = format!("{upper}/{name}");
            rustix::fs::chownat(
                rustix::fs::CWD,
                path.as_str(),
                owner.0,
                owner.1,
                AtFlags::SYMLINK_NOFOLLOW,
            )
            .map_err(|e| SpawnError::sys("chown", e, path.clone()))?;
        }
    }
    let lower = if layers.is_empty() {
        "empty".to_owned()
    } else {
        layers.join(":")
    };
    let root = if lower.len() <= OPTION_LIMIT {
        overlay(&lower, upper, marks)?
    } else {
        overlay_by_path(&lower, upper, marks)?
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let shm = rustix::mount::open_tree(rustix::fs::CWD, format!("{upper}/s"), flags)
        .map_err(|e| SpawnError::sys("open_tree", e, "/dev/shm"))?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    sys::mount_setattr(shm.as_fd(), u64::from(attributes.bits()), None, false)
        .map_err(|e| SpawnError::sys("mount_setattr", e, "/dev/shm"))?;
    Ok((root, shm))
}

fn overlay(lower: &str, upper: &str, marks: Marks) -> Result<OwnedFd, SpawnError> {
    let context = |key: &str| format!("mount overlay: {key}");
    let fs = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| SpawnError::sys("fsopen", e, "overlay"))?;
    if marks == Marks::OfUsers {
        rustix::mount::fsconfig_set_flag(fs.as_fd(), USER_ATTRIBUTES)
            .map_err(|e| SpawnError::sys("fsconfig", e, context(USER_ATTRIBUTES)))?;
    }
    for (key, value) in [
        ("lowerdir", lower.to_owned()),
        ("upperdir", format!("{upper}/u")),
        ("workdir", format!("{upper}/w")),
    ] {
        rustix::mount::fsconfig_set_string(fs.as_fd(), key, value.as_str())
            .map_err(|e| SpawnError::sys("fsconfig", e, context(key)))?;
    }
    rustix::mount::fsconfig_create(fs.as_fd())
        .map_err(|e| SpawnError::sys("fsconfig", e, context(lower)))?;
    let attributes = if Wall::Masks.stands() {
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV
    } else {
        MountAttrFlags::empty()
    };
    rustix::mount::fsmount(fs.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
        .map_err(|e| SpawnError::sys("fsmount", e, "overlay"))
}

const USER_ATTRIBUTES: &str = "userxattr";

/// In which attributes of files an overlay keeps its marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Marks {
    /// Those that only root of the host may set.
    OfRoot,
    /// Those of users, which it has to be told.
    OfUsers,
}

/// For more layers than an option of the descriptor calls holds: the old call takes a page. Costs an unmount.
fn overlay_by_path(lower: &str, upper: &str, marks: Marks) -> Result<OwnedFd, SpawnError> {
    let point = format!("{upper}/m");
    rustix::fs::mkdir(point.as_str(), Mode::from_raw_mode(0o755))
        .map_err(|e| SpawnError::sys("mkdir", e, point.clone()))?;
    let marks = if marks == Marks::OfUsers {
        format!(",{USER_ATTRIBUTES}")
    } else {
        String::new()
    };
    let options = format!("lowerdir={lower},upperdir={upper}/u,workdir={upper}/w{marks}");
    let options = std::ffi::CString::new(options).expect("names without NUL");
    rustix::mount::mount(
        "overlay",
        point.as_str(),
        "overlay",
        MountFlags::NOSUID | MountFlags::NODEV,
        options.as_c_str(),
    )
    .map_err(|e| {
        SpawnError::sys(
            "mount",
            e,
            format!("overlay of {} bytes of layers", lower.len()),
        )
    })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, point.as_str(), flags);
    let _ = rustix::mount::unmount(point.as_str(), UnmountFlags::DETACH);
    tree.map_err(|e| SpawnError::sys("open_tree", e, "overlay"))
}

#[cfg(test)]
mod tests {
    use rustix::thread::{CapabilitySet, CapabilitySets, capabilities, set_capabilities};

    use super::*;

    #[test]
    fn one_that_can_not_be_mounted_leaves_no_directory() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().join("_1");
        let name = name.to_str().unwrap().to_owned();
        let make = move || {
            // Of this thread alone: it may mount nothing.
            let had = capabilities(None).unwrap();
            let kept = had.effective.difference(CapabilitySet::SYS_ADMIN);
            let sets = CapabilitySets {
                effective: kept,
                ..had
            };
            set_capabilities(None, sets).unwrap();
            Upper::make(name, 1 << 20).map(Upper::into_name)
        };
        let made = std::thread::Builder::new().spawn(make).unwrap();
        let error = made.join().unwrap().unwrap_err();
        assert!(
            matches!(&error, SpawnError::Sys { call, .. } if call == "mount"),
            "{error}"
        );
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
