//! What runs and why, for `--why` and the dashboard. Observed, never stored.

use utsuwa_model::demand::Reach;
use utsuwa_model::instance::Tier;
use utsuwa_model::{Because, InstanceId, RevisionKey, ServiceKey, Timestamp};

use crate::core::Core;
use crate::world::RevisionState;

/// One revision that is routed, being proven or running.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionExplained {
    pub revision: RevisionKey,
    pub percent: u32,
    pub in_flight: u32,
    pub queued: u32,
    pub instances: Vec<InstanceExplained>,
    /// Reasons of the last decisions: how many, then which.
    pub because: Vec<Because>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceExplained {
    pub id: InstanceId,
    /// `starting`, `ready`, `frozen`, `reclaimed`, `retiring`, `failed`.
    pub state: String,
    /// Process id on the host; 0 while it is not known.
    pub pid: u32,
    pub in_flight: u32,
    pub started: Timestamp,
}

pub(crate) fn explain(core: &Core, service: &ServiceKey) -> Vec<RevisionExplained> {
    let keys: Vec<RevisionKey> = core.world.with(|inner| {
        inner
            .revisions
            .keys()
            .filter(|key| key.service == *service)
            .cloned()
            .collect()
    });
    keys.into_iter()
        .filter_map(|key| {
            let demand = core.door.demand(&key).unwrap_or_default();
            core.world.revision(&key, |state| RevisionExplained {
                revision: key.clone(),
                percent: state.percent,
                in_flight: demand.in_flight,
                queued: demand.queued,
                instances: state
                    .views(&demand)
                    .into_iter()
                    .map(|view| InstanceExplained {
                        pid: state.instances.get(&view.id).map_or(0, |record| record.pid),
                        state: word(&view.reach, tier(state, &view.id)).to_owned(),
                        in_flight: view.in_flight,
                        started: view.started,
                        id: view.id,
                    })
                    .collect(),
                because: state.because.clone(),
            })
        })
        .collect()
}

fn tier(state: &RevisionState, id: &InstanceId) -> Tier {
    let record = state.instances.get(id);
    record.map_or(Tier::Awake, |record| record.rest.tier)
}

fn word(reach: &Reach, tier: Tier) -> &'static str {
    match reach {
        Reach::Starting => "starting",
        Reach::Ready => match tier {
            Tier::Awake => "ready",
            Tier::Frozen => "frozen",
            Tier::Reclaimed => "reclaimed",
        },
        Reach::Retiring => "retiring",
        Reach::Unready { .. } => "not ready",
        Reach::Failed { .. } => "failed",
        Reach::Unhealthy { .. } => "unhealthy",
    }
}
