//! More CPU while an instance starts (`run.googleapis.com/startup-cpu-boost`, `cloud-run-spec.md` §2.8).
//!
//! Owns: how much, and until when. Deliberately not here: setting it.
//!
//! Invariants:
//! 1. An instance keeps the boost until it has been ready for [`AFTER_READY`], never longer than one look after that.
//! 2. What an instance has now is observed, not remembered: after a restart of the server the same answer comes out.

use std::time::Duration;

use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::{InstanceId, Timestamp};

/// The boost goes on for this long after the instance became ready.
pub const AFTER_READY: Duration = Duration::from_secs(10);

/// The limit while starting: 1 CPU or less becomes 2, 2 become 4, more become 8. Never less than `limit`.
#[must_use]
pub fn boosted(limit: MilliCpu) -> MilliCpu {
    let more = match limit.0 {
        0..=1000 => 2000,
        1001..=2000 => 4000,
        _ => 8000,
    };
    MilliCpu(more.max(limit.0))
}

/// One instance, as far as its CPU goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuView {
    pub id: InstanceId,
    /// Its limit now.
    pub now: MilliCpu,
    pub ready_since: Option<Timestamp>,
}

/// Whose limit must become `limit` now, and when to look again.
///
/// With 1 CPU as limit, an instance that has 2 and became ready 4 s ago is left alone, and looked at in 6 s.
#[must_use]
pub fn settle(
    instances: &[CpuView],
    limit: MilliCpu,
    now: Timestamp,
) -> (Vec<InstanceId>, Option<Timestamp>) {
    let mut due = Vec::new();
    let mut next: Option<Timestamp> = None;
    for view in instances.iter().filter(|view| view.now != limit) {
        let Some(end) = view.ready_since.map(|since| since.plus(AFTER_READY)) else {
            continue;
        };
        if end <= now {
            due.push(view.id.clone());
        } else {
            next = Some(next.map_or(end, |at| at.min(end)));
        }
    }
    (due, next)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn more_but_never_less() {
        for (limit, more) in [
            (80, 2000),
            (1000, 2000),
            (1001, 4000),
            (2000, 4000),
            (4000, 8000),
            (6000, 8000),
            (8000, 8000),
            (16_000, 16_000),
        ] {
            assert_eq!(boosted(MilliCpu(limit)), MilliCpu(more), "{limit}");
        }
    }

    #[test]
    fn the_boost_ends_ten_seconds_after_ready() {
        let second = |n: i64| Timestamp(n * 1_000_000);
        let view = |name: &str, cpu, ready: Option<i64>| CpuView {
            id: format!("{name:0>32}").parse().unwrap(),
            now: MilliCpu(cpu),
            ready_since: ready.map(second),
        };
        let all = [
            view("a", 2000, Some(0)),
            view("b", 2000, Some(6)),
            view("c", 2000, Some(3)),
            view("d", 2000, None),
            view("e", 1000, Some(0)),
        ];
        let (due, next) = settle(&all, MilliCpu(1000), second(10));
        assert_eq!(due, [all[0].id.clone()], "only who had its ten seconds");
        assert_eq!(next, Some(second(13)), "the next one's end");
        let (due, next) = settle(&all[3..], MilliCpu(1000), second(100));
        assert_eq!((due, next), (vec![], None), "not ready, or settled already");
    }
}
