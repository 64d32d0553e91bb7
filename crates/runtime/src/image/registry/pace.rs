//! The least rate of a download: one byte every now and then is no silence, and would hold its place for ever.

use std::time::Duration;

/// Bytes a second. Six downloads at a time share a line of 400 kbit/s at that rate; whoever has less gets no image of a usual
/// size within a day.
pub(super) const LEAST: u64 = 8 << 10;

/// What arrived in the present window.
#[derive(Debug, Default)]
pub(super) struct Pace {
    waited: Duration,
    bytes: u64,
}

impl Pace {
    /// Notes `bytes` that were waited for; the time that we took to write them doesn't count. `Some` when the window is over
    /// and held too few.
    pub(super) fn add(
        &mut self,
        waited: Duration,
        bytes: usize,
        window: Duration,
    ) -> Option<(u64, Duration)> {
        self.waited += waited;
        self.bytes += bytes as u64;
        if self.waited < window {
            return None;
        }
        let over = std::mem::take(self);
        let least = u128::from(LEAST) * over.waited.as_millis() / 1000;
        (u128::from(over.bytes) < least).then_some((over.bytes, over.waited))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_window_below_the_rate_counts() {
        let window = Duration::from_secs(60);
        let second = Duration::from_secs(1);
        let mut pace = Pace::default();
        let steady = |pace: &mut Pace, bytes| (0..60).find_map(|_| pace.add(second, bytes, window));
        assert_eq!(steady(&mut pace, 8 << 10), None);
        // A byte every 19 s, as often as it takes for the window.
        let mut trickle = (0..4).map(|_| pace.add(second * 19, 1, window));
        assert_eq!(
            trickle.find_map(|slow| slow),
            Some((4, second * 76)),
            "found at the window's end"
        );
        // A pause in a good minute is none of it.
        assert_eq!(pace.add(second * 15, 1 << 20, window), None);
        assert_eq!(pace.add(second * 45, 1, window), None);
        assert_eq!(steady(&mut pace, 4 << 10), Some((240 << 10, window)));
    }
}
