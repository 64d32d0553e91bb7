//! The service loop: newest revision, routes, status, end.
//!
//! Owns: making a revision when the template changed, publishing the service's routes, the service's conditions and the
//! outcome of its generation, the cascade of a deletion. Deliberately not here: proving revisions.
//!
//! Invariants (`cloud-run-spec.md` §1.8):
//! 1. `observed_generation` and the conditions it stands for are one write; so is the generation's outcome.
//! 2. Routes are published before the status says so: success means that traffic has moved.
//! 3. A failed deploy leaves routes, address and `latest_ready` as they were.
//! 4. The row goes last: first the hosts, then instances, then revisions.

mod create;
pub(crate) use create::Clash;
mod delete;
mod latest;
mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use utsuwa_decide::latest::Latest;
use utsuwa_decide::revision::{Aged, KEPT_REVISIONS, collect};
use utsuwa_decide::settings::scaling_settings;
use utsuwa_decide::traffic::{Held, Routing, Servable, resolve};
use utsuwa_model::domain::DomainMapping;
use utsuwa_model::revision::{Outcome, Revision};
use utsuwa_model::service::Service;
use utsuwa_model::{RevisionId, RevisionKey, ServiceKey};

use crate::core::Core;
use crate::rounds::{PassError, Priority, Report};
use crate::world::{ServiceRoutes, Stage};
use crate::{revision, traffic};

/// Everything a pass found out about a service.
pub(crate) struct Picture {
    pub(crate) service: Service,
    pub(crate) revisions: Vec<Revision>,
    /// The revision that the template stands for; `Err`: it can't be made, and why.
    pub(crate) current: Result<RevisionId, create::Clash>,
    /// The latest ready revision, and why it is.
    pub(crate) latest: Latest,
    pub(crate) resolved: Result<Routing, Held>,
    /// Where requests go: what was resolved, or where they went before.
    pub(crate) routing: Option<Routing>,
    /// Domains that lead to it.
    pub(crate) domains: Vec<DomainMapping>,
}

impl Picture {
    pub(crate) fn current(&self) -> Option<&Revision> {
        let id = self.current.as_ref().ok()?;
        self.revisions.iter().find(|r| r.key.revision == *id)
    }
}

impl Core {
    /// One pass over a service.
    pub(crate) async fn service_pass(&self, key: &ServiceKey) -> Result<Report, PassError> {
        let Some(service) = self.store.service(key)? else {
            let had = self.world.with(|inner| {
                inner.latest.remove(key);
                inner.services.remove(key).is_some()
            });
            if had {
                self.mark_routes(key);
                self.publish();
                self.ask_domains_of(key);
            }
            return Ok(Report {
                because: "the service is gone".to_owned(),
                gone: true,
                ..Report::default()
            });
        };
        if service.meta.delete_time.is_some() {
            return self.delete_pass(&service).await;
        }
        let created = self.create_revision_if_changed(&service).await?;
        let picture = self.picture(service, created.current)?;
        let mut actions = usize::from(created.made);
        actions += usize::from(self.route(&picture).await?);
        actions += usize::from(self.write_service_status(&picture).await?);
        actions += self.remove_deleted(&picture).await?;
        actions += self.collect_revisions(&picture).await?;
        actions += self.answer_overtaken(&picture).await?;
        // Also those that were overtaken: each one's operation has its own end.
        for pending in picture.revisions.iter().filter(|r| is_pending(r)) {
            self.ask_revision(&pending.key);
        }
        let because = match (&picture.resolved, picture.current()) {
            (Ok(routing), Some(current)) => {
                let split: Vec<String> = routing
                    .split
                    .iter()
                    .map(|(id, percent)| format!("{percent} % to {id}"))
                    .collect();
                format!(
                    "{}; newest revision {} is {}; {}",
                    split.join(", "),
                    current.key.revision,
                    word(&current.status.outcome),
                    picture.latest.because.summary
                )
            }
            (Err(held), _) => held.message.clone(),
            (_, None) => "no revision could be made".to_owned(),
        };
        Ok(Report {
            because,
            actions,
            ..Report::default()
        })
    }

    /// Reads the rest and resolves the traffic.
    pub(crate) fn picture(
        &self,
        service: Service,
        current: Result<RevisionId, create::Clash>,
    ) -> Result<Picture, PassError> {
        let revisions = self.store.revisions_of(&service.key)?;
        let latest = latest::latest(&service, &revisions, current.as_ref().ok());
        let known: BTreeMap<RevisionId, Servable> = revisions
            .iter()
            .map(|r| (r.key.revision.clone(), servable(r)))
            .collect();
        let resolved = resolve(
            service.key.service.as_str(),
            &service.spec.traffic,
            latest.standing.as_ref().map(|latest| &latest.id),
            &known,
        );
        let routing = match &resolved {
            Ok(routing) => Some(routing.clone()),
            Err(_) => {
                let serves = |id: &RevisionId| known.get(id) == Some(&Servable::Ready);
                traffic::routing_of(&service.status.traffic, serves)
            }
        };
        let domains = self.store.domains_of(&service.key)?;
        self.world.with(|inner| {
            inner.latest.insert(service.key.clone(), latest.clone());
        });
        Ok(Picture {
            domains,
            service,
            revisions,
            current,
            latest,
            resolved,
            routing,
        })
    }

    /// Takes over the routes and tells the ingress if something changed.
    async fn route(&self, picture: &Picture) -> Result<bool, PassError> {
        let key = &picture.service.key;
        let routes = self.routes_of(picture)?;
        for revision in picture
            .revisions
            .iter()
            .filter(|r| routes.shares.contains_key(&r.key.revision))
        {
            self.make_known(revision).await?;
        }
        let ready: BTreeSet<RevisionId> = picture
            .revisions
            .iter()
            .filter(|r| r.can_serve())
            .map(|r| r.key.revision.clone())
            .collect();
        let changed = self.take_routes(key, routes, &ready)?;
        for id in self.unprepared(key) {
            self.ask_revision(&RevisionKey {
                service: key.clone(),
                revision: id,
            });
        }
        Ok(changed)
    }

    /// The routes that the picture stands for.
    pub(crate) fn routes_of(&self, picture: &Picture) -> Result<ServiceRoutes, PassError> {
        let policy = self.store.policy(&picture.service.key)?;
        let held = picture
            .resolved
            .as_ref()
            .err()
            .map_or("", |held| held.message.as_str());
        Ok(traffic::routes(
            &picture.service,
            &policy,
            picture.routing.as_ref(),
            held,
            &picture.domains,
            &self.settings,
        ))
    }

    /// Puts `routes` into the picture and publishes them when they differ. Revisions that lost or won traffic are looked at.
    /// `ready`: what can serve, as far as this pass knows.
    ///
    /// # Errors
    /// A routed revision is not known (any more): nothing was changed, the next pass makes it known.
    pub(crate) fn take_routes(
        &self,
        key: &ServiceKey,
        routes: ServiceRoutes,
        ready: &BTreeSet<RevisionId>,
    ) -> Result<bool, PassError> {
        let idle = self.settings.idle_timeout;
        let mut touched = Vec::new();
        let changed = self.world.with(|inner| {
            let revision = |id: &RevisionId| RevisionKey {
                service: key.clone(),
                revision: id.clone(),
            };
            if let Some(unknown) = routes
                .shares
                .keys()
                .map(revision)
                .find(|key| !inner.revisions.contains_key(key))
            {
                return Err(PassError(format!(
                    "{unknown} is routed, but how to start it is not known yet"
                )));
            }
            let changed = inner.services.get(key) != Some(&routes);
            for (revision, state) in inner.revisions_of_mut(key) {
                let was = state.stage;
                // proven → serving, because its service looks now; proving → serving, because the outcome is written and the
                // pass that wrote it hasn't gone on yet. Once, so that one table tells all of it.
                if matches!(was, Stage::Proving | Stage::Proven)
                    && ready.contains(&revision.revision)
                {
                    state.stage = Stage::Serving;
                }
                let share = routes.shares.get(&revision.revision);
                let (routed, percent) = (share.is_some(), share.copied().unwrap_or(0));
                let settings = scaling_settings(&state.template, &routes.scaling, percent, idle);
                if (routed, percent, was) != (state.routed, state.percent, state.stage)
                    || settings != state.settings
                {
                    state.route = Arc::new(revision::route_of(
                        revision,
                        &state.template,
                        &settings,
                        state.usual_start,
                    ));
                    (state.routed, state.percent, state.settings) = (routed, percent, settings);
                    touched.push(revision.clone());
                }
            }
            inner.services.insert(key.clone(), routes);
            Ok(changed)
        })?;
        if changed || !touched.is_empty() {
            self.mark_routes(key);
            self.publish();
        }
        if changed {
            self.ask_domains_of(key);
        }
        for revision in &touched {
            self.ask_instances(revision, Priority::Soon);
        }
        Ok(changed)
    }

    /// Routed revisions that nobody has made startable yet.
    fn unprepared(&self, key: &ServiceKey) -> Vec<RevisionId> {
        self.world.with(|inner| {
            let Some(routes) = inner.services.get(key) else {
                return Vec::new();
            };
            let known = |id: &RevisionId| {
                let revision = RevisionKey {
                    service: key.clone(),
                    revision: id.clone(),
                };
                inner
                    .revisions
                    .get(&revision)
                    .is_some_and(|state| state.prepared)
            };
            routes
                .shares
                .keys()
                .filter(|id| !known(id))
                .cloned()
                .collect()
        })
    }

    /// Revisions that a user deleted go when nothing of them runs any more.
    async fn remove_deleted(&self, picture: &Picture) -> Result<usize, PassError> {
        let mut removed = 0;
        for revision in picture
            .revisions
            .iter()
            .filter(|r| r.meta.delete_time.is_some())
        {
            self.end_revision(&revision.key);
            if self
                .world
                .revision(&revision.key, |state| state.instances.is_empty())
                .unwrap_or(true)
            {
                self.env.before("remove revision").await;
                self.store.remove_revision(&revision.key).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Keeps at most [`KEPT_REVISIONS`].
    async fn collect_revisions(&self, picture: &Picture) -> Result<usize, PassError> {
        if picture.revisions.len() <= KEPT_REVISIONS {
            return Ok(0);
        }
        let mut needed: BTreeSet<RevisionId> = picture
            .service
            .spec
            .traffic
            .iter()
            .filter_map(|t| t.revision.clone())
            .collect();
        needed.extend(picture.current.as_ref().ok().cloned());
        needed.extend(
            picture
                .latest
                .standing
                .iter()
                .map(|latest| latest.id.clone()),
        );
        needed.extend(
            picture
                .routing
                .iter()
                .flat_map(|r| r.targets.iter().map(|t| t.revision.clone())),
        );
        let aged: Vec<Aged> = picture
            .revisions
            .iter()
            .map(|r| {
                let kept = r
                    .meta
                    .annotations
                    .get("serving.knative.dev/no-gc")
                    .is_some_and(|v| v == "true");
                let running = self
                    .world
                    .revision(&r.key, |state| !state.instances.is_empty())
                    .unwrap_or(false);
                Aged::of(&r.key.revision, &r.meta, kept, running)
            })
            .collect();
        let unneeded = collect(&aged, &needed, KEPT_REVISIONS);
        for id in &unneeded {
            self.env.before("collect revision").await;
            let key = RevisionKey {
                service: picture.service.key.clone(),
                revision: id.clone(),
            };
            self.store.remove_revision(&key).await?;
        }
        Ok(unneeded.len())
    }
}

fn is_pending(revision: &Revision) -> bool {
    revision.status.outcome == Outcome::Pending && revision.meta.delete_time.is_none()
}

fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Pending => "being proven",
        Outcome::Ready => "ready",
        Outcome::Failed { .. } => "failed",
    }
}

fn servable(revision: &Revision) -> Servable {
    match &revision.status.outcome {
        _ if revision.meta.delete_time.is_some() => Servable::Failed,
        Outcome::Ready => Servable::Ready,
        Outcome::Pending => Servable::Pending,
        Outcome::Failed { .. } => Servable::Failed,
    }
}
