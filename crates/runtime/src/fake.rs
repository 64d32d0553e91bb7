//! A driver without containers, for tests of everything above it: instances are entries in a map.
//!
//! Owns: what runs in the pretended world, a log of calls, scripted failures. It outlives the loops under test, as the keeper
//! outlives the server: a new set of loops given the same [`FakeDriver`] finds what the old one left.
//!
//! Invariants: 1. Like the real one it can be asked twice: starting a running id and stopping a gone one is no error.
//! 2. Every instance that ends sends exactly one event.

mod controls;
mod parked;
mod programs;
mod tiers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::broadcast;
use utsuwa_model::instance::{
    Exit, InstanceObservation, InstanceSpec, Kernel, RootfsSpec, StartPhases, Tier,
};
use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::{InstanceId, Timestamp};

use crate::driver::{Driver, DriverError, InstanceEvent, Reclaimed, Usage};

pub use self::programs::{Begin, Program};

/// A call that can be made to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    Prepare,
    Start,
    StartContainer,
    Stop,
    SetCpu,
    Freeze,
    Thaw,
    Reclaim,
    GoOn,
    Release,
    List,
}

/// Asked before every call that changes the world; the call waits for the answer. A gate that never answers is a crash.
pub type Gate = Arc<dyn Fn(&str) -> BoxFuture<'static, ()> + Send + Sync>;

/// A driver without containers.
#[derive(Clone)]
pub struct FakeDriver {
    inner: Arc<Inner>,
}

struct Inner {
    world: Mutex<World>,
    events: broadcast::Sender<InstanceEvent>,
    now: Box<dyn Fn() -> Timestamp + Send + Sync>,
}

#[derive(Default)]
struct World {
    running: BTreeMap<InstanceId, InstanceObservation>,
    specs: BTreeMap<InstanceId, InstanceSpec>,
    begin: Option<Begin>,
    programs: BTreeMap<InstanceId, Program>,
    prepared: BTreeSet<RootfsSpec>,
    failures: BTreeMap<Call, VecDeque<DriverError>>,
    start_takes: Duration,
    stop_takes: Duration,
    exit_at_start: Option<(Exit, Vec<String>)>,
    learnt: Option<Result<Vec<String>, String>>,
    barred: Option<(Tier, String)>,
    log: Vec<String>,
    next_pid: u32,
    gate: Option<Gate>,
}

impl World {
    /// Nothing of the instance is left; whether there was anything.
    fn end(&mut self, id: &InstanceId) -> bool {
        self.programs.remove(id);
        self.running.remove(id).is_some()
    }
}

impl fmt::Debug for FakeDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FakeDriver")
            .field("running", &self.inner.world.lock().running.len())
            .finish_non_exhaustive()
    }
}

impl FakeDriver {
    /// An empty world whose time is `now`.
    #[must_use]
    pub fn new(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Self {
        let world = World {
            next_pid: 1000,
            ..World::default()
        };
        let (events, _) = broadcast::channel(1024);
        Self {
            inner: Arc::new(Inner {
                world: Mutex::new(world),
                events,
                now: Box::new(now),
            }),
        }
    }

    /// Ids that run now.
    #[must_use]
    pub fn running(&self) -> Vec<InstanceId> {
        self.inner.world.lock().running.keys().cloned().collect()
    }

    /// How an instance was started.
    #[must_use]
    pub fn spec(&self, id: &InstanceId) -> Option<InstanceSpec> {
        self.inner.world.lock().specs.get(id).cloned()
    }

    /// Root file systems that were prepared.
    #[must_use]
    pub fn prepared(&self) -> BTreeSet<RootfsSpec> {
        self.inner.world.lock().prepared.clone()
    }

    /// Every call so far that changed something: `start ID`, `stop ID`, `prepare`.
    #[must_use]
    pub fn log(&self) -> Vec<String> {
        self.inner.world.lock().log.clone()
    }

    fn tell(&self, id: &InstanceId, container: &str, exit: Exit, last_lines: Vec<String>) {
        let event = InstanceEvent::Exited {
            id: id.clone(),
            container: container.to_owned(),
            exit,
            at: (self.inner.now)(),
            last_lines,
        };
        // Nobody listening is a world without a server: the event is lost, as it would be.
        drop(self.inner.events.send(event));
    }

    async fn before(&self, call: Call, what: &str) -> Result<(), DriverError> {
        let gate = self.inner.world.lock().gate.clone();
        if let Some(gate) = gate {
            gate(what).await;
        }
        let mut world = self.inner.world.lock();
        match world.failures.get_mut(&call).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl Driver for FakeDriver {
    fn prepare(&self, rootfs: RootfsSpec) -> BoxFuture<'_, Result<(), DriverError>> {
        async move {
            self.before(Call::Prepare, "prepare").await?;
            let mut world = self.inner.world.lock();
            if world.prepared.insert(rootfs) {
                world.log.push("prepare".to_owned());
            }
            Ok(())
        }
        .boxed()
    }

    fn barred(&self, _: Kernel) -> Option<(Tier, String)> {
        self.inner.world.lock().barred.clone()
    }

    fn start_container(
        &self,
        id: &InstanceId,
        container: usize,
    ) -> BoxFuture<'_, Result<(), DriverError>> {
        let id = id.clone();
        async move {
            let what = format!("start {id} container {container}");
            self.before(Call::StartContainer, &what).await?;
            let mut world = self.inner.world.lock();
            if !world.running.contains_key(&id) {
                return Err(DriverError::NotFound(id));
            }
            world.log.push(what);
            Ok(())
        }
        .boxed()
    }

    fn start(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<StartPhases, DriverError>> {
        async move {
            self.before(Call::Start, &format!("start {}", spec.id))
                .await?;
            let takes = self.inner.world.lock().start_takes;
            if takes.is_zero() {
                // No driver has its answer before it is waited for.
                tokio::task::yield_now().await;
            } else {
                tokio::time::sleep(takes).await;
            }
            let id = spec.id.clone();
            let ends = {
                let mut world = self.inner.world.lock();
                if !world.running.contains_key(&id) {
                    world.next_pid += 1;
                    let observation = InstanceObservation {
                        id: id.clone(),
                        revision: spec.revision.clone(),
                        port: spec.port,
                        pid: world.next_pid,
                        started: (self.inner.now)(),
                        limits: spec.limits,
                        tier: Tier::Awake,
                        parked: spec.parks(),
                    };
                    world.running.insert(id.clone(), observation);
                    world.log.push(format!("start {id}"));
                    if let Some(begin) = world.begin.clone() {
                        world.programs.insert(id.clone(), begin(&spec));
                    }
                    world.specs.insert(id.clone(), spec);
                }
                world.exit_at_start.clone()
            };
            if let Some((exit, last_lines)) = ends {
                self.exit(&id, exit, last_lines);
            }
            Ok(StartPhases {
                exec: takes,
                ..StartPhases::default()
            })
        }
        .boxed()
    }

    fn stop(&self, id: InstanceId, _grace: Duration) -> BoxFuture<'_, Result<(), DriverError>> {
        async move {
            self.before(Call::Stop, &format!("stop {id}")).await?;
            let takes = self.inner.world.lock().stop_takes;
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            let was = self.inner.world.lock().end(&id);
            if was {
                self.inner.world.lock().log.push(format!("stop {id}"));
                self.tell(&id, "", Exit::Signal(15), Vec::new());
            }
            Ok(())
        }
        .boxed()
    }

    fn release(&self, uid_base: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        async move {
            self.before(Call::Release, "release").await?;
            let mut world = self.inner.world.lock();
            let has_ids = |id: &InstanceId| {
                let spec = world.specs.get(id);
                spec.is_some_and(|spec| spec.rootfs.uid_base == uid_base)
            };
            if let Some(id) = world.running.keys().find(|id| has_ids(id)) {
                return Err(DriverError::Exhausted(format!("instance {id} has them")));
            }
            let before = world.prepared.len();
            world.prepared.retain(|rootfs| rootfs.uid_base != uid_base);
            if world.prepared.len() < before {
                world.log.push("release".to_owned());
            }
            Ok(())
        }
        .boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<InstanceObservation>, DriverError>> {
        async move {
            // Looked at first: the world goes on while the answer is on its way.
            let listed = self.inner.world.lock().running.values().cloned().collect();
            self.before(Call::List, "list").await?;
            Ok(listed)
        }
        .boxed()
    }

    fn events(&self) -> broadcast::Receiver<InstanceEvent> {
        self.inner.events.subscribe()
    }

    fn socket(&self, id: &InstanceId) -> BoxFuture<'_, Result<(OwnedFd, SocketAddr), DriverError>> {
        std::future::ready(self.socket_of(id)).boxed()
    }

    fn set_cpu(&self, id: &InstanceId, cpu: MilliCpu) -> BoxFuture<'_, Result<(), DriverError>> {
        let id = id.clone();
        async move {
            self.before(Call::SetCpu, &format!("set cpu {id}")).await?;
            let mut world = self.inner.world.lock();
            let Some(found) = world.running.get_mut(&id) else {
                return Err(DriverError::NotFound(id));
            };
            found.limits.cpu = cpu;
            world.log.push(format!("cpu {id} {}m", cpu.0));
            Ok(())
        }
        .boxed()
    }

    fn freeze(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>> {
        let id = id.clone();
        async move {
            self.change_tier(Call::Freeze, "freeze", id, Tier::Frozen)
                .await
        }
        .boxed()
    }

    fn thaw(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>> {
        let id = id.clone();
        async move { self.change_tier(Call::Thaw, "thaw", id, Tier::Awake).await }.boxed()
    }

    fn go_on(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>> {
        self.let_go_on(id.clone()).boxed()
    }

    fn learnt(&self, id: &InstanceId) -> Option<Result<Vec<String>, String>> {
        self.learnt_of(id)
    }

    fn reclaim(&self, id: &InstanceId) -> BoxFuture<'_, Result<Reclaimed, DriverError>> {
        let id = id.clone();
        async move {
            self.before(Call::Reclaim, &format!("reclaim {id}")).await?;
            let mut world = self.inner.world.lock();
            let Some(found) = world.running.get_mut(&id) else {
                return Err(DriverError::NotFound(id));
            };
            if found.tier == Tier::Awake {
                return Err(DriverError::Internal(format!("instance {id} is awake")));
            }
            found.tier = Tier::Reclaimed;
            world.log.push(format!("reclaim {id}"));
            Ok(Reclaimed {
                before_bytes: 16 << 20,
                after_bytes: 4 << 20,
            })
        }
        .boxed()
    }

    fn usage(&self, id: &InstanceId) -> BoxFuture<'_, Result<Usage, DriverError>> {
        let known = self.inner.world.lock().running.contains_key(id);
        let id = id.clone();
        async move {
            if known {
                Ok(Usage {
                    memory_bytes: 16 << 20,
                    cpu_us: 0,
                    pids: 1,
                })
            } else {
                Err(DriverError::NotFound(id))
            }
        }
        .boxed()
    }
}
