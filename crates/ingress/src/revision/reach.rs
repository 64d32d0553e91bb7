//! What probes say of an instance, taken into the counts.
//!
//! Startup: `Starting` → `Ready` or `Failed`. Readiness: `Ready` ⇄ `Unready`. Liveness: either of these → `Unhealthy`. A retired
//! instance stays retired, whatever a probe says that was under way.

use std::sync::Arc;
use std::time::Duration;

use utsuwa_model::InstanceId;
use utsuwa_model::demand::Reach;

use super::Revision;
use crate::counts::{Counts, Nudge, Seat, Sleep};

impl Revision {
    /// The ingress reached it: requests may go there. `took` is the time from its start on, if that was seen.
    pub(crate) fn set_ready(self: &Arc<Self>, id: &InstanceId, took: Option<Duration>) {
        let now = self.outside.clock.now();
        let mut inner = self.inner.lock();
        let Some(seat) = seat_of(&mut inner, id) else {
            return;
        };
        if seat.reach != Reach::Starting {
            return; // retired or dead meanwhile
        }
        seat.reach = Reach::Ready;
        seat.idle_since = Some(now);
        // Weighs the newest start with a quarter: slow to forget, quick enough to follow a new disk cache.
        if let Some(took) = took {
            let usual = inner.usual_start();
            inner.average_start = Some(usual.map_or(took, |average| (average * 3 + took) / 4));
        }
        inner.integrate(now);
        inner.rebuild();
        let nudge = self.hand_out(&mut inner);
        drop(inner);
        self.tell(Nudge {
            changed: true,
            ..nudge
        });
    }

    /// The startup probe gave up.
    pub(crate) fn set_failed(&self, id: &InstanceId, message: String) {
        let mut inner = self.inner.lock();
        let Some(seat) = seat_of(&mut inner, id) else {
            return;
        };
        if seat.reach != Reach::Starting {
            return;
        }
        seat.reach = Reach::Failed { message };
        self.meters.start_failed();
        let nudge = inner.weigh();
        drop(inner);
        self.tell(Nudge {
            changed: true,
            ..nudge
        });
    }

    /// Whether its liveness and readiness are asked for now, and how often it has rested. A frozen instance would have to be
    /// thawed for it; one that is not asked is neither ended nor taken out of choice. Asked again after each check: what came of
    /// one that was under way when this changed is not counted, also if the instance rested and is awake again.
    pub(crate) fn probed(&self, id: &InstanceId) -> Option<u64> {
        let inner = self.inner.lock();
        let seat = inner.seats.iter().find(|seat| seat.instance.id == *id)?;
        (seat.reach.is_up() && seat.sleep == Sleep::Awake).then_some(seat.rests)
    }

    /// The readiness probe turned: failing as `failing` says, or succeeding again.
    pub(crate) fn set_readiness(self: &Arc<Self>, id: &InstanceId, failing: Option<String>) {
        let now = self.outside.clock.now();
        let mut inner = self.inner.lock();
        let Some(seat) = seat_of(&mut inner, id).filter(|seat| seat.reach.is_up()) else {
            return;
        };
        seat.reach = match failing {
            // It may have been let rest after the last check, and no request will come to wake it. The loops do: they thaw who
            // isn't ready, and say so.
            Some(message) => Reach::Unready { message },
            None => Reach::Ready,
        };
        inner.integrate(now);
        inner.rebuild();
        let nudge = self.hand_out(&mut inner);
        drop(inner);
        self.tell(Nudge {
            changed: true,
            ..nudge
        });
    }

    /// The liveness probe gave up. `false`: the instance is leaving already.
    pub(crate) fn set_unhealthy(&self, id: &InstanceId, message: String) -> bool {
        let mut inner = self.inner.lock();
        let Some(seat) = seat_of(&mut inner, id).filter(|seat| seat.reach.is_up()) else {
            return false;
        };
        seat.reach = Reach::Unhealthy { message };
        inner.rebuild();
        let nudge = inner.weigh();
        drop(inner);
        self.tell(Nudge {
            changed: true,
            ..nudge
        });
        true
    }
}

fn seat_of<'a>(inner: &'a mut Counts, id: &InstanceId) -> Option<&'a mut Seat> {
    inner.seats.iter_mut().find(|seat| seat.instance.id == *id)
}
