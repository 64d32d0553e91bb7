//! All revisions the ingress knows of, by name.
//!
//! Invariant: a revision that no published route knows is in `unpublished`, and forgotten once nothing uses it. Nobody is told of
//! anything while the lock is held.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use utsuwa_model::RevisionKey;

use crate::counts::Nudge;
use crate::instance::Instance;
use crate::outside::Outside;
use crate::revision::Revision;

/// Every revision the ingress knows of.
#[derive(Debug, Default)]
pub(crate) struct Revisions(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    all: HashMap<RevisionKey, Arc<Revision>>,
    unpublished: HashSet<RevisionKey>,
}

impl Revisions {
    pub(crate) fn get(&self, key: &RevisionKey) -> Option<Arc<Revision>> {
        self.0.lock().all.get(key).cloned()
    }

    /// Gives an instance that was handed over, perhaps before the settings of its revision, a seat there. In one step: a revision
    /// without seats may be forgotten at any moment, and whoever had it from here would be seated in one that nobody asks.
    pub(crate) fn seat(
        &self,
        instance: &Arc<Instance>,
        outside: &Arc<Outside>,
    ) -> (Arc<Revision>, Nudge) {
        let mut known = self.0.lock();
        let key = &instance.revision;
        let revision = match known.all.get(key) {
            Some(revision) => Arc::clone(revision),
            None => {
                known.unpublished.insert(key.clone());
                known.make(key, outside)
            }
        };
        let nudge = revision.add(Arc::clone(instance));
        (revision, nudge)
    }

    /// The revision of a route.
    pub(crate) fn publish(&self, key: &RevisionKey, outside: &Arc<Outside>) -> Arc<Revision> {
        let mut known = self.0.lock();
        known.unpublished.remove(key);
        match known.all.get(key) {
            Some(revision) => Arc::clone(revision),
            None => known.make(key, outside),
        }
    }

    /// No route knows `key` any more.
    pub(crate) fn unpublish(&self, key: &RevisionKey) {
        let mut known = self.0.lock();
        if known.all.contains_key(key) {
            known.unpublished.insert(key.clone());
        }
    }

    /// All there are, in the order of their names.
    pub(crate) fn all(&self) -> Vec<Arc<Revision>> {
        let mut all: Vec<_> = self.0.lock().all.values().cloned().collect();
        all.sort_by(|a, b| a.key.cmp(&b.key));
        all
    }

    /// Forgets those that no route knows and nothing uses; answers the ones that are still used.
    pub(crate) fn prune(&self) -> Vec<Arc<Revision>> {
        let mut used = Vec::new();
        let mut known = self.0.lock();
        let Known { all, unpublished } = &mut *known;
        unpublished.retain(|key| {
            let Some(revision) = all.get(key) else {
                return false;
            };
            if revision.is_unused() {
                all.remove(key);
                return false;
            }
            used.push(Arc::clone(revision));
            true
        });
        used
    }
}

impl Known {
    fn make(&mut self, key: &RevisionKey, outside: &Arc<Outside>) -> Arc<Revision> {
        let made = Revision::new(key.clone(), Arc::clone(outside));
        self.all.insert(key.clone(), Arc::clone(&made));
        made
    }
}
