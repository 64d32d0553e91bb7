//! The conditions of a revision (`cloud-run-spec.md` §1.8), written together with the outcome they belong to.

use std::time::Duration;

use utsuwa_decide::revision::{Active, active};
use utsuwa_model::condition::{self, Condition, ConditionState, Severity};
use utsuwa_model::revision::{Outcome, Revision};
use utsuwa_model::{RevisionId, Timestamp};

use crate::core::Core;
use crate::rounds::PassError;
use crate::world::Activity;

const RESOURCES: &str = "ResourcesAvailable";
const HEALTHY: &str = "ContainerHealthy";
const ACTIVE: &str = "Active";
const QUEUED: &str = "Queued";
const TIMED_OUT: &str = "TimedOut";

impl Core {
    /// Shows how far the attempt has come. `true` if something was written.
    pub(crate) async fn write_pending(
        &self,
        revision: &Revision,
        reason: &str,
        message: &str,
    ) -> Result<bool, PassError> {
        let now = self.env.wall();
        let mut conditions = revision.status.conditions.clone();
        pending(&mut conditions, reason, message, now);
        if conditions == revision.status.conditions {
            return Ok(false);
        }
        self.env.before("revision pending").await;
        let (reason, message) = (reason.to_owned(), message.to_owned());
        self.store
            .update_revision(&revision.key, move |stored| {
                if stored.status.outcome != Outcome::Pending {
                    return false;
                }
                pending(&mut stored.status.conditions, &reason, &message, now);
                true
            })
            .await?;
        self.ask_service(&revision.key.service);
        Ok(true)
    }

    /// Writes the outcome with its conditions in one transaction.
    pub(crate) async fn write_outcome(
        &self,
        revision: &Revision,
        outcome: Outcome,
        image: bool,
        took: Option<Duration>,
    ) -> Result<(), PassError> {
        let now = self.env.wall();
        self.env.before("revision outcome").await;
        self.store
            .update_revision(&revision.key, move |stored| {
                if stored.status.outcome != Outcome::Pending {
                    return false;
                }
                settled(stored, outcome, image, now);
                let took = took.map(|took| u64::try_from(took.as_millis()).unwrap_or(u64::MAX));
                stored.status.proven_start_ms = took;
                true
            })
            .await?;
        Ok(())
    }

    /// `Active` follows what runs; it never touches `Ready`. `true` if something was written.
    pub(crate) async fn write_active(
        &self,
        revision: &Revision,
        activity: Option<Activity>,
    ) -> Result<bool, PassError> {
        let shown = condition::find(&revision.status.conditions, ACTIVE);
        let before = shown.map_or(Active::NoTraffic, said);
        // Nothing is known of it: nobody asks for it.
        let Activity {
            wanted,
            ready,
            least,
        } = activity.unwrap_or_default();
        let active = active(before, wanted, ready, least);
        if shown.is_some() && active == before {
            return Ok(false);
        }
        let now = self.env.wall();
        self.env.before("revision active").await;
        self.store
            .update_revision(&revision.key, move |stored| {
                condition::set(&mut stored.status.conditions, active_condition(active, now));
                true
            })
            .await?;
        Ok(true)
    }
}

/// The conditions a revision is born with.
pub(crate) fn newborn(now: Timestamp) -> Vec<Condition> {
    let mut conditions = Vec::new();
    pending(&mut conditions, "Deploying", "Deploying revision.", now);
    conditions
}

fn pending(conditions: &mut Vec<Condition>, reason: &str, message: &str, now: Timestamp) {
    for kind in [RESOURCES, HEALTHY] {
        condition::set(
            conditions,
            make(kind, ConditionState::Unknown, reason, message, now),
        );
    }
    let active = Condition {
        severity: Severity::Info,
        ..make(ACTIVE, ConditionState::Unknown, reason, message, now)
    };
    condition::set(conditions, active);
    let ready = condition::summary(conditions, &[RESOURCES, HEALTHY], now);
    condition::set(conditions, ready);
}

fn settled(stored: &mut Revision, outcome: Outcome, image: bool, now: Timestamp) {
    let conditions = &mut stored.status.conditions;
    match &outcome {
        Outcome::Failed { reason, message } => {
            // Without its image nothing was provisioned; with it, the container is at fault.
            let at_fault = if image { HEALTHY } else { RESOURCES };
            if image {
                condition::set(
                    conditions,
                    make(RESOURCES, ConditionState::True, "", "", now),
                );
            }
            condition::set(
                conditions,
                make(at_fault, ConditionState::False, reason, message, now),
            );
            let active = if reason == "ProgressDeadlineExceeded" {
                Active::TimedOut
            } else {
                Active::NoTraffic
            };
            condition::set(conditions, active_condition(active, now));
        }
        _ => {
            for kind in [RESOURCES, HEALTHY] {
                condition::set(conditions, make(kind, ConditionState::True, "", "", now));
            }
            condition::set(conditions, active_condition(Active::Yes, now));
        }
    }
    let ready = condition::summary(conditions, &[RESOURCES, HEALTHY], now);
    condition::set(conditions, ready);
    stored.status.outcome = outcome;
    stored.status.observed_generation = stored.meta.generation;
}

fn active_condition(active: Active, now: Timestamp) -> Condition {
    use ConditionState::{False, True, Unknown};
    let (state, reason, message) = match active {
        Active::Yes => (True, "", ""),
        Active::Queued => (
            Unknown,
            QUEUED,
            "Requests to the target are being buffered as resources are provisioned.",
        ),
        Active::TimedOut => (False, TIMED_OUT, "The target could not be activated."),
        Active::NoTraffic => (False, "NoTraffic", "The target is not receiving traffic."),
    };
    Condition {
        severity: Severity::Info,
        ..make(ACTIVE, state, reason, message, now)
    }
}

/// What `Active` says at present.
fn said(condition: &Condition) -> Active {
    match (condition.state, condition.reason.as_str()) {
        (ConditionState::True, _) => Active::Yes,
        (ConditionState::Unknown, _) => Active::Queued,
        (ConditionState::False, TIMED_OUT) => Active::TimedOut,
        (ConditionState::False, _) => Active::NoTraffic,
    }
}

/// A condition that takes part in the summary.
pub(crate) fn make(
    kind: &str,
    state: ConditionState,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Condition {
    Condition {
        kind: kind.to_owned(),
        state,
        reason: reason.to_owned(),
        message: message.to_owned(),
        severity: Severity::Error,
        last_transition: now,
    }
}

/// What a service says of a revision that is not ready yet: reason and message of its summary.
pub(crate) fn ready_words(revision: &Revision) -> (String, String) {
    condition::find(&revision.status.conditions, "Ready")
        .map_or_else(Default::default, |c| (c.reason.clone(), c.message.clone()))
}

/// The message of a service whose newest revision failed.
pub(crate) fn failure_words(id: &RevisionId, reason: &str, message: &str) -> String {
    utsuwa_decide::revision::service_message(id, reason, message)
}
