//! Client connections: accepting, telling HTTP/1.1 from HTTP/2, limits, and the orderly end.
//!
//! Owns: every client socket from accept to close. Deliberately not here: what a request means (`handle`), how many sockets
//! there may be (`places`, `hall`), how long one may stand still (`watched`), the steps of the end (`ending`).
//!
//! Invariants:
//! 1. Want of descriptors neither ends a listener nor makes it spin: connections wait meanwhile.
//! 2. After the shutdown token nothing is accepted; what waits or is in flight has `drain` to end (`leaving`).
//! 3. A client that neither sends a head nor takes its answer is cut off in bounded time.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::Ingress;
use crate::client::Client;
use crate::deadline;
use crate::ending::{Ending, Step};
use crate::gate::Limits;
use crate::gated::Gated;
use crate::handle::handle;
use crate::meter::Metered;
use crate::places::{Entered, Places};
use crate::proxied::{self, Network};
use crate::rest;
use crate::settings::IngressSettings;
use crate::tls::{self, Wire};
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
        let Some((entered, stream)) = places.take(before, stream) else {
            continue;
        };
        let (ingress, served) = (ingress.clone(), Arc::clone(&door));
        let early = ingress.shared.leaving.early.token();
        let connection = connection(ingress, served, (entered, early), stream, peer);
        door.tasks.spawn(deadline::with_times(connection));
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

/// The address of who connects; `None`: a proxy did not say in time or in order.
async fn whose(
    ingress: &Ingress,
    door: &Door,
    stream: &mut TcpStream,
    peer: SocketAddr,
) -> Option<IpAddr> {
    let settings = &ingress.shared.outside.settings;
    let remote = peer.ip().to_canonical();
    if !proxied::is_one(door.scheme.proxies(settings), remote) {
        return Some(remote);
    }
    let header = tokio::time::timeout(settings.header_timeout, proxied::read(stream));
    let header = tokio::select! {
        header = header => header,
        () = door.closed_for_long() => return None,
    };
    match header.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(client) => Some(client.unwrap_or(remote)),
        Err(error) => {
            if let Some(count) = ingress.shared.bad_proxies.count() {
                tracing::warn!(count, %peer, %error,
                    "closed connections of a proxy without a readable PROXY header (proxy-protocol-http, proxy-protocol-https); is it configured to send one?");
            }
            None
        }
    }
}

async fn connection(
    ingress: Ingress,
    door: Arc<Door>,
    (entered, early): (Entered, TaskTrackerToken),
    stream: TcpStream,
    peer: SocketAddr,
) {
    // Boxed, as what follows: it is large, and over long before the connection is.
    let first = Box::pin(first(&ingress, &door, entered, stream, peer)).await;
    let Some((client, mut wire, http2)) = first else {
        return;
    };
    let mut ending = Ending::new(&door, &client, http2, early);
    if http2 {
        serve_http2((&ingress, &door, &client), wire, &mut ending, peer).await;
        return;
    }
    let patience = ingress.shared.outside.settings.header_timeout;
    let mut until = Instant::now() + patience;
    while let Some(rested) = serve_http1((&ingress, &door, &client), wire, &mut ending, peer).await
    {
        wire = rested;
        let times = (&mut until, patience);
        if !rest::until_more(&mut wire, &client, &mut ending, times).await {
            return;
        }
    }
}

/// Everything before the first request: whose connection it is, TLS, and what it speaks; `true` for HTTP/2.
async fn first(
    ingress: &Ingress,
    door: &Arc<Door>,
    entered: Entered,
    mut stream: TcpStream,
    peer: SocketAddr,
) -> Option<(Arc<Client>, Wire, bool)> {
    let settings = &ingress.shared.outside.settings;
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %peer, "client connection ended at once");
        return None;
    }
    let mut remote = peer.ip().to_canonical();
    let own = match entered {
        Entered::Instance(own) => own,
        Entered::Public(arrival) => {
            remote = whose(ingress, door, &mut stream, peer).await?;
            let own = ingress.shared.places.client(remote, arrival);
            let own = tokio::time::timeout(settings.header_timeout, own);
            tokio::select! {
                own = own => own.ok()??,
                () = door.closed_for_long() => return None,
            }
        }
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
        () = door.closed_for_long() => return None,
    };
    match first {
        Ok(first) => {
            let (wire, http2) = first?;
            let client = Client::new(remote, own);
            if let Ok(local) = local {
                client.local.get_or_init(|| local.ip().to_canonical());
            }
            Some((client, wire, http2))
        }
        Err(error) => {
            tracing::debug!(%error, %peer, "client connection ended before its first request");
            None
        }
    }
}

/// What each request of a connection needs.
type Whose<'a> = (&'a Ingress, &'a Arc<Door>, &'a Arc<Client>);

/// What answers the requests of one connection. A macro, since the future's type has no name.
macro_rules! answer {
    ($whose:expr) => {{
        let (ingress, door, client) = $whose;
        let shared = Arc::clone(&ingress.shared);
        let (door, client) = (Arc::clone(door), Arc::clone(client));
        move |request| {
            let (shared, door) = (Arc::clone(&shared), Arc::clone(&door));
            // Here and not in the future, which HTTP/2 polls later: from now on the connection isn't idle.
            let begun = client.begin();
            handle(shared, door, Arc::clone(&client), (begun, request)).map(Ok::<_, Infallible>)
        }
    }};
}

/// Serves a connection until it ends, or may rest: then its socket is given back, and all that served it is gone.
async fn serve_http1(
    whose: Whose<'_>,
    wire: Wire,
    ending: &mut Ending<'_>,
    peer: SocketAddr,
) -> Option<Wire> {
    let (ingress, _, client) = whose;
    let settings = &ingress.shared.outside.settings;
    let limits = Limits {
        bytes: settings.max_header_bytes,
        fields: MAX_FIELDS,
    };
    let stream = Watched::new(wire, Arc::clone(client));
    let io = Gated::new(stream, limits, Arc::clone(client));
    let connection = http1::Builder::new()
        .timer(deadline::Heads)
        .header_read_timeout(settings.header_timeout)
        .max_header_size(settings.max_header_bytes)
        .max_buf_size(settings.max_header_bytes.max(64 << 10))
        .serve_connection(TokioIo::new(io), service_fn(answer!(whose)))
        .with_upgrades();
    let mut connection = Box::pin(connection);
    let shut =
        |connection: Pin<&mut _>| http1::UpgradeableConnection::graceful_shutdown(connection);
    if !drive(connection.as_mut(), shut, ending, peer).await {
        return None;
    }
    client.rest.prepare();
    drop(connection);
    client.rest.take()
}

async fn serve_http2(whose: Whose<'_>, wire: Wire, ending: &mut Ending<'_>, peer: SocketAddr) {
    let (ingress, _, client) = whose;
    let settings = &ingress.shared.outside.settings;
    let stream = Watched::new(wire, Arc::clone(client));
    let told = (peer, Arc::clone(&ingress.shared.floods));
    let (frames, begin) = (settings.max_control_frames, settings.header_timeout);
    let io = Metered::new(stream, frames, begin, told, Arc::clone(client));
    let answer = answer!(whose);
    let connection = http2::Builder::new(deadline::Streams)
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
            service_fn(move |request| Box::pin(answer(request))),
        );
    let mut connection = Box::pin(connection);
    let shut = |connection: Pin<&mut _>| http2::Connection::graceful_shutdown(connection);
    drive(connection.as_mut(), shut, ending, peer).await;
}

/// Drives a connection until it has ended; `true`: it hasn't, and may rest.
async fn drive<C: Future<Output = hyper::Result<()>>>(
    mut connection: Pin<&mut C>,
    shut: impl Fn(Pin<&mut C>),
    ending: &mut Ending<'_>,
    peer: SocketAddr,
) -> bool {
    loop {
        tokio::select! {
            // In this order: hyper closes a connection that is asked to end before it has read anything, and this one has a
            // request waiting (its first bytes were seen).
            biased;
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::debug!(%error, %peer, "client connection ended");
                }
                return false;
            }
            step = ending.next() => match step {
                Step::Poll => {}
                Step::Shut => shut(connection.as_mut()),
                Step::Cut => return false,
                Step::Rest => return true,
            }
        }
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
