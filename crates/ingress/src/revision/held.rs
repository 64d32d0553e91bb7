//! Requests that another process has in an instance: the server before this one, while its streams end.

use std::collections::BTreeMap;
use std::sync::Arc;

use utsuwa_model::InstanceId;

use super::Revision;
use crate::counts::{Nudge, Sleep};

impl Revision {
    /// The server before has `count` requests in the instance. They take slots as ours do.
    pub(crate) fn hold(self: &Arc<Self>, id: &InstanceId, count: u32) {
        let now = self.outside.clock.now();
        let mut guard = self.inner.lock();
        let inner = &mut *guard;
        inner.integrate(now);
        let Some(seat) = inner.seats.iter_mut().find(|seat| seat.instance.id == *id) else {
            return;
        };
        let before = std::mem::replace(&mut seat.held, count);
        if before == count {
            return;
        }
        seat.in_flight = seat.in_flight.saturating_sub(before).saturating_add(count);
        inner.in_flight = inner.in_flight.saturating_sub(before).saturating_add(count);
        inner.last_active = Some(now);
        if let Some(choice) = seat.choice {
            inner.loads[choice].in_flight = seat.in_flight;
        }
        if seat.in_flight == 0 {
            seat.idle_since = Some(now);
            for sender in seat.drained.drain(..) {
                // Fails only when nobody waits for the retirement any more.
                let _unheard = sender.send(());
            }
        } else if seat.sleep == Sleep::Resting {
            seat.sleep = Sleep::Rousing;
            inner.roused.push(Arc::clone(&seat.instance));
        }
        let nudge = self.hand_out(inner);
        drop(guard);
        self.tell(Nudge {
            changed: true,
            ..nudge
        });
    }

    /// Adds how many requests of this process are in each instance.
    pub(crate) fn count_inside(&self, inside: &mut BTreeMap<InstanceId, u32>) {
        let inner = self.inner.lock();
        for seat in inner.seats.iter().filter(|seat| seat.in_flight > seat.held) {
            inside.insert(seat.instance.id.clone(), seat.in_flight - seat.held);
        }
    }
}
