//! Directories of the host put into the instance's root, as the starter opened them.
//!
//! Owns: finding the mount points, as for volumes in memory (`volumes`, invariant 1). Doesn't: choose or protect directories
//! (`sandbox::host_dirs`).
//!
//! Invariants
//! 1. Nothing of ours is written into one: they come, and are mounted, after the files that every instance has.
//! 2. While paths of the image are followed, none of their descriptors is open: they come in a message of their own, and are closed
//!    once they are mounted (CVE-2024-21626).
//!
//! Failure: [`SpawnError::Rootfs`] with the mount path and what the image has there.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use utsuwa_model::instance::MountPoint;

use super::tree::attach_at;
use super::volumes::{IN_THE_IMAGE, descend, is_same, parts, refused};
use crate::spawner::SpawnError;

/// Mounts `trees` at `points`, in this order.
pub(super) fn mount(points: &[MountPoint], trees: Vec<OwnedFd>) -> Result<(), SpawnError> {
    if points.len() != trees.len() {
        return Err(SpawnError::SandboxGone {
            detail: format!("{} directories of {} came", trees.len(), points.len()),
        });
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root =
        rustix::fs::open("/", flags, Mode::empty()).map_err(|e| SpawnError::sys("open", e, "/"))?;
    for (point, tree) in points.iter().zip(trees) {
        let path = point.path.as_str();
        let target = descend(root.as_fd(), &parts(path), IN_THE_IMAGE, path)?;
        if is_same(&target, &root, path)? {
            return Err(refused(
                path,
                "it leads to the root itself, by a symbolic link in the image",
            ));
        }
        attach_at(&tree, &target, path)?;
    }
    Ok(())
}
