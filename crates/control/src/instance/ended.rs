//! Instances that ended by themselves, and programs that never listened.

use std::time::Duration;

use tokio::sync::broadcast::error::RecvError;
use utsuwa_decide::revision::{ProofInstance, crash_backoff, serving_backoff};
use utsuwa_model::demand::Reach;
use utsuwa_model::instance::Exit;
use utsuwa_model::{InstanceId, RevisionKey};
use utsuwa_runtime::InstanceEvent;

use crate::core::Core;
use crate::rounds::Priority;
use crate::seam::Refusal;
use crate::world::{Phase, RevisionState, Stage};

/// Who lived this long did not crash at its start.
pub(crate) const SETTLED: Duration = Duration::from_secs(60);
/// Nor did who was reached, and lived this long: one that ends of what it was asked is replaced at once, however often.
const SERVED: Duration = Duration::from_secs(10);

/// What is counted of an end in a row of others.
struct End {
    /// It lived long enough to begin another row.
    settled: bool,
    /// It had been reached.
    served: bool,
}

impl Core {
    /// Listens for ends until shutdown. A lagging receiver looks at the whole list instead.
    pub(crate) async fn listen(&self, mut events: tokio::sync::broadcast::Receiver<InstanceEvent>) {
        loop {
            let event = tokio::select! {
                () = self.cancel.cancelled() => return,
                event = events.recv() => event,
            };
            match event {
                Ok(InstanceEvent::Exited {
                    id,
                    container,
                    exit,
                    last_lines,
                    ..
                }) => self.ended(&id, &container, &exit, last_lines),
                Err(RecvError::Lagged(missed)) => {
                    tracing::warn!(
                        missed,
                        "ends of instances came too fast, looking at all of them"
                    );
                    if let Err(error) = self.reconcile().await {
                        tracing::warn!(%error, "list instances");
                    }
                }
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// The instance is dead, of the end of `container` where it has several.
    pub(crate) fn ended(
        &self,
        id: &InstanceId,
        container: &str,
        exit: &Exit,
        last_lines: Vec<String>,
    ) {
        let Some(key) = self.world.with(|inner| inner.owners.get(id).cloned()) else {
            return;
        };
        if self.parked_ended(&key, id, exit) {
            return;
        }
        let demand = self.door.demand(&key).unwrap_or_default();
        let reached = demand.instances.iter().any(|load| {
            load.id == *id && !matches!(load.reach, Reach::Starting | Reach::Failed { .. })
        });
        // The record first: an admission that comes between finds it gone and takes itself back.
        let forgotten = self.world.forget(id);
        self.door
            .forget(id, matches!(exit, Exit::OutOfMemory { .. }));
        let Some((key, record)) = forgotten else {
            return;
        };
        // Whatever it ended of, its memory is free.
        self.ask_who_is_short();
        if matches!(record.phase, Phase::Leaving | Phase::Stuck) {
            self.ask_instances(&key, Priority::Soon);
            return;
        }
        tracing::info!(revision = %key, instance = %id, exit = %exit.describe(), "instance ended by itself");
        if !reached && self.distrust(&key, record.birth, &exit.describe()) {
            return;
        }
        let now = self.env.now();
        let lived = now.since(record.started);
        let which = if container.is_empty() {
            "the container".to_owned()
        } else {
            format!("the container {container:?}")
        };
        let message = format!("{which} {}", exit.describe());
        let proving = self.world.revision(&key, |state| {
            let left = reached && state.watched_until(&record, now).is_some();
            if state.stage == Stage::Proving && (left || !reached) {
                let (container, exit) = (container.to_owned(), exit.clone());
                state.proof = Some(match left {
                    true => ProofInstance::Left {
                        container,
                        exit,
                        last_lines,
                    },
                    false => ProofInstance::Ended {
                        container,
                        exit,
                        last_lines,
                    },
                });
                return true;
            }
            let end = End {
                settled: lived >= if reached { SERVED } else { SETTLED },
                served: reached,
            };
            self.crashed(state, message.clone(), &end);
            false
        });
        if proving == Some(true) {
            self.ask_revision(&key);
        } else if !reached {
            self.refuse_if_alone(&key, message);
        }
        self.ask_instances(&key, Priority::Soon);
        self.after_count_changed(&key);
    }

    /// The startup probe gave up on an instance that runs.
    pub(crate) fn not_listening(&self, key: &RevisionKey, id: &InstanceId, tried: &str) {
        tracing::info!(revision = %key, instance = %id, tried, "instance never listened");
        let birth = self.world.revision(key, |state| {
            state.instances.get(id).map(|record| record.birth)
        });
        if birth
            .flatten()
            .is_some_and(|birth| self.distrust(key, birth, tried))
        {
            return;
        }
        let proving = self.world.revision(key, |state| {
            if state.stage == Stage::Proving {
                state.proof = Some(ProofInstance::NotListening {
                    tried: tried.to_owned(),
                });
                return true;
            }
            let end = End {
                settled: false,
                served: false,
            };
            self.crashed(state, tried.to_owned(), &end);
            false
        });
        if proving == Some(true) {
            self.ask_revision(key);
        } else {
            self.refuse_if_alone(key, tried.to_owned());
        }
    }

    /// The liveness probe gave up on an instance that was ready once. Who waits goes on waiting: it is replaced, at once the
    /// first time and later and later when it happens again (§2.7).
    pub(crate) fn unhealthy(&self, key: &RevisionKey, id: &InstanceId, why: &str) {
        tracing::info!(revision = %key, instance = %id, why, "instance failed its liveness probe");
        let now = self.env.now();
        self.world.revision(key, |state| {
            let record = state.instances.get(id);
            let lived = record.map(|record| now.since(record.started));
            let end = End {
                settled: lived.is_some_and(|lived| lived >= SETTLED),
                served: false,
            };
            self.crashed(state, why.to_owned(), &end);
        });
        self.after_count_changed(key);
    }

    /// Counts an end; the first one is replaced at once, the next ones later and later.
    fn crashed(&self, state: &mut RevisionState, message: String, end: &End) {
        state.crashes = if end.settled {
            1
        } else {
            state.crashes.saturating_add(1)
        };
        state.served = end.served;
        state.last_failure = Some(message);
        state.failed_at = Some(self.env.now());
        let before = state.crashes - 1;
        let wait = if end.served {
            serving_backoff(before)
        } else {
            crash_backoff(before)
        };
        state.not_before = (!wait.is_zero()).then(|| self.env.now().plus(wait));
    }

    /// Nobody else is there who could serve those who wait: they are told why.
    fn refuse_if_alone(&self, key: &RevisionKey, message: String) {
        let others = self.world.revision(key, |state| {
            state
                .instances
                .values()
                .any(|r| matches!(r.phase, Phase::Running | Phase::Starting))
        });
        if others != Some(true) {
            self.door.refuse(key, Refusal::StartFailed { message });
        }
    }
}
