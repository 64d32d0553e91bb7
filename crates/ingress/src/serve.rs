//! Client connections: accepting, telling HTTP/1.1 from HTTP/2, limits, and the orderly end.
//!
//! Owns: every client socket from accept to close. Deliberately not here: what a request means (`handle`), how many sockets
//! there may be (`places`), how long one may stand still (`watched`).
//!
//! Invariants:
//! 1. Want of descriptors neither ends a listener nor makes it spin: connections wait meanwhile.
//! 2. After the shutdown token nothing is accepted; what waits or is in flight has `drain` to end (`leaving`).
//! 3. A client that neither sends a head nor takes its answer is cut off in bounded time.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::FutureExt;
use http::StatusCode;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::Ingress;
use crate::budget::Share;
use crate::deadline;
use crate::flaw::Flaw;
use crate::gate::Limits;
use crate::gated::Gated;
use crate::handle::handle;
use crate::headers::Seen;
use crate::interim::Interim;
use crate::meter::Metered;
use crate::places::{Own, Places};
use crate::proxied::{self, Network};
use crate::seldom::Seldom;
use crate::settings::IngressSettings;
use crate::tls;
use crate::watched::Watched;

/// How long a client may leave the bytes of an answer lying before the connection is cut.
pub(crate) const STALL: Duration = Duration::from_secs(60);

/// Pause after the system could not give us a socket (descriptors or memory used up).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A connection that was accepted before the end may have its request on the way: it is waited for this long, since the next
/// server can't answer it any more.
const FIRST_BYTES: Duration = Duration::from_millis(500);
/// Over TLS a client needs up to three round trips before it can send the first byte of a request.
const FIRST_BYTES_TLS: Duration = FIRST_BYTES.saturating_mul(3);

/// After the shutdown a client that keeps a connection may have a request on its way: it is answered, as the last one. Whoever
/// sends more seldom is not likely to send just when its connection is closed.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// What has come at the end of the last words is waited for in steps of this: it is read at once.
const CROSSING: Duration = Duration::from_millis(1);

/// Headers a request may have: what hyper has room for without asking for memory. Browsers send some twenty.
const MAX_FIELDS: usize = 100;

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
    fn proxies(self, settings: &IngressSettings) -> &[Network] {
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
    /// No new requests.
    closing: CancellationToken,
    /// The same, known a moment later and without a lock.
    is_closing: AtomicBool,
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

/// One client connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) remote: IpAddr,
    /// What its requests under way are counted in.
    pub(crate) requests: Arc<Share>,
    /// A request was answered before its body was read: read on for a moment when closing.
    pub(crate) unread: AtomicBool,
    /// What is said before the answer.
    pub(crate) interim: Interim,
    /// Requests that were answered, of HTTP/1.1 in their order.
    pub(crate) answered: AtomicU64,
    /// The last answer switched to another protocol.
    pub(crate) switched: AtomicBool,
    /// The server leaves: nothing more should be sent on its connection.
    pub(crate) leaving: AtomicBool,
    /// While it leaves: bytes had come, when its connection was last read, that the connection did not get yet.
    pub(crate) crossing: AtomicBool,
    /// Why nothing more is taken from it.
    pub(crate) flaw: OnceLock<Flaw>,
    /// What apps are told of it.
    seen: OnceLock<Seen>,
    /// Where it connected to.
    pub(crate) local: OnceLock<IpAddr>,
}

impl Client {
    pub(crate) fn new(remote: IpAddr, requests: Arc<Share>) -> Arc<Self> {
        Arc::new(Self {
            remote,
            requests,
            unread: AtomicBool::new(false),
            interim: Interim::default(),
            answered: AtomicU64::new(0),
            switched: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            crossing: AtomicBool::new(false),
            flaw: OnceLock::new(),
            seen: OnceLock::new(),
            local: OnceLock::new(),
        })
    }

    /// What apps are told of it; `scheme` is that of its connection.
    pub(crate) fn seen(&self, scheme: Scheme) -> &Seen {
        self.seen.get_or_init(|| Seen::of(self.remote, scheme))
    }

    /// Notes that one more request has its answer.
    pub(crate) fn answered(&self, status: StatusCode) {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.switched.store(true, Ordering::Release);
        }
        self.answered.fetch_add(1, Ordering::Release);
    }
}

/// Accepts until `shutdown`, then drains.
pub(crate) async fn serve(
    ingress: Ingress,
    listener: TcpListener,
    scheme: Scheme,
    mut places: Places,
    shutdown: CancellationToken,
) {
    let settings = ingress.shared.outside.settings.clone();
    let door = Arc::new(Door {
        scheme,
        inside: places.inside(),
        closing: shutdown.clone(),
        is_closing: AtomicBool::new(false),
        cut: ingress.shared.leaving.cut.child_token(),
        tasks: TaskTracker::new(),
    });
    loop {
        let before = tokio::select! {
            before = places.before_accept() => before,
            () = shutdown.cancelled() => break,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
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
        let Some((place, stream)) = places.take(before, stream) else {
            continue;
        };
        let (ingress, served) = (ingress.clone(), Arc::clone(&door));
        let requests = places.requests();
        let early = ingress.shared.leaving.early.token();
        door.tasks.spawn(async move {
            deadline::with_times(connection(ingress, served, (requests, early), stream, peer))
                .await;
            drop(place);
        });
    }
    door.is_closing.store(true, Ordering::Relaxed);
    drop(listener);
    door.tasks.close();
    tokio::select! {
        () = door.tasks.wait() => return,
        () = door.cut.cancelled() => {}
        () = tokio::time::sleep(settings.drain) => {
            tracing::warn!(
                left = door.tasks.len(),
                "requests did not end within {:?} and are cut off",
                settings.drain
            );
            door.cut.cancel();
        }
    }
    door.tasks.wait().await;
}

async fn connection(
    ingress: Ingress,
    door: Arc<Door>,
    (own, early): (Option<Own>, TaskTrackerToken),
    mut stream: TcpStream,
    peer: SocketAddr,
) {
    let settings = &ingress.shared.outside.settings;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %peer, "client connection ended at once");
        return;
    }
    let mut remote = peer.ip().to_canonical();
    if own.is_none() && proxied::is_one(door.scheme.proxies(settings), remote) {
        let header = tokio::time::timeout(settings.header_timeout, proxied::read(&mut stream));
        let header = tokio::select! {
            header = header => header,
            () = door.closed_for_long() => return,
        };
        match header.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(client) => remote = client.unwrap_or(remote),
            Err(error) => {
                if let Some(count) = ingress.shared.bad_proxies.count() {
                    tracing::warn!(count, %peer, %error,
                        "closed connections of a proxy without a readable PROXY header (proxy-protocol-http, proxy-protocol-https); is it configured to send one?");
                }
                return;
            }
        }
    }
    let Some(own) = own.or_else(|| ingress.shared.places.client(remote)) else {
        return;
    };
    let local = stream.local_addr();
    let first = async {
        let entered = tls::enter(&ingress.shared, door.scheme, stream).await?;
        let Some(mut wire) = entered else {
            return Ok(None);
        };
        let first = tokio::time::timeout(settings.header_timeout, wire.is_http2()).await;
        let http2 = first.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok::<_, io::Error>(Some((wire, http2)))
    };
    let first = tokio::select! {
        first = first => first,
        () = door.closed_for_long() => return,
    };
    let (stream, http2) = match first {
        Ok(Some(first)) => first,
        Ok(None) => return,
        Err(error) => {
            tracing::debug!(%error, %peer, "client connection ended before its first request");
            return;
        }
    };
    let client = Client::new(remote, Arc::clone(&own.requests));
    if let Ok(local) = local {
        client.local.get_or_init(|| local.ip().to_canonical());
    }
    let stream = Watched::new(stream, Arc::clone(&client));
    let limits = Limits {
        bytes: settings.max_header_bytes,
        fields: MAX_FIELDS,
    };
    let (shared, served, asker) = (
        Arc::clone(&ingress.shared),
        Arc::clone(&door),
        Arc::clone(&client),
    );
    let answer = move |request| {
        let (shared, door, client) = (Arc::clone(&shared), Arc::clone(&served), Arc::clone(&asker));
        handle(shared, door, client, request).map(Ok::<_, std::convert::Infallible>)
    };
    // The two kinds of connection share no trait; the loop is the same.
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = pin!($connection);
            let mut closing = false;
            let mut asked_to_close = Seldom::new(door.closing.cancelled());
            let mut cut = Seldom::new(door.cut.cancelled());
            let (mut early, mut last) = (Some(early), pin!(tokio::time::sleep(Duration::ZERO)));
            loop {
                tokio::select! {
                    // In this order: hyper closes a connection that is asked to end before it has read anything, and this one
                    // has a request waiting (its first bytes were seen).
                    biased;
                    ended = connection.as_mut() => {
                        if let Err(error) = ended {
                            tracing::debug!(%error, %peer, "client connection ended");
                        }
                        break;
                    }
                    () = &mut asked_to_close, if !closing => {
                        closing = true;
                        door.is_closing.store(true, Ordering::Relaxed);
                        last.as_mut().reset(Instant::now() + LAST_WORDS);
                        // HTTP/2 says it at once (`farewell`) and takes what crosses that; HTTP/1.1 says so with its next answer.
                        client.leaving.store(true, Ordering::Release);
                    }
                    () = last.as_mut(), if closing && early.is_some() => {
                        // The connection has just been polled: if its next request is in the kernel already, it is answered.
                        if client.crossing.swap(false, Ordering::AcqRel) {
                            last.as_mut().reset(Instant::now() + CROSSING);
                            continue;
                        }
                        early = None;
                        connection.as_mut().graceful_shutdown();
                    }
                    () = &mut cut => break,
                }
            }
        }};
    }
    if http2 {
        let told = (peer, Arc::clone(&ingress.shared.floods));
        let (frames, begin) = (settings.max_control_frames, settings.header_timeout);
        let io = Metered::new(stream, frames, begin, told, Arc::clone(&client));
        drive!(
            http2::Builder::new(deadline::Streams)
                .timer(TokioTimer::new())
                .enable_connect_protocol()
                .max_concurrent_streams(settings.max_streams)
                .max_header_list_size(u32::try_from(settings.max_header_bytes).unwrap_or(u32::MAX))
                .initial_stream_window_size(1 << 20)
                .initial_connection_window_size(4 << 20)
                .keep_alive_interval(Some(settings.header_timeout))
                // Boxed: it is moved several times on its way into a task, and is large. HTTP/1.1 has one place for it.
                .serve_connection(
                    TokioIo::new(io),
                    service_fn(move |request| Box::pin(answer(request)))
                )
        );
    } else {
        let io = Gated::new(stream, limits, Arc::clone(&client));
        drive!(
            http1::Builder::new()
                .timer(deadline::Heads)
                .header_read_timeout(settings.header_timeout)
                .max_header_size(settings.max_header_bytes)
                .max_buf_size(settings.max_header_bytes.max(64 << 10))
                .serve_connection(TokioIo::new(io), service_fn(answer))
                .with_upgrades()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_comes_over_tls_has_more_time_for_a_first_request() {
        for (scheme, time) in [(Scheme::Http, 500), (Scheme::Https, 1_500)] {
            let door = Door {
                scheme,
                inside: false,
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
