//! Proving a revision: image, first instance, judgement, outcome.

use std::time::Duration;

use utsuwa_decide::revision::{ImageState, Proof, ProofInstance, judge, never_achieved, stays_by};
use utsuwa_model::demand::{InstanceLoad, RevisionDemand};
use utsuwa_model::revision::{Outcome, Revision};
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};

use super::startable::Hindrance;
use crate::core::Core;
use crate::rounds::{PassError, Priority, Report};
use crate::world::{Record, RevisionState, Stage};

/// Trouble with a registry or a disk is waited out this long before the deploy counts as failed, from this process's first try
/// on: a deploy that a restart interrupted is not to blame for the time in between.
/// The image store has its own retries within a pull; this is for the pulls as a whole, while somebody waits for the deploy.
pub const IMAGE_PATIENCE: Duration = Duration::from_secs(10);
/// Beyond the startup probe's own deadline, for all that happens before the program runs.
const START_PATIENCE: Duration = Duration::from_secs(120);
/// Until the ingress has begun to look at what was found running, and has told what it saw.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

impl Core {
    /// Pending: image, first instance, judgement.
    pub(super) async fn prove(&self, revision: Revision) -> Result<Report, PassError> {
        let key = revision.key.clone();
        let mut actions = 0;
        if self.world.revision(&key, |state| state.prepared) != Some(true) {
            self.write_pending(&revision, "ResolvingDigests", "Pulling the image.")
                .await?;
            let now = self.env.now();
            self.world
                .with(|inner| *inner.image_since.entry(key.clone()).or_insert(now));
            match self.make_startable(&revision, Stage::Proving).await {
                Ok(()) => actions += 1,
                Err(Hindrance::Failed { reason, message }) => {
                    return self
                        .settle(
                            &revision,
                            Outcome::Failed {
                                reason: reason.to_owned(),
                                message,
                            },
                        )
                        .await;
                }
                Err(Hindrance::Later(error)) if self.image_takes_too_long(&key) => {
                    let reason = "ContainerMissing".to_owned();
                    return self
                        .settle(
                            &revision,
                            Outcome::Failed {
                                reason,
                                message: error.0,
                            },
                        )
                        .await;
                }
                Err(Hindrance::Later(error)) => return Err(error),
                Err(Hindrance::Pulling) => return Ok(self.still_pulling()),
            }
            self.publish();
        }
        let now = self.env.now();
        let Some((proof, deadline)) = self.proof(&key, now) else {
            return Err(PassError(
                "the revision was forgotten while it was being proven".to_owned(),
            ));
        };
        let (mut outcome, reason, message) = judge(&proof);
        if outcome == Outcome::Pending && now >= deadline {
            let message = never_achieved(proof.trouble.as_deref());
            outcome = Outcome::Failed {
                reason: "ProgressDeadlineExceeded".to_owned(),
                message,
            };
        }
        if outcome != Outcome::Pending {
            return self.settle(&revision, outcome).await;
        }
        actions += usize::from(self.write_pending(&revision, reason, &message).await?);
        self.ask_instances(&key, Priority::Soon);
        Ok(Report {
            because: message,
            wake_at: Some(proof.watched_until.unwrap_or(deadline)),
            actions,
            gone: false,
        })
    }

    fn image_takes_too_long(&self, key: &RevisionKey) -> bool {
        let now = self.env.now();
        self.world.with(|inner| {
            let since = inner.image_since.get(key);
            since.is_some_and(|since| now.since(*since) > IMAGE_PATIENCE)
        })
    }

    /// What is known of the attempt, and until when it may take.
    fn proof(&self, key: &RevisionKey, now: Timestamp) -> Option<(Proof, Timestamp)> {
        let demand = self.door.demand(key).unwrap_or_default();
        self.world.revision(key, |state| {
            // Only who still runs proves anything: the ingress may be taking in one that has just ended (`start.rs` takes such
            // an admission back a moment later).
            let reached: Vec<&Record> = demand
                .instances
                .iter()
                .filter(|load| load.reach.is_up())
                .filter_map(|load| state.instances.get(&load.id))
                .collect();
            let wanted = usize::try_from(state.settings.initial_scale).unwrap_or(usize::MAX);
            let instance = match &state.proof {
                _ if reached.len() >= wanted => ProofInstance::Reached,
                Some(failed) => failed.clone(),
                None if state.instances.is_empty() => ProofInstance::None,
                None => ProofInstance::Starting,
            };
            let check_disabled = state.template.health_check_disabled == Some(true);
            let watched = |record| state.watched_until(record, now);
            let watched_until = match instance {
                ProofInstance::Reached => stays_by(reached.into_iter().map(watched), wanted),
                // Nobody is asked whether it can be reached: running is enough, for one as for all.
                _ if check_disabled => stays_by(state.instances.values().map(watched), 1),
                _ => None,
            };
            let proof = Proof {
                image: ImageState::There,
                instance,
                check_disabled,
                watched_until,
                port: state.plan.port,
                trouble: state.last_failure.clone(),
                advice: advice(state, &demand),
            };
            let whole =
                state.route.startup.deadline() + state.plan.sidecars_may_take() + START_PATIENCE;
            let deadline = state.proving_since.plus(whole);
            let looked = state.looked_at_by.map(|by| by.plus(LOOK_PATIENCE));
            // Who is watched was reached in time.
            let deadline = looked
                .into_iter()
                .chain(watched_until)
                .fold(deadline, Ord::max);
            (proof, deadline)
        })
    }

    /// Writes the outcome; then the service may route to it, or what was started for it goes.
    async fn settle(&self, revision: &Revision, outcome: Outcome) -> Result<Report, PassError> {
        let key = &revision.key;
        let ready = outcome == Outcome::Ready;
        let because = match &outcome {
            Outcome::Failed { reason, message } => format!("failed: {reason}: {message}"),
            _ => "the ingress has reached its first instance: ready".to_owned(),
        };
        let image = self.world.revision(key, |_| ()).is_some();
        let took = if ready { self.start_took(key) } else { None };
        if ready {
            // Known before it is written: its service may look, and make its route, before this pass hears that it is.
            self.world.revision(key, |state| state.usual_start = took);
        }
        self.write_outcome(revision, outcome, image, took).await?;
        self.world.with(|inner| inner.image_since.remove(key));
        if ready {
            self.world.revision(key, |state| {
                // Not one that its service gave up meanwhile: nobody would end it again. Nor one that it looked at already.
                if state.stage == Stage::Proving {
                    state.stage = Stage::Proven;
                }
                state.crashes = 0;
            });
        } else {
            self.end_revision(key);
        }
        self.ask_service(&key.service);
        self.ask_instances(key, Priority::Soon);
        Ok(Report {
            because,
            actions: 1,
            ..Report::default()
        })
    }

    /// How long the slowest of those that proved it took, without what they were watched for. Seen by a pass, so a moment late,
    /// which makes a window longer only.
    fn start_took(&self, key: &RevisionKey) -> Option<Duration> {
        let now = self.env.now();
        let demand = self.door.demand(key)?;
        let reached = |id: &InstanceId| {
            let load = demand.instances.iter().find(|load| load.id == *id);
            load.is_some_and(|load| load.reach.is_up())
        };
        self.world.revision(key, |state| {
            let proved = state.instances.iter().filter(|(id, _)| reached(id));
            proved
                .map(|(_, record)| record.ready_since.unwrap_or(now).since(record.started))
                .max()
        })?
    }
}

/// What is to be done about an instance of it that runs and can't be reached.
fn advice(state: &RevisionState, demand: &RevisionDemand) -> String {
    let ours = |load: &&InstanceLoad| state.instances.contains_key(&load.id);
    let failing = demand
        .instances
        .iter()
        .filter(ours)
        .flat_map(|load| &load.failing);
    let mut advice = failing.map(|failing| failing.advice.as_str());
    advice
        .find(|text| !text.is_empty())
        .unwrap_or_default()
        .to_owned()
}
