//! Making room in memory (decision 20).

use std::collections::BTreeSet;

use utsuwa_decide::capacity::{self, Candidate, Leaving};
use utsuwa_decide::instances::InstanceView;
use utsuwa_model::demand::RevisionDemand;
use utsuwa_model::{InstanceId, RevisionKey};

use crate::core::Core;
use crate::rounds::Priority;
use crate::world::{Inner, Phase, RevisionState};

/// Bytes on their way to instances that are starting.
pub(crate) fn promised(inner: &Inner) -> u64 {
    inner
        .starting
        .iter()
        .filter_map(|(id, key)| {
            let state = inner.revisions.get(key)?;
            let record = state.instances.get(id)?;
            (record.phase == Phase::Starting).then(|| capacity::expected(state.plan.memory_bytes()))
        })
        .fold(0, u64::saturating_add)
}

/// What came of a wish for room.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    /// So many were asked to give way now.
    pub(crate) gave_way: usize,
    /// Somebody leaves, now or already.
    pub(crate) comes: bool,
}

/// Its ready instances, of which some may give way.
fn candidates(state: &RevisionState, demand: &RevisionDemand) -> Vec<Candidate> {
    let live: Vec<InstanceView> = state
        .views(demand)
        .into_iter()
        .filter(|v| v.reach.is_up())
        .collect();
    let least = if state.routed {
        state.settings.manual.unwrap_or(state.settings.min)
    } else {
        0
    };
    let holds_minimum = u32::try_from(live.len()).unwrap_or(u32::MAX) <= least;
    let candidate = |v: InstanceView| Candidate {
        bytes: held_bytes(state, &v.id),
        id: v.id,
        in_flight: v.in_flight,
        idle_since: v.idle_since,
        holds_minimum,
    };
    live.into_iter().map(candidate).collect()
}

/// What an instance is taken to have in memory: what it kept when its memory was given back, if it was.
fn held_bytes(state: &RevisionState, id: &InstanceId) -> u64 {
    let kept = state
        .instances
        .get(id)
        .and_then(|record| record.rest.kept_bytes);
    kept.unwrap_or_else(|| capacity::expected(state.plan.memory_bytes()))
}

/// Its instances that are on their way out. `waits`: whether another revision still waits for room.
fn leaving(
    state: &RevisionState,
    demand: &RevisionDemand,
    waits: impl Fn(&RevisionKey) -> bool,
) -> Vec<Leaving> {
    let views = state.views(demand);
    let with_record = views.iter().filter_map(|view| {
        let record = state.instances.get(&view.id)?;
        (record.phase == Phase::Leaving).then_some((view, record))
    });
    with_record
        .map(|(view, record)| Leaving {
            bytes: held_bytes(state, &view.id),
            // The ingress has given up those that were too slow.
            in_flight: if record.retired { 0 } else { view.in_flight },
            for_another: record.makes_room_for.as_ref().is_some_and(&waits),
        })
        .collect()
}

impl Core {
    /// Lets idle instances of other revisions go, least valuable first, until with those that leave already there is room for
    /// `missing` starts with a limit of `limit` bytes.
    pub(crate) fn make_room(&self, for_whom: &RevisionKey, missing: u32, limit: u64) -> Room {
        let (with_instances, short) = self.world.with(|inner| {
            let keys = |wanted: fn(&RevisionState) -> bool| {
                let found = inner.revisions.iter().filter(move |(_, s)| wanted(s));
                found.map(|(key, _)| key.clone()).collect::<BTreeSet<_>>()
            };
            (
                keys(|state| !state.instances.is_empty()),
                keys(|state| state.short_since.is_some()),
            )
        });
        // What is only parked costs nobody a request.
        let dropped = self.drop_parked_of_others(for_whom);
        if dropped > 0 {
            return Room {
                gave_way: dropped,
                comes: true,
            };
        }
        let waits = |key: &RevisionKey| key != for_whom && short.contains(key);
        let (mut idle, mut on_their_way) = (Vec::new(), Vec::new());
        for key in &with_instances {
            let demand = self.door.demand(key).unwrap_or_default();
            self.world.revision(key, |state| {
                on_their_way.extend(leaving(state, &demand, waits));
                if key != for_whom {
                    idle.extend(candidates(state, &demand));
                }
            });
        }
        let each = capacity::expected(limit);
        let count = capacity::still_missing(missing, each, &on_their_way);
        let bytes = u64::from(count).saturating_mul(each.max(1));
        let now = self.env.now();
        let victims = capacity::victims(&idle, bytes, now);
        let why = &victims.because.summary;
        for id in &victims.chosen {
            let owner = self.world.with(|inner| {
                let key = inner.owners.get(id)?.clone();
                let state = inner.revisions.get_mut(&key)?;
                let record = state.instances.get_mut(id)?;
                record.phase = Phase::Leaving;
                record.leaving_since = Some(now);
                record.makes_room_for = Some(for_whom.clone());
                record.gives_way = Some(format!("{} has no memory; {why}", for_whom.revision));
                Some((key, state.route.timeout))
            });
            if let Some((key, timeout)) = owner {
                tracing::info!(revision = %key, instance = %id, waiting = %for_whom, because = %why, "idle instance gives way: memory is short");
                self.leave(&key, id.clone(), timeout);
            }
        }
        let room = Room {
            gave_way: victims.chosen.len(),
            comes: count == 0 || !victims.chosen.is_empty(),
        };
        // Who waits is told too, until its next look.
        self.world
            .revision(for_whom, |state| state.because.push(victims.because));
        room
    }

    /// Memory came free: whoever waits for some looks at once.
    pub(crate) fn ask_who_is_short(&self) {
        let short: Vec<RevisionKey> = self.world.with(|inner| {
            let short = inner
                .revisions
                .iter()
                .filter(|(_, s)| s.short_since.is_some());
            short.map(|(key, _)| key.clone()).collect()
        });
        for key in &short {
            self.ask_instances(key, Priority::Soon);
        }
    }
}
