//! A house without containers and without network for the loops under test: the fake driver, a door that counts, images from a
//! table, and time that only moves when told. It outlives the loops: [`House::restart`] gives it new ones.
#![allow(
    clippy::allow_attributes,
    dead_code,
    reason = "each test file uses a part of it"
)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod clock;
pub(crate) mod door;
mod intent;
pub(crate) mod registrar;
mod shelf;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::time::Instant;
use utsuwa_control::seam::{
    Certificates, Environment, FrontDoor, ImageError, Images, Logs, Refusal,
};
use utsuwa_control::{Control, ControlHandle, ControlSettings, Seams};
use utsuwa_decide::invariant;
use utsuwa_model::demand::{InstanceLoad, Reach, RevisionDemand};
use utsuwa_model::image::{ImageConfig, ResolvedImage};
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{
    InstanceRoute, RouteChange, RouteTable, StartupCheck, StartupProbe, Target,
};
use utsuwa_model::service::{Container, RevisionTemplate, Service};
use utsuwa_model::{ConditionState, InstanceId, RevisionKey, ServiceKey, Timestamp, condition};
use utsuwa_runtime::Driver;
use utsuwa_runtime::fake::FakeDriver;
use utsuwa_store::Store;

pub(crate) use self::clock::{Clock, Gate, Hold};
pub(crate) use self::door::Door;
pub(crate) use self::registrar::Registrar;
pub(crate) use self::shelf::Shelf;

/// What is kept of services: when it was last written.
#[derive(Debug, Default)]
pub(crate) struct Papers {
    written: Mutex<BTreeMap<ServiceKey, Timestamp>>,
    gate: Mutex<Option<Arc<Gate>>>,
}

impl Papers {
    pub(crate) fn kept(&self) -> Vec<String> {
        let written = self.written.lock();
        written.keys().map(|key| key.service.to_string()).collect()
    }
}

impl Logs for Papers {
    fn known(&self) -> BoxFuture<'_, Result<Vec<ServiceKey>, String>> {
        std::future::ready(Ok(self.written.lock().keys().cloned().collect())).boxed()
    }

    fn remove(
        &self,
        service: ServiceKey,
        before: Option<Timestamp>,
    ) -> BoxFuture<'_, Result<(), String>> {
        let gate = self.gate.lock().clone();
        async move {
            if let Some(gate) = gate {
                gate.pass("remove logs").await;
            }
            let mut written = self.written.lock();
            let at = written.get(&service).copied();
            if at.is_some_and(|at| before.is_some_and(|before| at >= before)) {
                return Err("written to meanwhile".to_owned());
            }
            written.remove(&service);
            Ok(())
        }
        .boxed()
    }
}

/// Everything, and the loops.
pub(crate) struct House {
    pub(crate) clock: Arc<Clock>,
    pub(crate) store: Store,
    pub(crate) driver: FakeDriver,
    pub(crate) door: Arc<Door>,
    pub(crate) images: Arc<Shelf>,
    pub(crate) papers: Arc<Papers>,
    pub(crate) registrar: Arc<Registrar>,
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
        Self::with(keep_awake, |_| {}).await
    }

    /// With other settings of the loops than a server has.
    pub(crate) async fn with(keep_awake: bool, change: impl FnOnce(&mut ControlSettings)) -> Self {
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
            set_by: AtomicI64::new(0),
            dice: AtomicU64::new(42),
            memory: Mutex::new(None),
            gate: Mutex::new(None),
            hold: Mutex::new(None),
        });
        let now = Arc::clone(&clock);
        let driver = FakeDriver::new(move || now.wall());
        let store = Store::open_in_memory().unwrap();
        let images = Arc::new(Shelf::default());
        let papers = Arc::new(Papers::default());
        let registrar = Registrar::new(Arc::clone(&clock));
        let mut settings = ControlSettings::new(
            "demo".parse().unwrap(),
            "here".parse().unwrap(),
            "localhost",
            8080,
        );
        change(&mut settings);
        let door = Door::new(Arc::clone(&clock), None);
        let seams = (&images, &papers, &registrar);
        let control = start(&store, &driver, &door, seams, &clock, &settings)
            .await
            .expect("starts");
        Self {
            clock,
            store,
            driver,
            door,
            images,
            papers,
            registrar,
            control,
            settings,
            reborn: false,
            _awake: tokio_util::task::AbortOnDropHandle::new(awake),
        }
    }

    /// Something is written of `service` now.
    pub(crate) fn write(&self, service: &ServiceKey) {
        let at = self.clock.now();
        self.papers.written.lock().insert(service.clone(), at);
    }

    /// The server dies; a new one begins with the same store and the same world. `gate`: it dies again after so many actions.
    pub(crate) async fn restart(&mut self, gate: Option<Arc<Gate>>) {
        self.control.shutdown(Duration::ZERO).await;
        self.set_gate(gate.clone());
        // Programs go on as they did.
        let (listens, streams) = {
            let inner = self.door.inner.lock();
            (inner.listens.clone(), inner.streams.clone())
        };
        self.door = Door::new(Arc::clone(&self.clock), gate.clone());
        self.door.listens(listens);
        self.door.streams(streams);
        let starting = start(
            &self.store,
            &self.driver,
            &self.door,
            (&self.images, &self.papers, &self.registrar),
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

    /// The next write of this kind waits.
    pub(crate) fn hold(&self, write: &'static str) -> Arc<Hold> {
        let hold = Arc::<Hold>::default();
        *self.clock.hold.lock() = Some((write, Arc::clone(&hold)));
        hold
    }

    fn set_gate(&self, gate: Option<Arc<Gate>>) {
        *self.clock.gate.lock() = gate.clone();
        *self.images.gate.lock() = gate.clone();
        *self.papers.gate.lock() = gate.clone();
        *self.registrar.gate.lock() = gate.clone();
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
    #[expect(
        clippy::disallowed_methods,
        reason = "patience is real time: the clock stands still"
    )]
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
    #[expect(
        clippy::disallowed_methods,
        reason = "patience is real time: the clock stands still"
    )]
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
    (images, papers, registrar): (&Arc<Shelf>, &Arc<Papers>, &Arc<Registrar>),
    clock: &Arc<Clock>,
    settings: &ControlSettings,
) -> Result<ControlHandle, utsuwa_control::ControlError> {
    let driver: Arc<dyn Driver> = Arc::new(driver.clone());
    let seams = Seams {
        store: store.clone(),
        driver,
        door: Arc::clone(door) as Arc<dyn FrontDoor>,
        images: Arc::clone(images) as Arc<dyn Images>,
        logs: Arc::clone(papers) as Arc<dyn Logs>,
        certificates: Arc::clone(registrar) as Arc<dyn Certificates>,
        env: Arc::clone(clock) as Arc<dyn Environment>,
    };
    let control = Control::start(seams, settings.clone()).await?;
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
