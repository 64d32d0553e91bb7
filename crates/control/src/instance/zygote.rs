//! Starts prepared ahead: one instance teaches what the program imports, others wait with it imported, and a start lets one go on.
//!
//! Owns: what was learnt and who is parked, per revision, and the tasks that park. Deliberately not here: the count
//! (`utsuwa_decide::zygote`); what a parked instance is (`utsuwa_runtime`). All of it is lost with this process: an instance that
//! a server before parked is stopped (`adopt.rs`), and the next start teaches again.
//!
//! Invariants:
//! 1. A parked instance is none: it is in nobody's count, the ingress doesn't know it, and it goes on at most once.
//! 2. It goes on only under the plan that it was parked under: same revision, environment and limits.
//! 3. What goes wrong with a parked one costs a slower start and nothing else; twice is never tried what failed for good.

mod lessons;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use utsuwa_decide::zygote::{self, Lessons, REMEMBERED, ZygoteInput};
use utsuwa_model::instance::{Exit, StartPhases, Zygote};
use utsuwa_model::{InstanceId, RevisionKey, Timestamp};
use utsuwa_runtime::DriverError;

use crate::core::Core;
use crate::rounds::Priority;
use crate::world::{Phase, RevisionState, Stage, StartPlan};

/// How an instance came to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Birth {
    Plain,
    /// What it imports is noted. The idle moment at which it was read last.
    Learning(Option<Timestamp>),
    /// It was parked.
    Parked,
}

/// One that was started ahead.
#[derive(Debug)]
pub(crate) struct Parked {
    plan: Arc<StartPlan>,
    /// It waits; before, its modules are being imported.
    waits: bool,
}

/// What is prepared for a revision.
#[derive(Debug, Default)]
pub(crate) struct Zygotes {
    lessons: Lessons,
    pub(crate) parked: BTreeMap<InstanceId, Parked>,
    /// The most starts at once, and when.
    burst: Option<(u32, Timestamp)>,
    last_start: Option<Timestamp>,
    failures: u32,
    not_before: Option<Timestamp>,
}

impl Zygotes {
    /// So many could go on now.
    pub(crate) fn waiting(&self, plan: &Arc<StartPlan>) -> u32 {
        let usable = self
            .parked
            .values()
            .filter(|parked| parked.waits && parked.plan == *plan);
        u32::try_from(usable.count()).unwrap_or(u32::MAX)
    }

    fn take(&mut self, plan: &Arc<StartPlan>) -> Option<InstanceId> {
        let (id, _) = self
            .parked
            .iter()
            .find(|(_, parked)| parked.waits && parked.plan == *plan)?;
        let id = id.clone();
        self.parked.remove(&id);
        Some(id)
    }
}

/// What one look decided.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub(super) park: Vec<InstanceId>,
    pub(super) drop: Vec<InstanceId>,
    modules: Vec<String>,
    pub(super) next: Option<Timestamp>,
}

impl Steps {
    pub(super) fn count(&self) -> usize {
        self.park.len() + self.drop.len()
    }
}

/// Who is to start: one that is parked, or a new one.
pub(super) fn born(
    state: &mut RevisionState,
    fresh: &mut dyn FnMut() -> InstanceId,
) -> (InstanceId, Birth) {
    if !state.plan.zygote {
        return (fresh(), Birth::Plain);
    }
    if let Some(id) = state.zygotes.take(&state.plan) {
        return (id, Birth::Parked);
    }
    let birth = match state.zygotes.lessons {
        Lessons::None => Birth::Learning(None),
        Lessons::Modules(_) | Lessons::Refused(_) => Birth::Plain,
    };
    (fresh(), birth)
}

/// Decides who is parked and who is let go, and writes it down.
pub(super) fn look(
    state: &mut RevisionState,
    now: Timestamp,
    started: usize,
    fits: bool,
    fresh: &mut dyn FnMut() -> InstanceId,
) -> Steps {
    if !state.plan.zygote {
        return Steps::default();
    }
    let count = |wanted: fn(Phase) -> bool| {
        let those = state
            .instances
            .values()
            .filter(|record| wanted(record.phase));
        u32::try_from(those.count()).unwrap_or(u32::MAX)
    };
    let (live, starting) = (
        count(|phase| matches!(phase, Phase::Starting | Phase::Running)),
        count(|phase| phase == Phase::Starting),
    );
    let zygotes = &mut state.zygotes;
    if started > 0 {
        let started = u32::try_from(started).unwrap_or(u32::MAX);
        let remembered = zygotes.burst.filter(|(_, at)| now.since(*at) < REMEMBERED);
        if remembered.is_none_or(|(most, _)| started >= most) {
            zygotes.burst = Some((started, now));
        }
        zygotes.last_start = Some(now);
    }
    let waiting = zygotes.waiting(&state.plan);
    let plan = zygote::plan(&ZygoteInput {
        now,
        lessons: &zygotes.lessons,
        callable: state.stage == Stage::Serving && state.routed,
        live,
        starting,
        max: state.settings.max,
        parked: u32::try_from(zygotes.parked.len()).unwrap_or(u32::MAX),
        waiting,
        burst: zygotes
            .burst
            .filter(|(_, at)| now.since(*at) < REMEMBERED)
            .map_or(0, |(most, _)| most),
        last_start: zygotes.last_start,
        fits,
        not_before: zygotes.not_before,
    });
    let mut steps = Steps {
        next: plan.look_at,
        ..Steps::default()
    };
    // Those that are of no use any more first, then those that wait longest to be of any.
    let mut ids: Vec<(bool, bool, InstanceId)> = zygotes
        .parked
        .iter()
        .map(|(id, parked)| (parked.plan == state.plan, parked.waits, id.clone()))
        .collect();
    ids.sort();
    let drop = usize::try_from(plan.drop).unwrap_or(usize::MAX);
    let stale = ids.iter().filter(|(usable, _, _)| !usable).count();
    for (_, _, id) in ids.into_iter().take(drop.max(stale)) {
        zygotes.parked.remove(&id);
        steps.drop.push(id);
    }
    if let (Lessons::Modules(modules), true) = (&zygotes.lessons, plan.park > 0) {
        steps.modules.clone_from(modules);
        for _ in 0..plan.park {
            let id = fresh();
            let parked = Parked {
                plan: Arc::clone(&state.plan),
                waits: false,
            };
            zygotes.parked.insert(id.clone(), parked);
            steps.park.push(id);
        }
    }
    state.because.push(plan.because);
    steps
}

impl Core {
    pub(super) fn park_or_drop(&self, key: &RevisionKey, plan: &Arc<StartPlan>, steps: Steps) {
        for id in steps.drop {
            tracing::info!(revision = %key, instance = %id, "let a parked instance go");
            self.stop_parked(id);
        }
        for id in steps.park {
            tracing::info!(revision = %key, instance = %id, "park an instance for the next start");
            let (key, plan) = (key.clone(), Arc::clone(plan));
            let modules = steps.modules.clone();
            self.spawn(|core| async move {
                let spec = plan.spec(&key, id.clone(), Some(Zygote::Park { modules }));
                let parked = core.driver.start(spec).await;
                core.parked(&key, id, parked);
            });
        }
    }

    /// The attempt has come to an end.
    fn parked(&self, key: &RevisionKey, id: InstanceId, result: Result<StartPhases, DriverError>) {
        let now = self.env.now();
        match result {
            Ok(_) => {
                let wanted = self.world.revision(key, |state| {
                    let zygotes = &mut state.zygotes;
                    let Some(parked) = zygotes.parked.get_mut(&id) else {
                        return false;
                    };
                    parked.waits = true;
                    zygotes.failures = 0;
                    true
                });
                if wanted != Some(true) {
                    self.stop_parked(id);
                }
            }
            Err(error) => {
                self.unpark(key, &id);
                tracing::info!(revision = %key, instance = %id, %error, "an instance can't be parked");
                self.world.revision(key, |state| match &error {
                    DriverError::Refused(why) => {
                        state.zygotes.lessons = Lessons::Refused(why.clone());
                    }
                    _ => put_off(&mut state.zygotes, now),
                });
            }
        }
        self.ask_instances(key, Priority::Soon);
    }

    /// Takes it out of the picture. `false`: it wasn't in it.
    fn unpark(&self, key: &RevisionKey, id: &InstanceId) -> bool {
        self.world.with(|inner| {
            let state = inner.revisions.get_mut(key);
            let was = state.is_some_and(|state| state.zygotes.parked.remove(id).is_some());
            if was {
                inner.owners.remove(id);
            }
            was
        })
    }

    /// It ended while it was parked. `false`: it wasn't.
    pub(super) fn parked_ended(&self, key: &RevisionKey, id: &InstanceId, exit: &Exit) -> bool {
        if !self.unpark(key, id) {
            return false;
        }
        tracing::info!(revision = %key, instance = %id, exit = %exit.describe(), "a parked instance ended by itself");
        let now = self.env.now();
        self.world
            .revision(key, |state| put_off(&mut state.zygotes, now));
        self.ask_instances(key, Priority::Soon);
        true
    }

    /// Those that wait.
    pub(super) fn parked_ids(&self) -> Vec<InstanceId> {
        self.world.with(|inner| {
            let all = inner
                .revisions
                .values()
                .flat_map(|state| &state.zygotes.parked);
            all.filter(|(_, parked)| parked.waits)
                .map(|(id, _)| id.clone())
                .collect()
        })
    }

    /// What can't be stopped is found as a stray by the next sweep.
    fn stop_parked(&self, id: InstanceId) {
        self.spawn(|core| async move {
            match core.driver.stop(id.clone(), Duration::ZERO).await {
                Ok(()) | Err(DriverError::NotFound(_)) => core.ask_who_is_short(),
                Err(error) => tracing::warn!(instance = %id, %error, "stop a parked instance; the next sweep tries again"),
            }
        });
    }

    /// Memory is short. Answers how many were let go.
    pub(super) fn drop_parked_of_others(&self, for_whom: &RevisionKey) -> usize {
        let now = self.env.now();
        let (dropped, owners) = self.world.with(|inner| {
            let (mut dropped, mut owners) = (Vec::new(), Vec::new());
            for (key, state) in &mut inner.revisions {
                let zygotes = &mut state.zygotes;
                if key == for_whom || zygotes.parked.is_empty() {
                    continue;
                }
                dropped.extend(std::mem::take(&mut zygotes.parked).into_keys());
                // Not at once again: it would only be taken away once more.
                put_off(zygotes, now);
                owners.push(key.clone());
            }
            for id in &dropped {
                inner.owners.remove(id);
            }
            (dropped, owners)
        });
        let count = dropped.len();
        for id in dropped {
            tracing::info!(instance = %id, waiting = %for_whom, "a parked instance gives way: memory is short");
            self.stop_parked(id);
        }
        for key in owners {
            self.ask_instances(&key, Priority::Soon);
        }
        count
    }

    /// Starts it, or lets it go on.
    pub(super) async fn give_birth(
        &self,
        key: &RevisionKey,
        id: &InstanceId,
        plan: &StartPlan,
    ) -> Result<StartPhases, DriverError> {
        let birth = self.world.revision(key, |state| {
            state.instances.get(id).map(|record| record.birth)
        });
        let zygote = match birth.flatten() {
            Some(Birth::Parked) => {
                return self.driver.go_on(id).await.map(|()| StartPhases::default());
            }
            Some(Birth::Learning(_)) => Some(Zygote::Learn),
            Some(Birth::Plain) | None => None,
        };
        self.driver.start(plan.spec(key, id.clone(), zygote)).await
    }

    /// A start failed: if that was one that could not go on, another one takes its place, and nobody has crashed.
    pub(super) fn is_parked_no_more(&self, key: &RevisionKey, id: &InstanceId) -> bool {
        let now = self.env.now();
        let was = self.world.revision(key, |state| {
            let was = state
                .instances
                .get(id)
                .is_some_and(|record| record.birth == Birth::Parked);
            if was {
                put_off(&mut state.zygotes, now);
            }
            was
        });
        if was != Some(true) {
            return false;
        }
        tracing::warn!(revision = %key, instance = %id, "a parked instance can't go on; another one is started");
        self.world.forget(id);
        self.stop_parked(id.clone());
        true
    }
}

fn put_off(zygotes: &mut Zygotes, now: Timestamp) {
    zygotes.not_before = Some(now.plus(zygote::backoff(zygotes.failures)));
    zygotes.failures = zygotes.failures.saturating_add(1);
}
