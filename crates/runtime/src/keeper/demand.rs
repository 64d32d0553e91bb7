//! How many sandboxes to keep ready: as many as were taken in the last ten seconds, and two more. Where something was started, more
//! are made while nothing is: they cost memory, but the next burst nothing. After a burst that had to wait for sandboxes,
//! as many as it took: who came in a crowd once comes so again.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::config::PoolLimits;

/// How long a take counts.
const MEMORY: Duration = Duration::from_secs(10);
/// More than were taken.
const SPARE: usize = 2;

/// Takes within so much of each other are a burst.
const BURST: Duration = Duration::from_secs(1);
/// How long the largest burst is remembered: what comes by the clock mostly comes by the hour.
const BURSTS_MEMORY: Duration = Duration::from_secs(3700);

/// Takes of the last ten seconds, and the largest burst of the last hour for which there were too few.
#[derive(Debug)]
pub(crate) struct Demand {
    limits: PoolLimits,
    takes: VecDeque<Instant>,
    last: Option<Instant>,
    burst: Option<(usize, Instant)>,
}

impl Demand {
    pub(crate) fn new(limits: PoolLimits) -> Self {
        Self {
            limits,
            takes: VecDeque::new(),
            last: None,
            burst: None,
        }
    }

    pub(crate) fn taken(&mut self, now: Instant) {
        // More takes than the largest pool say nothing more.
        if self.takes.len() >= self.limits.max {
            self.takes.pop_front();
        }
        self.takes.push_back(now);
        self.last = Some(now);
        // The same crowd again: it may come a third time.
        let known = self.largest_burst(now);
        if known > 0 && 2 * self.together(now) >= known {
            self.burst = Some((known, now));
        }
    }

    /// Who took last has to wait until one is made.
    pub(crate) fn lacked(&mut self, now: Instant) {
        let together = self.together(now);
        if self.largest_burst(now) <= together {
            self.burst = Some((together, now));
        }
    }

    /// Takes within the last moment.
    fn together(&self, now: Instant) -> usize {
        let newest = self.takes.iter().rev();
        newest
            .take_while(|at| now.duration_since(**at) <= BURST)
            .count()
    }

    /// The largest for which there were too few.
    fn largest_burst(&self, now: Instant) -> usize {
        let remembered = self
            .burst
            .filter(|(_, at)| now.duration_since(*at) <= BURSTS_MEMORY);
        remembered.map_or(0, |(size, _)| size)
    }

    /// How long nothing was taken; `None`: never was anything.
    pub(crate) fn calm_for(&self, now: Instant) -> Option<Duration> {
        self.last.map(|last| now.duration_since(last))
    }

    /// What the pool may grow to while nothing is taken.
    pub(crate) fn calm_target(&mut self, now: Instant) -> usize {
        let calm = self.limits.calm.min(self.limits.max);
        let started = self.last.is_some();
        let burst =
            (self.largest_burst(now) + SPARE).min(self.limits.after_burst.min(self.limits.max));
        self.target(now)
            .max(if started { calm.max(burst) } else { 0 })
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
            after_burst: 0,
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

    #[test]
    fn as_many_as_a_burst_took_are_kept_for_an_hour() {
        let start = Instant::now();
        let later = |seconds| start + Duration::from_secs(seconds);
        let mut demand = Demand::new(PoolLimits {
            min: 2,
            max: 64,
            calm: 9,
            after_burst: 40,
        });
        // One after the other they are no burst.
        for second in 0..8 {
            demand.taken(later(2 * second));
        }
        assert_eq!(demand.calm_target(later(100)), 9);
        let burst = |demand: &mut Demand, second, size, lacking| {
            for _ in 0..size {
                demand.taken(later(second));
            }
            if lacking {
                demand.lacked(later(second));
            }
        };
        burst(&mut demand, 50, 30, false);
        assert_eq!(demand.calm_target(later(100)), 9, "there were enough");
        burst(&mut demand, 100, 20, true);
        // A smaller one doesn't make it forgotten, nor does it keep it.
        burst(&mut demand, 200, 7, true);
        assert_eq!(demand.calm_target(later(1000)), 22);
        assert_eq!(demand.target(later(1000)), 2, "only while nothing starts");
        assert_eq!(demand.calm_target(later(100 + 3701)), 9);
        burst(&mut demand, 5000, 20, true);
        burst(&mut demand, 8000, 12, false);
        assert_eq!(demand.calm_target(later(8000 + 3600)), 22, "it came again");
        burst(&mut demand, 20_000, 64, true);
        assert_eq!(demand.calm_target(later(20_100)), 40, "as many as fit");
    }
}
