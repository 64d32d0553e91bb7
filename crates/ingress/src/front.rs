//! The handle others hold: what the loops say to the data path, and what they ask.
//!
//! The methods are those of control's `FrontDoor`, one to one. None of them waits for a request except
//! [`Ingress::retire`]'s future.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::Instant;
use utsuwa_model::demand::RevisionDemand;
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{
    InstanceRoute, Protocol, RevisionRoute, RouteChange, RouteTable, StartupProbe,
};
use utsuwa_model::{InstanceId, RevisionKey, ServiceKey};

use crate::instance::{Ending, Instance};
use crate::leaving::Leaving;
use crate::metrics::{self, Series};
use crate::outside::Outside;
use crate::places;
use crate::probe;
use crate::revision::Revision;
use crate::revisions::Revisions;
use crate::seam::{Clock, Connect, RequestLog, Wake};
use crate::settings::IngressSettings;
use crate::table::Table;
use crate::tls::Tls;
use crate::told::Told;

/// The data path. Clones are the same one.
#[derive(Debug, Clone)]
pub struct Ingress {
    pub(crate) shared: Arc<Shared>,
}

/// Why waiting requests can't be served. Mirrors control's enum of the same name: siblings don't know each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The instance could not be started or never listened: 503, and the reason goes to the request log.
    StartFailed { message: String },
    /// No memory or processes left on this machine. That may change, so who waits goes on waiting; whoever's time is up (§2.6)
    /// is answered 500, as the spec says for failed scaling, with this in the request log.
    NoCapacity { message: String },
    /// Set to no instances by hand, which switches a revision off (§3.6): 503.
    Disabled,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) outside: Arc<Outside>,
    pub(crate) table: ArcSwap<Table>,
    /// What the table was made of. Held while it is changed.
    published: Mutex<HashMap<ServiceKey, Arc<RouteTable>>>,
    pub(crate) revisions: Revisions,
    pub(crate) instances: Mutex<HashMap<InstanceId, Arc<Instance>>>,
    pub(crate) places: places::Shared,
    /// Set once, before a listener is served that needs it.
    pub(crate) tls: OnceLock<Arc<Tls>>,
    pub(crate) leaving: Leaving,
    /// HTTP/2 connections that were closed for too many control frames.
    pub(crate) floods: Arc<Told>,
    /// Connections of proxies that did not say whose they are.
    pub(crate) bad_proxies: Told,
    /// When it was last said that connections can't be accepted.
    accept_failed: Mutex<Option<Instant>>,
}

/// All listeners suffer from want of descriptors at once; one line is enough for so long.
const ACCEPT_TOLD: Duration = Duration::from_secs(10);

impl Shared {
    /// A connection could not be accepted: whether to say so.
    pub(crate) fn accept_failed(&self) -> bool {
        let now = Instant::now();
        let mut told = self.accept_failed.lock();
        let tell = told.is_none_or(|at| now - at >= ACCEPT_TOLD);
        if tell {
            *told = Some(now);
        }
        tell
    }
}

impl Ingress {
    /// An ingress without routes. It must be made inside the tokio runtime that its tasks are to run in; listeners should be
    /// served there, too ([`Ingress::runtime`]).
    #[must_use]
    pub fn new(
        connect: Arc<dyn Connect>,
        wake: Arc<dyn Wake>,
        log: Arc<dyn RequestLog>,
        clock: Arc<dyn Clock>,
        settings: IngressSettings,
    ) -> Self {
        let outside = Arc::new(Outside::new(connect, wake, log, clock, settings));
        let shared = Shared {
            places: places::Shared::new(&outside),
            tls: OnceLock::new(),
            leaving: Leaving::default(),
            floods: Arc::default(),
            bad_proxies: Told::default(),
            accept_failed: Mutex::default(),
            outside,
            table: ArcSwap::default(),
            published: Mutex::default(),
            revisions: Revisions::default(),
            instances: Mutex::default(),
        };
        Self {
            shared: Arc::new(shared),
        }
    }

    /// Where connections to instances are kept: a request that is served elsewhere changes threads for each message.
    #[must_use]
    pub fn runtime(&self) -> &Handle {
        &self.shared.outside.runtime
    }

    /// Has certificates for [`Scheme::Https`] from now on, answers the challenges of authorities and redirects plain HTTP, if
    /// `tls` says so. Said once, before listeners are served.
    pub fn secure(&self, tls: Arc<Tls>) {
        if self.shared.tls.set(tls).is_err() {
            tracing::error!(
                "certificates were handed over twice; the first ones stay. This is a bug"
            );
        }
    }

    /// Replaces the routes of each of these services whole. Requests see all of it or nothing of it.
    pub fn publish(&self, changes: Vec<RouteChange>) {
        let shared = &self.shared;
        let mut published = shared.published.lock();
        let mut table = Table::clone(&shared.table.load());
        let none = Arc::new(RouteTable::default());
        for RouteChange { service, routes } in &changes {
            for (key, route) in &routes.revisions {
                let revision = shared.revisions.publish(key, &shared.outside);
                revision.set_route(route);
            }
            let before = published.get(service).unwrap_or(&none);
            table.change(service, before, routes, |route| {
                shared.revisions.publish(&route.key, &shared.outside)
            });
        }
        shared.table.store(Arc::new(table));
        for RouteChange { service, routes } in changes {
            let now = Arc::clone(&routes);
            let before = if routes.hosts.is_empty() && routes.revisions.is_empty() {
                shared.outside.rejected.forget(&service);
                published.remove(&service)
            } else {
                published.insert(service, routes)
            };
            let gone = before.iter().flat_map(|before| before.revisions.keys());
            for key in gone.filter(|key| !now.revisions.contains_key(*key)) {
                shared.revisions.unpublish(key);
            }
        }
        drop(published);
        for left in shared.revisions.prune() {
            left.abandon();
        }
        // Instances that were handed over before their revision's settings.
        let unprobed: Vec<_> = shared
            .instances
            .lock()
            .values()
            .filter(|instance| !instance.probed.load(Ordering::Acquire))
            .cloned()
            .collect();
        for instance in unprobed {
            if let Some(revision) = shared.revisions.get(&instance.revision) {
                start_probe(shared, &revision, &instance);
            }
        }
    }

    /// Takes in a started instance: runs its startup probe and, once it was reached, gives it requests. Repeating it for a
    /// known id changes nothing. An instance whose revision was not published yet is probed when it is.
    pub fn admit(&self, instance: InstanceRoute, phases: StartPhases) {
        let shared = &self.shared;
        let InstanceRoute {
            id,
            revision: key,
            port,
            age,
        } = instance;
        let instance = {
            let mut instances = shared.instances.lock();
            if instances.contains_key(&id) {
                return;
            }
            let made = Instance::new(
                id.clone(),
                key.clone(),
                (port, age),
                phases,
                Arc::clone(&shared.outside),
            );
            instances.insert(id, Arc::clone(&made));
            made
        };
        let (revision, nudge) = shared.revisions.seat(&instance, &shared.outside);
        if age.is_zero() {
            revision.meters.started();
        }
        revision.tell(nudge);
        shared.leaving.apply(&revision, &instance);
        start_probe(shared, &revision, &instance);
    }

    /// Takes the instance out of choice at once. The future answers when its last request has ended or `deadline` has passed
    /// (`true`: nothing was in flight any more). Unknown ids answer at once, unless the server before has something in them. The handshake begins with this call, not with
    /// the first poll of the future.
    pub fn retire(&self, id: &InstanceId, deadline: Duration) -> BoxFuture<'static, bool> {
        let shared = &self.shared;
        let Some(instance) = shared.instances.lock().get(id).cloned() else {
            let (shared, id) = (Arc::clone(shared), id.clone());
            return async move {
                let gone = shared.leaving.let_go(&id);
                tokio::time::timeout(deadline, gone).await.is_ok()
            }
            .boxed();
        };
        instance.leaving.cancel();
        let waiting = shared
            .revisions
            .get(&instance.revision)
            .and_then(|revision| revision.retire(id));
        instance.close_idle();
        async move {
            let drained = match waiting {
                None => true,
                // A dropped sender means that the instance died: nothing is in it either.
                Some(last) => tokio::time::timeout(deadline, last).await.is_ok(),
            };
            instance.close_idle();
            drained
        }
        .boxed()
    }

    /// Makes the startup probe of one container of an instance that isn't handed over yet: nothing is sent to it by this. The
    /// error says what was tried.
    pub fn probe(
        &self,
        instance: InstanceRoute,
        startup: StartupProbe,
    ) -> BoxFuture<'static, Result<(), String>> {
        let outside = Arc::clone(&self.shared.outside);
        // No connection of a probe is kept: none goes to port 0.
        let instance = Instance::new(
            instance.id,
            instance.revision,
            (0, instance.age),
            StartPhases::default(),
            Arc::clone(&outside),
        );
        async move { probe::check(&outside, &instance, (&startup, None), Protocol::Http1).await }
            .boxed()
    }

    /// The instance may be frozen from now on: nothing is in flight in it, and the next request raises [`Wake::thaw`].
    /// `false`: something is, or it takes no requests.
    #[must_use]
    pub fn rest(&self, id: &InstanceId) -> bool {
        let shared = &self.shared;
        let Some(instance) = shared.instances.lock().get(id).cloned() else {
            return false;
        };
        let revision = shared.revisions.get(&instance.revision);
        let may = revision.is_some_and(|revision| revision.rest(id));
        if may {
            instance.close_idle();
        }
        may
    }

    /// The instance runs: it was thawed, or not frozen although it might have been. Until then, who rested is not asked for its
    /// health. To be called before the next [`Ingress::rest`] of the instance.
    pub fn awake(&self, id: &InstanceId) {
        let shared = &self.shared;
        let instance = shared.instances.lock().get(id).cloned();
        let revision = instance.and_then(|instance| shared.revisions.get(&instance.revision));
        if let Some(revision) = revision {
            revision.awake(id);
        }
    }

    /// The instance is dead: forgets it; requests inside it are answered 503 (500 when `out_of_memory`).
    pub fn forget(&self, id: &InstanceId, out_of_memory: bool) {
        let Some(instance) = self.shared.instances.lock().remove(id) else {
            return;
        };
        instance.kill(if out_of_memory {
            Ending::OutOfMemory
        } else {
            Ending::Dead
        });
        if let Some(revision) = self.shared.revisions.get(&instance.revision) {
            revision.remove(id);
        }
    }

    /// A revision can't get an instance now: those who wait for it are answered, at once or when their time is up.
    pub fn refuse(&self, revision: &RevisionKey, why: Refusal) {
        if let Some(revision) = self.shared.revisions.get(revision) {
            revision.refuse(&why);
        }
    }

    /// All counters and histograms of the data path in Prometheus' text format (0.0.4), one series for each service and
    /// revision that is known and has had a request or an instance.
    #[must_use]
    pub fn metrics(&self) -> String {
        let shared = &self.shared;
        for left in shared.revisions.prune() {
            left.abandon();
        }
        let (revisions, rejected) = (shared.revisions.all(), shared.outside.rejected.all());
        let mut series: Vec<Series<'_>> = revisions
            .iter()
            .map(|revision| Series::of_revision(&revision.key, &revision.meters, revision.levels()))
            .filter(Series::is_news)
            .collect();
        series.extend(
            rejected
                .iter()
                .map(|(service, meters)| Series::of_service(service.as_ref(), meters)),
        );
        let mut text = String::new();
        metrics::write(&mut text, &series);
        text
    }

    /// Demand of one revision; `None` if the ingress never heard of it.
    #[must_use]
    pub fn demand(&self, revision: &RevisionKey) -> Option<RevisionDemand> {
        self.shared
            .revisions
            .get(revision)
            .map(|revision| revision.demand())
    }
}

/// Begins the startup probe once; later calls do nothing.
fn start_probe(shared: &Arc<Shared>, revision: &Arc<Revision>, instance: &Arc<Instance>) {
    let Some(route): Option<Arc<RevisionRoute>> = revision.route() else {
        return;
    };
    if instance.probed.swap(true, Ordering::AcqRel) {
        return;
    }
    let (outside, revision, instance) = (
        Arc::clone(&shared.outside),
        Arc::clone(revision),
        Arc::clone(instance),
    );
    // Ends by itself at the probe's deadline, or when the instance leaves.
    let (tasks, runtime) = (outside.tasks.clone(), outside.runtime.clone());
    let probing = async move { probe::run(&outside, &revision, &instance, &route).await };
    tasks.spawn_on(probing, &runtime);
}
