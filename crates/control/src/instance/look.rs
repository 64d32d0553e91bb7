//! The decision over a revision's instances, on the picture alone: nothing is done here.
//!
//! Owns: joining what `utsuwa_decide` answers (how many, which, memory, back-off) into one plan, and writing it down in the
//! picture before anybody acts on it. Deliberately not here: acting.

use std::sync::Arc;
use std::time::Duration;

use utsuwa_decide::demand::Sample;
use utsuwa_decide::instances::{self, InstancePlan, InstanceView};
use utsuwa_decide::scale::{self, ScaleInput};
use utsuwa_decide::{invariant, revision};
use utsuwa_model::demand::{Reach, RevisionDemand};
use utsuwa_model::{Because, InstanceId, RevisionKey, Timestamp};

use super::{boost, capacity, ended, tiers, zygote};
use crate::rounds::Report;
use crate::seam::Refusal;
use crate::world::{Activity, Inner, Phase, Record, RevisionState, Stage, StartPlan};

/// A start that is put off longer than this is told to those who wait instead.
const PATIENCE: Duration = Duration::from_secs(2);

/// What one look decided, to be acted on without the lock.
pub(super) struct Decided {
    pub(super) plan: Arc<StartPlan>,
    pub(super) start: Vec<InstanceId>,
    pub(super) leave: Vec<InstanceId>,
    /// Given up by a probe, with which one and why.
    pub(super) given_up: Vec<(InstanceId, Reach)>,
    /// Their startup boost is over.
    pub(super) settle: Vec<InstanceId>,
    pub(super) tiers: tiers::Steps,
    pub(super) zygotes: zygote::Steps,
    /// So many starts don't fit.
    pub(super) missing: u32,
    pub(super) refuse: Option<Refusal>,
    /// What `Active` follows is something else now.
    pub(super) active_changed: bool,
    pub(super) timeout: Duration,
    pub(super) report: Report,
}

/// What a look finds on the way to its plan.
#[derive(Default)]
struct Found {
    wake_at: Option<Timestamp>,
    refuse: Option<Refusal>,
    missing: u32,
    put_off: bool,
}

impl Found {
    /// The earliest wish wins.
    fn wake(&mut self, at: Option<Timestamp>) {
        self.wake_at = self.wake_at.into_iter().chain(at).min();
    }
}

/// The memory of this machine as a look finds it; `free`: `None` where nobody knows.
#[derive(Clone, Copy)]
struct Memory {
    free: Option<u64>,
    reserve: u64,
    /// To instances that start and haven't taken it yet.
    promised: u64,
}

/// The whole decision, on the picture alone.
pub(super) fn decide(
    inner: &mut Inner,
    key: &RevisionKey,
    now: Timestamp,
    demand: &RevisionDemand,
    memory: Option<u64>,
    reserve: u64,
    fresh: &mut dyn FnMut() -> InstanceId,
) -> Option<Decided> {
    let memory = Memory {
        free: memory,
        reserve,
        promised: memory.map_or(0, |_| capacity::promised(inner)),
    };
    let state = inner.revisions.get_mut(key)?;
    let views = state.views(demand);
    let active_before = state.activity;
    let mut found = Found::default();
    let (mut plan, wake_at) = wanted(state, now, demand, &views);
    found.wake(wake_at);
    let (settle, boost_ends) = boost::look(state, &views, now);
    found.wake(boost_ends);
    let active_changed = match (active_before, state.activity) {
        (Some(before), Some(now)) => before.differs(now),
        (before, now) => before != now,
    };
    let live = views.iter().filter(|view| view.is_live()).count();
    put_off(state, &mut plan, &mut found, (now, demand, live));
    ration(state, &mut plan, &mut found, (key, now, demand), memory);
    if !plan.because.summary.is_empty() {
        state.because.push(plan.because.clone());
    }
    state.decided_at = Some(now);
    check_plan(state, &plan, &views, live);

    let start = births(state, plan.start, now, fresh);
    let zygotes = zygote::look(state, now, start.len(), has_room(state, memory), fresh);
    found.wake(zygotes.next);
    let given_up = mark_leaving(state, &plan, &views, now);
    let tiers = tiers::look(state, &views, now);
    found.wake(tiers.next);
    let leave = leaving(state, plan.retire);
    let gone = !state.is_published() && start.is_empty() && leave.is_empty();
    let decided = Decided {
        plan: Arc::clone(&state.plan),
        start,
        leave,
        given_up,
        settle,
        tiers,
        zygotes,
        missing: found.missing,
        refuse: found.refuse,
        active_changed,
        timeout: if state.stage == Stage::Ended {
            Duration::ZERO
        } else {
            state.route.timeout
        },
        report: report(state, found.wake_at, gone),
    };
    enter(inner, key, &decided);
    Some(decided)
}

/// Starts that crashes put off: none now, and who waits is told when it takes long.
fn put_off(
    state: &RevisionState,
    plan: &mut InstancePlan,
    found: &mut Found,
    (now, demand, live): (Timestamp, &RevisionDemand, usize),
) {
    let Some(until) = state
        .not_before
        .filter(|until| plan.start > 0 && *until > now)
    else {
        return;
    };
    (plan.start, found.put_off) = (0, true);
    found.wake(Some(until));
    let wait = until.since(now);
    let summary = revision::backoff_summary(state.crashes, state.served, wait);
    plan.because = Because::new(summary);
    if live == 0 && demand.queued > 0 && wait > PATIENCE && !state.served {
        let message = state
            .last_failure
            .clone()
            .unwrap_or_else(|| plan.because.summary.clone());
        found.refuse = Some(Refusal::StartFailed { message });
    }
}

/// Starts that memory is left for, of a revision that serves: a deploy is never refused for it (decision 20).
fn ration(
    state: &mut RevisionState,
    plan: &mut InstancePlan,
    found: &mut Found,
    (key, now, demand): (&RevisionKey, Timestamp, &RevisionDemand),
    memory: Memory,
) {
    let short = match (memory.free, state.stage) {
        (Some(free), Stage::Serving) if plan.start > 0 => {
            let each = utsuwa_decide::capacity::expected(state.plan.memory_bytes());
            let fits = utsuwa_decide::capacity::fit(
                free,
                memory.reserve,
                memory.promised,
                each,
                plan.start,
            );
            // Those that are parked have most of theirs.
            let fits = fits.max(state.zygotes.waiting(&state.plan));
            let since = state.short_since.unwrap_or(now);
            utsuwa_decide::capacity::shortage(plan.start, fits, demand.queued, now.since(since))
        }
        _ => None,
    };
    if let Some(short) = short {
        state.short_since.get_or_insert(now);
        (plan.start, found.missing) = (short.start, short.missing);
        // Nothing else matters before the next look at the memory.
        found.wake_at = Some(now.plus(short.look_after));
        plan.because = Because::new(short.summary);
        if demand.queued > 0 {
            let message = format!(
                "no memory is left on this machine for an instance of {}",
                key.revision
            );
            found.refuse = Some(Refusal::NoCapacity { message });
        }
    } else if !found.put_off {
        // One that is put off may wait for room that it asked for (`start.rs`).
        state.short_since = None;
    }
}

/// Whether one more instance would fit.
fn has_room(state: &RevisionState, memory: Memory) -> bool {
    memory.free.is_none_or(|free| {
        let each = utsuwa_decide::capacity::expected(state.plan.memory_bytes());
        utsuwa_decide::capacity::fit(free, memory.reserve, memory.promised, each, 1) == 1
    })
}

/// What may never be decided (`decide::invariant`).
fn check_plan(state: &RevisionState, plan: &InstancePlan, views: &[InstanceView], live: usize) {
    let ended = state.stage == Stage::Ended;
    let retire = if ended { &[] } else { plan.retire.as_slice() };
    debug_assert_eq!(invariant::retires_idle_only(retire, views), Ok(()));
    let live = u32::try_from(live).unwrap_or(u32::MAX);
    let then = live.saturating_add(plan.start);
    debug_assert_eq!(
        invariant::at_most_max(live, then, state.settings.max),
        Ok(())
    );
}

/// Those that start now, entered in the picture.
fn births(
    state: &mut RevisionState,
    count: u32,
    now: Timestamp,
    fresh: &mut dyn FnMut() -> InstanceId,
) -> Vec<InstanceId> {
    let mut start = Vec::new();
    for _ in 0..count {
        let (id, birth) = zygote::born(state, fresh);
        let mut record = Record::new(Phase::Starting, now, state.plan.startup_cpu);
        record.birth = birth;
        state.instances.insert(id.clone(), record);
        start.push(id);
    }
    start
}

/// Those that go: `retire`, and those whose end didn't succeed before.
fn leaving(state: &mut RevisionState, mut retire: Vec<InstanceId>) -> Vec<InstanceId> {
    for (id, record) in &mut state.instances {
        if record.phase == Phase::Stuck {
            record.phase = Phase::Leaving;
            retire.push(id.clone());
        }
    }
    retire
}

fn report(state: &RevisionState, wake_at: Option<Timestamp>, gone: bool) -> Report {
    let because: Vec<&str> = state.because.iter().map(|b| b.summary.as_str()).collect();
    Report {
        because: because.join("; "),
        wake_at,
        actions: 0,
        gone,
    }
}

/// Whose instance is whose, from this look on.
fn enter(inner: &mut Inner, key: &RevisionKey, decided: &Decided) {
    if decided.report.gone {
        inner.revisions.remove(key);
    }
    for id in &decided.start {
        inner.starting.insert(id.clone(), key.clone());
        inner.owners.insert(id.clone(), key.clone());
    }
    for id in &decided.zygotes.park {
        inner.owners.insert(id.clone(), key.clone());
    }
    for id in &decided.zygotes.drop {
        inner.owners.remove(id);
    }
}

/// Whom a probe gave up: to discard.
fn given_up(views: &[InstanceView]) -> Vec<InstanceId> {
    let given_up = views.iter().filter(|view| view.reach.is_given_up());
    given_up.map(|view| view.id.clone()).collect()
}

/// The count and the choice, with their reasons noted.
fn wanted(
    state: &mut RevisionState,
    now: Timestamp,
    demand: &RevisionDemand,
    views: &[InstanceView],
) -> (InstancePlan, Option<Timestamp>) {
    let count = |wanted: fn(&Reach) -> bool| {
        u32::try_from(views.iter().filter(|v| wanted(&v.reach)).count()).unwrap_or(u32::MAX)
    };
    let (ready, starting) = (count(Reach::is_up), count(|r| *r == Reach::Starting));
    if ready > 0
        && state.crashes > 0
        && views
            .iter()
            .any(|v| v.reach.is_up() && now.since(v.started) >= ended::SETTLED)
    {
        state.crashes = 0;
        state.not_before = None;
    }
    if state.stage == Stage::Ended {
        let because = Because::new("want 0: the revision failed or is being deleted");
        state.because = vec![because.clone()];
        let live = views
            .iter()
            .filter(|v| v.is_live())
            .map(|v| v.id.clone())
            .collect();
        return (
            InstancePlan {
                start: 0,
                retire: live,
                discard: given_up(views),
                because,
            },
            None,
        );
    }
    if state.stage == Stage::Proven {
        state.because = vec![Because::new(
            "keep what proved it until its service has looked at the routes",
        )];
        return (
            InstancePlan {
                start: 0,
                retire: Vec::new(),
                discard: given_up(views),
                because: Because::default(),
            },
            None,
        );
    }
    state
        .history
        .push(Sample::of(demand, now), state.settings.stable_window);
    let input = ScaleInput {
        now,
        settings: &state.settings,
        history: &state.history,
        in_flight: demand.in_flight,
        queued: demand.queued,
        last_active: demand.last_active,
        ready,
        starting,
        idle_since: views
            .iter()
            .filter(|v| v.is_live())
            .filter_map(|v| v.idle_since)
            .max(),
        routed: state.routed,
        proving: state.stage == Stage::Proving,
    };
    let decision = scale::look(&input, &mut state.scaler);
    state.activity = Some(Activity {
        wanted: decision.desired,
        ready,
        least: if state.routed { state.settings.min } else { 0 },
    });
    let mut plan = instances::plan(decision.desired, state.settings.max, views);
    let judged = state.proof.is_some() || views.iter().any(|view| view.reach.is_given_up());
    if state.stage == Stage::Proving && judged {
        // The judgement is under way, or is about to be told: no second attempt.
        plan.start = 0;
    }
    state.because = vec![decision.because];
    (plan, decision.wake_at)
}

/// Marks what goes; answers those that a probe gave up.
fn mark_leaving(
    state: &mut RevisionState,
    plan: &InstancePlan,
    views: &[InstanceView],
    now: Timestamp,
) -> Vec<(InstanceId, Reach)> {
    for id in plan.retire.iter().chain(&plan.discard) {
        if let Some(record) = state.instances.get_mut(id) {
            record.phase = Phase::Leaving;
            record.leaving_since = Some(now);
        }
    }
    views
        .iter()
        .filter(|view| view.reach.is_given_up() && plan.discard.contains(&view.id))
        .map(|view| (view.id.clone(), view.reach.clone()))
        .collect()
}
