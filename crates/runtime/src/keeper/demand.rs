//! How many sandboxes to keep ready: as many as were taken in the last ten seconds, and two more.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::config::PoolLimits;

/// How long a take counts.
const MEMORY: Duration = Duration::from_secs(10);
/// More than were taken.
const SPARE: usize = 2;

/// Takes of the last ten seconds.
#[derive(Debug)]
pub(crate) struct Demand {
    limits: PoolLimits,
    takes: VecDeque<Instant>,
}

impl Demand {
    pub(crate) fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            takes: VecDeque::new(),
        }
    }

    pub(crate) fn taken(&mut self, now: Instant) {
        // More takes than the largest pool say nothing more.
        if self.takes.len() >= self.limits.max {
            self.takes.pop_front();
        }
        self.takes.push_back(now);
    }

    /// With 5 takes in the last ten seconds and limits 2…16: 7.
    pub(crate) fn target(&mut self, now: Instant) -> usize {
        while self
            .takes
            .front()
            .is_some_and(|at| now.duration_since(*at) > MEMORY)
        {
            self.takes.pop_front();
        }
        (self.takes.len() + SPARE).clamp(self.limits.min, self.limits.max.max(self.limits.min))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::allow_attributes, reason = "tests")]

    use super::*;

    #[test]
    fn the_target_follows_the_takes_within_limits() {
        let start = Instant::now();
        let mut demand = Demand::new(PoolLimits { min: 2, max: 16 });
        assert_eq!(demand.target(start), 2);
        for _ in 0..5 {
            demand.taken(start);
        }
        assert_eq!(demand.target(start + Duration::from_secs(9)), 7);
        assert_eq!(demand.target(start + Duration::from_secs(11)), 2);
        for _ in 0..100 {
            demand.taken(start + Duration::from_secs(12));
        }
        assert_eq!(demand.target(start + Duration::from_secs(12)), 16);
    }
}
