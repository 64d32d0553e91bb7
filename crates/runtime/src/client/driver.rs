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
use utsuwa_model::instance::{InstanceObservation, InstanceSpec, RootfsSpec, StartPhases};
use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};

use super::connection::Connection;
use super::internal::InternalEvent;
use super::link::{ConnectError, KeeperLink};
use super::shared::{Answer, Call, Shared, superseded};
use super::sockets::{READY, SocketCache};
use crate::driver::{Driver, DriverError, InstanceEvent, Reclaimed, Usage};
use crate::keeper::protocol::{Op, Reply, Status};

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

    /// Unpacks a layer into the image store. `blob` is read from its current position.
    ///
    /// # Errors
    /// [`DriverError::Refused`] for a layer that is not what its digest promises.
    pub async fn unpack(
        &self,
        diff_id: &str,
        media_type: &str,
        blob: OwnedFd,
    ) -> Result<Unpacked, DriverError> {
        let op = Op::Unpack {
            diff_id: diff_id.to_owned(),
            media_type: media_type.to_owned(),
        };
        match self.call(op, vec![blob]).await? {
            (
                Reply::Unpacked {
                    entries,
                    bytes,
                    skipped,
                },
                _,
            ) => Ok(Unpacked {
                entries,
                bytes,
                skipped,
            }),
            // There already.
            (Reply::Done, _) => Ok(Unpacked::default()),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Deletes an unpacked layer that no revision needs.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn remove_layer(&self, diff_id: &str) -> Result<(), DriverError> {
        self.call(
            Op::RemoveLayer {
                diff_id: diff_id.to_owned(),
            },
            Vec::new(),
        )
        .await
        .map(|_| ())
    }

    /// Deletes all that instances of a service wrote, if the last of it was written before `before`.
    ///
    /// # Errors
    /// [`DriverError::Exhausted`] while an instance may still write.
    pub async fn remove_logs(
        &self,
        service: &ServiceKey,
        before: Option<Timestamp>,
    ) -> Result<(), DriverError> {
        let service = service.clone();
        self.call(Op::RemoveLogs { service, before }, Vec::new())
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

    /// Asks for dial sockets without waiting for them.
    fn refill_sockets(&self, id: InstanceId) {
        let driver = self.clone();
        self.tasks.spawn(async move {
            match driver
                .call(
                    Op::Sockets {
                        id: id.clone(),
                        count: READY,
                    },
                    Vec::new(),
                )
                .await
            {
                Ok((Reply::Sockets { .. }, sockets)) => driver.shared.sockets.add(&id, sockets),
                Ok(_) => driver.shared.sockets.stop_asking(&id),
                Err(error) => {
                    tracing::debug!(%id, %error, "ask for dial sockets");
                    driver.shared.sockets.forget(&id);
                }
            }
        });
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    pub bytes: u64,
    /// What of the layer was left out, in words.
    pub skipped: Vec<String>,
}

impl Driver for SandboxDriver {
    fn prepare(&self, rootfs: RootfsSpec) -> BoxFuture<'_, Result<(), DriverError>> {
        self.done(Op::Prepare { rootfs })
    }

    fn start(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<StartPhases, DriverError>> {
        Box::pin(async move {
            let id = spec.id.clone();
            match self
                .call(
                    Op::Start {
                        spec: Box::new(spec),
                    },
                    Vec::new(),
                )
                .await?
            {
                (Reply::Started { phases, .. }, sockets) => {
                    self.shared.sockets.add(&id, sockets);
                    Ok(phases)
                }
                other => Err(unexpected(&other.0)),
            }
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
            if let Some((socket, address, ask)) = self.shared.sockets.take(&id) {
                if ask {
                    self.refill_sockets(id);
                }
                return Ok((socket, address));
            }
            if self.shared.sockets.begins_to_ask(&id) {
                self.refill_sockets(id.clone());
            }
            // One for this dial: of many that find none ready, each would leave some behind.
            let one = Op::Sockets {
                id: id.clone(),
                count: 1,
            };
            match self.call(one, Vec::new()).await? {
                (Reply::Sockets { address }, mut sockets) => {
                    let socket = sockets.pop();
                    let missing = || {
                        DriverError::Internal(format!(
                            "the keeper sent no socket for instance {id}"
                        ))
                    };
                    socket.map(|socket| (socket, address)).ok_or_else(missing)
                }
                other => Err(unexpected(&other.0)),
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

pub(super) fn unexpected(reply: &Reply) -> DriverError {
    DriverError::Internal(format!("the keeper answered something else: {reply:?}"))
}
