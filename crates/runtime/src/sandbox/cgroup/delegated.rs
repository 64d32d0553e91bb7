//! Cgroups of an ordinary user's server: below what systemd delegated to them, or none.

use std::fs;
use std::path::{Path, PathBuf};

use super::Cgroups;
use super::tree::{NEEDED, Tree, hierarchies};
use crate::spawner::SpawnError;

impl Cgroups {
    /// Below a cgroup that was given to the user, or nowhere: then nothing is limited.
    pub(super) fn open_delegated(id: &str) -> Result<Self, SpawnError> {
        match delegated() {
            Some(parent) => Self::open_below(&parent, id),
            None => Ok(Self {
                tree: Tree::None,
                cpuset: None,
            }),
        }
    }

    /// Whether sandboxes have a cgroup at all.
    #[must_use]
    pub fn limits(&self) -> bool {
        !matches!(self.tree, Tree::None)
    }
}

/// Where on v2 the tree of an ordinary user goes: in what systemd delegated to them, found by being theirs to write. Beside the
/// leaf we are in where that has a parent of theirs, as `v2_parent` does, else below our own cgroup, whose processes then
/// move aside.
pub(crate) fn delegated() -> Option<PathBuf> {
    let mount = hierarchies().ok()?.into_iter().find(|h| h.v2)?.mount;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    delegated_of(&mount, own)
}

pub(super) fn delegated_of(mount: &Path, own: &str) -> Option<PathBuf> {
    let has_all = |directory: &Path| {
        let offered = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
        NEEDED
            .iter()
            .all(|needed| offered.split_whitespace().any(|o| o == *needed))
    };
    let is_ours = |directory: &Path| {
        [
            directory.to_owned(),
            directory.join("cgroup.procs"),
            directory.join("cgroup.subtree_control"),
        ]
        .iter()
        .all(|file| rustix::fs::access(file, rustix::fs::Access::WRITE_OK).is_ok())
    };
    let own = mount.join(own);
    // The user's manager (user@1000.service) is theirs too, but what lies in it is its units', not ours.
    let is_unit = |directory: &&Path| {
        let name = directory.file_name().unwrap_or_default().to_string_lossy();
        (name.ends_with(".service") || name.ends_with(".scope")) && !name.starts_with("user@")
    };
    own.parent()
        .filter(is_unit)
        .into_iter()
        .chain(std::iter::once(own.as_path()))
        .find(|directory| has_all(directory) && is_ours(directory))
        .map(Path::to_owned)
}
