//! What the loops know of the world, in memory: how to start each revision, its instances, its demand of late, its routes.
//!
//! Owns: the one picture that passes share. It can be lost at any time: after a restart it is made again from the store and
//! from what the driver lists. A wake is decided from it alone, without touching the disk.
//!
//! Deliberately not here: acting. No lock of this module is held across an await.
//!
//! Invariants:
//! 1. An instance has one record, under one revision; `owners` says which.
//! 2. A record is made before the driver is asked to start, so that no start is ever forgotten.
//! 3. A leaving instance is never counted as there.

mod plan;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use utsuwa_decide::demand::DemandHistory;
use utsuwa_decide::instances::InstanceView;
use utsuwa_decide::latest::Latest;
use utsuwa_decide::revision::{Active, ProofInstance, active, watched_until};
use utsuwa_decide::scale::ScalerState;
use utsuwa_model::demand::{Reach, RevisionDemand};
use utsuwa_model::domain::DomainName;
use utsuwa_model::instance::Tier;
use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::route::{HostRoute, RevisionRoute, RouteChange, RouteTable};
use utsuwa_model::scaling::ScalingSettings;
use utsuwa_model::service::{RevisionTemplate, ServiceScaling};
use utsuwa_model::{Because, InstanceId, RevisionId, RevisionKey, ServiceKey, Timestamp};

use crate::instance::zygote::{Birth, Zygotes};

pub(crate) use plan::{GroupPlan, StartPlan};

/// Where a revision stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    Proving,
    /// Ready, but its service has not looked yet whether it is routed: what runs is kept until it has.
    Proven,
    Serving,
    /// Failed, or being deleted: nothing of it shall run.
    Ended,
}

/// Where an instance stands, as far as we did something about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The driver was asked.
    Starting,
    Running,
    /// Being retired and stopped by a task of its own.
    Leaving,
    /// Retired, but the driver could not stop it: to be tried again.
    Stuck,
}

#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) phase: Phase,
    pub(crate) started: Timestamp,
    pub(crate) pid: u32,
    /// The ingress answered that nothing is in flight any more (or the time was up).
    pub(crate) retired: bool,
    /// Its CPU limit now.
    pub(crate) cpu: MilliCpu,
    /// Its limit is being changed.
    pub(crate) settling: bool,
    /// Since when all its containers run; the next server counts from when it found them running.
    pub(crate) whole_since: Option<Timestamp>,
    /// When a pass first saw it ready.
    pub(crate) ready_since: Option<Timestamp>,
    /// It leaves because this revision has no memory.
    pub(crate) makes_room_for: Option<RevisionKey>,
    /// Why it was chosen for that.
    pub(crate) gives_way: Option<String>,
    /// Since when it is on its way out.
    pub(crate) leaving_since: Option<Timestamp>,
    pub(crate) rest: Rest,
    pub(crate) birth: Birth,
}

impl Record {
    /// One that runs or is about to, as it is when nothing is known of it but that.
    pub(crate) fn new(phase: Phase, started: Timestamp, cpu: MilliCpu) -> Self {
        Self {
            phase,
            started,
            pid: 0,
            retired: false,
            cpu,
            settling: false,
            whole_since: None,
            ready_since: None,
            makes_room_for: None,
            gives_way: None,
            leaving_since: None,
            rest: Rest::default(),
            birth: Birth::Plain,
        }
    }
}

/// How much of an instance is awake.
#[derive(Debug, Clone, Default)]
pub(crate) struct Rest {
    /// As it is once the steps under way are done.
    pub(crate) tier: Tier,
    /// Since when. `None`: it began, or was found, like that.
    pub(crate) since: Option<Timestamp>,
    /// Steps under way: the driver was asked and hasn't answered.
    pub(crate) steps: u32,
    /// Counts thaws. A step that began before one is undone when it ends after it.
    pub(crate) thaws: u64,
    /// No step before this: the last one failed.
    pub(crate) not_before: Option<Timestamp>,
    /// What it kept in memory when the rest was given back.
    pub(crate) kept_bytes: Option<u64>,
    /// A tier it can't reach, and why.
    pub(crate) barred: Option<(Tier, String)>,
}

/// What the `Active` condition follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Activity {
    pub(crate) wanted: u32,
    pub(crate) ready: u32,
    /// Of so many it is the minimum.
    pub(crate) least: u32,
}

impl Activity {
    /// Whether the condition says something else for it than for `other`, whatever it said before.
    pub(crate) fn differs(self, other: Self) -> bool {
        let word = |a: Self| active(Active::NoTraffic, a.wanted, a.ready, a.least);
        word(self) != word(other)
    }
}

/// One revision that is routed, being proven, or has instances.
#[derive(Debug)]
pub(crate) struct RevisionState {
    pub(crate) plan: Arc<StartPlan>,
    pub(crate) template: Arc<RevisionTemplate>,
    pub(crate) route: Arc<RevisionRoute>,
    pub(crate) settings: ScalingSettings,
    pub(crate) stage: Stage,
    pub(crate) percent: u32,
    pub(crate) routed: bool,
    pub(crate) scaler: ScalerState,
    pub(crate) history: DemandHistory,
    pub(crate) instances: BTreeMap<InstanceId, Record>,
    pub(crate) zygotes: Zygotes,
    /// Ends in a row soon after the start.
    pub(crate) crashes: u32,
    /// The last of them had been reached: whoever asks next waits for another.
    pub(crate) served: bool,
    /// No start before this.
    pub(crate) not_before: Option<Timestamp>,
    /// Since when there is no memory for what it should have.
    pub(crate) short_since: Option<Timestamp>,
    /// How long a start took when it was proven.
    pub(crate) usual_start: Option<Duration>,
    /// What was last decided about its instances.
    pub(crate) activity: Option<Activity>,
    /// How the attempt to prove it failed, if it did.
    pub(crate) proof: Option<ProofInstance>,
    pub(crate) proving_since: Timestamp,
    /// Until then the ingress looks at those that were found running: no judgement on time before.
    pub(crate) looked_at_by: Option<Timestamp>,
    pub(crate) because: Vec<Because>,
    /// When that was decided.
    pub(crate) decided_at: Option<Timestamp>,
    pub(crate) prepared: bool,
    /// Why the last start failed, for those who wait.
    pub(crate) last_failure: Option<String>,
    pub(crate) failed_at: Option<Timestamp>,
}

impl RevisionState {
    /// What the ingress and we together know of the instances.
    pub(crate) fn views(&self, demand: &RevisionDemand) -> Vec<InstanceView> {
        self.instances
            .iter()
            .map(|(id, record)| {
                let load = demand.instances.iter().find(|load| load.id == *id);
                let reach = match (record.phase, load) {
                    (Phase::Leaving | Phase::Stuck, _) => Reach::Retiring,
                    (_, Some(load)) => load.reach.clone(),
                    (_, None) => Reach::Starting,
                };
                InstanceView {
                    id: id.clone(),
                    reach,
                    in_flight: load.map_or(0, |load| load.in_flight),
                    idle_since: load.and_then(|load| load.idle_since),
                    started: record.started,
                }
            })
            .collect()
    }

    /// Until when it is watched whether the instance stays; `None`: it has, or every container has a probe that says more.
    pub(crate) fn watched_until(&self, record: &Record, now: Timestamp) -> Option<Timestamp> {
        let unprobed = self.plan.has_unprobed();
        unprobed
            .then(|| watched_until(record.whole_since, now))
            .flatten()
    }

    /// Whether the ingress must know its settings.
    pub(crate) fn is_published(&self) -> bool {
        self.routed
            || matches!(self.stage, Stage::Proving | Stage::Proven)
            || !self.instances.is_empty()
            || !self.zygotes.parked.is_empty()
    }
}

/// Where a service's requests go now.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ServiceRoutes {
    pub(crate) hosts: Vec<(String, Arc<HostRoute>)>,
    /// Percent by revision; a tagged one has zero.
    pub(crate) shares: BTreeMap<RevisionId, u32>,
    pub(crate) scaling: ServiceScaling,
}

#[derive(Debug, Default)]
pub(crate) struct Inner {
    pub(crate) revisions: BTreeMap<RevisionKey, RevisionState>,
    pub(crate) owners: BTreeMap<InstanceId, RevisionKey>,
    pub(crate) services: BTreeMap<ServiceKey, ServiceRoutes>,
    /// Which revision serves `latest`, as the last pass over each service saw it, and why.
    pub(crate) latest: BTreeMap<ServiceKey, Latest>,
    /// Domains that a pass saw, and where they led then.
    pub(crate) domains: BTreeMap<DomainName, ServiceKey>,
    /// Since when this process tries to get the image of a revision that is not startable yet.
    pub(crate) image_since: BTreeMap<RevisionKey, Timestamp>,
    /// Instances that the driver was asked to start and hasn't answered for.
    pub(crate) starting: BTreeMap<InstanceId, RevisionKey>,
}

impl Inner {
    /// The revisions of a service that are in the picture. Costs what the service has, whatever others have.
    pub(crate) fn revisions_of(
        &self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = (&RevisionKey, &RevisionState)> {
        self.revisions
            .range(first_of(service)..)
            .take_while(move |(key, _)| key.service == *service)
    }

    /// Domains that led to `service` when they were last looked at.
    pub(crate) fn domains_of(&self, service: &ServiceKey) -> BTreeSet<DomainName> {
        let led = self.domains.iter().filter(|(_, to)| *to == service);
        led.map(|(name, _)| name.clone()).collect()
    }

    /// The same, to be changed.
    pub(crate) fn revisions_of_mut(
        &mut self,
        service: &ServiceKey,
    ) -> impl Iterator<Item = (&RevisionKey, &mut RevisionState)> {
        self.revisions
            .range_mut(first_of(service)..)
            .take_while(move |(key, _)| key.service == *service)
    }
}

/// The least key a revision of `service` can have.
fn first_of(service: &ServiceKey) -> RevisionKey {
    RevisionKey {
        service: service.clone(),
        revision: "a".parse().expect("a letter is a revision id"),
    }
}
/// The shared picture.
#[derive(Debug, Default)]
pub(crate) struct World {
    inner: Mutex<Inner>,
}

impl World {
    /// Runs `work` on the picture. Short, never across an await.
    pub(crate) fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.inner.lock())
    }

    /// Runs `work` on a revision, if it is known.
    pub(crate) fn revision<T>(
        &self,
        key: &RevisionKey,
        work: impl FnOnce(&mut RevisionState) -> T,
    ) -> Option<T> {
        self.with(|inner| inner.revisions.get_mut(key).map(work))
    }

    /// Takes in how `key` is started, keeping what is known of its instances. `true` if it is new.
    pub(crate) fn learn(&self, key: &RevisionKey, make: impl FnOnce() -> RevisionState) -> bool {
        self.with(|inner| {
            if inner.revisions.contains_key(key) {
                return false;
            }
            let state = make();
            inner.revisions.insert(key.clone(), state);
            true
        })
    }

    /// What the ingress shall route by for each of `services`.
    pub(crate) fn routes(&self, services: &BTreeSet<ServiceKey>) -> Vec<RouteChange> {
        self.with(|inner| {
            let routes = |service: &ServiceKey| RouteTable {
                hosts: inner
                    .services
                    .get(service)
                    .map(|routes| routes.hosts.iter().cloned().collect())
                    .unwrap_or_default(),
                revisions: inner
                    .revisions_of(service)
                    .filter(|(_, state)| state.is_published())
                    .map(|(key, state)| (key.clone(), Arc::clone(&state.route)))
                    .collect(),
            };
            services
                .iter()
                .map(|service| RouteChange {
                    service: service.clone(),
                    routes: Arc::new(routes(service)),
                })
                .collect()
        })
    }

    /// Removes the instance's record. `None` if nobody knows it.
    pub(crate) fn forget(&self, id: &InstanceId) -> Option<(RevisionKey, Record)> {
        self.with(|inner| {
            let key = inner.owners.remove(id)?;
            let record = inner.revisions.get_mut(&key)?.instances.remove(id)?;
            Some((key, record))
        })
    }

    /// Ids of every instance that has a record.
    pub(crate) fn instance_ids(&self) -> BTreeSet<InstanceId> {
        self.with(|inner| inner.owners.keys().cloned().collect())
    }
}
