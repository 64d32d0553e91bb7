//! What is counted of requests that no revision ever saw: refused ones, by the service whose host they asked for.
//!
//! Invariant: as many series as there are services with routes, and one for all hosts that nobody has.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use utsuwa_model::ServiceKey;

use super::Meters;

#[derive(Debug, Default)]
pub(crate) struct Rejected {
    services: Mutex<BTreeMap<ServiceKey, Arc<Meters>>>,
    nobody: Arc<Meters>,
}

impl Rejected {
    /// Where a refused request is counted. `None`: no service is served under its host.
    pub(crate) fn of(&self, service: Option<&ServiceKey>) -> Arc<Meters> {
        let Some(service) = service else {
            return Arc::clone(&self.nobody);
        };
        let mut services = self.services.lock();
        match services.get(service) {
            Some(meters) => Arc::clone(meters),
            None => Arc::clone(services.entry(service.clone()).or_default()),
        }
    }

    /// Nobody is served under the service's name any more.
    pub(crate) fn forget(&self, service: &ServiceKey) {
        self.services.lock().remove(service);
    }

    /// All there are.
    pub(crate) fn all(&self) -> Vec<(Option<ServiceKey>, Arc<Meters>)> {
        let services = self.services.lock();
        let known = services
            .iter()
            .map(|(key, meters)| (Some(key.clone()), Arc::clone(meters)));
        known.chain([(None, Arc::clone(&self.nobody))]).collect()
    }
}
