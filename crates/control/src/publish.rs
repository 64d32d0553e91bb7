//! Giving the ingress the routes, once for many changes.
//!
//! Owns: when a service's table is made and handed over. Deliberately not here: what is in it ([`crate::world::World::routes`]).
//!
//! Invariants:
//! 1. When [`Core::publish`] returns, the ingress has the routes of every service that was marked before the call: what
//!    follows (a status, the start of a proof) may depend on it.
//! 2. Changes are handed over one after the other, never an older table of a service after a newer one.
//! 3. Only what was marked since the last time is made and handed over; callers that wait for each other share one change.
//! 4. Until everything stored is loaded nothing is published, and then all at once: half of it would answer 404 for what
//!    exists.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use utsuwa_decide::invariant;
use utsuwa_model::ServiceKey;

use crate::core::Core;

/// How long a change that nobody depends on waits for others.
const SOON: Duration = Duration::from_millis(5);

/// What was marked and what was published of it.
#[derive(Debug, Default)]
pub(crate) struct Publisher {
    loaded: AtomicBool,
    /// Services whose routes changed and whom nobody has published since.
    marked: Mutex<BTreeSet<ServiceKey>>,
    /// Held while tables are made and handed over.
    publishing: Mutex<()>,
    soon: AtomicBool,
}

/// Marks that are being published. Whoever panics meanwhile gives them back: nobody else would publish these services again.
struct Marks<'a> {
    of: BTreeSet<ServiceKey>,
    publisher: &'a Publisher,
}

impl Marks<'_> {
    fn honoured(mut self) {
        self.of.clear();
    }
}

impl Drop for Marks<'_> {
    fn drop(&mut self) {
        self.publisher.marked.lock().append(&mut self.of);
    }
}

impl Core {
    /// From now on everything stored is in the picture.
    pub(crate) fn set_loaded(&self) {
        self.publisher.loaded.store(true, Ordering::Release);
    }

    /// The picture changed, and the routes of `service` with it. To be said after the change was made.
    pub(crate) fn mark_routes(&self, service: &ServiceKey) {
        self.publisher.marked.lock().insert(service.clone());
    }

    /// Gives the ingress the routes as they are now, unless it has them.
    pub(crate) fn publish(&self) {
        if !self.publisher.loaded.load(Ordering::Acquire) {
            return;
        }
        let _one_at_a_time = self.publisher.publishing.lock();
        // Before the tables are made: a change that comes meanwhile may be missing in them, and is published by who marks it.
        let marks = Marks {
            of: std::mem::take(&mut *self.publisher.marked.lock()),
            publisher: &self.publisher,
        };
        if marks.of.is_empty() {
            return;
        }
        let changes = self.world.routes(&marks.of);
        for change in &changes {
            debug_assert_eq!(invariant::table_is_whole(&change.routes), Ok(()));
        }
        self.door.publish(changes);
        marks.honoured();
    }

    /// As [`Core::publish`], a little later and together with what else changes until then: for changes nobody depends on.
    pub(crate) fn publish_soon(&self, service: &ServiceKey) {
        self.mark_routes(service);
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
