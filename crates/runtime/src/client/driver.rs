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
use utsuwa_model::instance::{InstanceObservation, InstanceSpec, RootfsSpec, StartPhases};

use super::connection::{Answer, Call, Connection, Shared, superseded};
use super::internal::InternalEvent;
use super::link::{ConnectError, KeeperLink};
use crate::driver::{Driver, DriverError, InstanceEvent, Usage};
use crate::keeper::protocol::{Op, Reply, Status};

/// Requests that may wait for the connection's task.
const CALLS: usize = 1024;
/// Events a receiver may lag behind before it must list.
const EVENTS: usize = 1024;
/// Dial sockets asked for at once.
const BATCH: u32 = 4;
/// With this many left, more are asked for.
const LOW: usize = 1;

/// Starts instances in sandboxes through the keeper.
#[derive(Debug, Clone)]
pub struct SandboxDriver {
    shared: Arc<Shared>,
    calls: mpsc::Sender<Call>,
    tasks: TaskTracker,
}

/// Unconnected sockets by instance, so that a dial needs no round trip.
#[derive(Debug, Default)]
pub(super) struct SocketCache {
    instances: Mutex<HashMap<InstanceId, Ready>>,
    /// Process ids of what was started here, for showing.
    pids: Mutex<HashMap<InstanceId, u32>>,
}

#[derive(Debug)]
struct Ready {
    address: SocketAddr,
    sockets: Vec<OwnedFd>,
    asking: bool,
}

impl SocketCache {
    fn add(&self, id: &InstanceId, address: SocketAddr, mut sockets: Vec<OwnedFd>) {
        let mut instances = self.instances.lock();
        let ready = instances.entry(id.clone()).or_insert(Ready {
            address,
            sockets: Vec::new(),
            asking: false,
        });
        ready.asking = false;
        ready.sockets.append(&mut sockets);
    }

    /// One socket, and whether more should be asked for.
    fn take(&self, id: &InstanceId) -> Option<(OwnedFd, SocketAddr, bool)> {
        let mut instances = self.instances.lock();
        let ready = instances.get_mut(id)?;
        let socket = ready.sockets.pop()?;
        let ask = ready.sockets.len() <= LOW && !std::mem::replace(&mut ready.asking, true);
        Some((socket, ready.address, ask))
    }

    fn learn_pid(&self, id: &InstanceId, pid: u32) {
        if pid != 0 {
            self.pids.lock().insert(id.clone(), pid);
        }
    }

    pub(super) fn forget(&self, id: &InstanceId) {
        self.pids.lock().remove(id);
        self.instances.lock().remove(id);
    }

    fn stop_asking(&self, id: &InstanceId) {
        if let Some(ready) = self.instances.lock().get_mut(id) {
            ready.asking = false;
        }
    }
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

    /// The listening socket that the keeper holds under this name and address, if it does.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn take_listener(
        &self,
        name: &str,
        address: &str,
    ) -> Result<Option<OwnedFd>, DriverError> {
        self.listener(name, address, false).await
    }

    /// Like [`Self::take_listener`]; where there is none, the keeper binds `address` (`IP:PORT`).
    ///
    /// # Errors
    /// [`DriverError::Refused`] if the address is taken, isn't this host's, or isn't permitted.
    pub async fn listen(&self, name: &str, address: &str) -> Result<OwnedFd, DriverError> {
        let socket = self.listener(name, address, true).await?;
        socket.ok_or_else(|| {
            DriverError::Internal(format!("the keeper sent no socket for {name} {address}"))
        })
    }

    async fn listener(
        &self,
        name: &str,
        address: &str,
        bind: bool,
    ) -> Result<Option<OwnedFd>, DriverError> {
        let op = Op::TakeListener {
            name: name.to_owned(),
            address: address.to_owned(),
            bind,
        };
        match self.call(op, Vec::new()).await? {
            (Reply::Listener { found: true }, mut sockets) => {
                let Some(socket) = sockets.pop() else {
                    return Ok(None);
                };
                self.remember_listener(name, address, &socket)?;
                Ok(Some(socket))
            }
            (Reply::Listener { found: false }, _) => Ok(None),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Has the keeper hold a copy of a listening socket (for example a Unix socket) for the next server.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn give_listener(
        &self,
        name: &str,
        address: &str,
        socket: &OwnedFd,
    ) -> Result<(), DriverError> {
        let copy = socket
            .try_clone()
            .map_err(|error| DriverError::Exhausted(error.to_string()))?;
        self.remember_listener(name, address, socket)?;
        let op = Op::GiveListener {
            name: name.to_owned(),
            address: address.to_owned(),
        };
        self.call(op, vec![copy]).await.map(|_| ())
    }

    fn remember_listener(
        &self,
        name: &str,
        address: &str,
        socket: &OwnedFd,
    ) -> Result<(), DriverError> {
        let copy = socket
            .try_clone()
            .map_err(|error| DriverError::Exhausted(error.to_string()))?;
        self.shared
            .listeners
            .lock()
            .insert((name.to_owned(), address.to_owned()), copy);
        Ok(())
    }

    /// Closes all listening sockets but these (name, address): connections to them are refused from now on.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn retain_listeners(&self, keep: &[(String, String)]) -> Result<(), DriverError> {
        self.shared
            .listeners
            .lock()
            .retain(|key, _| keep.contains(key));
        self.call(
            Op::RetainListeners {
                keep: keep.to_vec(),
            },
            Vec::new(),
        )
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

    async fn call(&self, op: Op, descriptors: Vec<OwnedFd>) -> Answer {
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

    /// Asks for dial sockets without waiting for them.
    fn refill_sockets(&self, id: InstanceId) {
        let driver = self.clone();
        self.tasks.spawn(async move {
            match driver
                .call(
                    Op::Sockets {
                        id: id.clone(),
                        count: BATCH,
                    },
                    Vec::new(),
                )
                .await
            {
                Ok((Reply::Sockets { address }, sockets)) => {
                    driver.shared.sockets.add(&id, address, sockets)
                }
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
        Box::pin(async move {
            self.call(Op::Prepare { rootfs }, Vec::new())
                .await
                .map(|_| ())
        })
    }

    fn start(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<StartPhases, DriverError>> {
        Box::pin(async move {
            let id = spec.id.clone();
            match self.call(Op::Start { spec }, Vec::new()).await? {
                (
                    Reply::Started {
                        phases,
                        address,
                        pid,
                        ..
                    },
                    sockets,
                ) => {
                    self.shared.sockets.learn_pid(&id, pid);
                    self.shared.sockets.add(&id, address, sockets);
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
            match self
                .call(
                    Op::Sockets {
                        id: id.clone(),
                        count: BATCH,
                    },
                    Vec::new(),
                )
                .await?
            {
                (Reply::Sockets { address }, mut sockets) => {
                    let socket = sockets.pop();
                    self.shared.sockets.add(&id, address, sockets);
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

fn unexpected(reply: &Reply) -> DriverError {
    DriverError::Internal(format!("the keeper answered something else: {reply:?}"))
}
