//! A house without containers and without network for the loops under test: the fake driver, a door that counts, images from a
//! table, and time that only moves when told. It outlives the loops: [`House::restart`] gives it new ones.
#![allow(
    clippy::allow_attributes,
    dead_code,
    reason = "each test file uses a part of it"
)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use utsuwa_control::seam::{Environment, FrontDoor, ImageError, Images, Refusal};
use utsuwa_control::{Control, ControlHandle, ControlSettings};
use utsuwa_decide::invariant;
use utsuwa_model::demand::{InstanceLoad, Reach, RevisionDemand};
use utsuwa_model::iam::{Binding, Policy};
use utsuwa_model::image::{ImageConfig, ResolvedImage};
use utsuwa_model::instance::StartPhases;
use utsuwa_model::operation::{Operation, OperationKind};
use utsuwa_model::route::{InstanceRoute, RouteTable, Target};
use utsuwa_model::service::{
    Container, Meta, RevisionTemplate, Service, ServiceSpec, ServiceStatus,
};
use utsuwa_model::{ConditionState, InstanceId, RevisionKey, ServiceKey, Timestamp, condition};
use utsuwa_runtime::Driver;
use utsuwa_runtime::fake::FakeDriver;
use utsuwa_store::Store;

/// Paused time, counted from a fixed date.
#[derive(Debug)]
pub(crate) struct Clock {
    zero: Instant,
    dice: AtomicU64,
    pub(crate) memory: Mutex<Option<u64>>,
    pub(crate) gate: Mutex<Option<Arc<Gate>>>,
}

const BIRTH: i64 = 1_700_000_000_000_000;

impl Environment for Clock {
    fn now(&self) -> Timestamp {
        Timestamp(BIRTH).plus(self.zero.elapsed())
    }

    fn random(&self) -> u64 {
        let mut z = self
            .dice
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn available_memory(&self) -> Option<u64> {
        *self.memory.lock()
    }

    fn before(&self, write: &'static str) -> BoxFuture<'_, ()> {
        let gate = self.gate.lock().clone();
        async move {
            if let Some(gate) = gate {
                gate.pass(write).await;
            }
        }
        .boxed()
    }
}

/// Lets `left` actions through; the next one never comes back: the process died there.
#[derive(Debug)]
pub(crate) struct Gate {
    left: AtomicU64,
    closed: AtomicBool,
    pub(crate) seen: Mutex<Vec<String>>,
}

impl Gate {
    pub(crate) fn after(actions: u64) -> Arc<Self> {
        Arc::new(Self {
            left: AtomicU64::new(actions),
            closed: AtomicBool::new(false),
            seen: Mutex::default(),
        })
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    fn try_pass(&self, action: &str) -> bool {
        if self.is_closed() {
            return false;
        }
        if self.left.load(Ordering::SeqCst) == 0 {
            self.closed.store(true, Ordering::SeqCst);
            return false;
        }
        self.left.fetch_sub(1, Ordering::SeqCst);
        self.seen.lock().push(action.to_owned());
        true
    }

    async fn pass(&self, action: &str) {
        if !self.try_pass(action) {
            std::future::pending::<()>().await;
        }
    }
}

/// A door without requests of its own: tests bring them.
pub(crate) struct Door {
    clock: Arc<Clock>,
    inner: Mutex<DoorInner>,
    gate: Option<Arc<Gate>>,
    before_admit: Mutex<Option<BeforeAdmit>>,
}

/// Runs before the door takes an instance in.
pub(crate) type BeforeAdmit = Arc<dyn Fn(&InstanceId) + Send + Sync>;

impl fmt::Debug for Door {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Door").finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct DoorInner {
    handle: Option<ControlHandle>,
    table: Arc<RouteTable>,
    published: usize,
    demand: BTreeMap<RevisionKey, RevisionDemand>,
    counted: BTreeMap<RevisionKey, Timestamp>,
    owners: BTreeMap<InstanceId, RevisionKey>,
    listens: Listens,
    retired: BTreeSet<InstanceId>,
    forgotten: BTreeSet<InstanceId>,
    refused: Vec<(RevisionKey, Refusal)>,
}

/// What programs do once they run.
#[derive(Debug, Clone, Default)]
pub(crate) enum Listens {
    #[default]
    AtOnce,
    NotYet,
    Never(String),
}

impl DoorInner {
    fn demand(&mut self, key: &RevisionKey, now: Timestamp) -> &mut RevisionDemand {
        let since = self.counted.insert(key.clone(), now).unwrap_or(now);
        let demand = self.demand.entry(key.clone()).or_default();
        let micros = u64::try_from(now.since(since).as_micros()).unwrap();
        demand.concurrency_us += u64::from(demand.in_flight + demand.queued) * micros;
        demand
    }

    /// Gives waiting requests to ready instances.
    fn hand_out(&mut self, key: &RevisionKey) {
        let limit = self.table.revisions.get(key).map_or(80, |r| r.concurrency);
        let Some(demand) = self.demand.get_mut(key) else {
            return;
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
        }
    }
}

impl Door {
    fn new(clock: Arc<Clock>, gate: Option<Arc<Gate>>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            inner: Mutex::default(),
            gate,
            before_admit: Mutex::default(),
        })
    }

    fn alive(&self, action: &str) -> bool {
        self.gate.as_ref().is_none_or(|gate| gate.try_pass(action))
    }

    /// What programs do that are admitted from now on.
    pub(crate) fn listens(&self, listens: Listens) {
        self.inner.lock().listens = listens;
    }

    pub(crate) fn table(&self) -> Arc<RouteTable> {
        Arc::clone(&self.inner.lock().table)
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

    pub(crate) fn retired(&self) -> BTreeSet<InstanceId> {
        self.inner.lock().retired.clone()
    }

    pub(crate) fn refused(&self) -> Vec<(RevisionKey, Refusal)> {
        self.inner.lock().refused.clone()
    }

    /// `count` requests arrive for `key`.
    pub(crate) fn arrive(&self, key: &RevisionKey, count: u32) {
        let now = self.clock.now();
        let (handle, wake) = {
            let mut inner = self.inner.lock();
            let demand = inner.demand(key, now);
            demand.queued += count;
            demand.arrivals += u64::from(count);
            demand.last_active = Some(now);
            inner.hand_out(key);
            let demand = inner.demand(key, now);
            let nobody = !demand
                .instances
                .iter()
                .any(|i| matches!(i.reach, Reach::Ready | Reach::Starting));
            let wake = demand.queued > 0 && nobody && !demand.wake;
            demand.wake |= wake;
            (inner.handle.clone(), wake)
        };
        if let Some(handle) = handle {
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
            inner.hand_out(key);
            inner.handle.clone()
        };
        if let Some(handle) = handle {
            handle.changed(key);
        }
    }
}

impl FrontDoor for Door {
    fn publish(&self, table: Arc<RouteTable>) {
        assert_eq!(invariant::table_is_whole(&table), Ok(()));
        if self.alive("publish") {
            let mut inner = self.inner.lock();
            inner.table = table;
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
            let reach = match &inner.listens {
                Listens::AtOnce => Reach::Ready,
                Listens::NotYet => Reach::Starting,
                Listens::Never(message) => Reach::Failed {
                    message: message.clone(),
                },
            };
            let demand = inner.demand(&key, now);
            if !demand.instances.iter().any(|i| i.id == instance.id) {
                demand.instances.push(InstanceLoad {
                    id: instance.id,
                    reach,
                    in_flight: 0,
                    idle_since: Some(now),
                });
            }
            demand.wake = false;
            inner.hand_out(&key);
            (key, inner.handle.clone())
        };
        if let Some(handle) = handle {
            handle.changed(&key);
        }
    }

    fn retire(&self, id: &InstanceId, _deadline: Duration) -> BoxFuture<'static, bool> {
        if !self.alive("retire") {
            return std::future::pending().boxed();
        }
        let mut inner = self.inner.lock();
        inner.retired.insert(id.clone());
        if let Some(key) = inner.owners.get(id).cloned()
            && let Some(demand) = inner.demand.get_mut(&key)
        {
            for instance in demand.instances.iter_mut().filter(|i| i.id == *id) {
                instance.reach = Reach::Retiring;
            }
        }
        std::future::ready(true).boxed()
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
        let demand = inner.demand(revision, now);
        demand.queued = 0;
        demand.wake = false;
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

/// Images by reference.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    images: Mutex<BTreeMap<String, Result<ResolvedImage, ImageError>>>,
    pub(crate) collected: Mutex<Vec<Vec<String>>>,
    gate: Mutex<Option<Arc<Gate>>>,
    /// When pulls under way will have ended, whoever waits.
    arrives: Mutex<BTreeMap<String, Instant>>,
}

impl Shelf {
    /// The pull of `reference` ends only after `time` from now.
    pub(crate) fn takes(&self, reference: &str, time: Duration) {
        let at = Instant::now() + time;
        self.arrives.lock().insert(reference.to_owned(), at);
    }

    pub(crate) fn put(&self, reference: &str) {
        let digest = format!(
            "sha256:{:064x}",
            reference
                .bytes()
                .fold(7_u128, |hash, b| hash.wrapping_mul(31) + u128::from(b))
        );
        let image = ResolvedImage {
            reference: reference.to_owned(),
            pinned: format!("{reference}@{digest}"),
            manifest: digest.clone(),
            layers: vec![digest],
            config: ImageConfig {
                entrypoint: vec!["/app".to_owned()],
                ..ImageConfig::default()
            },
            size_bytes: 1,
        };
        let mut images = self.images.lock();
        images.insert(image.pinned.clone(), Ok(image.clone()));
        images.insert(reference.to_owned(), Ok(image));
    }

    pub(crate) fn refuse(&self, reference: &str, error: ImageError) {
        self.images.lock().insert(reference.to_owned(), Err(error));
    }
}

impl Images for Shelf {
    fn ensure(&self, reference: &str) -> BoxFuture<'_, Result<ResolvedImage, ImageError>> {
        let gate = self.gate.lock().clone();
        let found = self.images.lock().get(reference).cloned();
        let arrives = self.arrives.lock().get(reference).copied();
        let reference = reference.to_owned();
        async move {
            if let Some(arrives) = arrives {
                tokio::time::sleep_until(arrives).await;
            }
            if let Some(gate) = gate {
                gate.pass("ensure").await;
            }
            found.unwrap_or_else(|| {
                Err(ImageError {
                    reason: "ContainerMissing".to_owned(),
                    message: format!("Image '{reference}' not found."),
                    transient: false,
                })
            })
        }
        .boxed()
    }

    fn collect(&self, pinned: Vec<String>) -> BoxFuture<'_, ()> {
        self.collected.lock().push(pinned);
        std::future::ready(()).boxed()
    }
}

/// Everything, and the loops.
pub(crate) struct House {
    pub(crate) clock: Arc<Clock>,
    pub(crate) store: Store,
    pub(crate) driver: FakeDriver,
    pub(crate) door: Arc<Door>,
    pub(crate) images: Arc<Shelf>,
    pub(crate) control: ControlHandle,
    pub(crate) settings: ControlSettings,
    pub(crate) reborn: bool,
    _awake: tokio_util::task::AbortOnDropHandle<()>,
}

impl House {
    pub(crate) async fn new() -> Self {
        Self::begin(true).await
    }

    /// `awake` for paused time; without it time must be real.
    pub(crate) async fn begin(keep_awake: bool) -> Self {
        // Keeps the runtime busy, so that paused time never runs ahead while the store's thread works.
        #[expect(
            clippy::disallowed_methods,
            reason = "aborted when the house is dropped"
        )]
        let awake = tokio::spawn(async move {
            if !keep_awake {
                return;
            }
            loop {
                std::thread::yield_now();
                tokio::task::yield_now().await;
            }
        });
        let clock = Arc::new(Clock {
            zero: Instant::now(),
            dice: AtomicU64::new(42),
            memory: Mutex::new(None),
            gate: Mutex::new(None),
        });
        let now = Arc::clone(&clock);
        let driver = FakeDriver::new(move || now.now());
        let store = Store::open_in_memory().unwrap();
        let images = Arc::new(Shelf::default());
        let settings = ControlSettings::new(
            "demo".parse().unwrap(),
            "here".parse().unwrap(),
            "localhost",
            8080,
        );
        let door = Door::new(Arc::clone(&clock), None);
        let control = start(&store, &driver, &door, &images, &clock, &settings)
            .await
            .expect("starts");
        Self {
            clock,
            store,
            driver,
            door,
            images,
            control,
            settings,
            reborn: false,
            _awake: tokio_util::task::AbortOnDropHandle::new(awake),
        }
    }

    /// The server dies; a new one begins with the same store and the same world. `gate`: it dies again after so many actions.
    pub(crate) async fn restart(&mut self, gate: Option<Arc<Gate>>) {
        self.control.shutdown(Duration::ZERO).await;
        self.set_gate(gate.clone());
        self.door = Door::new(Arc::clone(&self.clock), gate.clone());
        let starting = start(
            &self.store,
            &self.driver,
            &self.door,
            &self.images,
            &self.clock,
            &self.settings,
        );
        let dead = async {
            while !gate.as_ref().is_some_and(|g| g.is_closed()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            control = starting => self.control = control.expect("starts"),
            // Died while it started: the old handle stays; the next restart replaces it.
            () = dead => {}
        }
    }

    fn set_gate(&self, gate: Option<Arc<Gate>>) {
        *self.clock.gate.lock() = gate.clone();
        *self.images.gate.lock() = gate.clone();
        self.driver.gate(gate.map(|gate| {
            let gate: utsuwa_runtime::fake::Gate = Arc::new(move |action: &str| {
                let (gate, action) = (
                    Arc::clone(&gate),
                    action.split(' ').next().unwrap().to_owned(),
                );
                async move { gate.pass(&action).await }.boxed()
            });
            gate
        }));
    }

    /// Waits until `done`, without letting time pass. Fails after a while of real time, with the table of loops.
    pub(crate) async fn until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let began = std::time::Instant::now();
        while !done(self) {
            tokio::task::yield_now().await;
            if began.elapsed() > Duration::from_secs(20) {
                let table: Vec<String> = self
                    .control
                    .loops()
                    .iter()
                    .map(|l| format!("{l:?}"))
                    .collect();
                panic!(
                    "never came: {what}\n{}\n{:?}",
                    table.join("\n"),
                    self.driver.log()
                );
            }
        }
    }

    /// Lets time pass in small steps, with everything that is due done at each.
    pub(crate) async fn pass_time(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(if time > Duration::from_secs(25) {
                Duration::from_secs(5)
            } else {
                Duration::from_millis(500)
            });
            tokio::time::advance(step).await;
            left -= step;
            self.rest().await;
        }
    }

    /// Waits until nothing is due.
    pub(crate) async fn rest(&self) {
        let mut quiet = 0;
        let began = std::time::Instant::now();
        while quiet < 50 {
            tokio::task::yield_now().await;
            if self
                .clock
                .gate
                .lock()
                .as_ref()
                .is_some_and(|gate| gate.is_closed())
            {
                // The dead do nothing any more.
                return;
            }
            quiet = if self.control.is_at_rest() {
                quiet + 1
            } else {
                0
            };
            if began.elapsed() > Duration::from_secs(20) {
                let table: Vec<String> = self
                    .control
                    .loops()
                    .iter()
                    .map(|l| format!("{l:?}"))
                    .collect();
                panic!(
                    "never came to rest\n{}\n{:?}",
                    table.join("\n"),
                    self.driver.log()
                );
            }
        }
    }

    pub(crate) fn key(&self, name: &str) -> ServiceKey {
        format!("demo/here/{name}").parse().unwrap()
    }

    /// As the API does: a new service with its operation, open to everybody.
    pub(crate) async fn create(&self, name: &str, template: RevisionTemplate) -> ServiceKey {
        let (key, now) = (self.key(name), self.clock.now());
        let service = Service {
            key: key.clone(),
            meta: Meta {
                uid: format!("uid-{name}"),
                generation: 1,
                version: now,
                create_time: now,
                ..Meta::default()
            },
            spec: ServiceSpec {
                template,
                ..ServiceSpec::default()
            },
            status: ServiceStatus::default(),
        };
        let operation = self.operation(&service, OperationKind::Create);
        self.store.create_service(service, operation).await.unwrap();
        let binding = Binding {
            role: "roles/run.invoker".into(),
            members: vec!["allUsers".into()],
            condition: None,
        };
        self.store
            .set_policy(
                &key,
                None,
                Policy {
                    bindings: vec![binding],
                    ..Policy::default()
                },
            )
            .await
            .unwrap();
        key
    }

    /// As the API does: a change by a user.
    pub(crate) async fn update(
        &self,
        key: &ServiceKey,
        change: impl FnOnce(&mut Service) + Send + 'static,
    ) {
        let now = self.clock.now();
        let old = self.store.service(key).unwrap().unwrap();
        let operation = self.operation(&old, OperationKind::Update);
        let edit = move |service: &mut Service| -> Result<(), ()> {
            change(service);
            service.meta.generation += 1;
            Ok(())
        };
        self.store
            .update_service(key, None, now, Some(operation), edit)
            .await
            .unwrap()
            .unwrap();
    }

    pub(crate) async fn delete(&self, key: &ServiceKey) {
        let now = self.clock.now();
        let old = self.store.service(key).unwrap().unwrap();
        let operation = self.operation(&old, OperationKind::Delete);
        let mark = move |service: &mut Service| -> Result<(), ()> {
            service.meta.delete_time = Some(now);
            service.meta.generation += 1;
            Ok(())
        };
        self.store
            .update_service(key, None, now, Some(operation), mark)
            .await
            .unwrap()
            .unwrap();
    }

    fn operation(&self, service: &Service, kind: OperationKind) -> Operation {
        Operation {
            id: format!(
                "{}-{}",
                service.meta.uid,
                service.meta.generation + u64::from(kind != OperationKind::Create)
            ),
            service: service.key.clone(),
            service_uid: service.meta.uid.clone(),
            generation: service.meta.generation,
            kind,
            create_time: self.clock.now(),
        }
    }

    pub(crate) fn service(&self, key: &ServiceKey) -> Service {
        self.store
            .service(key)
            .unwrap()
            .expect("the service is there")
    }

    /// State of the service's `Ready`, if it stands for what was asked last.
    pub(crate) fn ready(&self, key: &ServiceKey) -> Option<ConditionState> {
        let service = self.store.service(key).unwrap()?;
        let fresh = service.status.observed_generation == service.meta.generation;
        condition::find(&service.status.conditions, "Ready")
            .filter(|_| fresh)
            .map(|c| c.state)
    }

    pub(crate) async fn until_ready(&self, key: &ServiceKey) {
        self.until(&format!("{key} ready"), |h| {
            h.ready(key) == Some(ConditionState::True)
        })
        .await;
    }

    pub(crate) async fn until_failed(&self, key: &ServiceKey) {
        self.until(&format!("{key} failed"), |h| {
            h.ready(key) == Some(ConditionState::False)
        })
        .await;
    }

    pub(crate) fn door_in_flight(&self, key: &RevisionKey) -> u32 {
        self.door.demand(key).map_or(0, |d| d.in_flight)
    }

    /// The revision that all requests to `host` go to.
    pub(crate) fn routed(&self, host: &str) -> Option<RevisionKey> {
        match &self.door.table().hosts.get(host)?.target {
            Target::Split(split) => split.first().map(|(key, _)| key.clone()),
            Target::NotReady { .. } => None,
        }
    }
}

async fn start(
    store: &Store,
    driver: &FakeDriver,
    door: &Arc<Door>,
    images: &Arc<Shelf>,
    clock: &Arc<Clock>,
    settings: &ControlSettings,
) -> Result<ControlHandle, utsuwa_control::ControlError> {
    let driver: Arc<dyn Driver> = Arc::new(driver.clone());
    let control = Control::start(
        store.clone(),
        driver,
        Arc::clone(door) as Arc<dyn FrontDoor>,
        Arc::clone(images) as Arc<dyn Images>,
        Arc::clone(clock) as Arc<dyn Environment>,
        settings.clone(),
    )
    .await?;
    door.inner.lock().handle = Some(control.clone());
    // What became ready before the handle was known.
    let keys: Vec<RevisionKey> = door.inner.lock().demand.keys().cloned().collect();
    for key in keys {
        control.changed(&key);
    }
    Ok(control)
}

/// One container of `image`.
pub(crate) fn template(image: &str) -> RevisionTemplate {
    let container = Container {
        image: image.to_owned(),
        ..Container::default()
    };
    RevisionTemplate {
        containers: vec![container],
        ..RevisionTemplate::default()
    }
}
