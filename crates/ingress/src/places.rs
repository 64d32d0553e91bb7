//! How many connections clients may have open, and what happens to one too many.
//!
//! Owns: the places of all listeners, and whose share of the requests under way a connection draws on. Deliberately not here:
//! accepting and serving (`serve`), how requests are shared out (`budget`).
//!
//! Invariants:
//! 1. All public listeners together have `max_connections` places for connections that aren't idle: one more waits in the
//!    kernel's queue, where a client of the internet may wait. Idle ones are the [`Hall`]'s.
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
use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use crate::answer::ANSWERED_BY;
use crate::budget::{Bell, Budget, Refused, Share};
use crate::hall::{Arrival, Hall, Open, Others};
use crate::outside::Outside;
use crate::settings::IngressSettings;
use crate::stay::Stay;
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
    pub(crate) hall: Arc<Hall>,
    bell: Arc<Bell>,
    instances: Arc<Semaphore>,
    public_connections: Arc<Budget>,
    public_requests: Arc<Budget>,
    clients: Mutex<Clients>,
    /// Connections that were closed because their client has too many.
    crowded: Told,
    instance_requests: Arc<Budget>,
}

impl Shared {
    pub(crate) fn new(outside: &Outside) -> Self {
        Self::made_of(&outside.settings, &outside.bell, &outside.idle)
    }

    /// `idle`: connections kept to instances.
    pub(crate) fn made_of(
        settings: &IngressSettings,
        bell: &Arc<Bell>,
        idle: &Arc<Budget>,
    ) -> Self {
        let budget = |whose, limit| Budget::new(whose, limit, bell);
        let public_connections = budget("connections from outside", settings.max_connections);
        let public_requests = budget("clients from outside", settings.max_requests);
        let instance_requests = budget("instances", settings.max_instance_requests);
        let instances = Arc::new(Semaphore::new(settings.max_instance_connections));
        let others = Others {
            budgets: [&public_requests, &instance_requests, idle].map(Arc::clone),
            instances: Arc::clone(&instances),
            most_instances: settings.max_instance_connections,
        };
        Self {
            hall: Hall::new(settings, bell, Arc::clone(&public_connections), others),
            bell: Arc::clone(bell),
            instances,
            public_connections,
            public_requests,
            clients: Mutex::default(),
            crowded: Told::default(),
            instance_requests,
        }
    }

    /// Connections from outside that aren't idle.
    #[cfg(test)]
    pub(crate) fn busy(&self) -> usize {
        self.public_connections.taken()
    }

    /// How many wait for something to be given back, listeners among them.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.bell.waiting()
    }

    #[cfg(test)]
    pub(crate) const fn public_requests(&self) -> &Arc<Budget> {
        &self.public_requests
    }

    #[cfg(test)]
    pub(crate) const fn instance_requests(&self) -> &Arc<Budget> {
        &self.instance_requests
    }

    pub(crate) fn for_public(&self) -> Places {
        Places::Public(Arc::clone(&self.hall))
    }

    /// What a connection of this client draws on; `None` when it has as many busy connections as are left for all others. Waits
    /// while there are no more for anybody.
    pub(crate) async fn client(&self, address: IpAddr, arrival: Arrival) -> Option<Own> {
        let shares = self.shares_of(address);
        let enter = || {
            // Entering in vain rings: who waits would wake itself for ever.
            if self.public_connections.is_full() {
                return None;
            }
            match shares.connections.enter() {
                Err(Refused::Full) => None,
                entered => Some(entered),
            }
        };
        if self.hall.until(enter).await.is_ok() {
            let requests = Arc::clone(&shares.requests);
            let stay = Stay::new(arrival.arrived(), shares);
            return Some(Own {
                requests,
                stay: Some(stay),
                _place: None,
            });
        }
        if let Some(count) = self.crowded.count() {
            tracing::warn!(
                count,
                client = %address,
                "closed new connections: their client has as many as are left for all others"
            );
        }
        None
    }

    /// What one draws on that is idle. Its next request takes a place, if its client may have one.
    pub(crate) fn idle_client(&self, address: IpAddr, open: Open) -> Own {
        let shares = self.shares_of(address);
        let requests = Arc::clone(&shares.requests);
        Own {
            requests,
            stay: Some(Stay::idle_one(open, shares)),
            _place: None,
        }
    }

    fn shares_of(&self, address: IpAddr) -> Arc<ClientShares> {
        let new = || {
            Arc::new(ClientShares {
                connections: self.public_connections.share(),
                requests: self.public_requests.share(),
            })
        };
        if address.is_loopback() {
            new()
        } else {
            self.clients.lock().of(address, new)
        }
    }

    pub(crate) fn for_instance(&self, settings: &IngressSettings, tell: Crowded) -> Places {
        let own = settings.max_connections_per_instance;
        Places::Instance(InstancePlaces {
            hall: Arc::clone(&self.hall),
            bell: Arc::clone(&self.bell),
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
    Public(Arc<Hall>),
    Instance(InstancePlaces),
}

/// What a connection comes in with.
#[derive(Debug)]
pub(crate) enum Entered {
    /// Whose it is may still have to be read from it.
    Public(Arrival),
    Instance(Own),
}

/// A connection of an instance; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
    /// After the others.
    _ring: Ring,
}

#[derive(Debug)]
struct Ring(Arc<Bell>);

impl Drop for Ring {
    fn drop(&mut self) {
        // The semaphores have given back their permits in no order with what the bell looks at.
        fence(Ordering::SeqCst);
        self.0.ring();
    }
}

impl Places {
    /// Whether only an instance comes in here.
    pub(crate) const fn inside(&self) -> bool {
        matches!(self, Self::Instance(_))
    }

    /// Before accepting: waits where clients wait in the queue.
    pub(crate) async fn before_accept(&self) -> Option<Arrival> {
        match self {
            Self::Instance(places) => {
                // It finds its place when it is there; only what idle connections have of it must be back.
                places.hall.room().await;
                None
            }
            Self::Public(hall) => Some(hall.enter().await),
        }
    }

    /// After accepting: the place taken before, or one for `stream`, or its refusal.
    pub(crate) fn take(
        &mut self,
        before: Option<Arrival>,
        stream: TcpStream,
    ) -> Option<(Entered, TcpStream)> {
        match (self, before) {
            (_, Some(arrival)) => Some((Entered::Public(arrival), stream)),
            (Self::Instance(places), None) => places.take(stream),
            (Self::Public(_), None) => None,
        }
    }
}

/// What one connection draws on; given back with it.
#[derive(Debug)]
pub(crate) struct Own {
    pub(crate) requests: Arc<Share>,
    /// Of a client from outside.
    pub(crate) stay: Option<Arc<Stay>>,
    /// Of an instance.
    _place: Option<Place>,
}

#[cfg(test)]
impl Own {
    /// Of nobody.
    pub(crate) fn none() -> Self {
        Self {
            requests: Budget::new("tests", 1, &Arc::default()).share(),
            stay: None,
            _place: None,
        }
    }
}

/// Of one client from outside, forgotten with its last connection.
#[derive(Debug)]
pub(crate) struct ClientShares {
    /// Those that are busy.
    pub(crate) connections: Arc<Share>,
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
    hall: Arc<Hall>,
    bell: Arc<Bell>,
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
    fn take(&mut self, stream: TcpStream) -> Option<(Entered, TcpStream)> {
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
            _all: all,
            _ring: Ring(Arc::clone(&self.bell)),
        };
        let own = Own {
            requests: Arc::clone(&self.requests),
            stay: None,
            _place: Some(place),
        };
        Some((Entered::Instance(own), stream))
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
