//! The revision loop: makes a revision startable, proves it, and says what became of it.
//!
//! Owns: pinning the image, the way to start instances, the outcome and the conditions of a revision. Deliberately not here:
//! starting (the instance loop does, for it sees that a revision is being proven) and routing.
//!
//! Invariants:
//! 1. The outcome leaves `Pending` once.
//! 2. A failed deploy changes nothing that serves: only the failed revision's own instances are stopped.
//! 3. The digest is pinned before the first instance starts and never changes.

pub mod process;
mod status;

pub(crate) use status::{failure_words, make, newborn, ready_words};

use std::sync::Arc;
use std::time::Duration;

use utsuwa_decide::demand::DemandHistory;
use utsuwa_decide::revision::{ImageState, Proof, ProofInstance, judge, never_achieved};
use utsuwa_decide::scale::ScalerState;
use utsuwa_decide::settings::scaling_settings;
use utsuwa_model::demand::Reach;
use utsuwa_model::image::ResolvedImage;
use utsuwa_model::instance::RootfsSpec;
use utsuwa_model::revision::{Outcome, Revision};
use utsuwa_model::route::RevisionRoute;
use utsuwa_model::service::{RevisionTemplate, ServiceScaling};
use utsuwa_model::{RevisionKey, Timestamp};
use utsuwa_runtime::DriverError;

use crate::core::Core;
use crate::rounds::{PassError, Priority, Report};
use crate::world::{Phase, RevisionState, Stage, StartPlan};

/// Trouble with a registry or a disk is waited out this long before the deploy counts as failed.
/// The image store has its own retries within a pull; this is for the pulls as a whole, while somebody waits for the deploy.
const IMAGE_PATIENCE: Duration = Duration::from_secs(10);
/// A pass waits this long for a pull; then it leaves the slot to others and comes back. The pull goes on.
const PULL_LOOK: Duration = Duration::from_secs(5);
/// Beyond the startup probe's own deadline, for all that happens before the program runs.
const START_PATIENCE: Duration = Duration::from_secs(120);

/// Why a revision can't be made startable.
enum Hindrance {
    /// The user must change something.
    Failed {
        reason: &'static str,
        message: String,
    },
    /// The image is still being pulled: nothing is wrong.
    Pulling,
    /// Later may work.
    Later(PassError),
}

impl From<PassError> for Hindrance {
    fn from(error: PassError) -> Self {
        Self::Later(error)
    }
}

impl Core {
    /// One pass over a revision.
    pub(crate) async fn revision_pass(&self, key: &RevisionKey) -> Result<Report, PassError> {
        let stored = self.store.revision(key)?;
        let Some(revision) = stored.filter(|r| r.meta.delete_time.is_none()) else {
            self.end_revision(key);
            return Ok(Report {
                because: "the revision is gone".to_owned(),
                gone: true,
                ..Report::default()
            });
        };
        match &revision.status.outcome {
            Outcome::Failed { reason, .. } => {
                self.end_revision(key);
                Ok(Report {
                    because: format!("failed: {reason}"),
                    ..Report::default()
                })
            }
            Outcome::Ready => self.keep_startable(revision).await,
            Outcome::Pending => self.prove(revision).await,
        }
    }

    /// Ready: routed ones stay startable, and `Active` follows what runs.
    async fn keep_startable(&self, revision: Revision) -> Result<Report, PassError> {
        let key = revision.key.clone();
        let routed = self.world.with(|inner| {
            inner
                .services
                .get(&key.service)
                .is_some_and(|routes| routes.shares.contains_key(&key.revision))
        });
        let known = self.world.revision(&key, |state| state.prepared);
        let mut actions = 0;
        if routed && known != Some(true) {
            if !self.make_startable_again(&revision).await? {
                return Ok(self.still_pulling());
            }
            actions += 1;
            self.ask_instances(&key, Priority::Soon);
        }
        self.learn_pids(&key).await?;
        let running = self.world.revision(&key, |state| {
            state
                .instances
                .values()
                .filter(|r| r.phase == Phase::Running)
                .count()
        });
        actions += usize::from(
            self.write_active(&revision, running.unwrap_or(0) > 0)
                .await?,
        );
        let because = if routed {
            "ready and startable"
        } else {
            "ready, not routed"
        };
        Ok(Report {
            because: because.to_owned(),
            actions,
            ..Report::default()
        })
    }

    /// Process ids are shown to people only: they are looked up when nobody waits.
    async fn learn_pids(&self, key: &RevisionKey) -> Result<(), PassError> {
        let unknown = |state: &mut RevisionState| {
            state
                .instances
                .values()
                .any(|r| r.phase == Phase::Running && r.pid == 0)
        };
        if self.world.revision(key, unknown) != Some(true) {
            return Ok(());
        }
        let listed = self.driver.list().await?;
        self.world.revision(key, |state| {
            for found in listed.iter().filter(|found| found.revision == *key) {
                if let Some(record) = state.instances.get_mut(&found.id) {
                    record.pid = found.pid;
                }
            }
        });
        Ok(())
    }

    /// Pending: image, first instance, judgement.
    async fn prove(&self, revision: Revision) -> Result<Report, PassError> {
        let key = revision.key.clone();
        let mut actions = 0;
        if self.world.revision(&key, |state| state.prepared) != Some(true) {
            self.write_pending(&revision, "ResolvingDigests", "Pulling the image.")
                .await?;
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
                Err(Hindrance::Later(error))
                    if self.env.now().since(revision.meta.create_time) > IMAGE_PATIENCE =>
                {
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
        let Some((proof, deadline)) = self.proof(&key) else {
            return Err(PassError(
                "the revision was forgotten while it was being proven".to_owned(),
            ));
        };
        let now = self.env.now();
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
            wake_at: Some(deadline),
            actions,
            gone: false,
        })
    }

    /// What is known of the attempt, and until when it may take.
    fn proof(&self, key: &RevisionKey) -> Option<(Proof, Timestamp)> {
        let demand = self.door.demand(key).unwrap_or_default();
        self.world.revision(key, |state| {
            // Only who still runs proves anything: the ingress may be taking in one that has just ended (`start.rs` takes such
            // an admission back a moment later).
            let reached = demand
                .instances
                .iter()
                .filter(|load| load.reach == Reach::Ready && state.instances.contains_key(&load.id))
                .count();
            let wanted = usize::try_from(state.settings.initial_scale.max(1)).unwrap_or(usize::MAX);
            let instance = match &state.proof {
                _ if reached >= wanted => ProofInstance::Reached,
                Some(failed) => failed.clone(),
                None if state.instances.is_empty() => ProofInstance::None,
                None => ProofInstance::Starting,
            };
            let proof = Proof {
                image: ImageState::There,
                instance,
                check_disabled: false,
                start_none: state.settings.initial_scale == 0,
                port: state.plan.port,
                trouble: state.last_failure.clone(),
            };
            (
                proof,
                state
                    .proving_since
                    .plus(state.route.startup.deadline() + START_PATIENCE),
            )
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
        self.write_outcome(revision, outcome, image).await?;
        if ready {
            self.world.revision(key, |state| {
                state.stage = Stage::Proven;
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

    /// Nothing of it shall run any more.
    pub(crate) fn end_revision(&self, key: &RevisionKey) {
        let known = self.world.revision(key, |state| {
            state.stage = Stage::Ended;
            state.routed = false;
        });
        if known.is_some() {
            self.ask_instances(key, Priority::Soon);
        }
    }

    /// Image, user ids, root file system; afterwards [`crate::world::World`] knows how to start it.
    async fn make_startable(&self, revision: &Revision, stage: Stage) -> Result<(), Hindrance> {
        let key = &revision.key;
        let image = self.pinned_image(revision).await?;
        let rootfs = self.learn(revision, &image, stage).await?;
        match self.driver.prepare(rootfs).await {
            Ok(()) => {}
            Err(DriverError::Refused(message)) => {
                return Err(Hindrance::Failed {
                    reason: "ContainerMissing",
                    message,
                });
            }
            Err(error) => return Err(Hindrance::Later(error.into())),
        }
        self.world.revision(key, |state| state.prepared = true);
        Ok(())
    }

    /// A pass that left a pull comes back at once: it joins the pull, and others had their turn.
    fn still_pulling(&self) -> Report {
        Report {
            because: "the image is being pulled".to_owned(),
            wake_at: Some(self.env.now()),
            ..Report::default()
        }
    }

    /// For a revision that was ready once: whatever hinders it now is trouble of ours, and tried again. `false`: its image is
    /// still being pulled.
    async fn make_startable_again(&self, revision: &Revision) -> Result<bool, PassError> {
        match self.make_startable(revision, Stage::Serving).await {
            Ok(()) => Ok(true),
            Err(Hindrance::Pulling) => Ok(false),
            Err(Hindrance::Later(error)) => Err(error),
            // The image store lost content, or the settings of the server changed.
            Err(Hindrance::Failed { message, .. }) => Err(PassError(message)),
        }
    }

    /// Makes sure that the picture says how `revision` is started, before requests are led to it.
    pub(crate) async fn make_known(&self, revision: &Revision) -> Result<(), PassError> {
        if self.world.revision(&revision.key, |_| ()).is_some()
            || self.recall(revision, Stage::Serving).await?
        {
            return Ok(());
        }
        if self.make_startable_again(revision).await? {
            return Ok(());
        }
        Err(PassError(format!(
            "the image of {} is being pulled again",
            revision.key.revision
        )))
    }

    /// Puts the way to start `revision` into the picture. Answers its root file system.
    async fn learn(
        &self,
        revision: &Revision,
        image: &ResolvedImage,
        stage: Stage,
    ) -> Result<RootfsSpec, Hindrance> {
        let uid_base = self
            .store
            .uid_base(&revision.key.service)
            .await
            .map_err(PassError::from)?;
        let plan = self.start_plan(revision, image, uid_base)?;
        let rootfs = plan.rootfs.clone();
        let scaling = self.service_scaling(revision);
        let new = self.world.learn(&revision.key, || {
            self.state_of(revision, plan, stage, &scaling)
        });
        if new {
            self.mark_routes();
        }
        Ok(rootfs)
    }

    /// Puts a stored revision into the picture without asking anybody but the store: what a restart begins with. `false` when
    /// something is missing; the revision's pass will find out what.
    pub(crate) async fn recall(
        &self,
        revision: &Revision,
        stage: Stage,
    ) -> Result<bool, PassError> {
        let Some(pinned) = revision.status.image_digests.first() else {
            return Ok(false);
        };
        let Some(image) = self.store.image(pinned)? else {
            return Ok(false);
        };
        match self.learn(revision, &image, stage).await {
            Ok(_) => Ok(true),
            Err(Hindrance::Later(error)) => Err(error),
            Err(Hindrance::Failed { .. } | Hindrance::Pulling) => Ok(false),
        }
    }

    fn start_plan(
        &self,
        revision: &Revision,
        image: &ResolvedImage,
        uid_base: u32,
    ) -> Result<StartPlan, Hindrance> {
        let template = &revision.template;
        let process =
            process::process(&revision.key, template, &image.config).map_err(|error| {
                Hindrance::Failed {
                    reason: "ContainerMissing",
                    message: error.to_string(),
                }
            })?;
        Ok(StartPlan {
            rootfs: RootfsSpec {
                layers: image.layers.clone(),
                uid_base,
            },
            process,
            limits: process::limits(template, self.settings.pids),
            port: template.port(),
        })
    }

    fn state_of(
        &self,
        revision: &Revision,
        plan: StartPlan,
        stage: Stage,
        scaling: &ServiceScaling,
    ) -> RevisionState {
        let template = Arc::new(revision.template.clone());
        let settings = scaling_settings(&template, scaling, 0, self.settings.idle_timeout);
        RevisionState {
            plan: Arc::new(plan),
            route: Arc::new(route_of(&revision.key, &template, &settings)),
            template,
            settings,
            stage,
            percent: 0,
            routed: false,
            scaler: ScalerState::default(),
            history: DemandHistory::default(),
            instances: std::collections::BTreeMap::new(),
            crashes: 0,
            not_before: None,
            proof: None,
            proving_since: self.env.now(),
            because: Vec::new(),
            prepared: false,
            last_failure: None,
        }
    }

    fn service_scaling(&self, revision: &Revision) -> ServiceScaling {
        let known = self.world.with(|inner| {
            inner
                .services
                .get(&revision.key.service)
                .map(|s| s.scaling.clone())
        });
        known.unwrap_or_default()
    }

    /// The image of the revision, pinned: resolved at the first time, by digest ever after.
    async fn pinned_image(&self, revision: &Revision) -> Result<ResolvedImage, Hindrance> {
        let template = &revision.template;
        let Some(container) = template.ingress_container() else {
            let message = process::ProcessError::NoContainer.to_string();
            return Err(Hindrance::Failed {
                reason: "ContainerMissing",
                message,
            });
        };
        let pinned = revision.status.image_digests.first();
        let wanted = pinned.map_or(container.image.as_str(), String::as_str);
        let pull = tokio::time::timeout(PULL_LOOK, self.images.ensure(wanted));
        let ended = pull.await.map_err(|_elapsed| Hindrance::Pulling)?;
        let image = ended.map_err(|error| {
            if error.transient {
                Hindrance::Later(PassError(error.message))
            } else {
                Hindrance::Failed {
                    reason: static_reason(&error.reason),
                    message: error.message,
                }
            }
        })?;
        if pinned.is_none() {
            self.env.before("save image").await;
            self.store
                .save_image(image.clone())
                .await
                .map_err(PassError::from)?;
            self.env.before("pin digest").await;
            let digest = image.pinned.clone();
            let pin = move |stored: &mut Revision| {
                let unpinned = stored.status.image_digests.is_empty();
                if unpinned {
                    stored.status.image_digests.push(digest);
                }
                unpinned
            };
            self.store
                .update_revision(&revision.key, pin)
                .await
                .map_err(PassError::from)?;
        }
        Ok(image)
    }
}

/// Reasons are names of §1.8; one that isn't known there reads as the general one.
fn static_reason(reason: &str) -> &'static str {
    match reason {
        "ContainerImageUnauthorized" => "ContainerImageUnauthorized",
        "ContainerPermissionDenied" => "ContainerPermissionDenied",
        "ContainerImageAuthorizationCheckFailed" => "ContainerImageAuthorizationCheckFailed",
        _ => "ContainerMissing",
    }
}

/// What the data path needs to know.
pub(crate) fn route_of(
    key: &RevisionKey,
    template: &RevisionTemplate,
    settings: &utsuwa_model::scaling::ScalingSettings,
) -> RevisionRoute {
    RevisionRoute {
        key: key.clone(),
        concurrency: settings.container_concurrency,
        max_instances: settings.max,
        timeout: template.timeout(),
        port: template.port(),
        protocol: template.protocol(),
        session_affinity: template.session_affinity == Some(true),
        startup: template.startup(),
    }
}
