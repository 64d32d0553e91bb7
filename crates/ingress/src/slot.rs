//! What a request holds while it is counted: a slot of an instance, or a place in the queue.
//!
//! Both are guards: dropping one, on whatever path, is the only way to give it back (invariant 3 of [`crate::revision`]).

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

use crate::Refusal;
use crate::budget::Place;
use crate::instance::Instance;
use crate::revision::Revision;

/// What a request got.
#[derive(Debug)]
pub(crate) enum Admitted {
    Slot(Slot),
    Wait(Ticket),
    QueueFull,
    /// The revision is switched off.
    Disabled,
}

/// Leave to send one request to one instance. Dropping it frees the slot.
#[derive(Debug)]
pub(crate) struct Slot {
    revision: Arc<Revision>,
    instance: Arc<Instance>,
    /// Among all requests under way; as long as the slot, since both last as long as the socket.
    place: Option<Place>,
    /// Already given back under the revision's lock.
    spent: bool,
}

/// A place in the queue. Dropping it leaves the queue.
#[derive(Debug)]
pub(crate) struct Ticket {
    revision: Arc<Revision>,
    number: u64,
    /// Among all requests that wait.
    _place: Place,
    receiver: oneshot::Receiver<Result<Slot, Refusal>>,
    /// How long this request may wait for an instance (§2.6).
    pub(crate) window: Duration,
}

impl Slot {
    /// For `instance`, in which it has been counted already.
    pub(crate) const fn new(revision: Arc<Revision>, instance: Arc<Instance>) -> Self {
        Self {
            revision,
            instance,
            place: None,
            spent: false,
        }
    }

    /// Keeps `place` as long as the slot.
    pub(crate) fn hold(&mut self, place: Place) {
        self.place = Some(place);
    }

    /// Makes dropping it mean nothing; the caller gives the slot back itself.
    pub(crate) fn spend(mut self) -> Arc<Instance> {
        self.spent = true;
        Arc::clone(&self.instance)
    }

    pub(crate) fn instance(&self) -> &Arc<Instance> {
        &self.instance
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // First: whoever gets the slot next wants a place too.
        self.place = None;
        if !self.spent {
            self.revision.release(&self.instance);
        }
    }
}

impl Ticket {
    pub(crate) fn new(
        revision: Arc<Revision>,
        (number, place): (u64, Place),
        receiver: oneshot::Receiver<Result<Slot, Refusal>>,
        window: Duration,
    ) -> Self {
        Self {
            revision,
            number,
            _place: place,
            receiver,
            window,
        }
    }

    /// Waits for a slot or a refusal.
    pub(crate) async fn wait(&mut self) -> Result<Slot, Refusal> {
        match (&mut self.receiver).await {
            Ok(answer) => answer,
            // The sender lives in the queue until it is used; the queue lives as long as the revision we hold.
            Err(_) => Err(Refusal::NoCapacity {
                message: "the queue was dropped".to_owned(),
            }),
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.revision.leave(self.number);
        // A slot that arrived meanwhile falls with the receiver and is given back.
    }
}
