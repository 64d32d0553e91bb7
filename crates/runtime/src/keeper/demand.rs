//! How many sandboxes to keep ready: as many as were taken in the last ten seconds, and two more. Where something was started, more
//! are made while nothing is: they cost memory, but the next burst nothing.

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
    last: Option<Instant>,
}

impl Demand {
    pub(crate) fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            takes: VecDeque::new(),
            last: None,
        }
    }

    pub(crate) fn taken(&mut self, now: Instant) {
        // More takes than the largest pool say nothing more.
        if self.takes.len() >= self.limits.max {
            self.takes.pop_front();
        }
        self.takes.push_back(now);
        self.last = Some(now);
    }

    /// How long nothing was taken; `None`: never was anything.
    pub(crate) fn calm_for(&self, now: Instant) -> Option<Duration> {
        self.last.map(|last| now.duration_since(last))
    }

    /// What the pool may grow to while nothing is taken.
    pub(crate) fn calm_target(&mut self, now: Instant) -> usize {
        let calm = self.limits.calm.min(self.limits.max);
        let started = self.last.is_some();
        self.target(now).max(if started { calm } else { 0 })
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
        let mut demand = Demand::new(PoolLimits {
            min: 2,
            max: 16,
            calm: 9,
        });
        assert_eq!(demand.target(start), 2);
        assert_eq!(demand.calm_target(start), 2);
        assert_eq!(demand.calm_for(start), None);
        for _ in 0..5 {
            demand.taken(start);
        }
        assert_eq!(demand.target(start + Duration::from_secs(9)), 7);
        assert_eq!(demand.calm_target(start + Duration::from_secs(9)), 9);
        assert_eq!(demand.target(start + Duration::from_secs(11)), 2);
        assert_eq!(demand.calm_target(start + Duration::from_secs(11)), 9);
        for _ in 0..100 {
            demand.taken(start + Duration::from_secs(12));
        }
        assert_eq!(demand.target(start + Duration::from_secs(12)), 16);
        assert_eq!(demand.calm_target(start + Duration::from_secs(12)), 16);
    }
}
