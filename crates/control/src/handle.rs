//! Starting the loops, and what others may ask of them.
//!
//! Start: what is stored is recalled, what runs is adopted, the routes are published whole, adopted instances are handed to the
//! ingress; only then the loops begin. A request that comes before finds no route table, so `daemon` opens its doors after.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use utsuwa_model::revision::Outcome;
use utsuwa_model::{InstanceId, RevisionKey, ServiceKey};
use utsuwa_runtime::DriverError;
use utsuwa_store::{Changed, StoreError};

use crate::core::{Core, Seams};
use crate::explain::{self, RevisionExplained};
use crate::rounds::{Key, LoopLine, PassError, Priority};
use crate::settings::ControlSettings;
use crate::world::Stage;

/// Why the loops could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error("read what is deployed: {0}")]
    Store(#[from] StoreError),
    #[error("find out what runs: {0}")]
    Driver(#[from] DriverError),
    #[error("recall what is deployed: {0}")]
    Recall(String),
}

impl From<PassError> for ControlError {
    fn from(error: PassError) -> Self {
        Self::Recall(error.to_string())
    }
}

/// The loops.
#[derive(Debug)]
pub struct Control;

/// What an earlier server asked for right before it ended mostly runs by then: a start waits ten seconds for a sandbox at most.
/// The start itself takes as long as it takes, with layers to copy even minutes: it is looked for again and again, each time
/// after twice the time, until the slow sweep does.
const LATE_STARTS: Duration = Duration::from_secs(15);

impl Control {
    /// Recalls, adopts, publishes, and starts the loops. Must be called inside a tokio runtime.
    ///
    /// # Errors
    /// [`ControlError`]: the store can't be read or the driver doesn't answer.
    pub async fn start(
        seams: Seams,
        settings: ControlSettings,
    ) -> Result<ControlHandle, ControlError> {
        let core = Core::new(seams, settings);
        // Before the list is made, so that no end falls between the two.
        let events = core.driver.events();
        // Before anything is read, so that no change falls between reading and listening.
        let mut changes = core.store.changes();
        let seen = *changes.borrow_and_update();
        let running = core.driver.list().await?;
        let services = core.store.all_service_keys()?;
        for key in &services {
            core.recall_service(key).await?;
        }
        let adopted = core.adopt(running);
        core.set_loaded();
        core.publish();
        core.admit_adopted(adopted);

        let me = Arc::clone(&core);
        core.tracker.spawn(async move { me.listen(events).await });
        let me = Arc::clone(&core);
        core.tracker
            .spawn(async move { me.follow(changes, seen).await });
        let me = Arc::clone(&core);
        core.tracker.spawn(async move { me.sweep().await });
        let me = Arc::clone(&core);
        core.tracker
            .spawn(async move { me.look_for_late_starts().await });
        let (rounds, me) = (Arc::clone(&core.rounds), Arc::clone(&core));
        rounds.open(&me);
        core.tracker.spawn(rounds.drive(me));
        for key in services {
            core.ask(Key::Service(key), Priority::Housekeeping);
        }
        for name in core.all_domains()? {
            core.ask(Key::Domain(name), Priority::Housekeeping);
        }
        for slow in [Key::Images, Key::Logs] {
            core.ask_after(slow, core.settings.collect, Priority::Housekeeping);
        }
        Ok(ControlHandle { core })
    }
}

/// What others may ask of the loops. Clones are the same.
#[derive(Debug, Clone)]
pub struct ControlHandle {
    core: Arc<Core>,
}

impl ControlHandle {
    /// Somebody waits for `revision` and nothing is there. Never blocks; raising it twice is raising it once.
    pub fn wake(&self, revision: &RevisionKey) {
        self.core.ask_instances(revision, Priority::Wake);
    }

    /// An instance of `revision` became ready, failed its startup probe or went idle, or more wait than expected. Never blocks.
    pub fn changed(&self, revision: &RevisionKey) {
        self.core.ask_instances(revision, Priority::Soon);
        if self
            .core
            .world
            .revision(revision, |state| state.stage == Stage::Proving)
            == Some(true)
        {
            self.core.ask_revision(revision);
        }
    }

    /// A request was let into an instance that the ingress had agreed to have frozen. Never blocks.
    pub fn thaw(&self, revision: &RevisionKey, instance: &InstanceId) {
        self.core.thaw(revision, instance);
    }

    /// Why things are as they are: every revision of the service that is routed, being proven or running.
    #[must_use]
    pub fn explain(&self, service: &ServiceKey) -> Vec<RevisionExplained> {
        explain::explain(&self.core, service)
    }

    /// The table of loops: one line per key.
    #[must_use]
    pub fn loops(&self) -> Vec<LoopLine> {
        self.core.rounds.table()
    }

    /// Passes of the slow sweep that found something to do. Stays zero unless an event was lost.
    #[must_use]
    pub fn sweep_found(&self) -> u64 {
        self.core.rounds.sweep_found()
    }

    /// Whether no pass runs and none is due now.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.core.rounds.is_at_rest()
    }

    /// Looks at everything once, as the slow sweep does.
    pub fn look_at_everything(&self) {
        self.core.sweep_once();
    }

    /// No pass begins any more; those under way have `deadline` to end, then they are left. Instances go on.
    /// Answers whether everything ended in time.
    pub async fn shutdown(&self, deadline: Duration) -> bool {
        self.core.rounds.stop();
        self.core.cancel.cancel();
        self.core.tracker.close();
        tokio::time::timeout(deadline, self.core.tracker.wait())
            .await
            .is_ok()
    }
}

impl Core {
    /// Puts a stored service and its routed or pending revisions into the picture.
    async fn recall_service(&self, key: &ServiceKey) -> Result<(), PassError> {
        let Some(service) = self.store.service(key)? else {
            return Ok(());
        };
        if service.meta.delete_time.is_some() {
            return Ok(());
        }
        let current = service.status.latest_created.clone();
        let clash = || crate::service::Clash {
            message: String::new(),
        };
        let picture = self.picture(service, current.ok_or_else(clash))?;
        let routes = self.routes_of(&picture)?;
        let mut ready = BTreeSet::new();
        for stored in &picture.revisions {
            let id = &stored.key.revision;
            let stage = match stored.status.outcome {
                Outcome::Ready if routes.shares.contains_key(id) => Stage::Serving,
                Outcome::Pending => Stage::Proving,
                _ => continue,
            };
            ready.extend((stage == Stage::Serving).then(|| id.clone()));
            self.recall(stored, stage).await?;
        }
        if let Err(error) = self.take_routes(key, routes, &ready) {
            tracing::warn!(service = %key, %error, "a service is not routed yet, its own pass will see to it");
        }
        Ok(())
    }

    /// Turns "something changed in the store" into wishes for the services that changed after commit `seen`.
    async fn follow(&self, mut changes: tokio::sync::watch::Receiver<u64>, mut seen: u64) {
        loop {
            let now = *changes.borrow_and_update();
            match self.ask_changed(seen) {
                Ok(()) => seen = now,
                Err(error) => {
                    tracing::warn!(%error, "read what changed; the next change or sweep tries again");
                }
            }
            tokio::select! {
                () = self.cancel.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    fn ask_changed(&self, seen: u64) -> Result<(), StoreError> {
        let changed = match self.store.changed_since(seen) {
            Changed::Keys(keys) => keys,
            // Too much at once: everything there is, and what we know that may be gone.
            Changed::All => {
                let known = self
                    .world
                    .with(|inner| inner.services.keys().cloned().collect::<Vec<_>>());
                let mut all = BTreeSet::from_iter(self.store.all_service_keys()?);
                all.extend(known);
                all
            }
        };
        for key in &changed {
            self.ask_service(key);
            self.ask_domains_of(key);
        }
        Ok(())
    }

    /// Until all that an earlier server asked for runs.
    async fn look_for_late_starts(&self) {
        let (began, mut after) = (tokio::time::Instant::now(), LATE_STARTS);
        while after < self.settings.sweep {
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep_until(began + after) => {}
            }
            if let Err(error) = self.stop_late_starts().await {
                tracing::warn!(%error, "list instances; the next look tries again");
            }
            after *= 2;
        }
    }

    async fn sweep(&self) {
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = tokio::time::sleep(self.settings.sweep) => {}
            }
            if let Err(error) = self.reconcile().await {
                tracing::warn!(%error, "list instances; the next sweep tries again");
            }
            self.sweep_once();
        }
    }

    /// Every service, and every line there is.
    pub(crate) fn sweep_once(&self) {
        let mut keys = self.rounds.keys();
        if let Ok(services) = self.store.all_service_keys() {
            keys.extend(services.into_iter().map(Key::Service));
        }
        if let Ok(domains) = self.all_domains() {
            keys.extend(domains.into_iter().map(Key::Domain));
        }
        for key in keys
            .into_iter()
            .filter(|key| !matches!(key, Key::Images | Key::Logs))
        {
            self.ask(key, Priority::Sweep);
        }
    }
}
