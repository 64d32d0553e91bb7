//! The counts of one revision, as they lie under its lock: plain arithmetic, nothing is called out of here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use utsuwa_decide::admit::{self, SlotView};
use utsuwa_model::Timestamp;
use utsuwa_model::demand::Reach;
use utsuwa_model::route::RevisionRoute;
use utsuwa_model::scaling::Ceiling;

use crate::Refusal;
use crate::instance::Instance;
use crate::slot::Slot;

/// What is in flight, what waits, and what has been told of it.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) route: Option<Arc<RevisionRoute>>,
    /// Oldest first.
    pub(crate) seats: Vec<Seat>,
    /// Seats that may be chosen, as `decide` sees them, and where they are in `seats`. Rebuilt when membership changes.
    pub(crate) loads: Vec<SlotView>,
    pub(crate) ready: Vec<usize>,
    pub(crate) queue: BTreeMap<u64, oneshot::Sender<Result<Slot, Refusal>>>,
    pub(crate) next_ticket: u64,
    pub(crate) in_flight: u32,
    pub(crate) arrivals: u64,
    pub(crate) concurrency_us: u64,
    pub(crate) integrated_at: Timestamp,
    pub(crate) last_active: Option<Timestamp>,
    pub(crate) told_at: Timestamp,
    pub(crate) wake_raised: bool,
    /// The largest number of missing instances the loops were told of since the queue was last empty.
    pub(crate) shortage_told: u32,
    pub(crate) average_start: Option<Duration>,
    /// Why no instance can be had at the moment, for those whose time is up.
    pub(crate) short_of: Option<String>,
    /// Got a request though they may be frozen; told of with the next nudge. Empty, as it mostly is, it costs nothing.
    pub(crate) roused: Vec<Arc<Instance>>,
}

/// One instance's place.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) instance: Arc<Instance>,
    pub(crate) reach: Reach,
    pub(crate) in_flight: u32,
    /// How many of them the server before this one has.
    pub(crate) held: u32,
    pub(crate) idle_since: Option<Timestamp>,
    /// Its place in `loads`.
    pub(crate) choice: Option<usize>,
    pub(crate) sleep: Sleep,
    /// How often it was let rest: who saw it awake twice knows from this whether it slept in between.
    pub(crate) rests: u64,
    /// Told when the last request of a retiring instance has ended.
    pub(crate) drained: Vec<oneshot::Sender<()>>,
}

/// Whether it runs, as far as the loops told.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Sleep {
    #[default]
    Awake,
    /// It may be frozen: the loops were told that nothing is in it.
    Resting,
    /// It is to be thawed; the loops have not said yet that it was.
    Rousing,
}

/// What the loops must hear, once the lock is free.
#[derive(Debug, Default)]
pub(crate) struct Nudge {
    pub(crate) wake: bool,
    pub(crate) changed: bool,
    pub(crate) thaw: Vec<Arc<Instance>>,
}

impl Counts {
    /// Adds the time since the last look to the integral. Must precede every change of the counts.
    pub(crate) fn integrate(&mut self, now: Timestamp) {
        let present = u64::from(self.in_flight) + self.queue.len() as u64;
        let micros = u64::try_from(now.since(self.integrated_at).as_micros()).unwrap_or(u64::MAX);
        self.concurrency_us = self
            .concurrency_us
            .saturating_add(present.saturating_mul(micros));
        self.integrated_at = self.integrated_at.max(now);
    }

    pub(crate) fn starting(&self) -> u32 {
        let count = self
            .seats
            .iter()
            .filter(|seat| seat.reach == Reach::Starting)
            .count();
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub(crate) fn limit(&self) -> u32 {
        self.route.as_ref().map_or(1, |route| route.concurrency)
    }

    pub(crate) fn rebuild(&mut self) {
        let limit = self.limit();
        self.loads.clear();
        self.ready.clear();
        for (index, seat) in self.seats.iter_mut().enumerate() {
            seat.choice = (seat.reach == Reach::Ready).then_some(self.loads.len());
            if seat.choice.is_some() {
                self.loads.push(SlotView {
                    in_flight: seat.in_flight,
                    limit,
                });
                self.ready.push(index);
            }
        }
    }

    pub(crate) fn take(&mut self, choice: usize) -> Arc<Instance> {
        self.loads[choice].in_flight += 1;
        self.in_flight += 1;
        let seat = &mut self.seats[self.ready[choice]];
        seat.in_flight += 1;
        if seat.sleep == Sleep::Resting {
            seat.sleep = Sleep::Rousing;
            self.roused.push(Arc::clone(&seat.instance));
        }
        debug_assert!(
            self.loads[choice].limit == 0 || seat.in_flight <= self.loads[choice].limit,
            "invariant 1"
        );
        Arc::clone(&seat.instance)
    }

    pub(crate) fn give_back(&mut self, instance: &Arc<Instance>, now: Timestamp) {
        // Not found: the instance died and took its requests out of the count.
        let Some(seat) = self
            .seats
            .iter_mut()
            .find(|seat| Arc::ptr_eq(&seat.instance, instance))
        else {
            return;
        };
        seat.in_flight -= 1;
        self.in_flight -= 1;
        if let Some(choice) = seat.choice {
            self.loads[choice].in_flight -= 1;
        }
        if seat.in_flight == 0 {
            seat.idle_since = Some(now);
            for sender in seat.drained.drain(..) {
                // Fails only when nobody waits for the retirement any more.
                let _unheard = sender.send(());
            }
        }
    }

    /// What the loops must hear now.
    pub(crate) fn weigh(&mut self) -> Nudge {
        let waiting = u32::try_from(self.queue.len()).unwrap_or(u32::MAX);
        let starting = self.starting();
        let thaw = std::mem::take(&mut self.roused);
        if waiting == 0 {
            self.wake_raised = false;
            self.shortage_told = 0;
            return Nudge {
                thaw,
                ..Nudge::default()
            };
        }
        if !self.is_hopeful() {
            let wake = !self.wake_raised;
            self.wake_raised = true;
            return Nudge {
                wake,
                changed: false,
                thaw,
            };
        }
        self.wake_raised = false;
        let limit = self.limit();
        let shortage = match waiting.checked_sub(starting.saturating_mul(limit)) {
            Some(rest) if limit > 0 => rest.div_ceil(limit),
            _ => 0,
        };
        // At 1, 2, 4, 8… missing instances: the loop reads the level, so more calls would say nothing new.
        let changed = shortage > 0 && shortage >= self.shortage_told.saturating_mul(2);
        if changed {
            self.shortage_told = shortage;
        }
        Nudge {
            wake: false,
            changed,
            thaw,
        }
    }

    /// Somebody is there who serves those that wait, or will, or may again.
    pub(crate) fn is_hopeful(&self) -> bool {
        !self.ready.is_empty() || self.seats.iter().any(|seat| seat.reach.is_live())
    }

    /// Why requests wait although instances are there: the readiness probe of each fails.
    pub(crate) fn none_is_ready(&self) -> Option<String> {
        if !self.ready.is_empty() || self.starting() > 0 {
            return None;
        }
        self.seats.iter().find_map(|seat| match &seat.reach {
            Reach::Unready { message } => Some(message.clone()),
            _ => None,
        })
    }

    /// How long a start of the revision takes: as seen by this process, else as it took when the revision was proven.
    pub(crate) fn usual_start(&self) -> Option<Duration> {
        self.average_start
            .or_else(|| self.route.as_ref()?.usual_start)
    }

    /// §2.6. Where not even the proof was timed (an older version of the server wrote it), the startup probe says how long a
    /// start may take: whoever wakes a slow app must not be sent away before it can answer for the first time.
    pub(crate) fn window(&self) -> Duration {
        let usual = self.usual_start();
        let window = admit::pending_window(usual);
        match &self.route {
            Some(route) if usual.is_none() && self.ready.is_empty() => {
                window.max(route.startup.deadline())
            }
            _ => window,
        }
    }

    /// Switched off: no instance may ever start.
    pub(crate) fn is_disabled(&self) -> bool {
        self.route
            .as_ref()
            .is_some_and(|route| route.max_instances == Ceiling::AtMost(0))
    }
}
