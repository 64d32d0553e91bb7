//! The driver of all loops, written once (house rules §4.5): it decides when a pass over a key runs, never what it does.
//!
//! Owns: the queue of keys, their priorities, back-off, the visible table. Deliberately not here: any knowledge of services or
//! instances; passes come in through [`Passes`].
//!
//! Invariants:
//! 1. One pass per key at a time; a wish that comes meanwhile is kept and honoured after it.
//! 2. The earliest wish wins; many wishes are one pass.
//! 3. A wake never queues behind housekeeping: it has slots of its own and starts on the caller's wish, without a timer.
//! 4. A failed pass comes again, later each time, with jitter; a panicking or overlong one counts as failed.
//! 5. After [`Rounds::stop`] no pass begins.
//! 6. Passes over revisions, which wait for images, have slots of their own: nothing else queues behind them.

mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_model::Timestamp;

use crate::seam::Environment;

pub(crate) use self::work::{Key, PassError, Priority, Report};

/// Passes for people who wait: enough that twenty sleeping services wake side by side.
const WAKE_SLOTS: usize = 64;
/// Passes over revisions. Pulls of several images may be under way among them.
const REVISION_SLOTS: usize = 16;
/// All other passes.
const OTHER_SLOTS: usize = 24;
const FIRST_BACKOFF: Duration = Duration::from_millis(200);
const LONGEST_BACKOFF: Duration = Duration::from_secs(30);

/// What runs for a key.
pub(crate) trait Passes: fmt::Debug + Send + Sync + 'static {
    fn pass(&self, key: Key) -> BoxFuture<'_, Result<Report, PassError>>;
}

/// One line of the visible table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoopLine {
    pub name: String,
    pub key: String,
    pub last_pass: Timestamp,
    pub duration_us: u64,
    pub because: String,
    pub next_wake: Option<Timestamp>,
    pub last_error: Option<String>,
    pub passes: u64,
}

#[derive(Debug, Default)]
struct Line {
    wish: Option<(Instant, Priority)>,
    running: bool,
    failures: u32,
    shown: Option<LoopLine>,
}

#[derive(Debug, Default)]
struct Inner {
    lines: BTreeMap<Key, Line>,
    /// Wishes in the future.
    later: BTreeSet<(Instant, Key)>,
    /// Until when the timer's task sleeps; `None`: until it is nudged.
    timer: Option<Instant>,
    /// Wishes that are due and wait for a slot, and the slots in use, by kind.
    lanes: [Lane; 3],
    stopped: bool,
    /// Until then wishes are kept and nothing runs: a pass over a half-recalled picture would start what runs already.
    opened: bool,
}

/// Passes that share slots.
#[derive(Debug, Default)]
struct Lane {
    ready: BTreeSet<(Priority, Instant, Key)>,
    running: usize,
}

/// Slots by lane.
const SLOTS: [usize; 3] = [WAKE_SLOTS, REVISION_SLOTS, OTHER_SLOTS];

/// Which lane a pass runs in.
fn lane_of(key: &Key, priority: Priority) -> usize {
    match (priority, key) {
        (Priority::Wake, _) => 0,
        (_, Key::Revision(_)) => 1,
        _ => 2,
    }
}

/// The driver.
#[derive(Debug)]
pub(crate) struct Rounds {
    inner: Mutex<Inner>,
    nudge: Notify,
    tracker: TaskTracker,
    cancel: CancellationToken,
    env: Arc<dyn Environment>,
    /// Passes of the slow sweep that found something to do. Should stay zero.
    sweep_found: AtomicU64,
}

impl Rounds {
    pub(crate) fn new(
        tracker: TaskTracker,
        cancel: CancellationToken,
        env: Arc<dyn Environment>,
    ) -> Self {
        let inner = Mutex::new(Inner::default());
        Self {
            inner,
            nudge: Notify::new(),
            tracker,
            cancel,
            env,
            sweep_found: AtomicU64::new(0),
        }
    }

    /// Wishes a pass over `key` now.
    pub(crate) fn ask<P: Passes>(self: &Arc<Self>, passes: &Arc<P>, key: Key, priority: Priority) {
        self.ask_at(passes, key, Instant::now(), priority);
    }

    /// Wishes a pass over `key` at `at`, or earlier if somebody else does.
    pub(crate) fn ask_at<P: Passes>(
        self: &Arc<Self>,
        passes: &Arc<P>,
        key: Key,
        at: Instant,
        priority: Priority,
    ) {
        let mut inner = self.inner.lock();
        inner.wish(key, at, priority);
        let due = inner.take_due(Instant::now());
        let early = inner.wants_earlier();
        drop(inner);
        self.nudge_if(early);
        self.run(passes, due);
    }

    /// Runs timers until cancelled. One task; the passes have their own.
    pub(crate) async fn drive<P: Passes>(self: Arc<Self>, passes: Arc<P>) {
        loop {
            let (due, next) = {
                let mut inner = self.inner.lock();
                let due = inner.take_due(Instant::now());
                inner.timer = inner.later.first().map(|(at, _)| *at);
                (due, inner.timer)
            };
            self.run(&passes, due);
            let timer = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = self.nudge.notified() => {}
                () = timer => {}
            }
        }
    }

    /// Passes may begin. Wishes made before are due now.
    pub(crate) fn open<P: Passes>(self: &Arc<Self>, passes: &Arc<P>) {
        let mut inner = self.inner.lock();
        inner.opened = true;
        let due = inner.take_due(Instant::now());
        let early = inner.wants_earlier();
        drop(inner);
        self.nudge_if(early);
        self.run(passes, due);
    }

    /// The task of the timer is woken only for a wish that it would miss: on a wake, every other task that runs costs time.
    fn nudge_if(&self, early: bool) {
        if early {
            self.nudge.notify_one();
        }
    }

    /// No pass begins after this. Passes under way end by themselves.
    pub(crate) fn stop(&self) {
        let mut inner = self.inner.lock();
        inner.stopped = true;
        inner.later.clear();
        inner.lanes.iter_mut().for_each(|lane| lane.ready.clear());
    }

    /// The visible table.
    pub(crate) fn table(&self) -> Vec<LoopLine> {
        self.inner
            .lock()
            .lines
            .values()
            .filter_map(|line| line.shown.clone())
            .collect()
    }

    /// Subjects of all lines.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.inner.lock().lines.keys().cloned().collect()
    }

    /// Passes of the slow sweep that found something to do.
    pub(crate) fn sweep_found(&self) -> u64 {
        self.sweep_found.load(Ordering::Relaxed)
    }

    /// Whether nothing runs and nothing is due now.
    pub(crate) fn is_at_rest(&self) -> bool {
        let inner = self.inner.lock();
        let now = Instant::now();
        inner
            .lanes
            .iter()
            .all(|lane| lane.ready.is_empty() && lane.running == 0)
            && inner.later.first().is_none_or(|(at, _)| *at > now)
    }

    fn run<P: Passes>(self: &Arc<Self>, passes: &Arc<P>, due: Vec<(Key, Priority)>) {
        for (key, priority) in due {
            let (rounds, passes) = (Arc::clone(self), Arc::clone(passes));
            self.tracker
                .spawn(async move { rounds.one(&passes, key, priority).await });
        }
    }

    /// One pass, from slot to slot.
    async fn one<P: Passes>(self: &Arc<Self>, passes: &Arc<P>, key: Key, priority: Priority) {
        let (began, started) = (self.env.now(), Instant::now());
        let work = AssertUnwindSafe(tokio::time::timeout(key.limit(), passes.pass(key.clone())))
            .catch_unwind();
        let result = tokio::select! {
            () = self.cancel.cancelled() => Err(PassError("stopped by shutdown".to_owned())),
            result = work => match result {
                Ok(Ok(result)) => result,
                Ok(Err(_)) => Err(PassError(format!("gave up after {:?}: its outcome is unknown", key.limit()))),
                Err(_) => Err(PassError("panicked; this is a bug".to_owned())),
            },
        };
        if let Err(error) = &result
            && !self.cancel.is_cancelled()
        {
            tracing::warn!(loop_name = key.name(), key = key.subject(), %error, "pass failed, will be repeated");
        }
        if priority == Priority::Sweep && result.as_ref().is_ok_and(|report| report.actions > 0) {
            self.sweep_found.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(
                loop_name = key.name(),
                key = key.subject(),
                "the slow sweep found work that no event had announced"
            );
        }
        let (due, early) = {
            let mut inner = self.inner.lock();
            inner.finish(&key, priority, result, &self.env, began, started);
            (inner.take_due(Instant::now()), inner.wants_earlier())
        };
        self.nudge_if(early);
        self.run(passes, due);
    }
}

impl Inner {
    /// Whether the next wish comes before the timer goes off.
    fn wants_earlier(&self) -> bool {
        let next = self.later.first().map(|(at, _)| *at);
        next.is_some_and(|at| self.timer.is_none_or(|timer| at < timer))
    }

    fn wish(&mut self, key: Key, at: Instant, priority: Priority) {
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
    fn take_due(&mut self, now: Instant) -> Vec<(Key, Priority)> {
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

    fn finish(
        &mut self,
        key: &Key,
        priority: Priority,
        result: Result<Report, PassError>,
        env: &Arc<dyn Environment>,
        began: Timestamp,
        started: Instant,
    ) {
        self.lanes[lane_of(key, priority)].running -= 1;
        let (now, time) = (Instant::now(), env.now());
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
            last_pass: began,
            duration_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            because,
            next_wake: next.map(|at| time.plus(at.saturating_duration_since(now))),
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
fn backoff(failures: u32, chance: u64) -> Duration {
    let whole = FIRST_BACKOFF
        .saturating_mul(1 << failures.min(8))
        .min(LONGEST_BACKOFF);
    let thousandth = u32::try_from(chance % 500).unwrap_or(0);
    whole.saturating_sub(whole * thousandth / 1000)
}

#[cfg(test)]
mod tests;
