//! Parked instances: they are like any other until they are let go on.
//!
//! Invariant: who goes on is written down as one that isn't parked any more, after it was let go. A keeper that dies in between
//! leaves one that is taken for parked and stopped, never one that waits for ever.

use std::os::fd::AsFd;
use std::time::Duration;

use utsuwa_model::InstanceId;

use super::core::Keeper;
use super::instances::Phase;
use super::protocol::{KeeperError, Reply};
use crate::sandbox::zygote;

impl Keeper {
    /// Who takes over may be of an earlier build, and would wait for an app that nobody lets go on.
    pub(super) fn end_parked(&mut self) {
        let parked = self.instances.values().map(|one| &one.record.spec);
        let parked: Vec<InstanceId> = parked
            .filter(|spec| spec.parks())
            .map(|spec| spec.id.clone())
            .collect();
        for id in parked {
            self.stop_instance(&id, Duration::ZERO);
        }
    }

    pub(crate) fn go_on(&mut self, session: u32, request: u64, id: &InstanceId) {
        let result = self.let_go_on(id);
        let went = matches!(result, Ok(true));
        self.reply(session, request, result.map(|_| Reply::Done), Vec::new());
        // The answer first: a request waits for it.
        if went && let Some(instance) = self.instances.get_mut(id) {
            instance.record.spec.zygote = None;
            if let Err(error) = self.records.write_instance(&instance.record) {
                tracing::error!(%id, %error, "write down that an instance is not parked any more");
            }
        }
    }

    /// Whether it was parked until now.
    fn let_go_on(&self, id: &InstanceId) -> Result<bool, KeeperError> {
        let not_found = || KeeperError::NotFound(id.clone());
        let instance = self.instances.get(id).ok_or_else(not_found)?;
        if instance.stop.is_some() {
            return Err(not_found());
        }
        if !matches!(instance.phase, Phase::Running) {
            let text = format!("instance {id} is not parked yet");
            return Err(KeeperError::Internal(text));
        }
        if !instance.record.spec.parks() {
            return Ok(false);
        }
        let sandbox = self
            .sandboxes
            .get(&instance.record.sandbox)
            .ok_or_else(not_found)?;
        zygote::go_on(sandbox.pidfd.as_fd())
            .map(|()| true)
            .map_err(|error| KeeperError::Internal(format!("let instance {id} go on: {error}")))
    }
}
