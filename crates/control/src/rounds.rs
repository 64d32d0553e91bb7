//! The driver of all loops, written once (house rules §4.5): it decides when a pass over a key runs, never what it does.
//!
//! Owns: running passes; when one is due is [`queue`]'s, with priorities, back-off and the visible table. Deliberately not here: any knowledge of services or
//! instances; passes come in through [`Passes`].
//!
//! Invariants:
//! 1. One pass per key at a time; a wish that comes meanwhile is kept and honoured after it.
//! 2. The earliest wish wins; many wishes are one pass.
//! 3. A wake never queues behind housekeeping: it has slots of its own and starts on the caller's wish, without a timer.
//! 4. A failed pass comes again, later each time, with jitter; a panicking or overlong one counts as failed.
//! 5. After [`Rounds::stop`] no pass begins.
//! 6. Passes over revisions, which wait for images, and over domains, which wait for authorities, have slots of their own: nothing else queues behind them.

mod queue;
mod work;

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_model::Timestamp;

use crate::seam::Environment;

use self::queue::Queue;
pub(crate) use self::work::{Key, PassError, Priority, Report};

/// What runs for a key.
pub(crate) trait Passes: fmt::Debug + Send + Sync + 'static {
    fn pass(&self, key: Key) -> BoxFuture<'_, Result<Report, PassError>>;
}

/// One line of the visible table. Times are by the host's clock.
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

/// The driver.
#[derive(Debug)]
pub(crate) struct Rounds {
    inner: Mutex<Queue>,
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
        let inner = Mutex::new(Queue::default());
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

#[cfg(test)]
mod tests;
