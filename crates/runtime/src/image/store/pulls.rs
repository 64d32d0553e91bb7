//! Pulls under way: each is a task of its own, which callers join and may leave.
//!
//! Owns: who pulls what just now, when a pull is given up. Doesn't: pull (`store/mod.rs` does).
//!
//! Why not in the caller's future: a pass of the loops has a limit of its own, and a layer may take longer than any such limit.
//!
//! Invariants: 1. One task per reference. 2. It ends: with its outcome, after [`super::Settings::pull_limit`], when nobody
//! has waited for it for [`ABANDONED`], or when the store closes. 3. Whoever waits gets an answer, also when the task panics.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use utsuwa_model::image::ResolvedImage;

use super::ImageStore;
use crate::image::error::PullError;
use crate::image::progress::{PullProgress, Reporter};

/// A pull that nobody waits for is given up after this: passes that come back do so within half a minute.
const ABANDONED: Duration = Duration::from_secs(120);

type Outcome = Option<Result<ResolvedImage, PullError>>;

/// By reference.
#[derive(Debug, Default)]
pub(super) struct Pulls(Mutex<HashMap<String, Pull>>);

impl Pulls {
    /// How far the pull of `reference` is, if one is under way.
    pub(super) fn progress_of(&self, reference: &str) -> Option<PullProgress> {
        let pulls = self.0.lock();
        pulls
            .get(reference)
            .map(|pull| pull.progress.borrow().clone())
    }
}

#[derive(Debug, Clone)]
struct Pull {
    /// Its receivers are those who wait.
    outcome: Arc<watch::Sender<Outcome>>,
    progress: watch::Receiver<PullProgress>,
}

/// A pull's entry: gone, and everybody told, when the task ends in any way.
struct Entry {
    store: ImageStore,
    reference: String,
    outcome: Arc<watch::Sender<Outcome>>,
}

impl Entry {
    fn end(self, outcome: Result<ResolvedImage, PullError>) {
        // Not to be joined any more before it is told: who comes later wants to try again.
        self.store.0.pulls.0.lock().remove(&self.reference);
        self.outcome.send_replace(Some(outcome));
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.outcome.borrow().is_none() {
            self.store.0.pulls.0.lock().remove(&self.reference);
            let died = PullError::Interrupted("its task died; this is a bug".to_owned());
            self.outcome.send_replace(Some(Err(died)));
        }
    }
}

impl ImageStore {
    /// Waits for the pull of `reference`, which is begun unless it is under way. `progress` follows it.
    pub(super) async fn join(
        &self,
        reference: &str,
        progress: Option<watch::Sender<PullProgress>>,
    ) -> Result<ResolvedImage, PullError> {
        let (mut outcome, mut shown) = self.find_or_begin(reference);
        let mut follows = progress.is_some();
        loop {
            let ended = async {
                let ended = outcome.wait_for(Option::is_some).await;
                ended.map_or(None, |outcome| outcome.clone())
            };
            let changed = tokio::select! {
                ended = ended => {
                    if let Some(progress) = &progress {
                        progress.send_replace(shown.borrow().clone());
                    }
                    return ended.unwrap_or_else(|| {
                        Err(PullError::Interrupted("its task died; this is a bug".to_owned()))
                    });
                }
                changed = shown.changed(), if follows => changed,
            };
            // The pull has ended where this is false: its outcome comes next.
            follows = changed.is_ok();
            if let Some(progress) = &progress {
                progress.send_replace(shown.borrow_and_update().clone());
            }
        }
    }

    fn find_or_begin(
        &self,
        reference: &str,
    ) -> (watch::Receiver<Outcome>, watch::Receiver<PullProgress>) {
        let mut pulls = self.0.pulls.0.lock();
        if let Some(pull) = pulls.get(reference) {
            return (pull.outcome.subscribe(), pull.progress.clone());
        }
        let (outcome, waiting) = watch::channel(None);
        let (progress, shown) = watch::channel(PullProgress::default());
        let pull = Pull {
            outcome: Arc::new(outcome),
            progress: shown.clone(),
        };
        let entry = Entry {
            store: self.clone(),
            reference: reference.to_owned(),
            outcome: Arc::clone(&pull.outcome),
        };
        pulls.insert(reference.to_owned(), pull);
        self.0.background.spawn(run(entry, progress));
        (waiting, shown)
    }
}

async fn run(entry: Entry, progress: watch::Sender<PullProgress>) {
    let store = entry.store.clone();
    let shown = progress.subscribe();
    let limit = store.0.settings.pull_limit;
    let outcome = tokio::select! {
        outcome = store.pull(&entry.reference, Reporter::new(Some(progress))) => outcome,
        () = tokio::time::sleep(limit) => {
            let (arrived, total) = shown.borrow().bytes();
            Err(PullError::TooLong { image: entry.reference.clone(), limit, arrived, total })
        }
        () = unwanted(&entry.outcome) => Err(PullError::Interrupted("nobody waits for it any more".to_owned())),
        () = store.0.closing.cancelled() => Err(PullError::Interrupted("the server is ending".to_owned())),
    };
    entry.end(outcome);
}

/// Returns when nobody has waited for a while.
async fn unwanted(outcome: &watch::Sender<Outcome>) {
    loop {
        outcome.closed().await;
        tokio::time::sleep(ABANDONED).await;
        if outcome.receiver_count() == 0 {
            return;
        }
    }
}
