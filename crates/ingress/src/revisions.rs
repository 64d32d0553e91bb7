//! All revisions the ingress knows of, by name.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use utsuwa_model::RevisionKey;

use crate::outside::Outside;
use crate::revision::Revision;

/// Every revision the ingress knows of.
#[derive(Debug, Default)]
pub(crate) struct Revisions(Mutex<HashMap<RevisionKey, Arc<Revision>>>);

impl Revisions {
    pub(crate) fn get(&self, key: &RevisionKey) -> Option<Arc<Revision>> {
        self.0.lock().get(key).cloned()
    }

    pub(crate) fn get_or_make(&self, key: &RevisionKey, outside: &Arc<Outside>) -> Arc<Revision> {
        let mut all = self.0.lock();
        if let Some(known) = all.get(key) {
            return Arc::clone(known);
        }
        let made = all
            .entry(key.clone())
            .or_insert_with(|| Revision::new(key.clone(), Arc::clone(outside)));
        Arc::clone(made)
    }

    /// Keeps those that `wanted` names or that are in use; answers the ones in use that are not wanted.
    pub(crate) fn prune(&self, wanted: impl Fn(&RevisionKey) -> bool) -> Vec<Arc<Revision>> {
        let mut unwanted = Vec::new();
        self.0.lock().retain(|key, revision| {
            if wanted(key) {
                return true;
            }
            let used = !revision.is_unused();
            if used {
                unwanted.push(Arc::clone(revision));
            }
            used
        });
        unwanted
    }
}
