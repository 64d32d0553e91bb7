//! How many connections clients may have open, and what happens to one too many.
//!
//! Owns: the places of all listeners, and whose share of the requests under way a connection draws on. Deliberately not here:
//! accepting and serving (`serve`), how requests are shared out (`budget`).
//!
//! Invariants:
//! 1. All public listeners together have `max_connections` places: one more waits in the kernel's queue, where a client of
//!    the internet may wait.
//! 2. An instance that calls others has `max_connections_per_instance`, and all instances together
//!    `max_instance_connections`: one more is answered at once and closed. So no instance can use up the descriptors that
//!    others are served with.
//! 3. Of connections and of requests under way each client from outside has one share, known by its address (of IPv6 the /64 that
//!    one home gets). On loopback, where many clients have one address and all of them are this machine's own, each connection
//!    has one of its own. All connections of an instance have one.

use std::collections::HashMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::answer::ANSWERED_BY;
use crate::budget::{self, Budget, Share};
use crate::settings::IngressSettings;
use crate::told::Told;

/// An instance that has too many connections is told of once in this time.
const TELL_AGAIN: Duration = Duration::from_secs(60);
/// Read and thrown away before a refused connection is closed: closing with unread bytes would throw away the answer.
const UNREAD: usize = 16 << 10;

/// Called with the number of connections that were refused since the last call.
pub type Crowded = Arc<dyn Fn(u64) + Send + Sync>;

/// The places that listeners share.
#[derive(Debug)]
pub(crate) struct Shared {
    public: Arc<Semaphore>,
    instances: Arc<Semaphore>,
    public_connections: Arc<Budget>,
    public_requests: Arc<Budget>,
    clients: Mutex<Clients>,
    /// Connections that were closed because their client has too many.
    crowded: Told,
    instance_requests: Arc<Budget>,
}

impl Shared {
    pub(crate) fn new(settings: &IngressSettings) -> Self {
        Self {
            public: Arc::new(Semaphore::new(settings.max_connections)),
            instances: Arc::new(Semaphore::new(settings.max_instance_connections)),
            public_connections: Budget::new("connections", settings.max_connections),
            public_requests: Budget::new("clients from outside", settings.max_requests),
            clients: Mutex::default(),
            crowded: Told::default(),
            instance_requests: Budget::new("instances", settings.max_instance_requests),
        }
    }

    pub(crate) fn for_public(&self) -> Places {
        Places::Public {
            places: Arc::clone(&self.public),
        }
    }

    /// What a connection of this client draws on; `None` when it has as many connections as are left for all others.
    pub(crate) fn client(&self, address: IpAddr) -> Option<Own> {
        let new = || {
            Arc::new(ClientShares {
                connections: self.public_connections.share(),
                requests: self.public_requests.share(),
            })
        };
        let shares = if address.is_loopback() {
            new()
        } else {
            self.clients.lock().of(address, new)
        };
        match shares.connections.take() {
            Ok(place) => Some(Own {
                requests: Arc::clone(&shares.requests),
                _place: Some((place, shares)),
            }),
            Err(_) => {
                if let Some(count) = self.crowded.count() {
                    tracing::warn!(
                        count,
                        client = %address,
                        "closed new connections: their client has as many as are left for all others"
                    );
                }
                None
            }
        }
    }

    pub(crate) fn for_instance(&self, settings: &IngressSettings, tell: Crowded) -> Places {
        let own = settings.max_connections_per_instance;
        Places::Instance(InstancePlaces {
            all: Arc::clone(&self.instances),
            own: Arc::new(Semaphore::new(own)),
            requests: self.instance_requests.share(),
            limit: own,
            tell,
            refused: 0,
            told: None,
        })
    }
}

/// The places of one listener.
#[derive(Debug)]
pub(crate) enum Places {
    Public { places: Arc<Semaphore> },
    Instance(InstancePlaces),
}

/// Given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _all: Option<OwnedSemaphorePermit>,
}

impl Places {
    /// Whether only an instance comes in here.
    pub(crate) const fn inside(&self) -> bool {
        matches!(self, Self::Instance(_))
    }

    /// Before accepting: waits where clients wait in the queue.
    pub(crate) async fn before_accept(&self) -> Option<Place> {
        match self {
            Self::Instance(_) => None,
            // Never closed.
            Self::Public { places } => {
                Arc::clone(places)
                    .acquire_owned()
                    .await
                    .ok()
                    .map(|own| Place {
                        _own: own,
                        _all: None,
                    })
            }
        }
    }

    /// After accepting: the place taken before, or one for `stream`, or its refusal.
    pub(crate) fn take(
        &mut self,
        before: Option<Place>,
        stream: TcpStream,
    ) -> Option<(Place, TcpStream)> {
        match (self, before) {
            (_, Some(place)) => Some((place, stream)),
            (Self::Instance(places), None) => places.take(stream),
            (Self::Public { .. }, None) => None,
        }
    }

    /// What the requests of a new connection draw on; `None`: on its client's share.
    pub(crate) fn requests(&self) -> Option<Own> {
        match self {
            Self::Public { .. } => None,
            Self::Instance(places) => Some(Own {
                requests: Arc::clone(&places.requests),
                _place: None,
            }),
        }
    }
}

/// What one connection draws on.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) requests: Arc<Share>,
    /// Given back with the connection; the shares of a client are forgotten with its last one.
    _place: Option<(budget::Place, Arc<ClientShares>)>,
}

/// Of one client from outside.
#[derive(Debug)]
struct ClientShares {
    connections: Arc<Share>,
    requests: Arc<Share>,
}

/// Clients that have connections, by address.
#[derive(Debug, Default)]
struct Clients {
    known: HashMap<IpAddr, Weak<ClientShares>>,
    /// When there are so many, those that have left are forgotten.
    sweep: usize,
}

impl Clients {
    fn of(
        &mut self,
        address: IpAddr,
        new: impl FnOnce() -> Arc<ClientShares>,
    ) -> Arc<ClientShares> {
        let key = match address {
            IpAddr::V4(_) => address,
            // One home, one office: it can take any address of its /64.
            IpAddr::V6(address) => Ipv6Addr::from(u128::from(address) >> 64 << 64).into(),
        };
        if let Some(shares) = self.known.get(&key).and_then(Weak::upgrade) {
            return shares;
        }
        if self.known.len() >= self.sweep {
            self.known.retain(|_, shares| shares.strong_count() > 0);
            self.sweep = self.known.len() * 2 + 64;
        }
        let shares = new();
        self.known.insert(key, Arc::downgrade(&shares));
        shares
    }
}

/// Those of one instance.
pub(crate) struct InstancePlaces {
    all: Arc<Semaphore>,
    own: Arc<Semaphore>,
    requests: Arc<Share>,
    limit: usize,
    tell: Crowded,
    refused: u64,
    told: Option<Instant>,
}

impl fmt::Debug for InstancePlaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InstancePlaces")
            .field("limit", &self.limit)
            .finish_non_exhaustive()
    }
}

impl InstancePlaces {
    fn take(&mut self, stream: TcpStream) -> Option<(Place, TcpStream)> {
        let Ok(own) = Arc::clone(&self.own).try_acquire_owned() else {
            let why = format!(
                "This instance has {} connections to services open, which is the most it may have.",
                self.limit
            );
            self.refuse(stream, "429 Too Many Requests", &why);
            return None;
        };
        let Ok(all) = Arc::clone(&self.all).try_acquire_owned() else {
            let why = "All instances together have as many connections to services open as this server allows.";
            self.refuse(stream, "503 Service Unavailable", why);
            return None;
        };
        let place = Place {
            _own: own,
            _all: Some(all),
        };
        Some((place, stream))
    }

    /// Answers without waiting for anything: who floods us must not occupy a task.
    fn refuse(&mut self, stream: TcpStream, status: &str, why: &str) {
        let answer = format!(
            "HTTP/1.1 {status}\r\n{}: utsuwa; reason=too_many_connections\r\ncontent-type: text/plain; charset=utf-8\r\n\
             content-length: {}\r\nconnection: close\r\n\r\n{why}\n",
            ANSWERED_BY,
            why.len() + 1
        );
        // A client that is gone needs no answer; nor does it matter why it could not be written at once.
        let _ = answer_and_close(stream, answer.as_bytes());
        self.refused += 1;
        let now = Instant::now();
        if self.told.is_none_or(|told| now - told >= TELL_AGAIN) {
            self.told = Some(now);
            (self.tell)(std::mem::take(&mut self.refused));
        }
    }
}

fn answer_and_close(stream: TcpStream, answer: &[u8]) -> io::Result<()> {
    // Still non-blocking. It fits the buffer of a new connection; where it doesn't, closing is answer enough.
    let mut stream = stream.into_std()?;
    stream.write_all(answer)?;
    stream.shutdown(Shutdown::Write)?;
    let mut unread = [0; UNREAD];
    stream.read(&mut unread).map(|_| ())
}
