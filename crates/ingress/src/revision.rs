//! The one place where requests are counted: slots, the queue and the demand of one revision.
//!
//! Owns: which instances may be chosen, how many requests are in each, who waits, and when somebody must be woken.
//! Deliberately not here: HTTP, connections, and the rules of choice ([`utsuwa_decide::admit`]).
//!
//! Invariants:
//! 1. Never more than `concurrency` requests hold a [`Slot`](crate::slot::Slot) of one instance.
//! 2. First come, first served: nobody takes a slot while another waits.
//! 3. A slot is given back exactly once, by dropping it; a place in the queue is left exactly once, by dropping the [`Ticket`](crate::slot::Ticket).
//! 4. While somebody waits and no instance is there or starting, [`Wake::wake`](crate::seam::Wake::wake) has been called
//!    once since the last moment that was otherwise.
//! 5. The first request in an instance that may be frozen calls [`Wake::thaw`](crate::seam::Wake::thaw), before it is sent.
//! 6. Nothing is called out of this module with the lock held, except waking tasks.

mod held;
mod levels;
mod reach;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use utsuwa_decide::admit;
use utsuwa_model::demand::{InstanceLoad, Reach, RevisionDemand};
use utsuwa_model::route::RevisionRoute;
use utsuwa_model::scaling::Ceiling;
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};

use crate::Refusal;
use crate::answer::Answer;
use crate::budget::Share;
use crate::counts::{Counts, Nudge, Seat, Sleep};
use crate::instance::Instance;
use crate::metrics::Meters;
use crate::outside::Outside;
use crate::slot::{Admitted, Slot, Ticket};

/// The loops are told of going on activity at most this often: they look at levels on their own timer besides.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Live state of one revision.
#[derive(Debug)]
pub(crate) struct Revision {
    pub(crate) key: RevisionKey,
    outside: Arc<Outside>,
    /// What happened to its requests.
    pub(crate) meters: Meters,
    /// Its share of all requests that may wait.
    waiting: Arc<Share>,
    inner: Mutex<Counts>,
}

impl Revision {
    pub(crate) fn new(key: RevisionKey, outside: Arc<Outside>) -> Arc<Self> {
        let inner = Counts {
            integrated_at: outside.clock.now(),
            ..Counts::default()
        };
        Arc::new(Self {
            key,
            waiting: outside.waiting.share(),
            outside,
            meters: Meters::default(),
            inner: Mutex::new(inner),
        })
    }

    /// Takes new settings; a changed concurrency applies to the next choice.
    pub(crate) fn set_route(self: &Arc<Self>, route: &Arc<RevisionRoute>) {
        let mut inner = self.inner.lock();
        let same = |known: &Arc<RevisionRoute>| Arc::ptr_eq(known, route) || known == route;
        if inner.route.as_ref().is_some_and(same) {
            return;
        }
        inner.route = Some(Arc::clone(route));
        inner.rebuild();
        let nudge = self.hand_out(&mut inner);
        let disabled = inner.is_disabled();
        drop(inner);
        self.tell(nudge);
        if disabled {
            self.refuse(&Refusal::Disabled);
        }
    }

    pub(crate) fn route(&self) -> Option<Arc<RevisionRoute>> {
        self.inner.lock().route.clone()
    }

    /// How long a start of an instance takes, if one was seen.
    pub(crate) fn usual_start(&self) -> Option<Duration> {
        self.inner.lock().usual_start()
    }

    /// Nothing in flight, queued or running: the state may be forgotten when no route names it.
    pub(crate) fn is_unused(&self) -> bool {
        let inner = self.inner.lock();
        inner.in_flight == 0 && inner.queue.is_empty() && inner.seats.is_empty()
    }

    /// A slot, a place in the queue, or a refusal. `before`: the instance its client was on, which is taken if it has room.
    pub(crate) fn admit(
        self: &Arc<Self>,
        now: Timestamp,
        before: Option<&InstanceId>,
        dice: u64,
    ) -> Admitted {
        let mut inner = self.inner.lock();
        if inner.is_disabled() {
            return Admitted::Disabled;
        }
        inner.integrate(now);
        inner.arrivals += 1;
        inner.last_active = Some(now);
        let starting = inner.starting();
        let queued = u32::try_from(inner.queue.len()).unwrap_or(u32::MAX);
        let preferred = before.and_then(|id| {
            let seat = inner.seats.iter().find(|seat| seat.instance.id == *id)?;
            seat.choice
        });
        let admitted = match admit::admit(&inner.loads, preferred, queued, starting, dice) {
            admit::Admission::Take(choice) => {
                let instance = inner.take(choice);
                Admitted::Slot(Slot::new(Arc::clone(self), instance))
            }
            admit::Admission::Wait { .. } => 'wait: {
                let Ok(place) = self.waiting.take() else {
                    break 'wait Admitted::QueueFull;
                };
                let (sender, receiver) = oneshot::channel();
                let number = inner.next_ticket;
                inner.next_ticket += 1;
                inner.queue.insert(number, sender);
                let window = inner.window();
                Admitted::Wait(Ticket::new(
                    Arc::clone(self),
                    (number, place),
                    receiver,
                    window,
                ))
            }
            admit::Admission::QueueFull => Admitted::QueueFull,
        };
        let mut nudge = inner.weigh();
        if nudge.wake {
            inner.told_at = now;
        } else if now.since(inner.told_at) >= TELL_EVERY {
            inner.told_at = now;
            nudge.changed = true;
        }
        drop(inner);
        self.tell(nudge);
        admitted
    }

    /// Takes an instance in, not yet to be chosen.
    /// Answers what is to be told ([`Revision::tell`]), once nothing is locked.
    #[must_use]
    pub(crate) fn add(&self, instance: Arc<Instance>) -> Nudge {
        let mut inner = self.inner.lock();
        inner.short_of = None;
        inner.seats.push(Seat {
            instance,
            reach: Reach::Starting,
            in_flight: 0,
            held: 0,
            idle_since: None,
            choice: None,
            sleep: Sleep::Awake,
            rests: 0,
            drained: Vec::new(),
        });
        inner.weigh()
    }

    /// Out of choice at once. `None`: nothing is in flight; else the receiver fires when the last request has ended.
    pub(crate) fn retire(&self, id: &InstanceId) -> Option<oneshot::Receiver<()>> {
        let mut inner = self.inner.lock();
        let seat = inner
            .seats
            .iter_mut()
            .find(|seat| seat.instance.id == *id)?;
        if !seat.reach.is_given_up() {
            seat.reach = Reach::Retiring;
        }
        let waiting = (seat.in_flight > 0).then(|| {
            let (sender, receiver) = oneshot::channel();
            seat.drained.push(sender);
            receiver
        });
        inner.rebuild();
        let nudge = inner.weigh();
        drop(inner);
        self.tell(nudge);
        waiting
    }

    /// Whether nothing is in flight in the instance and it takes requests: it may be frozen then, and the next request asks
    /// for a thaw. Decided under the lock that requests are let in under, so that none slips in between.
    pub(crate) fn rest(&self, id: &InstanceId) -> bool {
        let mut inner = self.inner.lock();
        let Some(seat) = inner.seats.iter_mut().find(|seat| {
            seat.instance.id == *id && seat.in_flight == 0 && seat.reach == Reach::Ready
        }) else {
            return false;
        };
        seat.sleep = Sleep::Resting;
        seat.rests += 1;
        true
    }

    /// The instance runs: it was thawed, or not frozen after all.
    pub(crate) fn awake(&self, id: &InstanceId) {
        let mut inner = self.inner.lock();
        let seat = inner.seats.iter_mut().find(|seat| seat.instance.id == *id);
        if let Some(seat) = seat {
            seat.sleep = Sleep::Awake;
            seat.instance.roused.notify_waiters();
        }
    }

    /// The instance is gone. Requests in it keep their slots until they have been answered.
    pub(crate) fn remove(&self, id: &InstanceId) {
        let now = self.outside.clock.now();
        let mut inner = self.inner.lock();
        inner.integrate(now);
        let Some(index) = inner.seats.iter().position(|seat| seat.instance.id == *id) else {
            return;
        };
        let seat = inner.seats.remove(index);
        // Its requests end on their own; they no longer load anything that exists.
        inner.in_flight -= seat.in_flight;
        inner.rebuild();
        let nudge = inner.weigh();
        drop(inner);
        drop(seat);
        self.tell(nudge);
    }

    /// Answers everybody who waits with `why`; a shortage is kept for those whose time will be up before it ends.
    pub(crate) fn refuse(&self, why: &Refusal) {
        let now = self.outside.clock.now();
        let mut inner = self.inner.lock();
        if let Refusal::NoCapacity { message } = why {
            inner.short_of = Some(message.clone());
            return;
        }
        inner.integrate(now);
        let waiting = std::mem::take(&mut inner.queue);
        inner.last_active = Some(now);
        inner.weigh();
        drop(inner);
        for sender in waiting.into_values() {
            // Fails only when the client is gone.
            drop(sender.send(Err(why.clone())));
        }
    }

    /// No route names it any more. Who waits is served while it has instances; without any, waiting is in vain.
    pub(crate) fn abandon(&self) {
        let hopeless = {
            let inner = self.inner.lock();
            !inner.is_hopeful() && !inner.queue.is_empty()
        };
        if hopeless {
            self.refuse(&Refusal::StartFailed {
                message: "no route leads to its revision any more".to_owned(),
            });
        }
    }

    pub(crate) fn demand(&self) -> RevisionDemand {
        let now = self.outside.clock.now();
        let mut inner = self.inner.lock();
        inner.integrate(now);
        RevisionDemand {
            in_flight: inner.in_flight,
            queued: u32::try_from(inner.queue.len()).unwrap_or(u32::MAX),
            concurrency_us: inner.concurrency_us,
            arrivals: inner.arrivals,
            last_active: inner.last_active,
            wake: !inner.queue.is_empty() && !inner.is_hopeful(),
            instances: inner
                .seats
                .iter()
                .map(|seat| InstanceLoad {
                    id: seat.instance.id.clone(),
                    reach: seat.reach.clone(),
                    in_flight: seat.in_flight,
                    idle_since: seat.idle_since.filter(|_| seat.in_flight == 0),
                    failing: seat.instance.failing.list(),
                })
                .collect(),
        }
    }

    /// An instance takes requests: who waits, waits for others.
    pub(crate) fn is_reached(&self) -> bool {
        !self.inner.lock().loads.is_empty()
    }

    /// What is said to a request that has waited long enough (§2.6).
    pub(crate) fn time_is_up(&self) -> Answer {
        if let Some(message) = self.inner.lock().none_is_ready() {
            return Answer::Unready { message };
        }
        if self.at_max() {
            return Answer::AtMax;
        }
        match &self.inner.lock().short_of {
            Some(message) => Answer::Refused(Refusal::NoCapacity {
                message: message.clone(),
            }),
            None => Answer::NoInstance,
        }
    }

    /// As many instances are there or starting as there may be.
    fn at_max(&self) -> bool {
        let inner = self.inner.lock();
        let there = inner
            .seats
            .iter()
            .filter(|seat| seat.reach.is_live())
            .count();
        match inner.route.as_ref().map(|route| route.max_instances) {
            Some(Ceiling::AtMost(max)) => u32::try_from(there).is_ok_and(|there| there >= max),
            Some(Ceiling::Unlimited) | None => false,
        }
    }

    pub(crate) fn release(self: &Arc<Self>, instance: &Arc<Instance>) {
        let now = self.outside.clock.now();
        let mut inner = self.inner.lock();
        inner.integrate(now);
        inner.last_active = Some(now);
        inner.give_back(instance, now);
        let mut nudge = self.hand_out(&mut inner);
        if inner.in_flight == 0 && inner.queue.is_empty() && now.since(inner.told_at) >= TELL_EVERY
        {
            inner.told_at = now;
            nudge.changed = true;
        }
        drop(inner);
        self.tell(nudge);
    }

    pub(crate) fn leave(&self, number: u64) {
        let now = self.outside.clock.now();
        let mut inner = self.inner.lock();
        inner.integrate(now);
        // None: it has been served or refused.
        let sender = inner.queue.remove(&number);
        if sender.is_some() {
            inner.last_active = Some(now);
        }
        inner.weigh();
        drop(inner);
    }

    /// Gives free slots to those who wait, first come first served.
    fn hand_out(self: &Arc<Self>, inner: &mut Counts) -> Nudge {
        while !inner.queue.is_empty() {
            // Any die will do: a freed slot is the only one, or nearly.
            let Some(choice) = admit::choose_instance(&inner.loads, inner.arrivals) else {
                break;
            };
            let Some((_, sender)) = inner.queue.pop_first() else {
                break;
            };
            let instance = inner.take(choice);
            let slot = Slot::new(Arc::clone(self), instance);
            if let Err(Ok(slot)) = sender.send(Ok(slot)) {
                // Its client is gone and is just about to leave the queue. We hold the lock: no giving back by drop.
                let now = inner.integrated_at;
                inner.give_back(&slot.spend(), now);
            }
        }
        inner.weigh()
    }

    pub(crate) fn tell(&self, nudge: Nudge) {
        for instance in nudge.thaw {
            self.outside.wake.thaw(&self.key, &instance.id);
        }
        if nudge.wake {
            self.meters.wake_raised();
            self.outside.wake.wake(&self.key);
        }
        if nudge.changed {
            self.outside.wake.changed(&self.key);
        }
    }
}
