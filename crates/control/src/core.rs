//! What all loops share, and which pass belongs to which key.
//!
//! Owns: the seams, the world, the driver of passes. Each loop's passes are methods in its own module.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_model::{InstanceId, RevisionKey, ServiceKey};
use utsuwa_runtime::{Driver, DriverError};
use utsuwa_store::{Store, StoreError};

use crate::publish::Publisher;
use crate::rounds::{Key, PassError, Passes, Priority, Report, Rounds};
use crate::seam::{Certificates, Environment, FrontDoor, Images, Logs};
use crate::settings::ControlSettings;
use crate::world::World;

/// Instances whose memory is given back at a time: it costs a CPU and bandwidth of memory, and nobody waits for it.
const RECLAIMS: usize = 1;
/// Certificates that are asked for at a time: each attempt may wait minutes for an authority.
pub(crate) const ATTEMPTS: usize = 8;

/// Everything a pass may touch.
pub(crate) struct Core {
    pub(crate) store: Store,
    pub(crate) driver: Arc<dyn Driver>,
    pub(crate) door: Arc<dyn FrontDoor>,
    pub(crate) images: Arc<dyn Images>,
    pub(crate) logs: Arc<dyn Logs>,
    pub(crate) certificates: Arc<dyn Certificates>,
    pub(crate) env: Arc<dyn Environment>,
    pub(crate) settings: ControlSettings,
    pub(crate) world: World,
    pub(crate) rounds: Arc<Rounds>,
    pub(crate) tracker: TaskTracker,
    pub(crate) cancel: CancellationToken,
    pub(crate) publisher: Publisher,
    /// Held while memory is given back.
    pub(crate) reclaiming: Semaphore,
    /// Held while a certificate is asked for.
    pub(crate) attempts: Semaphore,
    /// What nobody here started and is on its way out: it may be for as long as a request lasts.
    pub(crate) strays: Mutex<BTreeSet<InstanceId>>,
    me: Weak<Core>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

/// The seams, as `daemon` joins them.
#[derive(Debug)]
pub struct Seams {
    pub store: Store,
    pub driver: Arc<dyn Driver>,
    pub door: Arc<dyn FrontDoor>,
    pub images: Arc<dyn Images>,
    pub logs: Arc<dyn Logs>,
    pub certificates: Arc<dyn Certificates>,
    pub env: Arc<dyn Environment>,
}

impl Core {
    pub(crate) fn new(seams: Seams, settings: ControlSettings) -> Arc<Self> {
        let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
        let rounds = Arc::new(Rounds::new(
            tracker.clone(),
            cancel.clone(),
            Arc::clone(&seams.env),
        ));
        Arc::new_cyclic(|me| Self {
            store: seams.store,
            driver: seams.driver,
            door: seams.door,
            images: seams.images,
            logs: seams.logs,
            certificates: seams.certificates,
            env: seams.env,
            settings,
            world: World::default(),
            rounds,
            tracker,
            cancel,
            publisher: Publisher::default(),
            reclaiming: Semaphore::new(RECLAIMS),
            attempts: Semaphore::new(ATTEMPTS),
            strays: Mutex::default(),
            me: me.clone(),
        })
    }

    /// Wishes a pass over `key` now.
    pub(crate) fn ask(&self, key: Key, priority: Priority) {
        if let Some(me) = self.me.upgrade() {
            self.rounds.ask(&me, key, priority);
        }
    }

    /// Wishes a pass over `key` after `wait`.
    pub(crate) fn ask_after(&self, key: Key, wait: Duration, priority: Priority) {
        if let Some(me) = self.me.upgrade() {
            self.rounds
                .ask_at(&me, key, Instant::now() + wait, priority);
        }
    }

    pub(crate) fn ask_instances(&self, key: &RevisionKey, priority: Priority) {
        self.ask(Key::Instances(key.clone()), priority);
    }

    pub(crate) fn ask_revision(&self, key: &RevisionKey) {
        self.ask(Key::Revision(key.clone()), Priority::Soon);
    }

    pub(crate) fn ask_service(&self, key: &ServiceKey) {
        self.ask(Key::Service(key.clone()), Priority::Soon);
    }

    /// Runs `work` as a task that shutdown waits for.
    pub(crate) fn spawn<F, W>(&self, work: W)
    where
        W: FnOnce(Arc<Self>) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some(me) = self.me.upgrade() {
            self.tracker.spawn(work(me));
        }
    }

    /// The same, with its first step made before this returns. On a wake: tasks that are only steps of one another go to another
    /// thread from the third on, which has to be woken for it.
    pub(crate) fn begin<F, W>(&self, work: W)
    where
        W: FnOnce(Arc<Self>) -> F,
        F: Future<Output = ()> + Send + 'static,
    {
        if let Some(me) = self.me.upgrade() {
            let mut work = Box::pin(work(me));
            if (&mut work).now_or_never().is_none() {
                self.tracker.spawn(work);
            }
        }
    }

    /// An instance id nobody ever had: 128 bits of chance.
    pub(crate) fn new_instance_id(&self) -> InstanceId {
        let text = format!("{:016x}{:016x}", self.env.random(), self.env.random());
        text.parse()
            .expect("32 hexadecimal digits are an instance id")
    }

    /// A UUID of the given chance.
    pub(crate) fn new_uid(&self) -> String {
        uuid::Builder::from_random_bytes(
            (u128::from(self.env.random()) << 64 | u128::from(self.env.random())).to_be_bytes(),
        )
        .into_uuid()
        .to_string()
    }
}

impl Passes for Core {
    fn pass(&self, key: Key) -> BoxFuture<'_, Result<Report, PassError>> {
        async move {
            match key {
                Key::Instances(key) => Ok(self.instances_pass(&key)),
                Key::Revision(key) => self.revision_pass(&key).await,
                Key::Service(key) => self.service_pass(&key).await,
                Key::Domain(name) => self.domain_pass(&name).await,
                Key::Images => self.images_pass().await,
                Key::Logs => self.logs_pass().await,
            }
        }
        .boxed()
    }
}

impl From<StoreError> for PassError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

impl From<DriverError> for PassError {
    fn from(error: DriverError) -> Self {
        Self(error.to_string())
    }
}
