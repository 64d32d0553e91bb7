//! What the containers of one instance share besides their network, as the starter makes it.
//!
//! Owns: the volumes that several containers see, until the instance is gone; that ids are mapped once. Doesn't: put a volume
//! in its place (`inside::volumes`).
//!
//! A volume of one container is mounted by the container itself. One that several see must be one file system, and containers
//! start at different times: so the starter keeps it and gives each container a mount of its own.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use rustix::mount::{MountAttrFlags, MountFlags, OpenTreeFlags};
use utsuwa_model::instance::MemoryVolume;

use super::protocol::{Member, SpawnError};
use crate::sandbox::walls::Wall;
use crate::sandbox::{process, rootfs, sys};

/// Volumes by the sandbox of the instance.
#[derive(Debug, Default)]
pub(super) struct Shared {
    volumes: BTreeMap<u32, Vec<Attached>>,
}

#[derive(Debug)]
struct Attached {
    name: String,
    /// In the current directory.
    at: String,
}

impl Shared {
    /// A mount of each shared volume of a container, in their order.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the step.
    pub(super) fn mounts(
        &mut self,
        member: Option<&Member>,
        volumes: &[MemoryVolume],
        uid_base: u32,
    ) -> Result<Vec<OwnedFd>, SpawnError> {
        let Some(member) = member else {
            return Ok(Vec::new());
        };
        let shared = volumes.iter().filter(|volume| !volume.shared.is_empty());
        shared
            .map(|volume| self.mount_of(member, volume, uid_base))
            .collect()
    }

    fn mount_of(
        &mut self,
        member: &Member,
        volume: &MemoryVolume,
        uid_base: u32,
    ) -> Result<OwnedFd, SpawnError> {
        let made = self.volumes.entry(member.of).or_default();
        let known = made.iter().find(|one| one.name == volume.shared);
        let at = match known {
            Some(one) => one.at.clone(),
            None if member.seen.contains(&volume.shared) => {
                let detail = "its volumes were lost with the spawner that had made them".to_owned();
                return Err(SpawnError::SandboxGone { detail });
            }
            None => {
                let at = format!("_v{}.{}", member.of, made.len());
                attach(&at, volume, uid_base)?;
                made.push(Attached {
                    name: volume.shared.clone(),
                    at: at.clone(),
                });
                at
            }
        };
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, at.as_str(), flags)
            .map_err(|e| SpawnError::sys("open_tree", e, "volume"))?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        sys::mount_setattr(tree.as_fd(), u64::from(attributes.bits()), None, false)
            .map_err(|e| SpawnError::sys("mount_setattr", e, "volume"))?;
        Ok(tree)
    }

    /// The instance is gone: what can be let go of, as [`rootfs::release`] does.
    pub(super) fn forget(&mut self, of: u32) -> Vec<String> {
        let gone = self.volumes.remove(&of).unwrap_or_default();
        gone.into_iter().map(|one| one.at).collect()
    }
}

fn attach(at: &str, volume: &MemoryVolume, uid_base: u32) -> Result<(), SpawnError> {
    match std::fs::create_dir(at) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(SpawnError::sys("mkdir", error, format!("volume {at}")));
        }
        _ => {}
    }
    let (size, inodes) = (volume.size.0, rootfs::inodes(volume.size.0));
    let options = format!("mode=777,uid={uid_base},gid={uid_base},size={size},nr_inodes={inodes}");
    let options = CString::new(options).expect("digits and letters");
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("utsuwa-volume", at, "tmpfs", flags, options.as_c_str())
        .map_err(|e| SpawnError::sys("mount", e, format!("volume {at}")))
}

/// Maps the ids of an instance's user namespace, once for all its containers.
///
/// # Errors
/// [`SpawnError`] naming the file.
pub(super) fn map_ids(
    pid: u32,
    member: Option<&Member>,
    uid_base: u32,
    count: u32,
) -> Result<(), SpawnError> {
    if !Wall::UserNamespace.stands() {
        return Ok(());
    }
    if member.is_some() {
        let path = format!("/proc/{pid}/gid_map");
        let mapped =
            std::fs::read_to_string(&path).map_err(|e| SpawnError::sys("read", e, path))?;
        if !mapped.trim().is_empty() {
            return Ok(());
        }
    }
    process::map_ids(pid, 0, uid_base, count)
}
