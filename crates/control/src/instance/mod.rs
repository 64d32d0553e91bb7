//! The instance loop: from demand to starts and stops of one revision.
//!
//! Owns: the pass that decides, and the tasks that start and stop. Deliberately not here: how many and which
//! (`utsuwa_decide`), what a revision is.
//!
//! Invariants:
//! 1. A pass reads only memory: between a wake and the driver's start there is no disk and no wait.
//! 2. An instance stops only after the ingress has confirmed its retirement.
//! 3. What could not be stopped is tried again; what ended by itself is forgotten everywhere.
//! 4. What is frozen is thawed with the next request, and stopped like any other.
//! 5. A deploy is never refused for memory, a wake may be (decision 20), but only when its own time is up (§2.6): until then
//!    it waits, whether or not others of its revision run.

pub(crate) mod adopt;
mod boost;
mod capacity;
mod containers;
mod ended;
mod look;
mod start;
pub(crate) mod tiers;
pub(crate) mod zygote;

use std::sync::Arc;
use std::time::Duration;

use utsuwa_decide::capacity::FIRST_LOOK;
use utsuwa_model::demand::Reach;
use utsuwa_model::{InstanceId, RevisionKey};

use crate::core::Core;
use crate::instance::look::{Decided, decide};
use crate::rounds::{Priority, Report};
use crate::world::{Phase, Stage};

impl Core {
    /// One pass over a revision's instances. Never waits.
    pub(crate) fn instances_pass(&self, key: &RevisionKey) -> Report {
        let now = self.env.now();
        let demand = self.door.demand(key).unwrap_or_default();
        let memory = self.env.available_memory();
        self.take_lessons(key, &demand);
        let mut fresh = || self.new_instance_id();
        let reserve = self.settings.memory_reserve_bytes;
        let decided = self
            .world
            .with(|inner| decide(inner, key, now, &demand, memory, reserve, &mut fresh));
        let Some(decided) = decided else {
            return Report {
                because: "nothing is known of it any more".to_owned(),
                gone: true,
                ..Report::default()
            };
        };
        self.act(key, decided)
    }

    fn act(&self, key: &RevisionKey, decided: Decided) -> Report {
        let mut report = decided.report;
        report.actions = decided.start.len()
            + decided.leave.len()
            + decided.given_up.len()
            + decided.settle.len();
        report.actions += decided.tiers.count() + decided.zygotes.count();
        self.take_steps(key, decided.tiers);
        for id in decided.settle {
            self.end_boost(key, id);
        }
        for id in decided.start {
            tracing::info!(revision = %key, instance = %id, because = %report.because, "start an instance");
            let plan = Arc::clone(&decided.plan);
            let key = key.clone();
            self.begin(|core| async move { core.start_one(&key, id, &plan).await });
        }
        self.park_or_drop(key, &decided.plan, decided.zygotes);
        for (id, reach) in decided.given_up {
            match &reach {
                Reach::Unhealthy { message } => self.unhealthy(key, &id, message),
                Reach::Failed { message } => self.not_listening(key, &id, message),
                Reach::Starting | Reach::Ready | Reach::Unready { .. } | Reach::Retiring => {}
            }
            self.leave(key, id, Duration::ZERO);
        }
        for id in decided.leave {
            self.leave(key, id, decided.timeout);
        }
        if decided.missing > 0 {
            let room = self.make_room(key, decided.missing, decided.plan.memory_bytes());
            report.actions += room.gave_way;
            if room.gave_way > 0 {
                // It comes free soon: the next looks are the first ones again. It goes on being short, so that nobody else
                // counts on the same room, and it is asked when the room is there.
                let now = self.env.now();
                self.world
                    .revision(key, |state| state.short_since = Some(now));
                report.wake_at = Some(now.plus(FIRST_LOOK));
            }
        }
        if let Some(why) = decided.refuse {
            self.door.refuse(key, why);
        }
        if decided.active_changed {
            self.after_count_changed(key);
        }
        if report.gone {
            // Nothing leads to it any more: the ingress may hear of it together with what comes next.
            self.publish_soon(&key.service);
            self.ask_service(&key.service);
        }
        report
    }

    /// Takes the instance out of choice at once and stops it when nothing is in flight any more, in a task of its own.
    pub(crate) fn leave(&self, key: &RevisionKey, id: InstanceId, timeout: Duration) {
        self.take_last_lesson(key, &id);
        let retired = self.door.retire(&id, timeout);
        let key = key.clone();
        self.spawn(|core| async move {
            tokio::select! {
                _ = retired => {}
                // Its streams may last for hours: the next server waits for their end, not this one's.
                () = core.cancel.cancelled() => return,
            }
            let confirmed = core.world.revision(&key, |state| state.instances.get_mut(&id).map(|r| r.retired = true));
            // It may have ended by itself meanwhile; stopping what is gone is no error.
            debug_assert!(confirmed.is_none_or(|r| r.is_none()) || core.is_retired(&key, &id));
            match core.driver.stop(id.clone(), core.settings.stop_grace).await {
                Ok(()) | Err(utsuwa_runtime::DriverError::NotFound(_)) => core.gone(&key, &id),
                Err(error) => {
                    tracing::warn!(revision = %key, instance = %id, %error, "stop instance, will be repeated");
                    core.world.revision(&key, |state| {
                        if let Some(record) = state.instances.get_mut(&id) {
                            record.phase = Phase::Stuck;
                        }
                    });
                    core.ask_after(crate::rounds::Key::Instances(key.clone()), Duration::from_secs(1), Priority::Housekeeping);
                }
            }
        });
    }

    fn is_retired(&self, key: &RevisionKey, id: &InstanceId) -> bool {
        self.world
            .revision(key, |state| {
                state.instances.get(id).is_none_or(|r| r.retired)
            })
            .unwrap_or(true)
    }

    /// Nothing of the instance is left.
    fn gone(&self, key: &RevisionKey, id: &InstanceId) {
        self.door.forget(id, false);
        self.world.forget(id);
        self.ask_instances(key, Priority::Soon);
        self.after_count_changed(key);
        self.ask_who_is_short();
    }

    /// The `Active` condition follows later: nothing waits for it, and a wake shall not share the disk with it.
    pub(crate) fn after_count_changed(&self, key: &RevisionKey) {
        let known = self
            .world
            .revision(key, |state| state.stage == Stage::Serving)
            .unwrap_or(false);
        if known {
            self.ask_after(
                crate::rounds::Key::Revision(key.clone()),
                Duration::from_secs(5),
                Priority::Housekeeping,
            );
        }
    }
}
