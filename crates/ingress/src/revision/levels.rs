//! What a revision does at the moment, for the metrics.

use utsuwa_model::demand::Reach;

use super::Revision;
use crate::counts::Sleep;
use crate::metrics::Levels;

impl Revision {
    /// Requests and instances, now.
    pub(crate) fn levels(&self) -> Levels {
        let inner = self.inner.lock();
        let mut levels = Levels {
            in_flight: u64::from(inner.in_flight),
            queued: inner.queue.len() as u64,
            ..Levels::default()
        };
        for seat in &inner.seats {
            // In the order of `STATES`.
            let state = match &seat.reach {
                Reach::Starting => 0,
                Reach::Ready if seat.in_flight > 0 => 1,
                Reach::Ready if seat.sleep == Sleep::Awake => 2,
                Reach::Ready => 3,
                Reach::Unready { .. } => 4,
                Reach::Retiring | Reach::Failed { .. } | Reach::Unhealthy { .. } => 5,
            };
            levels.instances[state] += 1;
        }
        levels
    }
}
