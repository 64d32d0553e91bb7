//! Instances without CPU: frozen and thawed as the server asks.
//!
//! What is frozen is read from the cgroup, never remembered: a keeper after this one sees the same.
//!
//! Invariants:
//! 1. Nothing starting or stopping is frozen, and what stops or is killed is thawed: on v1 no signal reaches the frozen.
//! 2. With a server that can't thaw, nothing stays frozen.

use utsuwa_model::InstanceId;
use utsuwa_model::instance::Tier;

use super::core::Keeper;
use super::instances::Phase;
use super::protocol::{KeeperError, Reply};
use crate::sandbox::cgroup::FreezeError;

impl Keeper {
    pub(crate) fn freeze(&mut self, id: &InstanceId) -> Result<Reply, KeeperError> {
        let instance = self
            .instances
            .get(id)
            .ok_or_else(|| KeeperError::NotFound(id.clone()))?;
        if instance.stopping || !matches!(instance.phase, Phase::Running) {
            let text = format!("instance {id} starts or stops, which it needs its CPU for");
            return Err(KeeperError::Internal(text));
        }
        let cgroups = self
            .cgroups
            .as_ref()
            .ok_or_else(|| KeeperError::Refused("this host has no cgroups".to_owned()))?;
        match cgroups.sandbox(instance.record.sandbox).freeze() {
            Ok(()) => Ok(Reply::Done),
            Err(FreezeError::Impossible(why)) => Err(KeeperError::Refused(why)),
            Err(FreezeError::Sys(error)) => Err(KeeperError::Internal(error.to_string())),
        }
    }

    pub(crate) fn thaw(&mut self, id: &InstanceId) -> Result<Reply, KeeperError> {
        let instance = self
            .instances
            .get(id)
            .ok_or_else(|| KeeperError::NotFound(id.clone()))?;
        self.cgroups.as_ref().map_or(Ok(Reply::Done), |cgroups| {
            cgroups
                .sandbox(instance.record.sandbox)
                .thaw()
                .map(|()| Reply::Done)
                .map_err(|error| KeeperError::Internal(error.to_string()))
        })
    }

    /// So that a signal reaches what is in it.
    pub(crate) fn thaw_sandbox(&self, number: u32) {
        let thawed = self
            .cgroups
            .as_ref()
            .map_or(Ok(()), |cgroups| cgroups.sandbox(number).thaw());
        if let Err(error) = thawed {
            tracing::error!(number, %error, "thaw a sandbox that is to end");
        }
    }

    /// For a server that doesn't know that instances may be frozen.
    pub(crate) fn thaw_all(&self) {
        for instance in self.instances.values() {
            self.thaw_sandbox(instance.record.sandbox);
        }
    }

    /// As its cgroup says.
    pub(crate) fn tier(&self, number: u32) -> Tier {
        let frozen = self
            .cgroups
            .as_ref()
            .is_some_and(|cgroups| cgroups.sandbox(number).is_frozen());
        if frozen { Tier::Frozen } else { Tier::Awake }
    }
}
