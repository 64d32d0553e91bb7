//! The wishes: which key is due, in which lane, and what is shown of each.
//!
//! Owns: the order of passes. Deliberately not here: running them ([`super::Rounds`]). Nothing here waits or knows a task.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use utsuwa_model::Timestamp;

use super::LoopLine;
use super::work::{Key, PassError, Priority, Report};
use crate::core::ATTEMPTS;
use crate::seam::Environment;

/// Passes for people who wait: enough that twenty sleeping services wake side by side.
const WAKE_SLOTS: usize = 64;
/// Passes over revisions. Pulls of several images may be under way among them.
pub(super) const REVISION_SLOTS: usize = 16;
/// Passes over domains: those that wait minutes for an authority, and as many that don't.
const DOMAIN_SLOTS: usize = 2 * ATTEMPTS;
/// All other passes.
pub(super) const OTHER_SLOTS: usize = 24;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
pub(super) const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

#[derive(Debug, Default)]
pub(super) struct Line {
    wish: Option<(Instant, Priority)>,
    running: bool,
    failures: u32,
    pub(super) shown: Option<LoopLine>,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    pub(super) lines: BTreeMap<Key, Line>,
    /// Wishes in the future.
    pub(super) later: BTreeSet<(Instant, Key)>,
    /// Until when the timer's task sleeps; `None`: until it is nudged.
    pub(super) timer: Option<Instant>,
    /// Wishes that are due and wait for a slot, and the slots in use, by kind.
    pub(super) lanes: [Lane; 4],
    pub(super) stopped: bool,
    /// Until then wishes are kept and nothing runs: a pass over a half-recalled picture would start what runs already.
    pub(super) opened: bool,
}

/// Passes that share slots.
#[derive(Debug, Default)]
pub(super) struct Lane {
    pub(super) ready: BTreeSet<(Priority, Instant, Key)>,
    pub(super) running: usize,
}

/// Slots by lane.
const SLOTS: [usize; 4] = [WAKE_SLOTS, REVISION_SLOTS, OTHER_SLOTS, DOMAIN_SLOTS];

/// Which lane a pass runs in.
fn lane_of(key: &Key, priority: Priority) -> usize {
    match (priority, key) {
        (Priority::Wake, _) => 0,
        (_, Key::Revision(_)) => 1,
        (_, Key::Domain(_)) => 3,
        _ => 2,
    }
}

impl Queue {
    /// Whether the next wish comes before the timer goes off.
    pub(super) fn wants_earlier(&self) -> bool {
        let next = self.later.first().map(|(at, _)| *at);
        next.is_some_and(|at| self.timer.is_none_or(|timer| at < timer))
    }

    pub(super) fn wish(&mut self, key: Key, at: Instant, priority: Priority) {
        if self.stopped {
            return;
        }
        let line = self.lines.entry(key.clone()).or_default();
        let (at, priority) = match line.wish {
            Some((planned, urgency)) => {
                self.later.remove(&(planned, key.clone()));
                self.lanes[lane_of(&key, urgency)]
                    .ready
                    .remove(&(urgency, planned, key.clone()));
                (planned.min(at), urgency.min(priority))
            }
            None => (at, priority),
        };
        line.wish = Some((at, priority));
        if !line.running {
            self.later.insert((at, key));
        }
    }

    /// Takes what is due and has a slot, wakes first, then the most urgent of each lane.
    pub(super) fn take_due(&mut self, now: Instant) -> Vec<(Key, Priority)> {
        if !self.opened {
            return Vec::new();
        }
        while let Some((at, _)) = self.later.first()
            && *at <= now
        {
            let Some((at, key)) = self.later.pop_first() else {
                break;
            };
            let priority = self
                .lines
                .get(&key)
                .and_then(|l| l.wish)
                .map_or(Priority::Housekeeping, |(_, p)| p);
            self.lanes[lane_of(&key, priority)]
                .ready
                .insert((priority, at, key));
        }
        let mut due = Vec::new();
        for (lane, slots) in SLOTS.into_iter().enumerate() {
            while self.lanes[lane].running < slots
                && let Some((priority, _, key)) = self.lanes[lane].ready.pop_first()
            {
                self.lanes[lane].running += 1;
                self.begin(key, priority, &mut due);
            }
        }
        due
    }

    fn begin(&mut self, key: Key, priority: Priority, due: &mut Vec<(Key, Priority)>) {
        let line = self.lines.entry(key.clone()).or_default();
        line.wish = None;
        line.running = true;
        due.push((key, priority));
    }

    pub(super) fn finish(
        &mut self,
        key: &Key,
        priority: Priority,
        result: Result<Report, PassError>,
        env: &Arc<dyn Environment>,
        began: Timestamp,
        started: Instant,
    ) {
        self.lanes[lane_of(key, priority)].running -= 1;
        let (now, time, wall) = (Instant::now(), env.now(), env.wall());
        let Some(line) = self.lines.get_mut(key) else {
            return;
        };
        line.running = false;
        let (because, next, error, gone) = match result {
            Ok(report) => {
                line.failures = 0;
                let next = report.wake_at.map(|at| now + at.since(time));
                (report.because, next, None, report.gone)
            }
            Err(error) => {
                let wait = backoff(line.failures, env.random());
                line.failures = line.failures.saturating_add(1);
                (String::new(), Some(now + wait), Some(error.0), false)
            }
        };
        let passes = line.shown.as_ref().map_or(0, |shown| shown.passes) + 1;
        let waited = line.wish.take();
        line.shown = Some(LoopLine {
            name: key.name().to_owned(),
            key: key.subject(),
            // What people read is by the host's clock.
            last_pass: wall.minus(time.since(began)),
            duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            because,
            next_wake: next.map(|at| wall.plus(at.saturating_duration_since(now))),
            last_error: error,
            passes,
        });
        if gone && waited.is_none() {
            self.lines.remove(key);
            return;
        }
        if let Some((at, urgency)) = waited {
            self.wish(key.clone(), at, urgency);
        }
        if let Some(at) = next {
            let urgency = if matches!(key, Key::Instances(_)) {
                Priority::Soon
            } else {
                Priority::Housekeeping
            };
            self.wish(key.clone(), at, urgency);
        }
    }
}

/// 200 ms, doubled for each failure in a row up to 30 s, and up to half of it less, so that many don't come back as one.
pub(super) fn backoff(failures: u32, chance: u64) -> Duration {
    let whole = FIRST_BACKOFF
        .saturating_mul(1 << failures.min(8))
        .min(LONGEST_BACKOFF);
    let thousandth = u32::try_from(chance % 500).unwrap_or(0);
    whole.saturating_sub(whole * thousandth / 1000)
}
