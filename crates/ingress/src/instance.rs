//! One instance as the data path reaches it: its connections and the signal of its end.
//!
//! Owns: the pool of idle HTTP/1.1 connections, the shared HTTP/2 connection, the times of its start, and whether it died.
//! Deliberately not here: how many requests are inside (`revision`), and what is said over a connection (`forward`).
//!
//! Invariants:
//! 1. A connection belongs to one instance id for ever, so a request can't reach another instance through it.
//! 2. Once dead, no new connection is made and nothing returns to the pool.
//! 3. Whatever is idle has a place in the budget that all instances share.

use std::io;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use utsuwa_model::instance::StartPhases;
use utsuwa_model::{InstanceId, RevisionKey};

use crate::body::RequestBody;
use crate::budget::{Place, Share};
use crate::failing::Failing;
use crate::greeting::{Greeting, Listened};
use crate::outside::Outside;
use crate::seam::Connecting;
use crate::upstream::Upstream;

/// An HTTP/2 connection, shared by all requests of the instance.
pub(crate) type Http2 = http2::SendRequest<RequestBody>;

/// An idle connection and its place among all.
#[derive(Debug)]
struct Idle {
    upstream: Upstream,
    _place: Place,
}

#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) id: InstanceId,
    pub(crate) revision: RevisionKey,
    pub(crate) port: u16,
    /// How long it had been running when it was admitted.
    pub(crate) age: Duration,
    pub(crate) phases: StartPhases,
    pub(crate) admitted: Instant,
    /// When the ingress first reached it.
    pub(crate) reached: OnceLock<Instant>,
    /// Cancelled when the instance has died.
    pub(crate) dead: CancellationToken,
    /// Cancelled when it is retired or dead: its startup probe ends.
    pub(crate) leaving: CancellationToken,
    /// Whether a startup probe runs or ran for it.
    pub(crate) probed: AtomicBool,
    /// What its probes complain of.
    pub(crate) failing: Failing,
    /// What it says first where it is to speak HTTP/2.
    pub(crate) greeting: Arc<Greeting>,
    /// Told when it is known to run again after it might have been frozen.
    pub(crate) roused: Notify,
    ending: OnceLock<Ending>,
    outside: Arc<Outside>,
    /// Last in, first out: the warmest connection is used again, the others age and are closed by the app.
    idle: Mutex<Vec<Idle>>,
    /// Its share of the idle connections of all instances.
    idle_share: Arc<Share>,
    http2: Mutex<Option<Http2>>,
}

impl Instance {
    pub(crate) fn new(
        id: InstanceId,
        revision: RevisionKey,
        (port, age): (u16, Duration),
        phases: StartPhases,
        outside: Arc<Outside>,
    ) -> Arc<Self> {
        let dead = CancellationToken::new();
        let idle_share = outside.idle.share();
        Arc::new(Self {
            id,
            revision,
            port,
            age,
            phases,
            admitted: Instant::now(),
            reached: OnceLock::new(),
            leaving: dead.child_token(),
            dead,
            probed: AtomicBool::new(false),
            failing: Failing::default(),
            greeting: Arc::default(),
            roused: Notify::new(),
            ending: OnceLock::new(),
            outside,
            idle: Mutex::default(),
            idle_share,
            http2: Mutex::default(),
        })
    }

    /// Ends everything that is going on inside; what was idle is closed.
    pub(crate) fn kill(&self, ending: Ending) {
        // The first reason is the true one: what is ended for its health is dead a moment later, too.
        self.ending.get_or_init(|| ending);
        self.dead.cancel();
        self.idle.lock().clear();
        self.http2.lock().take();
    }

    /// Why it was killed, if it was.
    pub(crate) fn ending(&self) -> Option<Ending> {
        self.ending.get().copied()
    }

    /// An idle connection that was alive a moment ago, newest first.
    pub(crate) fn idle(&self) -> Option<Upstream> {
        self.idle.lock().pop().map(|idle| idle.upstream)
    }

    /// Keeps `upstream` for a later request; the oldest makes way where no more may be kept.
    pub(crate) fn keep(&self, upstream: Upstream) {
        let mut idle = self.idle.lock();
        // With the lock held: `kill` says why before it clears. Asking the token would take a lock of all its users.
        if self.ending.get().is_some() {
            return;
        }
        let room = idle.len() < self.outside.settings.max_idle_per_instance;
        let place = room.then(|| self.idle_share.take().ok()).flatten();
        let dropped = match place {
            Some(place) => {
                idle.push(Idle {
                    upstream,
                    _place: place,
                });
                None
            }
            // Its place goes on to the one that comes.
            None if !idle.is_empty() => {
                let mut oldest = idle.remove(0);
                let dropped = std::mem::replace(&mut oldest.upstream, upstream);
                idle.push(oldest);
                Some(dropped)
            }
            None => Some(upstream),
        };
        drop(idle);
        drop(dropped);
    }

    /// Closes idle connections, as when the instance is retired or may be frozen: woken late, an app's own timers would close
    /// them under the next request.
    pub(crate) fn close_idle(&self) {
        let idle = std::mem::take(&mut *self.idle.lock());
        drop(idle);
        let http2 = self.http2.lock().take();
        drop(http2);
    }

    /// The time since its start began, as far as that was seen.
    pub(crate) fn running(&self) -> Duration {
        let phases = self.phases;
        phases.sandbox + phases.rootfs + phases.exec + self.admitted.elapsed()
    }

    /// A new TCP connection.
    pub(crate) async fn dial(&self, port: u16) -> io::Result<TcpStream> {
        let stream = self.socket(port).await?.await?;
        // Answers are written in one piece where possible; waiting for more only adds latency.
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// What a new TCP connection begins with. An error says nothing of the instance, unless that it has ended.
    pub(crate) async fn socket(&self, port: u16) -> io::Result<Connecting> {
        if self.dead.is_cancelled() {
            return Err(io::Error::new(
                io::ErrorKind::NotFound,
                "the instance has ended",
            ));
        }
        self.outside.connect.socket(&self.id, port).await
    }

    /// The HTTP/2 connection, made if there is none. Two callers may make one each; the later stays.
    pub(crate) async fn http2(&self) -> Result<Http2, ConnectFailure> {
        if let Some(sender) = self
            .http2
            .lock()
            .as_ref()
            .filter(|sender| !sender.is_closed())
        {
            return Ok(sender.clone());
        }
        let stream = self.dial(self.port).await.map_err(ConnectFailure::Dial)?;
        self.adopt_http2(stream).await
    }

    /// Speaks HTTP/2 over `stream` from now on.
    pub(crate) async fn adopt_http2(&self, stream: TcpStream) -> Result<Http2, ConnectFailure> {
        let stream = Listened::new(stream, Arc::clone(&self.greeting));
        let sender = self.handshake_http2(stream).await?;
        *self.http2.lock() = Some(sender.clone());
        Ok(sender)
    }

    /// An HTTP/2 connection of its own, as for a health check on another port.
    pub(crate) async fn handshake_http2<S>(&self, stream: S) -> Result<Http2, ConnectFailure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            // Streaming of large messages must not be slowed by the 64 KiB the protocol starts with.
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectFailure::Handshake)?;
        let dead = self.dead.clone();
        self.outside.tasks.spawn(async move {
            tokio::select! {
                ended = connection => if let Err(error) = ended {
                    tracing::debug!(%error, "HTTP/2 connection to an instance ended");
                },
                () = dead.cancelled() => {}
            }
        });
        Ok(sender)
    }
}

/// Why nothing may go on inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Dead,
    OutOfMemory,
    /// It still runs, but its liveness probe failed: it is being ended.
    Unhealthy,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectFailure {
    #[error("connect to the instance: {0}")]
    Dial(#[source] io::Error),
    #[error("speak HTTP with the instance: {0}")]
    Handshake(#[source] hyper::Error),
}
