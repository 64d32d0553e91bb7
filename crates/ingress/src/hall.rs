//! Connections from outside that wait for their client's next request: they may have every open file that nobody else needs, and
//! give it back when somebody does.
//!
//! What is not idle has places of its own: connections with a request under way or still without their first one
//! ([`Hall::busy`]), requests, what instances have, connections kept to instances. All of these places together are as many as
//! there are open files to share out. An idle connection has none of them. It may stay as long as what is open is less than that;
//! then as many as it takes are taken back, of the client with the most idle ones first, and of those the one that has been idle
//! longest.
//!
//! Owns: what all of these hold, who waits for room, and whose connections are taken back. Deliberately not here: how a connection
//! is closed (`ending`), when it is idle (`stay`), shares of clients (`budget`, `places`).
//!
//! Invariants:
//! 1. Nothing is connected and nobody is let in while more is open than there is to share out. Every one of the places can be
//!    taken although idle connections had filled the rest: these can all be taken back.
//! 2. A request looks at one number here while no more connections are open than have places of their own; no request takes a
//!    lock or memory here unless room is short.
//! 3. No more connections are asked to close than room is wanted for, and a reserve of one thirty-second, which spares looking
//!    through all of them for each newcomer.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::budget::{Bell, Budget};
use crate::settings::IngressSettings;
use crate::stay::Stay;

/// The reserve: one of so many parts is kept free of idle connections, and as much is taken back at once.
const RESERVE: usize = 32;

/// What counts the open files of others than connections from outside.
#[derive(Debug)]
pub(crate) struct Others {
    /// Requests of clients from outside, and of instances; connections kept to instances.
    pub(crate) budgets: [Arc<Budget>; 3],
    /// Connections of instances to services.
    pub(crate) instances: Arc<Semaphore>,
    pub(crate) most_instances: usize,
}

/// All connections from outside.
#[derive(Debug)]
pub(crate) struct Hall {
    bell: Arc<Bell>,
    /// Places of those that can't be taken back.
    busy: Arc<Budget>,
    most_busy: usize,
    /// Accepted, or about to be, and not yet among `busy`.
    arriving: Mutex<usize>,
    /// Open ones, idle or not.
    open: AtomicUsize,
    others: Others,
    /// Open files for all of these.
    limit: usize,
    reserve: usize,
    /// Asked to close, and not closed yet.
    promised: AtomicUsize,
    /// Counts the ends of requests: a clock that tells what has been idle longer.
    turn: AtomicU64,
    /// Held by who asks.
    asking: Mutex<()>,
    known: Mutex<Known>,
    /// Connections that rest.
    #[cfg(test)]
    pub(crate) resting: AtomicUsize,
}

/// The connections, to look through when room is short.
#[derive(Debug, Default)]
struct Known {
    stays: HashMap<u64, Weak<Stay>>,
    next: u64,
}

/// One connection on its way in: open, with a promise of a place among the busy ones.
#[derive(Debug)]
pub(crate) struct Arrival {
    hall: Arc<Hall>,
    arrived: bool,
}

/// One open connection.
#[derive(Debug)]
pub(crate) struct Open(Arc<Hall>);

impl Hall {
    pub(crate) fn new(
        settings: &IngressSettings,
        bell: &Arc<Bell>,
        busy: Arc<Budget>,
        others: Others,
    ) -> Arc<Self> {
        let limit = [
            settings.max_connections,
            settings.max_requests,
            settings.max_instance_connections,
            settings.max_instance_requests,
            settings.max_idle,
        ]
        .into_iter()
        .fold(0, usize::saturating_add);
        Arc::new(Self {
            bell: Arc::clone(bell),
            busy,
            most_busy: settings.max_connections,
            arriving: Mutex::default(),
            open: AtomicUsize::new(0),
            others,
            limit,
            reserve: limit / RESERVE,
            promised: AtomicUsize::new(0),
            turn: AtomicU64::new(0),
            asking: Mutex::default(),
            known: Mutex::default(),
            #[cfg(test)]
            resting: AtomicUsize::new(0),
        })
    }

    /// Waits until one more may be accepted.
    pub(crate) async fn enter(self: &Arc<Self>) -> Arrival {
        let arrival = self
            .bell
            .until(|| {
                let mut arriving = self.arriving.lock();
                (*arriving + self.busy.taken() < self.most_busy).then(|| {
                    *arriving += 1;
                    self.open.fetch_add(1, Ordering::SeqCst);
                    Arrival {
                        hall: Arc::clone(self),
                        arrived: false,
                    }
                })
            })
            .await;
        self.room().await;
        arrival
    }

    /// The same for one that is idle: it takes no place among the busy ones.
    pub(crate) async fn enter_idle(self: &Arc<Self>) -> Open {
        self.open.fetch_add(1, Ordering::SeqCst);
        let open = Open(Arc::clone(self));
        self.room().await;
        open
    }

    /// Waits for something that is given back.
    pub(crate) async fn until<T>(&self, look: impl FnMut() -> Option<T>) -> T {
        self.bell.until(look).await
    }

    /// Whether what is counted already may be opened now. Where room gets short, some is made.
    pub(crate) fn has_room(&self) -> bool {
        // While so few are open, all places of all others are there.
        if self.open.load(Ordering::Relaxed) <= self.most_busy {
            return true;
        }
        let used = self.used();
        if used + self.reserve > self.limit {
            self.make_room();
        }
        used <= self.limit
    }

    /// Waits until what is counted already may be opened.
    pub(crate) async fn room(&self) {
        if self.has_room() {
            return;
        }
        self.bell
            .until(|| {
                if self.used() <= self.limit {
                    return Some(());
                }
                self.make_room();
                None
            })
            .await;
    }

    fn used(&self) -> usize {
        let instances = self.others.most_instances - self.others.instances.available_permits();
        let budgets = self.others.budgets.iter().map(|budget| budget.taken());
        self.open.load(Ordering::SeqCst) + instances + budgets.sum::<usize>()
    }

    /// How many more connections should be asked to close.
    fn wanted(&self) -> usize {
        let free = self.limit.saturating_sub(2 * self.reserve);
        let promised = self.promised.load(Ordering::SeqCst);
        self.used().saturating_sub(free + promised)
    }

    /// Asks idle connections to close, unless enough were asked already.
    fn make_room(&self) {
        if self.wanted() == 0 {
            return;
        }
        let _one_asks = self.asking.lock();
        // Who had the lock before may have asked enough of them.
        let wanted = self.wanted();
        if wanted == 0 {
            return;
        }
        // Without the lock: the last to let go of a connection takes it.
        let stays: Vec<Arc<Stay>> = {
            let known = self.known.lock();
            known.stays.values().filter_map(Weak::upgrade).collect()
        };
        let idle = stays.iter().enumerate().filter_map(|(number, stay)| {
            let (client, since) = stay.idle()?;
            Some(Idle {
                client,
                since,
                number,
            })
        });
        for number in longest(idle.collect(), wanted) {
            // First, since its task may answer at once.
            self.promised.fetch_add(1, Ordering::SeqCst);
            if stays[number].call() {
                stays[number].wake();
            } else {
                self.promised.fetch_sub(1, Ordering::SeqCst);
            }
        }
    }

    /// The number of the next end of a request.
    pub(crate) fn turn(&self) -> u64 {
        self.turn.fetch_add(1, Ordering::Relaxed)
    }

    /// One that was asked to close has done so, or does not.
    pub(crate) fn answered(&self) {
        self.promised.fetch_sub(1, Ordering::SeqCst);
        self.bell.ring();
    }

    /// Makes `stay` known, which is made of its number.
    pub(crate) fn receive(&self, make: impl FnOnce(u64) -> Stay) -> Arc<Stay> {
        let mut known = self.known.lock();
        let number = known.next;
        known.next += 1;
        let stay = Arc::new(make(number));
        known.stays.insert(number, Arc::downgrade(&stay));
        stay
    }

    pub(crate) fn forget(&self, number: u64) {
        self.known.lock().stays.remove(&number);
    }

    #[cfg(test)]
    pub(crate) fn open(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }
}

impl Arrival {
    /// It has got a place among the busy ones.
    pub(crate) fn arrived(mut self) -> Open {
        self.arrived = true;
        *self.hall.arriving.lock() -= 1;
        self.hall.bell.ring();
        Open(Arc::clone(&self.hall))
    }
}

impl Drop for Arrival {
    fn drop(&mut self) {
        if !self.arrived {
            *self.hall.arriving.lock() -= 1;
            self.hall.open.fetch_sub(1, Ordering::SeqCst);
            self.hall.bell.ring();
        }
    }
}

impl Open {
    pub(crate) const fn hall(&self) -> &Arc<Hall> {
        &self.0
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
        self.0.bell.ring();
    }
}

/// A connection that may be taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Idle {
    /// Whose it is.
    client: usize,
    /// The smaller, the longer ago its last request ended.
    since: u64,
    number: usize,
}

/// The numbers of the `count` that are taken back: each time of the client that has most, the one that was idle longest. Between
/// clients that have as many it is the one idle longest of all of theirs.
fn longest(idle: Vec<Idle>, count: usize) -> Vec<usize> {
    let mut clients: HashMap<usize, Vec<Idle>> = HashMap::new();
    for one in idle {
        clients.entry(one.client).or_default().push(one);
    }
    let mut most: BinaryHeap<(usize, Reverse<u64>, usize)> = BinaryHeap::new();
    for (client, theirs) in &mut clients {
        theirs.sort_unstable_by_key(|one| Reverse(one.since));
        if let Some(oldest) = theirs.last() {
            most.push((theirs.len(), Reverse(oldest.since), *client));
        }
    }
    let mut taken = Vec::with_capacity(count.min(1024));
    while taken.len() < count
        && let Some((_, _, client)) = most.pop()
        && let Some(theirs) = clients.get_mut(&client)
        && let Some(oldest) = theirs.pop()
    {
        taken.push(oldest.number);
        if let Some(next) = theirs.last() {
            most.push((theirs.len(), Reverse(next.since), client));
        }
    }
    taken
}

#[cfg(test)]
#[path = "hall_tests.rs"]
mod tests;
