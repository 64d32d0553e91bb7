//! The window of demand the autoscaler looks back on.
//!
//! Owns: samples of the ingress's ever-growing counters and exact averages between any two moments (`cloud-run-spec.md` §3.2,
//! Stats). Deliberately not here: what the averages mean ([`crate::scale`]).
//!
//! Invariants:
//! 1. Times in the window grow strictly.
//! 2. A gap without samples counts as what the counters say: nothing happened, nothing is added.
//! 3. A counter that runs backwards (the ingress restarted) empties the window: unknown is not zero.

use std::collections::VecDeque;
use std::time::Duration;

use utsuwa_model::Timestamp;
use utsuwa_model::demand::RevisionDemand;

/// Closer samples than this replace each other, which bounds the window: 3,600 entries for the longest one (1 h).
const BUCKET: Duration = Duration::from_secs(1);

/// The counters of one revision at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub at: Timestamp,
    /// Integral of (in flight + queued) over time, in request-microseconds.
    pub concurrency_us: u64,
    /// Requests accepted so far.
    pub arrivals: u64,
}

impl Sample {
    /// What the ingress reports, as seen at `at`.
    #[must_use]
    pub fn of(demand: &RevisionDemand, at: Timestamp) -> Self {
        Self {
            at,
            concurrency_us: demand.concurrency_us,
            arrivals: demand.arrivals,
        }
    }
}

/// Averages over one window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Average {
    /// Requests in the system, time-weighted.
    pub concurrency: f64,
    /// Requests accepted per second.
    pub per_second: f64,
}

/// Samples of the past, at least as far back as the longest window asked for.
#[derive(Debug, Clone, Default)]
pub struct DemandHistory {
    samples: VecDeque<Sample>,
}

impl DemandHistory {
    /// Notes `sample` and forgets what is older than `keep`.
    pub fn push(&mut self, sample: Sample, keep: Duration) {
        if let Some(last) = self.samples.back() {
            if sample.concurrency_us < last.concurrency_us || sample.arrivals < last.arrivals {
                self.samples.clear();
            } else if sample.at <= last.at {
                return;
            }
        }
        let count = self.samples.len();
        if count >= 2 && self.samples[count - 1].at.since(self.samples[count - 2].at) < BUCKET {
            self.samples.pop_back();
        }
        self.samples.push_back(sample);
        // The newest sample outside the window stays: the window's left edge lies between it and the next one.
        while self.samples.len() > 2 && sample.at.since(self.samples[1].at) >= keep {
            self.samples.pop_front();
        }
    }

    /// Forgets everything: the revision went to sleep, and its next life starts without a memory of this one.
    pub fn clear(&mut self) {
        self.samples.clear();
    }

    /// The average over the last `window` before `now`, or over the observed span when that is shorter. `None` while less
    /// than a bucket (1 s) was observed: missing data is no decision, never zero.
    #[must_use]
    pub fn average(&self, now: Timestamp, window: Duration) -> Option<Average> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let span = now.since(first.at).min(window);
        if span < BUCKET {
            return None;
        }
        let edge = Timestamp(now.0 - i64::try_from(span.as_micros()).ok()?);
        let (concurrency_us, arrivals) = self.at(edge);
        let micros = span.as_secs_f64() * 1e6;
        Some(Average {
            concurrency: rounded((as_f64(last.concurrency_us) - concurrency_us).max(0.0) / micros),
            per_second: rounded((as_f64(last.arrivals) - arrivals).max(0.0) / span.as_secs_f64()),
        })
    }

    /// The counters at `edge`, in a straight line between the samples around it.
    fn at(&self, edge: Timestamp) -> (f64, f64) {
        let after = self.samples.partition_point(|sample| sample.at <= edge);
        let Some(left) = after
            .checked_sub(1)
            .and_then(|index| self.samples.get(index))
        else {
            return self.samples.front().map_or((0.0, 0.0), |s| {
                (as_f64(s.concurrency_us), as_f64(s.arrivals))
            });
        };
        let Some(right) = self.samples.get(after) else {
            return (as_f64(left.concurrency_us), as_f64(left.arrivals));
        };
        let part = edge.since(left.at).as_secs_f64() / right.at.since(left.at).as_secs_f64();
        let between = |from: u64, to: u64| as_f64(from) + (as_f64(to) - as_f64(from)) * part;
        (
            between(left.concurrency_us, right.concurrency_us),
            between(left.arrivals, right.arrivals),
        )
    }
}

/// Six decimals, so that 50.000000001 ÷ 10 asks for 5 and not 6 (§3.2).
fn rounded(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// Counters stay far below 2^52 µs (142 years of one request), where `f64` is exact.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^52, see above")]
fn as_f64(counter: u64) -> f64 {
    counter as f64
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn history(samples: &[(i64, u64, u64)]) -> DemandHistory {
        let mut history = DemandHistory::default();
        for &(seconds, request_seconds, arrivals) in samples {
            let at = Timestamp(seconds * 1_000_000);
            history.push(
                Sample {
                    at,
                    concurrency_us: request_seconds * 1_000_000,
                    arrivals,
                },
                MINUTE,
            );
        }
        history
    }

    fn second(s: i64) -> Timestamp {
        Timestamp(s * 1_000_000)
    }

    #[test]
    fn averages_run_over_the_observed_span_until_the_window_is_full() {
        let short = history(&[(0, 0, 0), (10, 50, 20)]);
        let average = short.average(second(10), MINUTE).unwrap();
        assert_eq!((average.concurrency, average.per_second), (5.0, 2.0));
        let long = history(&[(0, 0, 0), (60, 600, 60), (120, 660, 180)]);
        assert_eq!(
            long.average(second(120), MINUTE).unwrap(),
            Average {
                concurrency: 1.0,
                per_second: 2.0
            }
        );
        assert_eq!(
            long.average(second(120), Duration::from_secs(6))
                .unwrap()
                .concurrency,
            1.0
        );
        let between = history(&[(0, 0, 0), (60, 600, 60), (90, 630, 60)]);
        assert_eq!(
            between.average(second(90), MINUTE).unwrap().concurrency,
            5.5,
            "300 of the first minute, 30 since"
        );
    }

    #[test]
    fn missing_data_is_none_and_gaps_are_zero() {
        assert_eq!(DemandHistory::default().average(second(5), MINUTE), None);
        assert_eq!(history(&[(5, 0, 0)]).average(second(5), MINUTE), None);
        let gap = history(&[(0, 0, 0), (6, 60, 6)]);
        assert_eq!(gap.average(second(12), MINUTE).unwrap().concurrency, 5.0);
        assert_eq!(gap.average(second(70), MINUTE).unwrap().concurrency, 0.0);
    }

    #[test]
    fn a_restarted_ingress_empties_the_window() {
        let restarted = history(&[(0, 100, 100), (10, 200, 200), (12, 1, 1)]);
        assert_eq!(restarted.average(second(12), MINUTE), None);
    }

    #[test]
    fn the_window_stays_bounded() {
        let mut history = DemandHistory::default();
        for millis in 0..200_000_u32 {
            let at = Timestamp(i64::from(millis) * 1_000);
            history.push(
                Sample {
                    at,
                    concurrency_us: u64::from(millis) * 1_000,
                    arrivals: 0,
                },
                MINUTE,
            );
        }
        assert!(history.samples.len() < 70, "{}", history.samples.len());
        assert_eq!(
            history
                .average(Timestamp(199_999_000), MINUTE)
                .unwrap()
                .concurrency,
            1.0
        );
    }
}
