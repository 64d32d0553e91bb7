//! The status of a service and the outcome of its generation, in one write.

use utsuwa_decide::invariant;
use utsuwa_model::Timestamp;
use utsuwa_model::condition::{self, Condition, ConditionState};
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::revision::Outcome;
use utsuwa_model::service::{Service, ServiceStatus};

use super::Picture;
use crate::core::Core;
use crate::revision::{failure_words, make, ready_words};
use crate::rounds::PassError;
use crate::settings::ControlSettings;
use crate::traffic;

const CONFIGURATIONS: &str = "ConfigurationsReady";
const ROUTES: &str = "RoutesReady";

impl Core {
    /// Writes the status if it isn't so already. `true` if it was written.
    pub(crate) async fn write_service_status(&self, picture: &Picture) -> Result<bool, PassError> {
        let now = self.env.now();
        let status = status(picture, &self.settings, now);
        if same(&status, &picture.service.status) {
            return Ok(false);
        }
        let generation = picture.service.meta.generation;
        let outcome = outcome(&status).map(|outcome| (generation, outcome));
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
        .map(|r| traffic::traffic_status(&picture.service.key, r, settings));
    ServiceStatus {
        observed_generation: picture.service.meta.generation,
        conditions,
        latest_created: picture
            .current
            .as_ref()
            .ok()
            .cloned()
            .or_else(|| old.latest_created.clone()),
        latest_ready: picture.latest_ready.clone(),
        traffic: traffic.unwrap_or_default(),
        url: settings.url(&traffic::host(&picture.service.key, settings)),
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
            Outcome::Failed { reason, message } => {
                failed(reason, &failure_words(id, reason, message))
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
fn outcome(status: &ServiceStatus) -> Option<GenerationOutcome> {
    let ready = condition::find(&status.conditions, "Ready")?;
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
