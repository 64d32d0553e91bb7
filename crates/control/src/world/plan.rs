//! How instances of a revision are started, worked out once from its template.

use std::time::Duration;

use utsuwa_model::instance::{
    Group, HostMount, InstanceSpec, Kernel, Limits, MemoryVolume, ProcessSpec, RootfsSpec, Zygote,
};
use utsuwa_model::quantity::{MemoryBytes, MilliCpu};
use utsuwa_model::route::StartupProbe;
use utsuwa_model::{InstanceId, RevisionKey};

/// How instances of a revision are started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StartPlan {
    pub(crate) rootfs: RootfsSpec,
    pub(crate) process: ProcessSpec,
    pub(crate) limits: Limits,
    /// The CPU limit while it starts; as [`Self::limits`] without a boost.
    pub(crate) startup_cpu: MilliCpu,
    pub(crate) port: u16,
    pub(crate) volumes: Vec<MemoryVolume>,
    pub(crate) host_dirs: Vec<HostMount>,
    pub(crate) kernel: Kernel,
    /// Of instances of several containers; all above is of the one that takes requests.
    pub(crate) group: Option<GroupPlan>,
    /// Starts are prepared ahead where they can be.
    pub(crate) zygote: bool,
}

/// The containers of an instance, by number, as [`Group`] counts them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GroupPlan {
    pub(crate) spec: Group,
    /// What each depends on.
    pub(crate) after: Vec<Vec<usize>>,
    /// How each is judged to have started.
    pub(crate) startup: Vec<Option<StartupProbe>>,
}

impl StartPlan {
    /// What an instance may have in memory.
    pub(crate) fn memory_bytes(&self) -> u64 {
        let others = self.group.iter().map(|group| group.spec.memory_of_others());
        others.chain([self.limits.memory]).sum::<MemoryBytes>().0
    }

    /// How long the startup probes of those that take no requests may take, were each to wait for the one before.
    pub(crate) fn sidecars_may_take(&self) -> Duration {
        let startup = self
            .group
            .iter()
            .flat_map(|group| group.startup.iter().skip(1));
        startup.flatten().map(StartupProbe::deadline).sum()
    }

    /// Whether one of several containers has no startup probe: nothing is known of it but that it was started.
    pub(crate) fn has_unprobed(&self) -> bool {
        let mut startup = self.group.iter().flat_map(|group| &group.startup);
        startup.any(Option::is_none)
    }

    /// The root file systems of its containers.
    pub(crate) fn rootfs_of_all(&self) -> Vec<RootfsSpec> {
        let others = self.group.iter().flat_map(|group| &group.spec.sidecars);
        let others = others.map(|one| one.rootfs.clone());
        std::iter::once(self.rootfs.clone()).chain(others).collect()
    }

    pub(crate) fn spec(
        &self,
        key: &RevisionKey,
        id: InstanceId,
        zygote: Option<Zygote>,
    ) -> InstanceSpec {
        InstanceSpec {
            id,
            revision: key.clone(),
            rootfs: self.rootfs.clone(),
            process: self.process.clone(),
            limits: Limits {
                cpu: self.startup_cpu,
                ..self.limits
            },
            port: self.port,
            volumes: self.volumes.clone(),
            host_dirs: self.host_dirs.clone(),
            kernel: self.kernel,
            group: self.group.as_ref().map(|group| group.spec.clone()),
            zygote,
        }
    }
}
