//! Several containers in one instance: one network, one life, a root file system and limits for each.
//!
//! Owns: what a driver must know of the others. Doesn't: say when one that waits may start; whoever drives the start does.

use serde::{Deserialize, Serialize};

use super::{HostMount, InstanceSpec, Limits, MemoryVolume, ProcessSpec, RootfsSpec};
use crate::quantity::MemoryBytes;

/// What an instance of several containers has besides the one that takes requests. Containers are numbered: 0 is that one, the
/// first sidecar is 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Name of the container that takes requests.
    pub name: String,
    /// It is started when that is asked for, not with the instance.
    pub waits: bool,
    pub sidecars: Vec<Sidecar>,
}

impl Group {
    /// What its containers may have in memory besides the one that takes requests.
    #[must_use]
    pub fn memory_of_others(&self) -> MemoryBytes {
        self.sidecars.iter().map(|one| one.limits.memory).sum()
    }
}

/// A container that takes no requests.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    pub name: String,
    /// As [`Group::waits`].
    pub waits: bool,
    pub rootfs: RootfsSpec,
    pub process: ProcessSpec,
    pub limits: Limits,
    pub volumes: Vec<MemoryVolume>,
    #[serde(default)]
    pub host_dirs: Vec<HostMount>,
}

impl InstanceSpec {
    /// The others, none of most instances.
    #[must_use]
    pub fn sidecars(&self) -> &[Sidecar] {
        self.group.as_ref().map_or(&[], |group| &group.sidecars)
    }

    /// Name of container `number`; empty in an instance of one.
    #[must_use]
    pub fn container_name(&self, number: usize) -> &str {
        let Some(group) = &self.group else { return "" };
        match number.checked_sub(1) {
            None => &group.name,
            Some(index) => group.sidecars.get(index).map_or("", |one| &one.name),
        }
    }

    /// Whether container `number` is started by a request of its own.
    #[must_use]
    pub fn waits(&self, number: usize) -> bool {
        self.group
            .as_ref()
            .is_some_and(|group| match number.checked_sub(1) {
                None => group.waits,
                Some(index) => group.sidecars.get(index).is_some_and(|one| one.waits),
            })
    }

    /// The instance as if container `number` were the only one of it; `None`: it has no such container.
    #[must_use]
    pub fn only(&self, number: usize) -> Option<Self> {
        let mut only = Self {
            group: None,
            ..self.clone()
        };
        if let Some(index) = number.checked_sub(1) {
            let one = self.sidecars().get(index)?.clone();
            only.rootfs = one.rootfs;
            only.process = one.process;
            only.limits = one.limits;
            only.volumes = one.volumes;
            only.host_dirs = one.host_dirs;
        }
        Some(only)
    }

    /// The root file systems of all its containers.
    pub fn rootfs_of_all(&self) -> impl Iterator<Item = &RootfsSpec> {
        std::iter::once(&self.rootfs).chain(self.sidecars().iter().map(|one| &one.rootfs))
    }
}
