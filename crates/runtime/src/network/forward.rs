//! From an instance to a TCP service on the host's loopback.
//!
//! Owns: accepting on a [`super::SocketRole::HostForward`] listener and copying both ways; each direction ends on its own
//! (half-close). Doesn't: decide who may: the listener exists only where a rule opened the port.
//! Invariants:
//! 1. A sandbox that holds as many connections as are left for all gets no more, so it leaves some to the others.
//! 2. Every refusal is counted in a line of the log; there is at most one line a minute, however many sandboxes there are.
//!
//! Failure: when nobody listens on the host, the client gets a reset, as if it had dialled a closed port.

use std::convert::Infallible;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Connections of one instance to one port; the next ones wait in the listener's queue.
const CONNECTIONS: usize = 256;
/// After accept fails for want of descriptors, before the next try.
const BREATH: Duration = Duration::from_millis(50);
/// Refused connections are told of once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// The connections that all sandboxes of a server may have to the host, and how many were refused.
#[derive(Debug)]
pub struct Forwards {
    places: Arc<Semaphore>,
    limit: usize,
    /// Since it was last told.
    refused: AtomicU64,
    refusal: Notify,
}

impl Forwards {
    /// `limit` at once.
    #[must_use]
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(limit)),
            limit,
            refused: AtomicU64::new(0),
            refusal: Notify::new(),
        })
    }

    fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        self.refusal.notify_one();
    }

    /// Tells the log of what is refused, until dropped. One is enough for all.
    pub async fn tell_refusals(&self) -> Infallible {
        self.tell(|count| {
            tracing::warn!(
                count,
                limit = self.limit,
                "refused connections of instances to ports of the host: they have as many open as their share allows. If that is for want of open files, raise their limit (ulimit -n, LimitNOFILE=)"
            );
        })
        .await
    }

    async fn tell(&self, tell: impl Fn(u64)) -> Infallible {
        loop {
            self.refusal.notified().await;
            let count = self.refused.swap(0, Ordering::Relaxed);
            // One that came between: told of, and notified after.
            if count > 0 {
                tell(count);
                tokio::time::sleep(TELL_AGAIN).await;
            }
        }
    }
}

/// What one sandbox holds of them, over all ports.
#[derive(Debug, Clone)]
pub(super) struct Share {
    all: Arc<Forwards>,
    own: Arc<AtomicUsize>,
}

/// One connection's, given back when it is dropped.
struct Place {
    own: Arc<AtomicUsize>,
    _all: OwnedSemaphorePermit,
}

impl Share {
    pub(super) fn of(all: &Arc<Forwards>) -> Self {
        Self {
            all: Arc::clone(all),
            own: Arc::default(),
        }
    }

    fn take(&self) -> Option<Place> {
        // Two ports that take at once may both see room for one; what all together have is never exceeded.
        if self.own.load(Ordering::Acquire) >= self.all.places.available_permits() {
            return None;
        }
        let all = Arc::clone(&self.all.places).try_acquire_owned().ok()?;
        self.own.fetch_add(1, Ordering::AcqRel);
        Some(Place {
            own: Arc::clone(&self.own),
            _all: all,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.own.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The next client and its slot; `None` once it closes.
pub(super) async fn next(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    closing: &CancellationToken,
) -> Option<(
    OwnedSemaphorePermit,
    io::Result<(TcpStream, std::net::SocketAddr)>,
)> {
    let accept = async {
        let slot = Arc::clone(slots).acquire_owned().await.ok()?;
        Some((slot, listener.accept().await))
    };
    tokio::select! {
        accepted = accept => accepted,
        () = closing.cancelled() => None,
    }
}

/// Serves until dropped, or until `closing` and the end of what it serves then. A client for whom `share` has no place gets a
/// reset.
pub(super) async fn serve(
    listener: TcpListener,
    port: u16,
    share: Share,
    closing: CancellationToken,
) {
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    while let Some((slot, accepted)) = next(&listener, &slots, &closing).await {
        match accepted {
            Ok((client, _)) => {
                let Some(place) = share.take() else {
                    reset(&client);
                    tracing::debug!(port, "an instance has its share of connections to the host");
                    share.all.refuse();
                    continue;
                };
                connections.spawn(async move {
                    if let Err(error) = join(client, port).await {
                        tracing::debug!(port, %error, "forward to the host's loopback");
                    }
                    drop((slot, place));
                });
            }
            Err(error) => {
                tracing::debug!(port, %error, "accept for the host's loopback");
                tokio::time::sleep(BREATH).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn join(mut client: TcpStream, port: u16) -> io::Result<()> {
    let first = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
    let connected = match first {
        Ok(service) => Ok(service),
        Err(error) => TcpStream::connect((Ipv6Addr::LOCALHOST, port))
            .await
            .map_err(|_| error),
    };
    let mut service = match connected {
        Ok(service) => service,
        Err(error) => {
            reset(&client);
            return Err(error);
        }
    };
    client.set_nodelay(true)?;
    service.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut client, &mut service).await?;
    Ok(())
}

/// Closing with zero linger sends a reset.
fn reset(client: &TcpStream) {
    if let Err(error) = socket2::SockRef::from(client).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "reset a connection");
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::time::Instant;

    use super::*;

    /// Dials `port`; the connection, if the service spoke.
    async fn dial(port: u16) -> Option<TcpStream> {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.ok()?;
        stream.read_u8().await.ok().map(|_| stream)
    }

    #[tokio::test]
    async fn one_sandbox_leaves_places_to_the_others() {
        let mut tasks = JoinSet::new();
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = service.local_addr().unwrap().port();
        tasks.spawn(async move {
            let mut talks = JoinSet::new();
            loop {
                let (mut stream, _) = service.accept().await.unwrap();
                talks.spawn(async move {
                    stream.write_u8(1).await.unwrap();
                    // Until the client closes.
                    let _ = stream.read_u8().await;
                });
            }
        });
        let all = Forwards::new(12);
        let (greedy, other) = (Share::of(&all), Share::of(&all));
        let mut ports = Vec::new();
        for share in [&greedy, &greedy, &other] {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
            ports.push(listener.local_addr().unwrap().port());
            tasks.spawn(serve(listener, at, share.clone(), CancellationToken::new()));
        }
        // Over two ports together: half of what there is.
        let mut held = Vec::new();
        for number in 0..20 {
            held.extend(dial(ports[number % 2]).await);
        }
        assert_eq!(held.len(), 6);
        let mut others = Vec::new();
        for _ in 0..20 {
            others.extend(dial(ports[2]).await);
        }
        assert_eq!(others.len(), 3);
        // Of 20 and 20.
        assert_eq!(all.refused.load(Ordering::Relaxed), 14 + 17);
        // Places come back.
        drop(held);
        let end = Instant::now() + Duration::from_secs(20);
        while dial(ports[0]).await.is_none() {
            assert!(Instant::now() < end, "no place came back");
        }
    }

    #[tokio::test]
    async fn what_is_under_way_outlives_the_listener() {
        let service = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = service.local_addr().unwrap().port();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let closing = CancellationToken::new();
        let serving = serve(listener, at, Share::of(&Forwards::new(4)), closing.clone());
        let serving = JoinSet::from_iter([serving]);
        let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .unwrap();
        let (mut there, _) = service.accept().await.unwrap();
        closing.cancel();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port))
            .await
            .is_ok()
        {
            tokio::task::yield_now().await;
        }
        client.write_u8(7).await.unwrap();
        assert_eq!(there.read_u8().await.unwrap(), 7);
        drop(client);
        assert_eq!(there.read(&mut [0]).await.unwrap(), 0, "its end arrives");
        drop(there);
        assert_eq!(
            serving.join_all().await.len(),
            1,
            "and then nothing is left"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_of_all_are_told_once_a_minute_and_none_is_forgotten() {
        let all = Forwards::new(0);
        let lines = Mutex::new(Vec::new());
        let begin = Instant::now();
        let refusing = async {
            for _ in 0..5 {
                all.refuse();
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
            // Nothing is refused any more, and time passes.
            tokio::time::sleep(10 * TELL_AGAIN).await;
        };
        tokio::select! {
            never = all.tell(|count| lines.lock().push((begin.elapsed().as_secs(), count))) => match never {},
            () = refusing => {}
        }
        assert_eq!(*lines.lock(), [(0, 1), (60, 4)]);
    }
}
