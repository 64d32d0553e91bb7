//! Limits that change while an instance runs.

use utsuwa_model::InstanceId;
use utsuwa_model::quantity::MilliCpu;

use super::core::Keeper;
use super::protocol::{KeeperError, Reply};

impl Keeper {
    /// Sets the CPU limit and notes it, so that whoever lists the instance sees what it has: also a keeper after this one.
    pub(crate) fn set_cpu(&mut self, id: &InstanceId, cpu: MilliCpu) -> Result<Reply, KeeperError> {
        let instance = self
            .instances
            .get_mut(id)
            .ok_or_else(|| KeeperError::NotFound(id.clone()))?;
        let cgroups = self
            .cgroups
            .as_ref()
            .ok_or_else(|| KeeperError::Internal("this host has no cgroups".to_owned()))?;
        cgroups
            .sandbox(instance.record.sandbox)
            .set_cpu(cpu)
            .map_err(|error| KeeperError::Internal(error.to_string()))?;
        instance.record.spec.limits.cpu = cpu;
        self.records
            .write_instance(&instance.record)
            .map_err(|error| {
                KeeperError::Internal(format!("note the CPU limit of instance {id}: {error}"))
            })?;
        Ok(Reply::Done)
    }
}
