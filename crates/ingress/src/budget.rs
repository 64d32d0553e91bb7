//! How many things that hold an open file there may be at once, shared out fairly among those who want them.
//!
//! Owns: the count of each kind (requests of clients, requests of instances, idle connections) and who has how many of it.
//! Deliberately not here: client connections, which wait or are refused before anything is read from them (`places`).
//!
//! Invariants:
//! 1. Never more places of a budget are taken than its limit.
//! 2. Who holds as many places as are left gets no more. So one that takes all it can get ends with half of them, n of them end
//!    with n/(n+1) together, and a newcomer still gets one.
//! 3. Taking a place and giving it back takes no lock and no memory, unless somebody waits for one.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};

use tokio::sync::Notify;

use crate::answer::Answer;
use crate::told::Told;

/// Tells those who wait for room that something was given back.
#[derive(Debug, Default)]
pub(crate) struct Bell {
    waiting: AtomicUsize,
    rung: Notify,
}

/// Somebody waits as long as this is there.
struct Waits<'a>(&'a Bell);

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Bell {
    /// Something was given back, before this was called.
    pub(crate) fn ring(&self) {
        // Either we see that somebody waits, or they see what was given back: all of it is in one order. What isn't counted by
        // such an atomic or under a lock has a fence before this, to be in that order, too.
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.rung.notify_waiters();
        }
    }

    /// How many wait.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::SeqCst)
    }

    /// Waits until `look` finds something. It looks at once, and again whenever the bell rings. While it finds nothing it must not
    /// ring itself, every time: it would be woken for ever.
    pub(crate) async fn until<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let _waits = Waits(self);
        // The other half of that fence.
        fence(Ordering::SeqCst);
        loop {
            let mut rung = pin!(self.rung.notified());
            rung.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            rung.await;
        }
    }
}

/// All places of one kind.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Whose places these are, for the log.
    whose: &'static str,
    limit: usize,
    taken: AtomicUsize,
    refused: Told,
    bell: Arc<Bell>,
}

/// What one of those who share a budget holds of it.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    own: AtomicUsize,
}

/// One place, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Share>);

/// Why there is no place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refused {
    /// There are some, for others.
    Share,
    /// There are none.
    Full,
}

impl Budget {
    /// `bell` is rung for every place that is given back.
    pub(crate) fn new(whose: &'static str, limit: usize, bell: &Arc<Bell>) -> Arc<Self> {
        Arc::new(Self {
            whose,
            limit,
            taken: AtomicUsize::new(0),
            refused: Told::default(),
            bell: Arc::clone(bell),
        })
    }

    /// How many places are taken.
    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::SeqCst)
    }

    /// Whether there was none left a moment ago. Who made it so rings the bell when that is over.
    pub(crate) fn is_full(&self) -> bool {
        self.taken() >= self.limit
    }

    /// For one more who wants places of it.
    pub(crate) fn share(self: &Arc<Self>) -> Arc<Share> {
        Arc::new(Share {
            budget: Arc::clone(self),
            own: AtomicUsize::new(0),
        })
    }
}

impl Share {
    /// A place, if this one's share and the budget have one left.
    pub(crate) fn take(self: &Arc<Self>) -> Result<Place, Refused> {
        self.enter().map(|()| Place(Arc::clone(self)))
    }

    /// The same for who gives it back by [`Share::leave`].
    pub(crate) fn enter(&self) -> Result<(), Refused> {
        // Counted first and taken back when it was too much: at the very limit two at once may both be refused, never both let in.
        let taken = self.budget.taken.fetch_add(1, Ordering::SeqCst);
        let own = self.own.fetch_add(1, Ordering::AcqRel);
        let left = self.budget.limit.saturating_sub(taken);
        if own < left {
            return Ok(());
        }
        self.leave();
        Err(if left == 0 {
            Refused::Full
        } else {
            Refused::Share
        })
    }

    /// Gives back one place that was entered.
    pub(crate) fn leave(&self) {
        self.own.fetch_sub(1, Ordering::AcqRel);
        self.budget.taken.fetch_sub(1, Ordering::SeqCst);
        self.budget.bell.ring();
    }

    /// A place for a request, or what its client is answered.
    pub(crate) fn take_or_tell(self: &Arc<Self>) -> Result<Place, Answer> {
        self.enter_or_tell().map(|()| Place(Arc::clone(self)))
    }

    /// The same for who gives it back by [`Share::leave`].
    pub(crate) fn enter_or_tell(&self) -> Result<(), Answer> {
        self.enter().map_err(|refused| {
            if let Some(count) = self.budget.refused.count() {
                tracing::warn!(
                    count,
                    of = self.budget.whose,
                    limit = self.budget.limit,
                    "refused requests: as many are under way as their share allows. If that is for want of open files, raise their limit (ulimit -n, LimitNOFILE=)"
                );
            }
            match refused {
                Refused::Share => Answer::OverShare,
                Refused::Full => Answer::NoRoom,
            }
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn greedy(share: &Arc<Share>) -> Vec<Place> {
        std::iter::from_fn(|| share.take().ok())
            .take(1_000)
            .collect()
    }

    #[tokio::test]
    async fn who_takes_all_it_can_get_leaves_some_to_others() {
        let budget = Budget::new("tests", 100, &Arc::default());
        let (first, second, third) = (budget.share(), budget.share(), budget.share());
        let held = greedy(&first);
        assert_eq!(held.len(), 50);
        assert_eq!(first.take().unwrap_err(), Refused::Share);
        let more = greedy(&second);
        assert_eq!(more.len(), 25);
        let modest = third.take().unwrap();
        // The greedy ones give back and get less than before, since others are there.
        drop(held);
        let held = greedy(&first);
        assert_eq!(held.len(), 37);

        // One place each: all of them are used, none refused before.
        let many: Vec<_> = std::iter::from_fn(|| budget.share().take().ok())
            .take(1_000)
            .collect();
        assert_eq!(held.len() + more.len() + 1 + many.len(), 100);
        assert_eq!(budget.share().take().unwrap_err(), Refused::Full);
        drop((held, more, modest, many));
        assert_eq!(greedy(&first).len(), 50, "everything came back");
    }

    #[test]
    fn many_at_once_never_take_more_than_there_are() {
        let budget = Budget::new("tests", 2, &Arc::default());
        let most = AtomicUsize::new(0);
        let inside = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..20_000 {
                        if let Ok(place) = budget.share().take() {
                            let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                            most.fetch_max(now, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(place);
                        }
                    }
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert_eq!(budget.taken.load(Ordering::SeqCst), 0);
    }
}
