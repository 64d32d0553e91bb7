//! What runs and why, for `--why` and the dashboard. Observed, never stored.

use utsuwa_decide::instances::InstanceView;
use utsuwa_decide::standing::{self, Household, Standing, Subject};
use utsuwa_model::demand::{FailingProbe, InstanceLoad, Reach, RevisionDemand};
use utsuwa_model::instance::{Kernel, Tier};
use utsuwa_model::{Because, InstanceId, RevisionId, RevisionKey, ServiceKey, Timestamp};

use crate::core::Core;
use crate::instance::tiers;
use crate::world::{Record, RevisionState, Stage};

/// One revision that is routed, being proven or running.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionExplained {
    pub revision: RevisionKey,
    pub percent: u32,
    pub in_flight: u32,
    pub queued: u32,
    pub instances: Vec<InstanceExplained>,
    /// Reasons of the last decisions: how many, then which, then why it is the latest.
    pub because: Vec<Because>,
    /// When those were made: what they counted may be other by now.
    pub decided_at: Option<Timestamp>,
    /// The last start or instance that failed: when and why.
    pub last_failure: Option<(Timestamp, String)>,
    /// So many starts or instances failed in a row: none since stayed, and none can be called now.
    pub failures_in_a_row: u32,
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
    /// Since when it is in that state, why, and what becomes of it.
    pub standing: Standing,
    pub failing: Vec<FailingProbe>,
}

impl InstanceExplained {
    /// With other times.
    fn shown(mut self, shown: &impl Fn(Timestamp) -> Timestamp) -> Self {
        self.started = shown(self.started);
        self.standing.since = self.standing.since.map(shown);
        for (_, at) in &mut self.standing.next {
            *at = shown(*at);
        }
        for probe in &mut self.failing {
            probe.since = shown(probe.since);
        }
        self
    }
}

pub(crate) fn explain(core: &Core, service: &ServiceKey) -> Vec<RevisionExplained> {
    let (now, wall) = (core.env.now(), core.env.wall());
    // What people read is by the host's clock.
    let shown = |at: Timestamp| wall.minus(now.since(at)).plus(at.since(now));
    let keys: Vec<RevisionKey> = core.world.with(|inner| {
        inner
            .revisions
            .keys()
            .filter(|key| key.service == *service)
            .cloned()
            .collect()
    });
    let latest = core.world.with(|inner| inner.latest.get(service).cloned());
    let latest_because = |id: &RevisionId| {
        let latest = latest.as_ref()?;
        let it = latest.standing.as_ref().is_some_and(|one| one.id == *id);
        it.then(|| latest.because.clone())
    };
    // Asked for before the world is locked: it may look at the host.
    let machine = [Kernel::Host, Kernel::Gvisor].map(|kernel| (kernel, core.driver.barred(kernel)));
    keys.into_iter()
        .filter_map(|key| {
            let demand = core.door.demand(&key).unwrap_or_default();
            core.world.revision(&key, |state| RevisionExplained {
                revision: key.clone(),
                percent: state.percent,
                in_flight: demand.in_flight,
                queued: demand.queued,
                instances: instances(state, &demand, &machine, now)
                    .into_iter()
                    .map(|one| one.shown(&shown))
                    .collect(),
                because: state
                    .because
                    .iter()
                    .cloned()
                    .chain(latest_because(&key.revision))
                    .collect(),
                decided_at: state.decided_at.map(shown),
                last_failure: state.failed_at.map(shown).zip(state.last_failure.clone()),
                failures_in_a_row: failures_in_a_row(state, &demand),
            })
        })
        .collect()
}

/// One that can be called may yet stay: what was before it is no trouble now.
fn failures_in_a_row(state: &RevisionState, demand: &RevisionDemand) -> u32 {
    match state.views(demand).iter().any(|view| view.reach.is_up()) {
        true => 0,
        false => state.crashes,
    }
}

/// What each kernel's instances can't reach on this machine, and why.
type Machine = [(Kernel, Option<(Tier, String)>)];

fn instances(
    state: &RevisionState,
    demand: &RevisionDemand,
    machine: &Machine,
    now: Timestamp,
) -> Vec<InstanceExplained> {
    let views = state.views(demand);
    let live = views.iter().filter(|view| view.is_live()).count();
    let household = Household {
        scaling: &state.settings,
        tiers: tiers::settings(state),
        routed: state.routed,
        proving: state.stage == Stage::Proving,
        in_system: demand.in_flight.saturating_add(demand.queued),
        live: u32::try_from(live).unwrap_or(u32::MAX),
        last_active: state.scaler.last_active.max(demand.last_active),
    };
    let one = |view: InstanceView| {
        let record = state.instances.get(&view.id)?;
        let load = demand.instances.iter().find(|load| load.id == view.id);
        let kernel = state.plan.kernel;
        let machine = machine.iter().find(|(on, _)| *on == kernel);
        let barred = machine.and_then(|(_, barred)| barred.as_ref());
        Some(instance(
            (state, record, barred),
            view,
            load,
            &household,
            now,
        ))
    };
    views.into_iter().filter_map(one).collect()
}

fn instance(
    (state, record, barred): (&RevisionState, &Record, Option<&(Tier, String)>),
    view: InstanceView,
    load: Option<&InstanceLoad>,
    household: &Household<'_>,
    now: Timestamp,
) -> InstanceExplained {
    let failing = load.map_or_else(Vec::new, |load| load.failing.clone());
    let mut tier = tiers::seen(state, record, &view);
    // What was tried with it counts; before that, what would be answered is told, not what would be tried.
    if tier.barred.is_none() {
        tier.barred = barred.filter(|(first, _)| *first > tier.tier).cloned();
    }
    let subject = Subject {
        view: &view,
        tier: &tier,
        tier_since: record.rest.since,
        ready_since: record.ready_since,
        leaving_since: record.leaving_since,
        gives_way: record.gives_way.as_deref(),
        failing_since: failing.iter().map(|probe| probe.since).min(),
    };
    InstanceExplained {
        standing: standing::of(&subject, household, now),
        failing,
        pid: record.pid,
        state: word(&view.reach, record.rest.tier).to_owned(),
        in_flight: view.in_flight,
        started: view.started,
        id: view.id,
    }
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
