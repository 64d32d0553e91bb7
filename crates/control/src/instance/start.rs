//! Starting one instance, and what a failed start means.

use std::time::Duration;

use utsuwa_decide::revision::{ProofInstance, crash_backoff};
use utsuwa_model::route::InstanceRoute;
use utsuwa_model::{InstanceId, RevisionKey};
use utsuwa_runtime::DriverError;

use crate::core::Core;
use crate::rounds::{Key, Priority};
use crate::seam::Refusal;
use crate::world::{Phase, Stage, StartPlan};

/// Attempts to prove a deploy against trouble that isn't the program's, before it counts as failed.
const PROOF_ATTEMPTS: u32 = 3;
/// The same while something ran out: others may end and make room. With the pauses between them at least 71 s.
const EXHAUSTED_ATTEMPTS: u32 = 12;
/// Nothing is to be decided when an instance runs and isn't reached yet: its probe goes first. When it was reached, or given up, the
/// ingress asks for a pass at once.
const LOOK_AFTER_START: Duration = Duration::from_millis(20);
/// Pauses while something ran out grow up to that of this many crashes, 8 s: room is found soon after it was made.
const LONGEST_EXHAUSTED: u32 = 4;

impl Core {
    /// Asks the driver and hands the instance to the ingress.
    pub(crate) async fn start_one(&self, key: &RevisionKey, id: InstanceId, plan: &StartPlan) {
        let started = self.give_birth(key, &id, plan).await;
        let others = match &started {
            Ok(_) => self.start_containers(key, &id, plan).await,
            Err(_) => Ok(()),
        };
        self.world.with(|inner| inner.starting.remove(&id));
        let runs = started.is_ok() && others.is_ok();
        match (started, others) {
            (Ok(_), Err(why)) => self.give_up_containers(key, &id, why),
            (Ok(phases), Ok(())) => {
                let now = self.env.now();
                let known = self
                    .world
                    .revision(key, |state| match state.instances.get_mut(&id) {
                        Some(record) if record.phase == Phase::Starting => {
                            record.phase = Phase::Running;
                            record.whole_since = Some(now);
                            true
                        }
                        // It ended already, or was told to leave while it started.
                        _ => false,
                    });
                if known == Some(true) {
                    let route = InstanceRoute {
                        id: id.clone(),
                        revision: key.clone(),
                        port: plan.port,
                        age: Duration::ZERO,
                    };
                    self.door.admit(route, phases);
                    self.take_back_unless_running(key, &id);
                }
            }
            (Err(_), _) if self.is_parked_no_more(key, &id) => {}
            (Err(error), _) => self.start_failed(key, &id, &error),
        }
        if runs {
            self.ask_after(
                Key::Instances(key.clone()),
                LOOK_AFTER_START,
                Priority::Soon,
            );
        } else {
            self.ask_instances(key, Priority::Soon);
        }
        self.after_count_changed(key);
    }

    /// Its end, or its leave, may have come just before the ingress knew it: then it was told to forget an unknown id, and
    /// would choose a dead instance ever after. Both change the record first and tell the ingress afterwards, so that whoever
    /// looks at the record after the admission finds the trace of it.
    fn take_back_unless_running(&self, key: &RevisionKey, id: &InstanceId) {
        let runs = self.world.revision(key, |state| {
            state
                .instances
                .get(id)
                .is_some_and(|record| record.phase == Phase::Running)
        });
        if runs != Some(true) {
            tracing::info!(revision = %key, instance = %id, "instance ended or had to leave while it was admitted");
            drop(self.door.retire(id, Duration::ZERO));
            self.door.forget(id, false);
        }
    }

    pub(super) fn start_failed(&self, key: &RevisionKey, id: &InstanceId, error: &DriverError) {
        match error {
            // The user's to change; the condition and the answer say so.
            DriverError::Refused(_) => {
                tracing::info!(revision = %key, instance = %id, %error, "instance can't be started")
            }
            _ => tracing::warn!(revision = %key, instance = %id, %error, "start instance"),
        }
        let now = self.env.now();
        self.world.forget(id);
        let mut limit = 0;
        let refusal = self.world.revision(key, |state| {
            limit = state.plan.memory_bytes();
            state.last_failure = Some(error.to_string());
            state.failed_at = Some(now);
            state.crashes = state.crashes.saturating_add(1);
            state.served = false;
            let message = error.to_string();
            match error {
                DriverError::Refused(why) if state.stage == Stage::Proving => {
                    state.proof = Some(ProofInstance::NotStarted { why: why.clone() });
                    return None;
                }
                DriverError::Refused(_) => {
                    state.not_before = Some(now.plus(crash_backoff(state.crashes)))
                }
                // Room may be made; a deploy waits for it, but not for ever.
                DriverError::Exhausted(_) if state.stage == Stage::Proving => {
                    let pause = crash_backoff(state.crashes.min(LONGEST_EXHAUSTED));
                    state.not_before = Some(now.plus(pause));
                    if state.crashes >= EXHAUSTED_ATTEMPTS {
                        state.proof = Some(ProofInstance::NotMade { why: message });
                    }
                    return None;
                }
                DriverError::Exhausted(_) => state.not_before = Some(now.plus(crash_backoff(1))),
                _ => {
                    state.not_before = Some(now.plus(crash_backoff(state.crashes)));
                    if state.stage == Stage::Proving && state.crashes >= PROOF_ATTEMPTS {
                        state.proof = Some(ProofInstance::NotMade { why: message });
                        return None;
                    }
                }
            }
            if state.stage == Stage::Proving
                || state.instances.values().any(|r| r.phase == Phase::Running)
            {
                return None;
            }
            Some(match error {
                DriverError::Exhausted(_) => Refusal::NoCapacity { message },
                _ => Refusal::StartFailed { message },
            })
        });
        match refusal.flatten() {
            // Somebody idle may give way; who waits is only refused when nobody does.
            Some(Refusal::NoCapacity { .. }) if self.make_room(key, 1, limit).comes => {
                // Until it tries again nobody else counts on that room.
                self.world
                    .revision(key, |state| state.short_since = Some(now));
            }
            Some(why) => self.door.refuse(key, why),
            None => self.ask_revision(key),
        }
    }
}
