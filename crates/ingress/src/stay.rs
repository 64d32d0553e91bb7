//! One connection from outside, as the hall sees it: busy or idle, and whether it was asked to close.
//!
//! It is *busy* from the beginning to the end of each request, answer included, and before its first one; while a part of a head
//! is there, too. As long it has a place of its client's share. Then it is *idle*, has none, and may be asked to close.
//!
//! Owns: those two states of each connection. Deliberately not here: who is asked (`hall`), and what is done then (`ending`).
//!
//! Invariants:
//! 1. Requests begin in the connection's own task, which is also the one that closes it: what has begun is not closed over.
//! 2. Beginning and ending a request takes no lock and no memory.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::task::{Poll, Waker};

use futures_util::task::AtomicWaker;

use crate::answer::Answer;
use crate::hall::Open;
use crate::places::ClientShares;

/// Nobody wants it to close.
const LEFT: u8 = 0;
/// It was asked to.
const CALLED: u8 = 1;
/// It was, and did not; it isn't asked again.
const STAYS: u8 = 2;

/// One connection.
#[derive(Debug)]
pub(crate) struct Stay {
    number: u64,
    shares: Arc<ClientShares>,
    /// It had no request yet.
    new: AtomicBool,
    /// What makes it busy.
    under_way: AtomicU32,
    /// The turn at which it became idle.
    since: AtomicU64,
    called: AtomicU8,
    task: AtomicWaker,
    open: Open,
}

impl Stay {
    /// A connection that has just got a place of its client's share.
    pub(crate) fn new(open: Open, shares: Arc<ClientShares>) -> Arc<Self> {
        Self::made(open, shares, true)
    }

    /// One that is idle, and has none.
    pub(crate) fn idle_one(open: Open, shares: Arc<ClientShares>) -> Arc<Self> {
        Self::made(open, shares, false)
    }

    fn made(open: Open, shares: Arc<ClientShares>, new: bool) -> Arc<Self> {
        let hall = Arc::clone(open.hall());
        let turn = hall.turn();
        hall.receive(|number| Self {
            number,
            shares,
            new: AtomicBool::new(new),
            under_way: AtomicU32::new(u32::from(new)),
            since: AtomicU64::new(turn),
            called: AtomicU8::new(LEFT),
            task: AtomicWaker::new(),
            open,
        })
    }

    /// Something begins that keeps it busy. To be called in its own task.
    pub(crate) fn begin(&self) -> Result<(), Answer> {
        if self.new.load(Ordering::Relaxed) && self.new.swap(false, Ordering::AcqRel) {
            // It has the place that the connection came in with.
            return Ok(());
        }
        if self.under_way.fetch_add(1, Ordering::AcqRel) > 0 {
            return Ok(());
        }
        if let Err(answer) = self.shares.connections.enter_or_tell() {
            self.under_way.fetch_sub(1, Ordering::AcqRel);
            return Err(answer);
        }
        // Its request came first. Nobody counts on its open file any more, least of all this request.
        if self.is_called() {
            self.refuse(false);
        }
        Ok(())
    }

    /// The end of what [`Stay::begin`] let begin.
    pub(crate) fn end(&self) {
        self.since.store(self.open.hall().turn(), Ordering::Relaxed);
        if self.under_way.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.shares.connections.leave();
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.under_way() > 0
    }

    /// How many things keep it busy.
    pub(crate) fn under_way(&self) -> u32 {
        self.under_way.load(Ordering::Acquire)
    }

    /// Whose it is and since when it has been idle, unless it is busy or was asked already.
    pub(crate) fn idle(&self) -> Option<(usize, u64)> {
        let free = !self.is_busy() && self.called.load(Ordering::Acquire) == LEFT;
        let client = Arc::as_ptr(&self.shares).addr();
        free.then(|| (client, self.since.load(Ordering::Relaxed)))
    }

    /// Asks it to close; whether nobody has before.
    pub(crate) fn call(&self) -> bool {
        let called = &self.called;
        called
            .compare_exchange(LEFT, CALLED, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// Whether it was asked, and nothing began since.
    pub(crate) fn is_called(&self) -> bool {
        self.called.load(Ordering::Acquire) == CALLED
    }

    /// Tells its task.
    pub(crate) fn wake(&self) {
        self.task.wake();
    }

    /// Returns once it was asked to close, also if something has begun since: that it stays is to be seen by its task, too.
    pub(crate) async fn called(&self) {
        let mut known: Option<Waker> = None;
        poll_fn(|context| {
            // A task has the same waker all its life: it is left here once.
            if !known.as_ref().is_some_and(|w| w.will_wake(context.waker())) {
                self.task.register(context.waker());
                known = Some(context.waker().clone());
            }
            if self.called.load(Ordering::Acquire) != LEFT {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// It does not close now; `again`: it may be asked again.
    pub(crate) fn refuse(&self, again: bool) {
        let now = if again { LEFT } else { STAYS };
        if self.called.swap(now, Ordering::AcqRel) == CALLED {
            self.open.hall().answered();
        }
    }
}

#[cfg(test)]
impl Stay {
    pub(crate) const fn hall(&self) -> &Arc<crate::hall::Hall> {
        self.open.hall()
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        self.open.hall().forget(self.number);
        // What had begun holds it; so this is one that never had a request.
        if self.is_busy() {
            self.shares.connections.leave();
        }
        if *self.called.get_mut() == CALLED {
            self.open.hall().answered();
        }
    }
}
