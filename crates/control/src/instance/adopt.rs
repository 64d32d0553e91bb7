//! What runs already: taken in at the start, compared now and then.
//!
//! The world is observed (law 2): an instance of a revision that is routed or being proven is adopted, any other is stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use utsuwa_decide::scale::ScalerState;
use utsuwa_model::instance::{Exit, InstanceObservation, StartPhases, Tier};
use utsuwa_model::route::InstanceRoute;
use utsuwa_model::{InstanceId, RevisionKey};
use utsuwa_runtime::DriverError;

use super::tiers::RestMark;
use crate::core::Core;
use crate::rounds::Priority;
use crate::world::{Phase, Record, Stage};

/// No request lasts longer: what is in an instance that nothing leads to has ended by then.
const STREAMS: Duration = Duration::from_secs(3600);

impl Core {
    /// Takes in what runs. The rightful ones are answered, to be admitted after the routes were published; the rest is stopped.
    pub(crate) fn adopt(&self, running: Vec<InstanceObservation>) -> Vec<InstanceRoute> {
        let (now, wall) = (self.env.now(), self.env.wall());
        let mut admitted = Vec::new();
        tracing::debug!(running = running.len(), "adopt what runs");
        for mut found in running {
            // The keeper told it by the host's clock.
            found.started = now.minus(wall.since(found.started));
            let rightful = self.world.with(|inner| {
                let Some(state) = inner.revisions.get_mut(&found.revision) else {
                    return false;
                };
                if state.stage == Stage::Ended {
                    return false;
                }
                // What was learnt of it is lost with the server that parked it; another one is parked after the next start.
                if found.parked {
                    return false;
                }
                let mut record = Record::new(Phase::Running, found.started, found.limits.cpu);
                record.pid = found.pid;
                record.rest.tier = found.tier;
                record.whole_since = Some(now);
                // Its proof began with it at the latest: a restart gives no new time, but the ingress looks once.
                state.proving_since = state.proving_since.min(found.started);
                let looks = state.route.startup.ends_within(now.since(found.started));
                state.looked_at_by = state.looked_at_by.max(Some(now.plus(looks)));
                state.instances.insert(found.id.clone(), record);
                inner
                    .owners
                    .insert(found.id.clone(), found.revision.clone());
                true
            });
            if rightful {
                admitted.push(InstanceRoute {
                    id: found.id,
                    revision: found.revision,
                    port: found.port,
                    age: now.since(found.started),
                });
            } else {
                tracing::info!(revision = %found.revision, instance = %found.id, "stop an instance that nothing leads to");
                self.remove_stray(found);
            }
        }
        self.world.with(|inner| {
            for state in inner
                .revisions
                .values_mut()
                .filter(|s| s.stage == Stage::Serving && !s.instances.is_empty())
            {
                state.scaler = ScalerState::adopt(
                    u32::try_from(state.instances.len()).unwrap_or(u32::MAX),
                    now,
                );
            }
        });
        admitted
    }

    /// Gives adopted instances to the ingress, which probes them: whether one was ready before, nobody wrote down.
    pub(crate) fn admit_adopted(&self, admitted: Vec<InstanceRoute>) {
        for route in admitted {
            let key = route.revision.clone();
            let asleep = self.world.revision(&key, |state| {
                let record = state.instances.get(&route.id);
                record.is_some_and(|record| record.rest.tier != Tier::Awake)
            });
            if asleep == Some(true) {
                // The probe may want an answer. It goes back to sleep in its time.
                self.thaw(&key, &route.id);
            }
            self.door.admit(route, StartPhases::default());
            self.ask_instances(&key, Priority::Soon);
        }
    }

    /// Stops what an earlier server asked for and did not see run: it was on its way when we listed what runs, and whoever
    /// needs an instance has been given another one by now.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) async fn stop_late_starts(&self) -> Result<(), DriverError> {
        let listed = self.driver.list().await?;
        let known = self.world.instance_ids();
        for found in listed {
            if !known.contains(&found.id) && !self.is_leaving_as_stray(&found.id) {
                tracing::info!(revision = %found.revision, instance = %found.id, "stop an instance that an earlier server was starting when it ended");
                self.remove_stray(found);
            }
        }
        Ok(())
    }

    /// Compares what runs with what is recorded. Finds nothing unless an event was lost.
    ///
    /// # Errors
    /// What the driver says.
    pub(crate) async fn reconcile(&self) -> Result<(), DriverError> {
        // Recorded first: what starts between the two looks is then in the list and not a stray; what was recorded as
        // running before the list was made must be in it.
        let before = self.world.with(|inner| {
            let running = |(id, key): (&_, &_)| {
                let record = inner
                    .revisions
                    .get::<RevisionKey>(key)?
                    .instances
                    .get::<InstanceId>(id)?;
                (record.phase == Phase::Running).then(|| (id.clone(), record.rest.mark()))
            };
            inner
                .owners
                .iter()
                .filter_map(running)
                .collect::<BTreeMap<InstanceId, RestMark>>()
        });
        let parked = self.parked_ids();
        let listed = self.driver.list().await?;
        for id in before.keys().chain(&parked) {
            if !listed.iter().any(|found| found.id == *id) {
                let why = "it was gone when the server looked".to_owned();
                self.ended(id, "", &Exit::Unknown { why }, Vec::new());
            }
        }
        let known = self.world.instance_ids();
        for found in listed {
            if known.contains(&found.id) {
                let pid = found.pid;
                let lost = self.world.revision(&found.revision, |state| {
                    let record = state.instances.get_mut(&found.id)?;
                    record.pid = pid;
                    // The list may be older than a step that was taken meanwhile.
                    let same = before.get(&found.id) == Some(&record.rest.mark());
                    Some(same && record.rest.learn(found.tier))
                });
                if lost.flatten() == Some(true) {
                    tracing::warn!(revision = %found.revision, instance = %found.id, "an instance is frozen that should be awake");
                    self.thaw(&found.revision, &found.id);
                }
            } else if !self.is_leaving_as_stray(&found.id) {
                tracing::warn!(revision = %found.revision, instance = %found.id, "stop an instance that nobody started");
                self.remove_stray(found);
            }
        }
        Ok(())
    }

    fn is_leaving_as_stray(&self, id: &InstanceId) -> bool {
        self.strays.lock().contains(id)
    }

    /// Once for each: whoever looks meanwhile finds it in [`Core::strays`].
    fn remove_stray(&self, found: InstanceObservation) {
        self.strays.lock().insert(found.id.clone());
        // The server before may have streams in it: they end first, as in any other that leaves.
        let empty = self.door.retire(&found.id, STREAMS);
        self.spawn(|core| async move {
            tokio::select! {
                _ = empty => {}
                // The next server finds it as this one did.
                () = core.cancel.cancelled() => return,
            }
            if let Err(error) = core.driver.stop(found.id.clone(), core.settings.stop_grace).await
                && !matches!(error, DriverError::NotFound(_))
            {
                tracing::warn!(instance = %found.id, %error, "stop a stray instance; the next sweep tries again");
            }
            core.strays.lock().remove(&found.id);
        });
    }
}
