//! The revision loop: makes a revision startable, proves it, and says what became of it.
//!
//! Owns: pinning the image, the way to start instances, the outcome and the conditions of a revision. Deliberately not here:
//! starting (the instance loop does, for it sees that a revision is being proven) and routing.
//!
//! Invariants:
//! 1. The outcome leaves `Pending` once.
//! 2. A failed deploy changes nothing that serves: only the failed revision's own instances are stopped.
//! 3. The digest is pinned before the first instance starts and never changes.

mod plan;
pub mod process;
mod prove;
mod startable;
mod status;

pub use prove::IMAGE_PATIENCE;
pub(crate) use startable::route_of;
pub(crate) use status::{failure_words, make, newborn, ready_words};

use utsuwa_model::revision::{Outcome, Revision};
use utsuwa_model::{ConditionState, RevisionKey, ServiceKey, condition};

use crate::core::Core;
use crate::rounds::{PassError, Priority, Report};
use crate::world::{Activity, Phase, RevisionState, Stage};

impl Core {
    /// One pass over a revision.
    pub(crate) async fn revision_pass(&self, key: &RevisionKey) -> Result<Report, PassError> {
        let stored = self.store.revision(key)?;
        let Some(revision) = stored.filter(|r| r.meta.delete_time.is_none()) else {
            self.end_revision(key);
            self.world.with(|inner| inner.image_since.remove(key));
            return Ok(Report {
                because: "the revision is gone".to_owned(),
                gone: true,
                ..Report::default()
            });
        };
        match &revision.status.outcome {
            Outcome::Failed { reason, .. } => {
                self.end_revision(key);
                // The failure may be the last write of a server that ended, arrived after its service was looked at.
                if self.service_waits(&key.service)? {
                    self.ask_service(&key.service);
                }
                Ok(Report {
                    because: format!("failed: {reason}"),
                    ..Report::default()
                })
            }
            Outcome::Ready => self.keep_startable(revision).await,
            Outcome::Pending => self.prove(revision).await,
        }
    }

    /// Ready: routed ones stay startable, and `Active` follows what runs.
    async fn keep_startable(&self, revision: Revision) -> Result<Report, PassError> {
        let key = revision.key.clone();
        // proving → proven, because the outcome is written although this process didn't see it: the last write of a server that
        // ended may arrive after the next one has read.
        let unseen = self.world.revision(&key, |state| {
            let unseen = state.stage == Stage::Proving;
            if unseen {
                state.stage = Stage::Proven;
            }
            unseen
        });
        if unseen == Some(true) {
            self.ask_service(&key.service);
        }
        let routed = self.world.with(|inner| {
            inner
                .services
                .get(&key.service)
                .is_some_and(|routes| routes.shares.contains_key(&key.revision))
        });
        let known = self.world.revision(&key, |state| state.prepared);
        let mut actions = 0;
        if routed && known != Some(true) {
            if !self.make_startable_again(&revision).await? {
                return Ok(self.still_pulling());
            }
            actions += 1;
            self.ask_instances(&key, Priority::Soon);
        }
        self.learn_pids(&key).await?;
        let activity = self.world.revision(&key, |state| {
            // Not looked at since the start of this process: what was adopted is what is wanted.
            let running = state.instances.values();
            let running = running.filter(|r| r.phase == Phase::Running).count();
            let running = u32::try_from(running).unwrap_or(u32::MAX);
            state.activity.unwrap_or(Activity {
                wanted: running,
                ready: running,
                least: 0,
            })
        });
        actions += usize::from(self.write_active(&revision, activity).await?);
        let because = if routed {
            "ready and startable"
        } else {
            "ready, not routed"
        };
        Ok(Report {
            because: because.to_owned(),
            actions,
            ..Report::default()
        })
    }

    /// Process ids are shown to people only: they are looked up when nobody waits.
    async fn learn_pids(&self, key: &RevisionKey) -> Result<(), PassError> {
        let unknown = |state: &mut RevisionState| {
            state
                .instances
                .values()
                .any(|r| r.phase == Phase::Running && r.pid == 0)
        };
        if self.world.revision(key, unknown) != Some(true) {
            return Ok(());
        }
        let listed = self.driver.list().await?;
        self.world.revision(key, |state| {
            for found in listed.iter().filter(|found| found.revision == *key) {
                if let Some(record) = state.instances.get_mut(&found.id) {
                    record.pid = found.pid;
                }
            }
        });
        Ok(())
    }

    /// Whether what became of a deploy is not told yet. That one is under way may have been, before it failed.
    fn service_waits(&self, key: &ServiceKey) -> Result<bool, PassError> {
        let Some(service) = self.store.service(key)? else {
            return Ok(false);
        };
        let (status, generation) = (&service.status, service.meta.generation);
        let ready = condition::find(&status.conditions, "Ready");
        Ok(status.observed_generation < generation
            || ready.is_none_or(|ready| ready.state == ConditionState::Unknown)
            || !self
                .store
                .unanswered(&service.meta.uid, generation)?
                .is_empty())
    }

    /// Nothing of it shall run any more.
    pub(crate) fn end_revision(&self, key: &RevisionKey) {
        let known = self.world.revision(key, |state| {
            state.stage = Stage::Ended;
            state.routed = false;
        });
        if known.is_some() {
            self.ask_instances(key, Priority::Soon);
        }
    }
}
