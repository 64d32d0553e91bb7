//! A door without requests of its own: tests bring them.

use tokio::sync::watch;
use utsuwa_model::demand::FailingProbe;

use super::*;

/// A door without requests of its own: tests bring them.
pub(crate) struct Door {
    pub(super) clock: Arc<Clock>,
    pub(super) inner: Mutex<DoorInner>,
    pub(super) gate: Option<Arc<Gate>>,
    pub(super) before_admit: Mutex<Option<BeforeAdmit>>,
}

/// Runs before the door takes an instance in.
pub(crate) type BeforeAdmit = Arc<dyn Fn(&InstanceId) + Send + Sync>;

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
pub(super) struct DoorInner {
    pub(super) handle: Option<ControlHandle>,
    pub(super) tables: BTreeMap<ServiceKey, Arc<RouteTable>>,
    pub(super) published: usize,
    pub(super) demand: BTreeMap<RevisionKey, RevisionDemand>,
    pub(super) counted: BTreeMap<RevisionKey, Timestamp>,
    pub(super) owners: BTreeMap<InstanceId, RevisionKey>,
    pub(super) listens: Listens,
    pub(super) ages: BTreeMap<InstanceId, Duration>,
    pub(super) retired: BTreeSet<InstanceId>,
    /// Instances that were to retire, each time.
    pub(super) retirements: Vec<InstanceId>,
    /// While it is so, what is to retire has streams in it.
    pub(super) streams: Option<Arc<watch::Sender<bool>>>,
    pub(super) forgotten: BTreeSet<InstanceId>,
    pub(super) refused: Vec<(RevisionKey, Refusal)>,
    /// Startup probes of single containers: those asked for, and those that fail.
    pub(super) probes: Vec<StartupCheck>,
    pub(super) failing: Vec<StartupCheck>,
    /// May be frozen.
    pub(super) resting: BTreeSet<InstanceId>,
    /// Not asked for their health, since they may be frozen or are not known to be thawed.
    pub(super) unasked: BTreeSet<InstanceId>,
}

/// What programs do once they run.
#[derive(Debug, Clone, Default)]
pub(crate) enum Listens {
    #[default]
    AtOnce,
    NotYet,
    /// Not yet, and what its owner can do about it is known.
    Elsewhere(String),
    Never(String),
}

impl DoorInner {
    pub(super) fn demand(&mut self, key: &RevisionKey, now: Timestamp) -> &mut RevisionDemand {
        let since = self.counted.insert(key.clone(), now).unwrap_or(now);
        let demand = self.demand.entry(key.clone()).or_default();
        let micros = u64::try_from(now.since(since).as_micros()).unwrap();
        demand.concurrency_us += u64::from(demand.in_flight + demand.queued) * micros;
        demand
    }

    /// Gives waiting requests to ready instances. Answers those among them that may be frozen.
    pub(super) fn hand_out(&mut self, key: &RevisionKey) -> Vec<InstanceId> {
        let mut roused = Vec::new();
        let table = self.tables.get(&key.service);
        let route = table.and_then(|table| table.revisions.get(key));
        let limit = route.map_or(80, |r| r.concurrency);
        let Some(demand) = self.demand.get_mut(key) else {
            return roused;
        };
        while demand.queued > 0 {
            let free = |i: &&mut InstanceLoad| {
                i.reach == Reach::Ready && (limit == 0 || i.in_flight < limit)
            };
            let Some(instance) = demand.instances.iter_mut().find(free) else {
                break;
            };
            instance.in_flight += 1;
            instance.idle_since = None;
            demand.queued -= 1;
            demand.in_flight += 1;
            if self.resting.remove(&instance.id) {
                roused.push(instance.id.clone());
            }
        }
        roused
    }
}

impl Door {
    pub(super) fn new(clock: Arc<Clock>, gate: Option<Arc<Gate>>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            inner: Mutex::default(),
            gate,
            before_admit: Mutex::default(),
        })
    }

    pub(super) fn alive(&self, action: &str) -> bool {
        self.gate.as_ref().is_none_or(|gate| gate.try_pass(action))
    }

    /// What programs do that are admitted from now on.
    pub(crate) fn listens(&self, listens: Listens) {
        self.inner.lock().listens = listens;
    }

    /// Probes of single containers that fail from now on.
    pub(crate) fn fails(&self, check: StartupCheck) {
        self.inner.lock().failing.push(check);
    }

    /// Those that were made.
    pub(crate) fn probes(&self) -> Vec<StartupCheck> {
        self.inner.lock().probes.clone()
    }

    /// Every program that runs listens now.
    pub(crate) fn ready_now(&self) {
        let now = self.clock.now();
        let (keys, handle) = {
            let mut inner = self.inner.lock();
            let keys: Vec<RevisionKey> = inner.demand.keys().cloned().collect();
            for key in &keys {
                let demand = inner.demand(key, now);
                for instance in &mut demand.instances {
                    if instance.reach == Reach::Starting {
                        instance.reach = Reach::Ready;
                    }
                }
                drop(inner.hand_out(key));
            }
            (keys, inner.handle.clone())
        };
        for (key, handle) in keys.iter().zip(std::iter::repeat(handle)) {
            if let Some(handle) = handle {
                handle.changed(key);
            }
        }
    }

    /// A probe of the instance turned, as the ingress tells of it.
    pub(crate) fn turned(&self, id: &InstanceId, reach: Reach) {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        let key = inner.owners[id].clone();
        let demand = inner.demand(&key, now);
        let load = demand.instances.iter_mut().find(|load| load.id == *id);
        load.expect("known").reach = reach;
        inner.hand_out(&key);
        let handle = inner.handle.clone();
        drop(inner);
        handle.expect("started").changed(&key);
    }

    /// The routes of all services.
    pub(crate) fn table(&self) -> RouteTable {
        let mut all = RouteTable::default();
        for table in self.inner.lock().tables.values() {
            all.hosts.extend(table.hosts.clone());
            all.revisions.extend(table.revisions.clone());
        }
        all
    }

    /// `hook` runs before each admission.
    pub(crate) fn before_admit(&self, hook: Option<BeforeAdmit>) {
        *self.before_admit.lock() = hook;
    }

    /// How many tables came.
    pub(crate) fn published(&self) -> usize {
        self.inner.lock().published
    }

    /// All ids that were to be forgotten, also unknown ones.
    pub(crate) fn forgotten(&self) -> BTreeSet<InstanceId> {
        self.inner.lock().forgotten.clone()
    }

    /// Instances that were taken in and not forgotten.
    pub(crate) fn known(&self) -> BTreeSet<InstanceId> {
        self.inner.lock().owners.keys().cloned().collect()
    }

    /// How long it ran when it was handed over.
    pub(crate) fn age(&self, id: &InstanceId) -> Option<Duration> {
        self.inner.lock().ages.get(id).copied()
    }

    /// Whether its health is asked for.
    pub(crate) fn asks(&self, id: &InstanceId) -> bool {
        !self.inner.lock().unasked.contains(id)
    }

    /// How often `id` was to retire.
    pub(crate) fn retirements(&self, id: &InstanceId) -> usize {
        let inner = self.inner.lock();
        inner.retirements.iter().filter(|one| *one == id).count()
    }

    /// Streams are in all that is to retire, until `streams` says otherwise.
    pub(crate) fn streams(&self, streams: Option<Arc<watch::Sender<bool>>>) {
        self.inner.lock().streams = streams;
    }

    pub(crate) fn retired(&self) -> BTreeSet<InstanceId> {
        self.inner.lock().retired.clone()
    }

    pub(crate) fn refused(&self) -> Vec<(RevisionKey, Refusal)> {
        self.inner.lock().refused.clone()
    }

    /// `count` requests arrive for `key`.
    pub(crate) fn arrive(&self, key: &RevisionKey, count: u32) {
        let now = self.clock.now();
        let (handle, wake, roused) = {
            let mut inner = self.inner.lock();
            let demand = inner.demand(key, now);
            demand.queued += count;
            demand.arrivals += u64::from(count);
            demand.last_active = Some(now);
            let roused = inner.hand_out(key);
            let demand = inner.demand(key, now);
            let nobody = !demand
                .instances
                .iter()
                .any(|i| matches!(i.reach, Reach::Ready | Reach::Starting));
            let wake = demand.queued > 0 && nobody && !demand.wake;
            demand.wake |= wake;
            (inner.handle.clone(), wake, roused)
        };
        if let Some(handle) = handle {
            for id in roused {
                handle.thaw(key, &id);
            }
            if wake {
                handle.wake(key)
            } else {
                handle.changed(key)
            }
        }
    }

    /// All requests inside instances of `key` end.
    pub(crate) fn finish(&self, key: &RevisionKey) {
        let now = self.clock.now();
        let handle = {
            let mut inner = self.inner.lock();
            let demand = inner.demand(key, now);
            demand.in_flight = 0;
            demand.last_active = Some(now);
            for instance in demand.instances.iter_mut().filter(|i| i.in_flight > 0) {
                instance.in_flight = 0;
                instance.idle_since = Some(now);
            }
            drop(inner.hand_out(key));
            inner.handle.clone()
        };
        if let Some(handle) = handle {
            handle.changed(key);
        }
    }
}

impl FrontDoor for Door {
    fn publish(&self, changes: Vec<RouteChange>) {
        for change in &changes {
            assert_eq!(invariant::table_is_whole(&change.routes), Ok(()));
        }
        if self.alive("publish") {
            let mut inner = self.inner.lock();
            for RouteChange { service, routes } in changes {
                inner.tables.insert(service, routes);
            }
            inner.published += 1;
        }
    }

    fn admit(&self, instance: InstanceRoute, _phases: StartPhases) {
        if !self.alive("admit") {
            return;
        }
        let hook = self.before_admit.lock().clone();
        if let Some(hook) = hook {
            hook(&instance.id);
        }
        let now = self.clock.now();
        let (key, handle) = {
            let mut inner = self.inner.lock();
            let key = instance.revision;
            inner.owners.insert(instance.id.clone(), key.clone());
            inner.ages.insert(instance.id.clone(), instance.age);
            let reach = match &inner.listens {
                Listens::AtOnce => Reach::Ready,
                Listens::NotYet | Listens::Elsewhere(_) => Reach::Starting,
                Listens::Never(message) => Reach::Failed {
                    message: message.clone(),
                },
            };
            let failing = match &inner.listens {
                Listens::Elsewhere(advice) => vec![FailingProbe {
                    probe: "startup".to_owned(),
                    asks: "connecting to port 8080".to_owned(),
                    since: now,
                    last_answer: "connection refused".to_owned(),
                    failures: 1,
                    failure_threshold: 1,
                    advice: advice.clone(),
                }],
                _ => Vec::new(),
            };
            let demand = inner.demand(&key, now);
            if !demand.instances.iter().any(|i| i.id == instance.id) {
                demand.instances.push(InstanceLoad {
                    id: instance.id,
                    reach,
                    in_flight: 0,
                    idle_since: Some(now),
                    failing,
                });
            }
            demand.wake = false;
            drop(inner.hand_out(&key));
            (key, inner.handle.clone())
        };
        if let Some(handle) = handle {
            handle.changed(&key);
        }
    }

    fn probe(
        &self,
        _instance: InstanceRoute,
        startup: StartupProbe,
    ) -> BoxFuture<'static, Result<(), String>> {
        if !self.alive("probe") {
            return std::future::pending().boxed();
        }
        let mut inner = self.inner.lock();
        inner.probes.push(startup.check.clone());
        let fails = inner.failing.contains(&startup.check);
        let outcome = if fails {
            Err("connecting in vain".to_owned())
        } else {
            Ok(())
        };
        std::future::ready(outcome).boxed()
    }

    fn retire(&self, id: &InstanceId, _deadline: Duration) -> BoxFuture<'static, bool> {
        if !self.alive("retire") {
            return std::future::pending().boxed();
        }
        let mut inner = self.inner.lock();
        inner.retired.insert(id.clone());
        inner.retirements.push(id.clone());
        let streams = inner.streams.as_ref().map(|streams| streams.subscribe());
        if let Some(key) = inner.owners.get(id).cloned()
            && let Some(demand) = inner.demand.get_mut(&key)
        {
            for instance in demand.instances.iter_mut().filter(|i| i.id == *id) {
                instance.reach = Reach::Retiring;
            }
        }
        async move {
            if let Some(mut streams) = streams {
                // Its sender outlives every door.
                drop(streams.wait_for(|streams| !*streams).await);
            }
            true
        }
        .boxed()
    }

    fn rest(&self, id: &InstanceId) -> bool {
        if !self.alive("rest") {
            return false;
        }
        let mut inner = self.inner.lock();
        let mut loads = inner.demand.values().flat_map(|demand| &demand.instances);
        let may = loads.any(|i| i.id == *id && i.in_flight == 0 && i.reach == Reach::Ready);
        if may {
            inner.resting.insert(id.clone());
            inner.unasked.insert(id.clone());
        }
        may
    }

    fn awake(&self, id: &InstanceId) {
        if self.alive("awake") {
            let mut inner = self.inner.lock();
            inner.resting.remove(id);
            inner.unasked.remove(id);
        }
    }

    fn forget(&self, id: &InstanceId, _out_of_memory: bool) {
        if !self.alive("forget") {
            return;
        }
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        inner.forgotten.insert(id.clone());
        if let Some(key) = inner.owners.remove(id) {
            let demand = inner.demand(&key, now);
            let inside: u32 = demand
                .instances
                .iter()
                .filter(|i| i.id == *id)
                .map(|i| i.in_flight)
                .sum();
            demand.in_flight -= inside;
            demand.instances.retain(|i| i.id != *id);
        }
    }

    fn refuse(&self, revision: &RevisionKey, why: Refusal) {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        // Who waits for room goes on waiting; the ingress keeps his time.
        if matches!(why, Refusal::StartFailed { .. }) {
            let demand = inner.demand(revision, now);
            demand.queued = 0;
            demand.wake = false;
        }
        inner.refused.push((revision.clone(), why));
    }

    fn demand(&self, revision: &RevisionKey) -> Option<RevisionDemand> {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        inner
            .demand
            .contains_key(revision)
            .then(|| inner.demand(revision, now).clone())
    }
}
