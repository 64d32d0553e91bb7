//! The ingress, as the loops see it; and the loops, as the ingress sees them.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures_util::future::BoxFuture;
use utsuwa_control::ControlHandle;
use utsuwa_control::seam::{FrontDoor, Refusal};
use utsuwa_ingress::Ingress;
use utsuwa_ingress::seam::Wake;
use utsuwa_model::demand::RevisionDemand;
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{InstanceRoute, RouteChange, StartupProbe};
use utsuwa_model::{InstanceId, RevisionKey};

/// `control → ingress`.
#[derive(Debug, Clone)]
pub(super) struct Door(pub(super) Ingress);

impl FrontDoor for Door {
    fn publish(&self, changes: Vec<RouteChange>) {
        self.0.publish(changes);
    }

    fn admit(&self, instance: InstanceRoute, phases: StartPhases) {
        self.0.admit(instance, phases);
    }

    fn probe(
        &self,
        instance: InstanceRoute,
        startup: StartupProbe,
    ) -> BoxFuture<'static, Result<(), String>> {
        self.0.probe(instance, startup)
    }

    fn retire(&self, id: &InstanceId, deadline: Duration) -> BoxFuture<'static, bool> {
        self.0.retire(id, deadline)
    }

    fn rest(&self, id: &InstanceId) -> bool {
        self.0.rest(id)
    }

    fn awake(&self, id: &InstanceId) {
        self.0.awake(id);
    }

    fn forget(&self, id: &InstanceId, out_of_memory: bool) {
        self.0.forget(id, out_of_memory);
    }

    fn refuse(&self, revision: &RevisionKey, why: Refusal) {
        let why = match why {
            Refusal::StartFailed { message } => utsuwa_ingress::Refusal::StartFailed { message },
            Refusal::NoCapacity { message } => utsuwa_ingress::Refusal::NoCapacity { message },
        };
        self.0.refuse(revision, why);
    }

    fn demand(&self, revision: &RevisionKey) -> Option<RevisionDemand> {
        self.0.demand(revision)
    }
}

/// `ingress → control`. The ingress is made first, so the loops are filled in later; a wake before that is a level that the loops
/// see at their first pass.
#[derive(Debug, Clone, Default)]
pub(super) struct Bell(Arc<OnceLock<ControlHandle>>);

impl Bell {
    pub(super) fn connect(&self, control: ControlHandle) {
        drop(self.0.set(control));
    }
}

impl Wake for Bell {
    fn wake(&self, revision: &RevisionKey) {
        if let Some(control) = self.0.get() {
            control.wake(revision);
        }
    }

    fn thaw(&self, revision: &RevisionKey, instance: &InstanceId) {
        if let Some(control) = self.0.get() {
            control.thaw(revision, instance);
        }
    }

    fn changed(&self, revision: &RevisionKey) {
        if let Some(control) = self.0.get() {
            control.changed(revision);
        }
    }
}
