//! The end of the startup CPU boost: from what instances have to what their revision says.

use utsuwa_decide::boost::{self, CpuView};
use utsuwa_decide::instances::InstanceView;
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};
use utsuwa_runtime::DriverError;

use crate::core::Core;
use crate::rounds::Priority;
use crate::world::{Phase, RevisionState};

/// Notes who is ready, and answers whose boost is over and when the next one's will be.
pub(super) fn look(
    state: &mut RevisionState,
    views: &[InstanceView],
    now: Timestamp,
) -> (Vec<InstanceId>, Option<Timestamp>) {
    let mut seen = Vec::new();
    for view in views.iter().filter(|view| view.reach.is_up()) {
        if let Some(record) = state.instances.get_mut(&view.id)
            && record.phase == Phase::Running
            && !record.settling
        {
            seen.push(CpuView {
                id: view.id.clone(),
                now: record.cpu,
                ready_since: Some(*record.ready_since.get_or_insert(now)),
            });
        }
    }
    let (due, next) = boost::settle(&seen, state.plan.limits.cpu, now);
    for id in &due {
        if let Some(record) = state.instances.get_mut(id) {
            record.settling = true;
        }
    }
    (due, next)
}

impl Core {
    /// Sets the limit of the revision, in a task of its own. What fails is found different again and repeated.
    pub(super) fn end_boost(&self, key: &RevisionKey, id: InstanceId) {
        let key = key.clone();
        self.spawn(|core| async move {
            let limit = core
                .world
                .revision(&key, |state| state.plan.limits.cpu);
            let Some(limit) = limit else { return };
            let result = core.driver.set_cpu(&id, limit).await;
            core.world.revision(&key, |state| {
                if let Some(record) = state.instances.get_mut(&id) {
                    record.settling = false;
                    if result.is_ok() {
                        record.cpu = limit;
                    }
                }
            });
            match result {
                Ok(()) => {}
                // It ended meanwhile.
                Err(DriverError::NotFound(_)) => {}
                Err(error) => {
                    tracing::warn!(revision = %key, instance = %id, %error, "end the startup CPU boost, will be repeated");
                    core.ask_after(
                        crate::rounds::Key::Instances(key.clone()),
                        std::time::Duration::from_secs(1),
                        Priority::Housekeeping,
                    );
                }
            }
        });
    }
}
