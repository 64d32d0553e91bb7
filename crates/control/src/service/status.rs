//! The status of a service and the outcome of its generation, in one write.

use utsuwa_decide::invariant;
use utsuwa_model::Timestamp;
use utsuwa_model::condition::{self, Condition, ConditionState};
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::revision::{Outcome, Revision};
use utsuwa_model::service::{Service, ServiceStatus};

use super::Picture;
use crate::core::Core;
use crate::revision::{failure_words, make, ready_words};
use crate::rounds::PassError;
use crate::settings::ControlSettings;
use crate::traffic;

const CONFIGURATIONS: &str = "ConfigurationsReady";
const ROUTES: &str = "RoutesReady";
const REVISION_FAILED: &str = "RevisionFailed";

impl Core {
    /// Writes the status if it isn't so already. `true` if it was written.
    pub(crate) async fn write_service_status(&self, picture: &Picture) -> Result<bool, PassError> {
        let now = self.env.wall();
        let status = status(picture, &self.settings, now);
        if same(&status, &picture.service.status) {
            return Ok(false);
        }
        let generation = picture.service.meta.generation;
        let outcome = outcome(picture, &status).map(|outcome| (generation, outcome));
        self.env.before("service status").await;
        self.store
            .update_service_status(
                &picture.service.key,
                outcome,
                move |stored: &mut Service| {
                    // A newer wish came meanwhile: its own pass will say what is true of it.
                    if stored.meta.generation != generation {
                        return false;
                    }
                    stored.status = status;
                    debug_assert_eq!(
                        invariant::observed_follows(stored.status.observed_generation, generation),
                        Ok(())
                    );
                    true
                },
            )
            .await?;
        Ok(true)
    }

    /// A deploy that was overtaken by a newer one has an outcome of its own: it is recorded when its revision has settled.
    /// Answers how many were.
    pub(crate) async fn answer_overtaken(&self, picture: &Picture) -> Result<usize, PassError> {
        let service = &picture.service;
        let unanswered = self
            .store
            .unanswered(&service.meta.uid, service.meta.generation)?;
        let outcomes: Vec<(u64, GenerationOutcome)> = unanswered
            .into_iter()
            .filter_map(|generation| {
                let made = |r: &&Revision| r.service_generation == generation;
                let revision = picture.revisions.iter().find(made)?;
                Some((generation, own_outcome(revision)?))
            })
            .collect();
        if outcomes.is_empty() {
            return Ok(0);
        }
        let count = outcomes.len();
        self.env.before("overtaken outcomes").await;
        self.store.record_outcomes(&service.key, outcomes).await?;
        Ok(count)
    }
}

/// What became of the deploy that made `revision`, once that is known.
fn own_outcome(revision: &Revision) -> Option<GenerationOutcome> {
    match &revision.status.outcome {
        Outcome::Pending => None,
        Outcome::Ready => Some(GenerationOutcome::Succeeded),
        Outcome::Failed { reason, message } => Some(GenerationOutcome::Failed {
            reason: reason.clone(),
            message: failure_words(&revision.key.revision, reason, message),
        }),
    }
}

/// The status that the picture stands for.
fn status(picture: &Picture, settings: &ControlSettings, now: Timestamp) -> ServiceStatus {
    let old = &picture.service.status;
    let mut conditions = old.conditions.clone();
    let configurations = configurations_ready(picture, now);
    let routes = routes_ready(picture, &configurations, now);
    condition::set(&mut conditions, configurations);
    condition::set(&mut conditions, routes);
    let ready = condition::summary(&conditions, &[CONFIGURATIONS, ROUTES], now);
    condition::set(&mut conditions, ready);
    // As Google orders them.
    conditions.sort_by_key(|c| (c.kind != "Ready", c.kind.clone()));
    let traffic = picture
        .routing
        .as_ref()
        .map(|r| traffic::traffic_status(&picture.service, r, settings));
    let (own, own_https) = traffic::own_urls(&picture.service, settings);
    ServiceStatus {
        observed_generation: picture.service.meta.generation,
        conditions,
        latest_created: picture
            .current
            .as_ref()
            .ok()
            .cloned()
            .or_else(|| old.latest_created.clone()),
        latest_ready: picture
            .latest
            .standing
            .as_ref()
            .map(|latest| latest.id.clone()),
        latest_ready_generation: picture.latest.standing.as_ref().map_or(0, |l| l.generation),
        traffic: traffic.unwrap_or_default(),
        url: own.unwrap_or_default(),
        other_urls: own_https
            .into_iter()
            .chain(picture.domains.iter().map(|d| d.status.url.clone()))
            .filter(|url| !url.is_empty())
            .collect(),
    }
}

fn configurations_ready(picture: &Picture, now: Timestamp) -> Condition {
    let failed = |reason: &str, message: &str| {
        make(CONFIGURATIONS, ConditionState::False, reason, message, now)
    };
    let unknown = |reason: &str, message: &str| {
        make(
            CONFIGURATIONS,
            ConditionState::Unknown,
            reason,
            message,
            now,
        )
    };
    match (&picture.current, picture.current()) {
        (Err(clash), _) => failed("RevisionNameTaken", &clash.message),
        (Ok(_), None) => unknown("Deploying", "Creating the revision."),
        (Ok(id), Some(revision)) => match &revision.status.outcome {
            Outcome::Ready => make(CONFIGURATIONS, ConditionState::True, "", "", now),
            // The reason is the configuration's, as Knative passes it on; the words are those that `gcloud` prints (§1.8,
            // lifecycle item 6). The edge puts Knative's sentence around them where it shows the configuration itself.
            Outcome::Failed { reason, message } => {
                failed(REVISION_FAILED, &failure_words(id, reason, message))
            }
            Outcome::Pending => {
                let (reason, message) = ready_words(revision);
                unknown(&reason, &message)
            }
        },
    }
}

fn routes_ready(picture: &Picture, configurations: &Condition, now: Timestamp) -> Condition {
    let make = |state, reason: &str, message: &str| make(ROUTES, state, reason, message, now);
    match (&picture.resolved, configurations.state) {
        // Nothing of the new deploy is routed before it is ready: shown as unknown on each one.
        (_, ConditionState::Unknown) => make(
            ConditionState::Unknown,
            "TrafficNotMigrated",
            "Traffic is not yet migrated to the latest revision.",
        ),
        (Ok(_), _) => make(ConditionState::True, "", ""),
        // Waiting for a revision that has failed is over.
        (Err(held), ConditionState::False) if held.waiting => {
            let name = picture
                .current
                .as_ref()
                .map_or_else(|_| String::new(), ToString::to_string);
            make(
                ConditionState::False,
                held.reason,
                &format!("Revision \"{name}\" failed to become ready."),
            )
        }
        (Err(held), _) => {
            let state = if held.waiting {
                ConditionState::Unknown
            } else {
                ConditionState::False
            };
            make(state, held.reason, &held.message)
        }
    }
}

/// What became of the generation, once it is known.
fn outcome(picture: &Picture, status: &ServiceStatus) -> Option<GenerationOutcome> {
    let ready = condition::find(&status.conditions, "Ready")?;
    // Why the revision failed says more than that it did.
    if ready.state == ConditionState::False
        && ready.reason == REVISION_FAILED
        && let Some(own) = picture.current().and_then(own_outcome)
    {
        return Some(own);
    }
    match ready.state {
        ConditionState::True => Some(GenerationOutcome::Succeeded),
        ConditionState::False => Some(GenerationOutcome::Failed {
            reason: ready.reason.clone(),
            message: ready.message.clone(),
        }),
        ConditionState::Unknown => None,
    }
}

/// Equal apart from the order of conditions; transition times are kept by `condition::set`.
fn same(new: &ServiceStatus, old: &ServiceStatus) -> bool {
    new == old
}
