//! Making room in memory (decision 20).

use utsuwa_decide::capacity::{self, Candidate};
use utsuwa_model::RevisionKey;
use utsuwa_model::demand::Reach;

use crate::core::Core;
use crate::world::{Inner, Phase};

/// Bytes on their way to instances that are starting.
pub(crate) fn promised(inner: &Inner) -> u64 {
    inner
        .starting
        .iter()
        .filter_map(|(id, key)| {
            let state = inner.revisions.get(key)?;
            let record = state.instances.get(id)?;
            (record.phase == Phase::Starting)
                .then(|| capacity::expected(state.plan.limits.memory.0))
        })
        .fold(0, u64::saturating_add)
}

impl Core {
    /// Lets up to `count` idle instances of other revisions go, least valuable first. Answers how many.
    pub(crate) fn evict(&self, for_whom: &RevisionKey, count: u32) -> usize {
        let others: Vec<RevisionKey> = self.world.with(|inner| {
            let with_instances = inner
                .revisions
                .iter()
                .filter(|(key, state)| *key != for_whom && !state.instances.is_empty());
            with_instances.map(|(key, _)| key.clone()).collect()
        });
        let mut candidates = Vec::new();
        for key in &others {
            let demand = self.door.demand(key).unwrap_or_default();
            self.world.revision(key, |state| {
                let live = state
                    .views(&demand)
                    .into_iter()
                    .filter(|v| v.reach == Reach::Ready)
                    .collect::<Vec<_>>();
                let least = if state.routed {
                    state.settings.manual.unwrap_or(state.settings.min)
                } else {
                    0
                };
                let holds_minimum = u32::try_from(live.len()).unwrap_or(u32::MAX) <= least;
                candidates.extend(live.into_iter().map(|v| Candidate {
                    id: v.id,
                    in_flight: v.in_flight,
                    idle_since: v.idle_since,
                    holds_minimum,
                }));
            });
        }
        let victims = capacity::victims(&candidates, count);
        for id in &victims {
            let owner = self.world.with(|inner| {
                let key = inner.owners.get(id)?.clone();
                let state = inner.revisions.get_mut(&key)?;
                state.instances.get_mut(id)?.phase = Phase::Leaving;
                Some((key, state.route.timeout))
            });
            if let Some((key, timeout)) = owner {
                tracing::info!(revision = %key, instance = %id, waiting = %for_whom, "idle instance gives way: memory is short");
                self.leave(&key, id.clone(), timeout);
            }
        }
        victims.len()
    }
}
