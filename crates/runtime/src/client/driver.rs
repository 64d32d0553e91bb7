//! The driver of real sandboxes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio_util::task::TaskTracker;
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{
    InstanceObservation, InstanceSpec, Kernel, RootfsSpec, StartPhases, Tier,
};
use utsuwa_model::quantity::MilliCpu;

use super::connection::Connection;
use super::internal::InternalEvent;
use super::link::{ConnectError, KeeperLink};
use super::shared::{Answer, Call, Shared, superseded, unexpected};
use super::sockets::{Found, SocketCache};
use crate::driver::{Driver, DriverError, InstanceEvent, Reclaimed, Usage};
use crate::keeper::protocol::{Op, Reply, Status};
use crate::sandbox::reclaim;

/// Requests that may wait for the connection's task.
const CALLS: usize = 1024;
/// Events a receiver may lag behind before it must list.
const EVENTS: usize = 1024;

/// Starts instances in sandboxes through the keeper.
#[derive(Debug, Clone)]
pub struct SandboxDriver {
    pub(super) shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
    tasks: TaskTracker,
}

impl SandboxDriver {
    /// Connects to the keeper as the server of the data directory with `data_id`; the server before, if any, is
    /// superseded. `internal` gets the sockets that stand for sandboxes; without it they are not kept.
    ///
    /// # Errors
    /// [`DriverError::Unavailable`] if no keeper answers.
    pub async fn connect(
        socket: &Path,
        data_id: &str,
        build: &str,
        internal: Option<mpsc::Sender<InternalEvent>>,
    ) -> Result<Self, DriverError> {
        let link = KeeperLink::connect(socket, data_id, build, Vec::new())
            .await
            .map_err(|error| match error {
                ConnectError::Io(error) => {
                    DriverError::Unavailable(format!("{}: {error}", socket.display()))
                }
                ConnectError::Refused(reason) => DriverError::Refused(reason),
            })?;
        let shared = Arc::new(Shared {
            socket: socket.to_owned(),
            data_id: data_id.to_owned(),
            build: build.to_owned(),
            events: broadcast::Sender::new(EVENTS),
            listening: Notify::new(),
            superseded: AtomicBool::new(false),
            leave: AtomicBool::new(false),
            superseded_wake: Notify::new(),
            gave_place: AtomicBool::new(false),
            never_freezes: Mutex::new(link.never_freezes.clone()),
            sockets: SocketCache::default(),
            listeners: Mutex::new(HashMap::new()),
        });
        let (calls, receiver) = mpsc::channel(CALLS);
        let tasks = TaskTracker::new();
        tasks.spawn(Connection::new(Arc::clone(&shared), receiver, internal, link).run());
        Ok(Self {
            shared,
            calls,
            tasks,
        })
    }

    /// Returns when another server has taken over this one's place: it must end then.
    pub async fn superseded(&self) {
        self.told(&self.shared.superseded).await;
    }

    /// Returns when another server waits for this one to drain and end. Until it has ended everything works as before.
    pub async fn asked_to_leave(&self) {
        self.told(&self.shared.leave).await;
    }

    /// From here on this server never says that it is the server: were its connection lost, it would supersede the next one.
    pub fn give_place(&self) {
        self.shared.gave_place.store(true, Ordering::Release);
    }

    async fn told(&self, what: &AtomicBool) {
        loop {
            let woken = self.shared.superseded_wake.notified();
            tokio::pin!(woken);
            woken.as_mut().enable();
            if what.load(Ordering::Acquire) {
                return;
            }
            woken.await;
        }
    }

    /// The exit was written down; the keeper may forget it.
    ///
    /// # Errors
    /// [`DriverError`]; it is then told again to the next server.
    pub async fn acknowledge(&self, id: &InstanceId) -> Result<(), DriverError> {
        self.call(Op::AckExit { id: id.clone() }, Vec::new())
            .await
            .map(|_| ())
    }

    /// What the keeper holds.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn status(&self) -> Result<Status, DriverError> {
        match self.call(Op::Status, Vec::new()).await? {
            (Reply::Status(status), _) => Ok(status),
            other => Err(unexpected(&other.0)),
        }
    }

    pub(super) async fn call(&self, op: Op, descriptors: Vec<OwnedFd>) -> Answer {
        let (answer, receiver) = oneshot::channel();
        self.calls
            .send(Call {
                op,
                descriptors,
                answer,
            })
            .await
            .map_err(|_| superseded())?;
        receiver.await.map_err(|_| superseded())?
    }

    /// A request that is answered by nothing but its end.
    fn done(&self, op: Op) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move { self.call(op, Vec::new()).await.map(|_| ()) })
    }

    /// Asks for dial sockets without waiting for them, as long as somebody else does.
    fn refill_sockets(&self, id: InstanceId) {
        let driver = self.clone();
        self.tasks.spawn(async move {
            let sockets = &driver.shared.sockets;
            let mut first = true;
            while let Some(count) = sockets.wanted(&id, std::mem::take(&mut first)) {
                match driver.sockets_of(&id, count).await {
                    Ok((_, made)) => sockets.add(&id, made),
                    Err(error) => {
                        tracing::debug!(%id, %error, "ask for dial sockets");
                        return sockets.failed(&id, &error);
                    }
                }
            }
        });
    }

    /// `count` sockets from the keeper, one at least.
    async fn sockets_of(
        &self,
        id: &InstanceId,
        count: u32,
    ) -> Result<(SocketAddr, Vec<OwnedFd>), DriverError> {
        let id = id.clone();
        match self.call(Op::Sockets { id, count }, Vec::new()).await? {
            (Reply::Sockets { address }, sockets) if !sockets.is_empty() => Ok((address, sockets)),
            other => Err(unexpected(&other.0)),
        }
    }
}

impl Driver for SandboxDriver {
    fn prepare(&self, rootfs: RootfsSpec) -> BoxFuture<'_, Result<(), DriverError>> {
        self.done(Op::Prepare { rootfs })
    }

    fn start(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<StartPhases, DriverError>> {
        Box::pin(async move {
            let (id, parks) = (spec.id.clone(), spec.parks());
            match self.call(Op::start(spec), Vec::new()).await? {
                (Reply::Started { zygote: false, .. }, _) if parks => {
                    self.stop(id, Duration::ZERO).await?;
                    let why = "the keeper is of an older build, which parks nothing";
                    Err(DriverError::Refused(why.to_owned()))
                }
                (Reply::Started { phases, learns, .. }, mut sockets) => {
                    if let Some(memory) = sockets.pop_if(|_| learns) {
                        self.shared.sockets.learns(&id, memory);
                    }
                    self.shared.sockets.add(&id, sockets);
                    Ok(phases)
                }
                other => Err(unexpected(&other.0)),
            }
        })
    }

    fn start_container(
        &self,
        id: &InstanceId,
        container: usize,
    ) -> BoxFuture<'_, Result<(), DriverError>> {
        self.done(Op::StartContainer {
            id: id.clone(),
            container,
        })
    }

    fn stop(&self, id: InstanceId, grace: Duration) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(async move {
            self.shared.sockets.forget(&id);
            let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            self.call(Op::Stop { id, grace_ms }, Vec::new())
                .await
                .map(|_| ())
        })
    }

    fn release(&self, uid_base: u32) -> BoxFuture<'_, Result<(), DriverError>> {
        self.done(Op::ReleaseIds { uid_base })
    }

    fn pid(&self, id: &InstanceId) -> Option<u32> {
        self.shared.sockets.pids.lock().get(id).copied()
    }

    fn barred(&self, kernel: Kernel) -> Option<(Tier, String)> {
        let never = self.shared.never_freezes.lock().clone();
        if !never.is_empty() {
            return Some((Tier::Frozen, never));
        }
        let kept = match kernel {
            Kernel::Gvisor => Err(reclaim::GVISOR.to_owned()),
            Kernel::Host => reclaim::swap().map(drop),
        };
        kept.err().map(|why| (Tier::Reclaimed, why))
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<InstanceObservation>, DriverError>> {
        Box::pin(async move {
            let mut all: Vec<InstanceObservation> = Vec::new();
            loop {
                let after = all.last().map(|last| last.id.clone());
                match self.call(Op::List { after }, Vec::new()).await? {
                    (Reply::List { instances, more }, _) => {
                        let done = !more || instances.is_empty();
                        all.extend(instances);
                        if done {
                            return Ok(all);
                        }
                    }
                    other => return Err(unexpected(&other.0)),
                }
            }
        })
    }

    fn events(&self) -> broadcast::Receiver<InstanceEvent> {
        let receiver = self.shared.events.subscribe();
        self.shared.listening.notify_one();
        receiver
    }

    fn socket(&self, id: &InstanceId) -> BoxFuture<'_, Result<(OwnedFd, SocketAddr), DriverError>> {
        let id = id.clone();
        Box::pin(async move {
            let (found, ask) = self.shared.sockets.take(&id);
            if ask {
                self.refill_sockets(id.clone());
            }
            match found {
                Found::Ready(socket, address) => Ok((socket, address)),
                // Without an answer its entry is gone, and so is the instance.
                Found::Soon(socket) => socket.await.unwrap_or(Err(DriverError::NotFound(id))),
                Found::Unknown => {
                    let (address, mut sockets) = self.sockets_of(&id, 1).await?;
                    let socket = sockets.pop().ok_or(DriverError::NotFound(id))?;
                    Ok((socket, address))
                }
            }
        })
    }

    fn give_back(&self, id: &InstanceId, socket: OwnedFd) {
        // The kernel remembers the failure until the socket is told to forget its peer.
        if rustix::net::connect_unspec(&socket).is_ok() {
            self.shared.sockets.give_back(id, socket);
        }
    }

    fn set_cpu(&self, id: &InstanceId, cpu: MilliCpu) -> BoxFuture<'_, Result<(), DriverError>> {
        self.done(Op::SetCpu {
            id: id.clone(),
            cpu,
        })
    }

    fn freeze(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>> {
        self.done(Op::Freeze { id: id.clone() })
    }

    fn thaw(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>> {
        self.done(Op::Thaw { id: id.clone() })
    }

    fn go_on(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>> {
        self.done(Op::GoOn { id: id.clone() })
    }

    fn learnt(&self, id: &InstanceId) -> Option<Result<Vec<String>, String>> {
        self.shared.sockets.learnt(id)
    }

    fn reclaim(&self, id: &InstanceId) -> BoxFuture<'_, Result<Reclaimed, DriverError>> {
        let op = Op::Reclaim { id: id.clone() };
        Box::pin(async move {
            match self.call(op, Vec::new()).await? {
                (
                    Reply::Reclaimed {
                        before_bytes,
                        after_bytes,
                    },
                    _,
                ) => Ok(Reclaimed {
                    before_bytes,
                    after_bytes,
                }),
                other => Err(unexpected(&other.0)),
            }
        })
    }

    fn usage(&self, id: &InstanceId) -> BoxFuture<'_, Result<Usage, DriverError>> {
        let id = id.clone();
        Box::pin(async move {
            match self.call(Op::Usage { id }, Vec::new()).await? {
                (
                    Reply::Usage {
                        memory_bytes,
                        cpu_us,
                        pids,
                    },
                    _,
                ) => Ok(Usage {
                    memory_bytes,
                    cpu_us,
                    pids,
                }),
                other => Err(unexpected(&other.0)),
            }
        })
    }
}
