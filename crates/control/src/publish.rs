//! Giving the ingress the routes, once for many changes.
//!
//! Owns: when the table is made and handed over. Deliberately not here: what is in it ([`crate::world::World::table`]).
//!
//! Invariants:
//! 1. When [`Core::publish`] returns, the ingress has a table that holds everything marked before the call: what follows
//!    (a status, the start of a proof) may depend on it.
//! 2. Tables are handed over one at a time, never an older one after a newer one.
//! 3. Nothing is made or handed over while nothing was marked since the last time; callers that wait for each other share one.
//! 4. Until everything stored is loaded nothing is published: a half table would answer 404 for what exists.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use utsuwa_decide::invariant;

use crate::core::Core;

/// How long a change that nobody depends on waits for others.
const SOON: Duration = Duration::from_millis(5);

/// What was marked and what was published of it.
#[derive(Debug)]
pub(crate) struct Publisher {
    loaded: AtomicBool,
    /// Counts changes of what the table is made of. The first table is always new.
    marked: AtomicU64,
    /// The mark that the ingress has. Held while a table is made and handed over.
    published: Mutex<u64>,
    soon: AtomicBool,
}

impl Default for Publisher {
    fn default() -> Self {
        Self {
            loaded: AtomicBool::new(false),
            marked: AtomicU64::new(1),
            published: Mutex::new(0),
            soon: AtomicBool::new(false),
        }
    }
}

impl Core {
    /// From now on the table is whole.
    pub(crate) fn set_loaded(&self) {
        self.publisher.loaded.store(true, Ordering::Release);
    }

    /// The picture changed, and the table with it. To be said after the change was made.
    pub(crate) fn mark_routes(&self) {
        self.publisher.marked.fetch_add(1, Ordering::AcqRel);
    }

    /// Gives the ingress the routes as they are now, unless it has them.
    pub(crate) fn publish(&self) {
        if !self.publisher.loaded.load(Ordering::Acquire) {
            return;
        }
        let mut published = self.publisher.published.lock();
        // Before the table is made: a change that comes meanwhile may be missing in it, and is published by who marks it.
        let marked = self.publisher.marked.load(Ordering::Acquire);
        if *published == marked {
            return;
        }
        let table = self.world.table();
        debug_assert_eq!(invariant::table_is_whole(&table), Ok(()));
        self.door.publish(Arc::new(table));
        *published = marked;
    }

    /// As [`Core::publish`], a little later and together with what else changes until then: for changes nobody depends on.
    pub(crate) fn publish_soon(&self) {
        self.mark_routes();
        if self.publisher.soon.swap(true, Ordering::AcqRel) {
            return;
        }
        self.spawn(|core| async move {
            tokio::select! {
                () = core.cancel.cancelled() => return,
                () = tokio::time::sleep(SOON) => {}
            }
            core.publisher.soon.store(false, Ordering::Release);
            core.publish();
        });
    }
}
