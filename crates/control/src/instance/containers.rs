//! Starting the containers of an instance one after the other.
//!
//! Owns: asking for each in its turn ([`utsuwa_decide::containers`]), and waiting for startup probes, which the ingress makes.
//! The instance is given to the ingress when all have started; that it can be reached is judged there, as of any other.
//!
//! Nothing of this is remembered: a server that ends meanwhile leaves an instance that the keeper ends.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use utsuwa_decide::containers::due;
use utsuwa_model::route::InstanceRoute;
use utsuwa_model::{InstanceId, RevisionKey};
use utsuwa_runtime::DriverError;

use crate::core::Core;
use crate::world::{GroupPlan, Phase, StartPlan};

/// Why not all containers of an instance have started.
#[derive(Debug)]
pub(super) enum Unstarted {
    Driver(DriverError),
    /// A startup probe failed; in the user's words.
    Probe(String),
}

impl Core {
    /// Brings all containers up; those that wait for nothing run already.
    pub(super) async fn start_containers(
        &self,
        key: &RevisionKey,
        id: &InstanceId,
        plan: &StartPlan,
    ) -> Result<(), Unstarted> {
        let Some(group) = &plan.group else {
            return Ok(());
        };
        let mut started: BTreeSet<usize> = due(&group.after, &BTreeSet::new(), &BTreeSet::new())
            .into_iter()
            .collect();
        let mut passed = BTreeSet::new();
        let mut probes = FuturesUnordered::new();
        let mut new: Vec<usize> = started.iter().copied().collect();
        loop {
            for number in std::mem::take(&mut new) {
                match group.probe(number) {
                    Some(startup) => {
                        let route = InstanceRoute {
                            id: id.clone(),
                            revision: key.clone(),
                            port: plan.port,
                            age: Duration::ZERO,
                        };
                        let probe = self.door.probe(route, startup.clone());
                        probes.push(async move { (number, probe.await) });
                    }
                    None => {
                        passed.insert(number);
                    }
                }
            }
            for number in due(&group.after, &started, &passed) {
                let asked = self.driver.start_container(id, number).await;
                asked.map_err(Unstarted::Driver)?;
                started.insert(number);
                new.push(number);
            }
            if !new.is_empty() {
                continue;
            }
            match probes.next().await {
                None => return Ok(()),
                Some((number, Ok(()))) => {
                    passed.insert(number);
                }
                Some((number, Err(tried))) => {
                    // Of one that is gone its end says more.
                    if let Err(gone @ DriverError::NotFound(_)) = self.driver.usage(id).await {
                        return Err(Unstarted::Driver(gone));
                    }
                    let name = group.name(number);
                    return Err(Unstarted::Probe(format!(
                        "The container {name:?} failed its startup probe: {tried}. Logs for this revision might contain more \
                         information."
                    )));
                }
            }
        }
    }

    /// What was begun of an instance whose containers can't all start is taken down; what hindered it counts as its end.
    pub(super) fn give_up_containers(&self, key: &RevisionKey, id: &InstanceId, why: Unstarted) {
        let known = self
            .world
            .revision(key, |state| state.instances.contains_key(id));
        // Otherwise its end was told meanwhile, and said why.
        if known == Some(true) {
            match why {
                // Its end is on its way to us, with the reason; were it lost, a sweep would miss one that runs.
                Unstarted::Driver(DriverError::NotFound(_)) => {
                    self.world.revision(key, |state| {
                        if let Some(record) = state.instances.get_mut(id)
                            && record.phase == Phase::Starting
                        {
                            record.phase = Phase::Running;
                        }
                    });
                    return;
                }
                Unstarted::Driver(error) => self.start_failed(key, id, &error),
                Unstarted::Probe(tried) => {
                    self.world.forget(id);
                    self.not_listening(key, id, &tried);
                }
            }
        }
        let id = id.clone();
        self.spawn(|core| async move {
            if let Err(error) = core.driver.stop(id.clone(), core.settings.stop_grace).await {
                tracing::warn!(instance = %id, %error, "stop an instance that could not start whole; the next sweep tries again");
            }
        });
    }
}

impl GroupPlan {
    /// The probe that must succeed before the instance counts as started. That of the container that takes requests is made when
    /// the instance is admitted, unless another one waits for it.
    fn probe(&self, number: usize) -> Option<&utsuwa_model::route::StartupProbe> {
        let awaited = number != 0 || self.after.iter().any(|after| after.contains(&0));
        self.startup[number].as_ref().filter(|_| awaited)
    }

    fn name(&self, number: usize) -> &str {
        match number.checked_sub(1) {
            None => &self.spec.name,
            Some(index) => &self.spec.sidecars[index].name,
        }
    }
}
