//! What an instance's probes complain of now, for those who ask why.
//!
//! Owns: the last answers that were not what a probe wants. Deliberately not here: what follows from them.
//!
//! Empty while all is well, so that a sample of demand costs nothing for it.

use parking_lot::Mutex;
use utsuwa_model::Timestamp;
use utsuwa_model::demand::FailingProbe;

#[derive(Debug, Default)]
pub(crate) struct Failing(Mutex<Vec<FailingProbe>>);

impl Failing {
    pub(crate) fn list(&self) -> Vec<FailingProbe> {
        self.0.lock().clone()
    }

    /// One more failure of `probe`.
    pub(crate) fn failed(
        &self,
        probe: &str,
        last: &str,
        threshold: u32,
        now: Timestamp,
        asks: impl FnOnce() -> String,
    ) {
        let mut all = self.0.lock();
        let known = all.iter_mut().find(|failing| failing.probe == probe);
        if let Some(failing) = known {
            failing.failures = failing.failures.saturating_add(1);
            last.clone_into(&mut failing.last_answer);
            return;
        }
        all.push(FailingProbe {
            probe: probe.to_owned(),
            asks: asks(),
            since: now,
            last_answer: last.to_owned(),
            failures: 1,
            failure_threshold: threshold.max(1),
            advice: String::new(),
        });
    }

    /// What its owner can do about a probe that fails.
    pub(crate) fn advise(&self, probe: &str, text: &str) {
        let mut all = self.0.lock();
        if let Some(failing) = all.iter_mut().find(|failing| failing.probe == probe) {
            text.clone_into(&mut failing.advice);
        }
    }

    /// It succeeded, but not often enough yet to count as well.
    pub(crate) fn succeeded(&self, probe: &str) {
        let mut all = self.0.lock();
        if let Some(failing) = all.iter_mut().find(|failing| failing.probe == probe) {
            failing.failures = 0;
            "success".clone_into(&mut failing.last_answer);
        }
    }

    /// All is well.
    pub(crate) fn clear(&self, probe: &str) {
        self.0.lock().retain(|failing| failing.probe != probe);
    }
}
