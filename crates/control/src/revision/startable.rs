//! Making a revision startable: the image, pinned to its digest, the user ids, the root file system, and what the data path and
//! the instance loop must know of it.

use std::sync::Arc;
use std::time::Duration;

use utsuwa_decide::demand::DemandHistory;
use utsuwa_decide::scale::ScalerState;
use utsuwa_decide::settings::scaling_settings;
use utsuwa_model::RevisionKey;
use utsuwa_model::image::ResolvedImage;
use utsuwa_model::instance::RootfsSpec;
use utsuwa_model::revision::Revision;
use utsuwa_model::route::RevisionRoute;
use utsuwa_model::scaling::{Ceiling, ScalingSettings};
use utsuwa_model::service::{RevisionTemplate, ServiceScaling};
use utsuwa_runtime::DriverError;

use super::{plan, process};
use crate::core::Core;
use crate::instance::zygote::Zygotes;
use crate::rounds::{PassError, Report};
use crate::world::{RevisionState, Stage, StartPlan};

/// A pass waits this long for a pull; then it leaves the slot to others and comes back. The pull goes on.
const PULL_LOOK: Duration = Duration::from_secs(5);

/// Why a revision can't be made startable.
pub(super) enum Hindrance {
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
    /// Image, user ids, root file system; afterwards [`crate::world::World`] knows how to start it.
    pub(super) async fn make_startable(
        &self,
        revision: &Revision,
        stage: Stage,
    ) -> Result<(), Hindrance> {
        let key = &revision.key;
        let images = self.pinned_images(revision).await?;
        for rootfs in self.learn(revision, &images, stage).await? {
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
        }
        self.world.revision(key, |state| state.prepared = true);
        Ok(())
    }

    /// A pass that left a pull comes back at once: it joins the pull, and others had their turn.
    pub(super) fn still_pulling(&self) -> Report {
        Report {
            because: "the image is being pulled".to_owned(),
            wake_at: Some(self.env.now()),
            ..Report::default()
        }
    }

    /// For a revision that was ready once: whatever hinders it now is trouble of ours, and tried again. `false`: its image is
    /// still being pulled.
    pub(super) async fn make_startable_again(
        &self,
        revision: &Revision,
    ) -> Result<bool, PassError> {
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

    /// Puts the way to start `revision` into the picture. `images` are of its containers, in their order. Answers their root file
    /// systems.
    async fn learn(
        &self,
        revision: &Revision,
        images: &[ResolvedImage],
        stage: Stage,
    ) -> Result<Vec<RootfsSpec>, Hindrance> {
        let uid_base = self
            .store
            .uid_base(&revision.key.service)
            .await
            .map_err(PassError::from)?;
        let plan = self.start_plan(revision, images, uid_base)?;
        let rootfs = plan.rootfs_of_all();
        let scaling = self.service_scaling(revision);
        let new = self.world.learn(&revision.key, || {
            self.state_of(revision, plan, stage, &scaling)
        });
        if new {
            self.mark_routes(&revision.key.service);
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
        let mut images = Vec::new();
        for pinned in &revision.status.image_digests {
            match self.store.image(pinned)? {
                Some(image) => images.push(image),
                None => return Ok(false),
            }
        }
        if images.is_empty() || images.len() != revision.template.containers.len() {
            return Ok(false);
        }
        match self.learn(revision, &images, stage).await {
            Ok(_) => Ok(true),
            Err(Hindrance::Later(error)) => Err(error),
            Err(Hindrance::Failed { .. } | Hindrance::Pulling) => Ok(false),
        }
    }

    fn start_plan(
        &self,
        revision: &Revision,
        images: &[ResolvedImage],
        uid_base: u32,
    ) -> Result<StartPlan, Hindrance> {
        plan::start_plan(
            &revision.key,
            &revision.template,
            images,
            uid_base,
            &self.settings,
        )
        .map_err(|error| Hindrance::Failed {
            reason: "ContainerMissing",
            message: error.to_string(),
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
        let usual_start = revision.status.proven_start_ms.map(Duration::from_millis);
        RevisionState {
            plan: Arc::new(plan),
            route: Arc::new(route_of(&revision.key, &template, &settings, usual_start)),
            template,
            settings,
            stage,
            percent: 0,
            routed: false,
            scaler: ScalerState::default(),
            history: DemandHistory::default(),
            instances: std::collections::BTreeMap::new(),
            zygotes: Zygotes::default(),
            crashes: 0,
            served: false,
            not_before: None,
            short_since: None,
            usual_start,
            activity: None,
            proof: None,
            proving_since: self.env.now(),
            looked_at_by: None,
            because: Vec::new(),
            decided_at: None,
            prepared: false,
            last_failure: None,
            failed_at: None,
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

    /// The images of the revision's containers, pinned: resolved at the first time, by digest ever after.
    async fn pinned_images(&self, revision: &Revision) -> Result<Vec<ResolvedImage>, Hindrance> {
        let containers = &revision.template.containers;
        if containers.is_empty() {
            let message = process::ProcessError::NoContainer.to_string();
            return Err(Hindrance::Failed {
                reason: "ContainerMissing",
                message,
            });
        }
        let pinned = &revision.status.image_digests;
        let mut images = Vec::new();
        for (index, container) in containers.iter().enumerate() {
            let wanted = pinned.get(index).unwrap_or(&container.image);
            images.push(self.pull(wanted).await?);
        }
        if pinned.is_empty() {
            for image in &images {
                self.env.before("save image").await;
                self.store
                    .save_image(image.clone())
                    .await
                    .map_err(PassError::from)?;
            }
            self.env.before("pin digest").await;
            let digests: Vec<String> = images.iter().map(|image| image.pinned.clone()).collect();
            let pin = move |stored: &mut Revision| {
                let unpinned = stored.status.image_digests.is_empty();
                if unpinned {
                    stored.status.image_digests = digests;
                }
                unpinned
            };
            self.store
                .update_revision(&revision.key, pin)
                .await
                .map_err(PassError::from)?;
        }
        Ok(images)
    }

    async fn pull(&self, wanted: &str) -> Result<ResolvedImage, Hindrance> {
        let pull = tokio::time::timeout(PULL_LOOK, self.images.ensure(wanted));
        let ended = pull.await.map_err(|_elapsed| Hindrance::Pulling)?;
        ended.map_err(|error| {
            if error.transient {
                Hindrance::Later(PassError(error.message))
            } else {
                Hindrance::Failed {
                    reason: static_reason(&error.reason),
                    message: error.message,
                }
            }
        })
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

/// The maximum, or what was set by hand below it: with none at all nobody waits.
fn most_instances(settings: &ScalingSettings) -> Ceiling {
    match (settings.manual, settings.max) {
        (Some(count), Ceiling::AtMost(max)) => Ceiling::AtMost(count.min(max)),
        (Some(count), Ceiling::Unlimited) => Ceiling::AtMost(count),
        (None, max) => max,
    }
}

/// What the data path needs to know.
pub(crate) fn route_of(
    key: &RevisionKey,
    template: &RevisionTemplate,
    settings: &ScalingSettings,
    usual_start: Option<Duration>,
) -> RevisionRoute {
    RevisionRoute {
        key: key.clone(),
        concurrency: settings.container_concurrency,
        max_instances: most_instances(settings),
        timeout: template.timeout(),
        port: template.port(),
        protocol: template.protocol(),
        session_affinity: template.session_affinity == Some(true),
        refuse_scanners: template.refuses_scanners(),
        waiting_page: template.waiting_page(),
        usual_start,
        startup: template.startup(),
        liveness: template.liveness(),
        readiness: template.readiness(),
    }
}
