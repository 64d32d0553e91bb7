//! One client's connection, from its first byte to its end.
//!
//! Owns: whose it is, what it speaks, and driving hyper over it. Deliberately not here: accepting (`serve`), what a request means
//! (`handle`), how long it may stand still (`watched`), the steps of its end (`ending`).
//!
//! Invariant: a client that neither sends a head nor takes its answer is cut off in bounded time.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use futures_util::FutureExt;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::Ingress;
use crate::client::Client;
use crate::deadline;
use crate::ending::{Ending, Step};
use crate::gate::Limits;
use crate::gated::Gated;
use crate::hall::{Arrival, Open};
use crate::handle::handle;
use crate::handover::Handed;
use crate::meter::Metered;
use crate::places::{Entered, Own};
use crate::proxied;
use crate::rest::{self, Rested};
use crate::serve::Door;
use crate::tls::{self, Wire};
use crate::watched::Watched;

/// Headers a request may have: what hyper has room for without asking for memory. Browsers send some twenty.
const MAX_FIELDS: usize = 100;

/// Serves one that was just accepted.
pub(crate) async fn accepted(
    ingress: Ingress,
    door: Arc<Door>,
    (entered, early): (Entered, TaskTrackerToken),
    stream: TcpStream,
    peer: SocketAddr,
) {
    // Boxed, as what follows: it is large, and over long before the connection is.
    let first = Box::pin(first(&ingress, &door, entered, stream, peer)).await;
    if let Some(first) = first {
        serve_from(&ingress, &door, early, first, peer).await;
    }
}

/// What a connection that is handed over comes in with.
#[derive(Debug)]
pub(crate) enum Room {
    /// One that had no request yet is served as if it had just been accepted.
    New(Arrival),
    /// One that had is idle, and has no place among those that aren't.
    Idle(Open),
}

impl Room {
    /// Waits for it.
    pub(crate) async fn wait(ingress: &Ingress, new: bool) -> Self {
        let hall = &ingress.shared.places.hall;
        if new {
            Self::New(hall.enter().await)
        } else {
            Self::Idle(hall.enter_idle().await)
        }
    }
}

/// Serves one that the server before handed over.
pub(crate) async fn handed_over(
    ingress: Ingress,
    door: Arc<Door>,
    (room, early): (Room, TaskTrackerToken),
    one: Handed<TcpStream>,
) {
    let Handed { socket, remote, .. } = one;
    let Ok(peer) = socket.peer_addr() else {
        return; // its client has left
    };
    match room {
        Room::New(arrival) => {
            let first = async {
                let own = own(&ingress, &door, remote, arrival).await?;
                speaks(&ingress, &door, (remote, own), socket, peer).await
            };
            if let Some(first) = Box::pin(first).await {
                serve_from(&ingress, &door, early, first, peer).await;
            }
        }
        Room::Idle(open) => {
            let own = ingress.shared.places.idle_client(remote, open);
            let client = client(remote, own, &socket);
            let mut ending = Ending::new(&door, &client, false, early);
            let rests = (Wire::Plain(socket), true);
            by_turns((&ingress, &door, &client), rests, &mut ending, peer).await;
        }
    }
}

/// Serves a connection from its first request on.
async fn serve_from(
    ingress: &Ingress,
    door: &Arc<Door>,
    early: TaskTrackerToken,
    (client, wire, http2): (Arc<Client>, Wire, bool),
    peer: SocketAddr,
) {
    let mut ending = Ending::new(door, &client, http2, early);
    let whose = (ingress, door, &client);
    if http2 {
        serve_http2(whose, wire, &mut ending, peer).await;
    } else {
        by_turns(whose, (wire, false), &mut ending, peer).await;
    }
}

/// HTTP/1.1: the connection is served and rests by turns; `rests`: it begins so.
async fn by_turns(
    whose: Whose<'_>,
    (mut wire, mut rests): (Wire, bool),
    ending: &mut Ending<'_>,
    peer: SocketAddr,
) {
    let (ingress, _, client) = whose;
    let patience = ingress.shared.outside.settings.header_timeout;
    let mut until = Instant::now() + patience;
    loop {
        if !std::mem::take(&mut rests) {
            match serve_http1(whose, wire, ending, peer).await {
                Some(rested) => wire = rested,
                None => return,
            }
        }
        let times = (&mut until, patience);
        match rest::until_more(&mut wire, client, ending, times).await {
            Rested::More => {}
            Rested::Closed => return,
            Rested::Goes => return go(ingress, client.remote, wire, false),
        }
    }
}

/// Gives the socket to the next server.
fn go(ingress: &Ingress, remote: IpAddr, wire: Wire, new: bool) {
    if let Wire::Plain(socket) = wire {
        let giving = &ingress.shared.leaving.giving;
        giving.give(Handed {
            socket,
            remote,
            new,
        });
    }
}

fn client(remote: IpAddr, own: Own, socket: &TcpStream) -> Arc<Client> {
    let client = Client::new(remote, own);
    if let Ok(local) = socket.local_addr() {
        client.local.get_or_init(|| local.ip().to_canonical());
    }
    client
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

/// What a connection draws on; `None`: its client has too many, or the server ends.
async fn own(ingress: &Ingress, door: &Door, remote: IpAddr, arrival: Arrival) -> Option<Own> {
    let patience = ingress.shared.outside.settings.header_timeout;
    let own = tokio::time::timeout(patience, ingress.shared.places.client(remote, arrival));
    tokio::select! {
        own = own => own.ok()?,
        () = door.closed_for_long() => None,
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
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, %peer, "client connection ended at once");
        return None;
    }
    let mut remote = peer.ip().to_canonical();
    let own = match entered {
        Entered::Instance(own) => own,
        Entered::Public(arrival) => {
            remote = whose(ingress, door, &mut stream, peer).await?;
            own(ingress, door, remote, arrival).await?
        }
    };
    speaks(ingress, door, (remote, own), stream, peer).await
}

/// TLS, and what it speaks; `true` for HTTP/2.
async fn speaks(
    ingress: &Ingress,
    door: &Arc<Door>,
    (remote, own): (IpAddr, Own),
    stream: TcpStream,
    peer: SocketAddr,
) -> Option<(Arc<Client>, Wire, bool)> {
    let settings = &ingress.shared.outside.settings;
    let client = client(remote, own, &stream);
    let mut entered = None;
    let first = async {
        let Some(wire) = tls::enter(&ingress.shared, door.scheme, stream).await? else {
            return Ok(None);
        };
        let wire = entered.insert(wire);
        let first = tokio::time::timeout(settings.header_timeout, wire.is_http2()).await;
        let http2 = first.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        Ok::<_, io::Error>(Some(http2))
    };
    let first = tokio::select! {
        // In this order: there is nothing to hand over before it was looked at.
        biased;
        first = first => Some(first),
        // Nothing was read from it.
        () = door.closing.cancelled(), if door.hands_over => None,
        () = door.closed_for_long() => return None,
    };
    match (first, entered) {
        (Some(Ok(http2)), Some(wire)) => Some((client, wire, http2?)),
        (Some(Err(error)), _) => {
            tracing::debug!(%error, %peer, "client connection ended before its first request");
            None
        }
        (None, Some(wire)) => {
            go(ingress, remote, wire, true);
            None
        }
        (_, None) => None,
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
                Step::Rest | Step::Go => return true,
            }
        }
    }
}
