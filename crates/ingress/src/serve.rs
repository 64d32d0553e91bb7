//! Listeners: accepting connections, and the orderly end of all of them.
//!
//! Owns: every client socket until its connection is served. Deliberately not here: one connection (`connection`), how many
//! sockets there may be (`places`, `hall`), the steps of the end (`ending`).
//!
//! Invariants:
//! 1. Want of descriptors neither ends a listener nor makes it spin: connections wait meanwhile.
//! 2. After the shutdown token nothing is accepted; what waits or is in flight has `drain` to end (`leaving`).

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::Ingress;
use crate::connection::{Room, accepted, handed_over};
use crate::deadline;
use crate::handover::Taking;
use crate::places::{Crowded, Places};
use crate::proxied::Network;
use crate::settings::IngressSettings;

/// How long a client may leave the bytes of an answer lying before the connection is cut.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// Pause after the system could not give us a socket (descriptors or memory used up).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection that was accepted before the end may have its request on the way: it is waited for this long, since the next
/// server can't answer it any more.
pub(crate) const FIRST_BYTES: Duration = Duration::from_millis(500);
/// Over TLS a client needs up to three round trips before it can send the first byte of a request.
const FIRST_BYTES_TLS: Duration = FIRST_BYTES.saturating_mul(3);

/// What the client used to reach us, as `X-Forwarded-Proto` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

impl Scheme {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Who begins connections of this kind with the PROXY protocol.
    pub(crate) fn proxies(self, settings: &IngressSettings) -> &[Network] {
        match self {
            Self::Http => &settings.proxies_http,
            Self::Https => &settings.proxies_https,
        }
    }
}

/// One listener while it serves.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) scheme: Scheme,
    /// Only an instance of this server reaches it.
    pub(crate) inside: bool,
    /// Idle connections of HTTP/1.1 go on with the next server.
    pub(crate) hands_over: bool,
    /// No new requests.
    pub(crate) closing: CancellationToken,
    /// The same, known a moment later and without a lock.
    pub(crate) is_closing: AtomicBool,
    /// The end, finished or not.
    pub(crate) cut: CancellationToken,
    /// Connections and tunnels.
    pub(crate) tasks: TaskTracker,
}

impl Door {
    /// Nothing new is taken any more.
    pub(crate) fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Relaxed)
    }

    /// Returns when nothing new is taken any more, and what was on its way then has had its time.
    pub(crate) async fn closed_for_long(&self) {
        self.closing.cancelled().await;
        let time = match self.scheme {
            Scheme::Http => FIRST_BYTES,
            Scheme::Https => FIRST_BYTES_TLS,
        };
        tokio::time::sleep(time).await;
    }
}

impl Ingress {
    /// Serves `listener` until `shutdown` is cancelled, then drains: what is in flight or waits for an instance has
    /// `settings.drain` to end, unless it is told otherwise before ([`Ingress::refuse_waiting`], [`Ingress::cut`]). Returns when
    /// every connection is closed. May be called for several listeners.
    pub async fn serve(&self, listener: TcpListener, scheme: Scheme, shutdown: CancellationToken) {
        let places = self.shared.places.for_public();
        serve(self.clone(), listener, scheme, places, shutdown).await;
    }

    /// Serves what the server before put into `queue`, the other end of its own ([`queue`](crate::queue)), until `shutdown`, then
    /// drains. Only connections that were accepted where this server listens are taken. Must be called inside
    /// [`Ingress::runtime`].
    ///
    /// # Errors
    /// The queue can't be watched.
    pub async fn serve_handed(
        &self,
        queue: OwnedFd,
        listens: Vec<SocketAddr>,
        shutdown: CancellationToken,
    ) -> io::Result<()> {
        let taking = Taking::new(queue, listens)?;
        serve_handed(self.clone(), taking, shutdown).await;
        Ok(())
    }

    /// The same for a listener that only one instance reaches. It may have `settings.max_connections_per_instance`
    /// connections; `crowded` is called when it wanted more, at most once a minute.
    pub async fn serve_instance(
        &self,
        listener: TcpListener,
        scheme: Scheme,
        crowded: Crowded,
        shutdown: CancellationToken,
    ) {
        let settings = &self.shared.outside.settings;
        let places = self.shared.places.for_instance(settings, crowded);
        serve(self.clone(), listener, scheme, places, shutdown).await;
    }
}

/// Accepts until `shutdown`, then drains.
async fn serve(
    ingress: Ingress,
    listener: TcpListener,
    scheme: Scheme,
    mut places: Places,
    shutdown: CancellationToken,
) {
    let door = Door::open(&ingress, scheme, places.inside(), &shutdown);
    loop {
        // What is not accepted is the next server's.
        let before = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            before = places.before_accept() => before,
        };
        let came = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            came = listener.accept() => came,
        };
        let (stream, peer) = match came {
            Ok(came) => came,
            Err(error) => {
                if ingress.shared.accept_failed() {
                    tracing::warn!(
                        %error,
                        "accept client connections; they wait. If it is for want of open files, raise their limit (ulimit -n, LimitNOFILE=)"
                    );
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some((entered, stream)) = places.take(before, stream) else {
            continue;
        };
        let (ingress, served) = (ingress.clone(), Arc::clone(&door));
        let early = ingress.shared.leaving.early.token();
        let connection = accepted(ingress, served, (entered, early), stream, peer);
        door.tasks.spawn(deadline::with_times(connection));
    }
    drop(listener);
    door.close(&ingress).await;
}

/// Serves the connections that the server before handed over, until `shutdown`, then drains.
async fn serve_handed(ingress: Ingress, taking: Taking, shutdown: CancellationToken) {
    let door = Door::open(&ingress, Scheme::Http, false, &shutdown);
    loop {
        let handed = tokio::select! {
            biased;
            () = shutdown.cancelled() => break,
            handed = taking.next() => handed,
        };
        let handed = match handed {
            Ok(handed) => handed,
            Err(error) => {
                tracing::warn!(%error, "idle connections of the server before are not taken over; their clients connect anew");
                shutdown.cancelled().await;
                break;
            }
        };
        for one in handed {
            let room = Room::wait(&ingress, one.new);
            let room = tokio::select! {
                biased;
                () = shutdown.cancelled() => None,
                room = room => Some(room),
            };
            let Some(room) = room else {
                // It goes on at once, with the rest.
                ingress.shared.leaving.giving.give(one);
                continue;
            };
            let early = ingress.shared.leaving.early.token();
            let connection = handed_over(ingress.clone(), Arc::clone(&door), (room, early), one);
            door.tasks.spawn(deadline::with_times(connection));
        }
    }
    door.close(&ingress).await;
}

impl Door {
    fn open(
        ingress: &Ingress,
        scheme: Scheme,
        inside: bool,
        shutdown: &CancellationToken,
    ) -> Arc<Self> {
        let leaving = &ingress.shared.leaving;
        Arc::new(Self {
            scheme,
            inside,
            hands_over: scheme == Scheme::Http && !inside && leaving.giving.is_set(),
            closing: shutdown.clone(),
            is_closing: AtomicBool::new(false),
            cut: leaving.cut.child_token(),
            tasks: TaskTracker::new(),
        })
    }

    /// Nothing new comes: what is here has its time to end.
    async fn close(&self, ingress: &Ingress) {
        let drain = ingress.shared.outside.settings.drain;
        self.is_closing.store(true, Ordering::Relaxed);
        self.tasks.close();
        let giving = &ingress.shared.leaving.giving;
        tokio::select! {
            () = giving.until(self.tasks.wait()) => return,
            () = self.cut.cancelled() => {}
            () = tokio::time::sleep(drain) => {
                tracing::warn!(
                    left = self.tasks.len(),
                    "requests did not end within {drain:?} and are cut off"
                );
                self.cut.cancel();
            }
        }
        self.tasks.wait().await;
        giving.end();
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::Instant;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_comes_over_tls_has_more_time_for_a_first_request() {
        for (scheme, time) in [(Scheme::Http, 500), (Scheme::Https, 1_500)] {
            let door = Door {
                scheme,
                inside: false,
                hands_over: false,
                closing: CancellationToken::new(),
                is_closing: AtomicBool::new(true),
                cut: CancellationToken::new(),
                tasks: TaskTracker::new(),
            };
            door.closing.cancel();
            let began = Instant::now();
            door.closed_for_long().await;
            assert_eq!(began.elapsed(), Duration::from_millis(time));
        }
    }
}
