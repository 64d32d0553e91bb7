//! How one server makes place for the next without losing a request.
//!
//! Owns: the three moments of an end (nothing new, nothing waits, everything is cut), and what a server that has made place
//! still has inside instances. Deliberately not here: who takes the place and how it is told (`daemon`).
//!
//! The order, for the one that leaves: listeners stop; idle connections go on with the next server (`handover`), and where they
//! can't, a kept-alive client gets its last words in; what waits for an instance
//! goes on waiting, since instances can still be started and reached. Then it is *settled*: every request under way has been
//! sent. From there on nothing but the sockets it has is needed, so that the next server may begin while streams go on.
//!
//! Invariants:
//! 1. Between settling and the end no connection to an instance is needed, unless the app closes one under a request.
//! 2. What the server before holds in an instance counts like what we hold: it isn't frozen, retired as idle, or overfilled.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_model::InstanceId;

use crate::Ingress;
use crate::handover::Giving;
use crate::instance::Instance;
use crate::revision::Revision;

/// How far the end has come.
#[derive(Debug, Default)]
pub(crate) struct Leaving {
    /// Whoever may still need an instance to be reached: a connection that may bring a request, a request not sent yet.
    pub(crate) early: TaskTracker,
    /// Nobody waits for an instance any more.
    pub(crate) in_vain: CancellationToken,
    /// The end, finished or not.
    pub(crate) cut: CancellationToken,
    /// Where idle connections go.
    pub(crate) giving: Giving,
    /// Requests of the server before, by the instance they are in.
    held: Mutex<BTreeMap<InstanceId, u32>>,
    /// Told of every change of `held`.
    told: Notify,
}

impl Leaving {
    /// What the server before has in `instance`, which was just taken in.
    pub(crate) fn apply(&self, revision: &std::sync::Arc<Revision>, instance: &Instance) {
        let held = self.held.lock();
        if let Some(count) = held.get(&instance.id) {
            revision.hold(&instance.id, *count);
        }
    }

    /// Waits until the server before has nothing in the instance any more.
    pub(crate) async fn let_go(&self, id: &InstanceId) {
        loop {
            let mut told = std::pin::pin!(self.told.notified());
            told.as_mut().enable();
            if !self.held.lock().contains_key(id) {
                return;
            }
            told.await;
        }
    }
}

impl Ingress {
    /// After the listeners' shutdown: returns when every request under way has been sent to its instance, and no client has a
    /// connection left on which it may send one.
    pub async fn settled(&self) {
        let early = &self.shared.leaving.early;
        early.close();
        early.wait().await;
    }

    /// Idle connections are put into `queue` when this server leaves, one end of [`queue`](crate::queue). Said before listeners
    /// are served.
    pub fn hand_over(&self, queue: std::os::fd::OwnedFd) {
        let _inside = self.runtime().enter();
        self.shared.leaving.giving.set(queue);
    }

    /// Answers 503 to whoever still waits for an instance.
    pub fn refuse_waiting(&self) {
        self.shared.leaving.in_vain.cancel();
    }

    /// Ends every connection, whatever goes on in it. `after`: how long they had, for the log.
    pub fn cut(&self, after: Duration) {
        let left: u32 = self.inside().values().sum();
        if left > 0 {
            tracing::warn!(
                left,
                "requests did not end within {after:?} and are cut off"
            );
        }
        self.shared.leaving.cut.cancel();
    }

    /// How many requests are in each instance.
    #[must_use]
    pub fn inside(&self) -> BTreeMap<InstanceId, u32> {
        let mut inside = BTreeMap::new();
        for revision in self.shared.revisions.all() {
            revision.count_inside(&mut inside);
        }
        inside
    }

    /// Requests that a server before this one still has inside instances, all of them; what isn't named has ended. Instances
    /// may be admitted before or after.
    pub fn hold(&self, held: BTreeMap<InstanceId, u32>) {
        let shared = &self.shared;
        let mut known = shared.leaving.held.lock();
        let before = std::mem::replace(&mut *known, held);
        for id in before.keys().chain(known.keys()) {
            let instance = shared.instances.lock().get(id).cloned();
            let revision = instance.and_then(|i| shared.revisions.get(&i.revision));
            if let Some(revision) = revision {
                revision.hold(id, known.get(id).copied().unwrap_or(0));
            }
        }
        drop(known);
        shared.leaving.told.notify_waiters();
    }
}
