//! How much of an idle instance stays awake: its CPU goes first, then its memory, at last itself ([`crate::scale`]).
//!
//! Owns: which step is due for which instance, and when the next one will be. Deliberately not here: doing it, and the
//! handshake that makes it safe (the ingress agrees to a freeze only while nothing is in flight, and asks for a thaw with
//! the next request).
//!
//! Why: with CPU for requests only (`cpuIdle`, the default; `cloud-run-spec.md` §2.8) an idle instance must not run.
//!
//! Invariants:
//! 1. An instance that starts, or has a request, stream or WebSocket inside, is awake.
//! 2. One that was promised its CPU between requests (`cpuIdle` false) is always awake.
//! 3. One step at a time, in order: frozen first, memory given back later.

use std::time::Duration;

use utsuwa_model::instance::Tier;
use utsuwa_model::{Because, InstanceId, Timestamp};

use crate::words::{many, time};

/// Idle for so long, an instance is frozen. Cloud Run takes the CPU away with the last answer; this much longer lets an app
/// write out what it has to say about it, and spares one that is called again and again the change.
pub const FREEZE_AFTER: Duration = Duration::from_secs(1);
/// Idle for so long, its memory is given back: who is called every few seconds shall not pay for reading it in again.
pub const RECLAIM_AFTER: Duration = Duration::from_secs(60);
/// Memory of an instance that will be stopped within this time after that comes back by itself.
pub const RECLAIM_WORTH: Duration = Duration::from_secs(60);

/// A busy instance is looked at this often, so that its last request's end is seen without being told of.
pub const BUSY_LOOK: Duration = Duration::from_secs(2);

/// What of the revision matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TierSettings {
    /// CPU during requests only.
    pub throttled: bool,
    /// Idle time after which an instance is stopped.
    pub retention: Duration,
    /// Some are kept whatever their idle time: a minimum, or a number set by hand.
    pub keeps_some: bool,
}

/// One instance that starts or takes requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierView {
    pub id: InstanceId,
    pub ready: bool,
    pub in_flight: u32,
    /// When its last request ended, or when it became ready.
    pub idle_since: Option<Timestamp>,
    /// As it is now, or will be once what is under way is done.
    pub tier: Tier,
    /// A step is being taken.
    pub under_way: bool,
    /// Awake at least until then: its startup boost lasts, or the last attempt failed.
    pub not_before: Option<Timestamp>,
    /// A tier it can't reach, and why.
    pub barred: Option<(Tier, String)>,
}

/// What to do.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TierPlan {
    pub freeze: Vec<InstanceId>,
    pub reclaim: Vec<InstanceId>,
    pub thaw: Vec<InstanceId>,
    /// When the next step is due.
    pub next: Option<Timestamp>,
    /// `None`: there is no instance to speak of.
    pub because: Option<Because>,
}

impl TierPlan {
    /// Whether nothing is to be done.
    #[must_use]
    pub fn is_rest(&self) -> bool {
        self.freeze.is_empty() && self.reclaim.is_empty() && self.thaw.is_empty()
    }
}

/// The steps that are due at `now`.
///
/// Idle since 20 s, frozen, with the default idle time of 15 min: nothing now, its memory in 40 s.
#[must_use]
pub fn plan(views: &[TierView], settings: &TierSettings, now: Timestamp) -> TierPlan {
    let mut plan = TierPlan::default();
    for view in views.iter().filter(|view| !view.under_way) {
        let (wanted, change) = wanted(view, settings, now);
        match (view.tier, wanted) {
            // frozen → awake, because a request is inside or it never should have been frozen.
            (Tier::Frozen | Tier::Reclaimed, Tier::Awake) => plan.thaw.push(view.id.clone()),
            // awake → frozen, because it was idle long enough for that.
            (Tier::Awake, Tier::Frozen | Tier::Reclaimed) => plan.freeze.push(view.id.clone()),
            // frozen → reclaimed, because it was idle for long.
            (Tier::Frozen, Tier::Reclaimed) => plan.reclaim.push(view.id.clone()),
            _ => plan.next = earlier(plan.next, change),
        }
    }
    plan.because = explain(&plan, views, settings);
    plan
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().min()
}

/// The tier it should be in, and when that will be another one.
pub(crate) fn wanted(
    view: &TierView,
    settings: &TierSettings,
    now: Timestamp,
) -> (Tier, Option<Timestamp>) {
    let idle_since = view
        .idle_since
        .filter(|_| settings.throttled && view.ready && view.in_flight == 0);
    let Some(since) = idle_since else {
        let busy = settings.throttled && view.ready;
        return (Tier::Awake, busy.then(|| now.plus(BUSY_LOOK)));
    };
    let may = |tier: Tier| {
        let barred = view.barred.as_ref();
        barred.is_none_or(|(first, _)| *first > tier)
    };
    let worth = settings.keeps_some || settings.retention >= RECLAIM_AFTER + RECLAIM_WORTH;
    let frozen_at = since
        .plus(FREEZE_AFTER)
        .max(view.not_before.unwrap_or(since));
    let reclaimed_at = since
        .plus(RECLAIM_AFTER)
        .max(view.not_before.unwrap_or(since));
    // What sleeps already isn't woken for a boost or a failed attempt.
    if (frozen_at > now && view.tier == Tier::Awake) || !may(Tier::Frozen) {
        return (Tier::Awake, may(Tier::Frozen).then_some(frozen_at));
    }
    if !worth || !may(Tier::Reclaimed) {
        return (Tier::Frozen, None);
    }
    if reclaimed_at > now && view.tier != Tier::Reclaimed {
        return (Tier::Frozen, Some(reclaimed_at));
    }
    (Tier::Reclaimed, None)
}

fn explain(plan: &TierPlan, views: &[TierView], settings: &TierSettings) -> Option<Because> {
    let ready = views.iter().filter(|view| view.ready).count();
    if ready == 0 && plan.is_rest() {
        return None;
    }
    let count = |list: &[InstanceId]| u32::try_from(list.len()).unwrap_or(u32::MAX);
    let at = |tier: Tier| {
        let there = views.iter().filter(|v| v.ready && v.tier == tier).count();
        u32::try_from(there).unwrap_or(u32::MAX)
    };
    let summary = if !plan.thaw.is_empty() {
        format!("thaw {}", many(count(&plan.thaw), "instance"))
    } else if !settings.throttled {
        "never frozen: it keeps its CPU between requests, as asked for (--no-cpu-throttling)"
            .to_owned()
    } else if !plan.freeze.is_empty() {
        format!(
            "freeze {}: no request for {}, and CPU is for requests only",
            many(count(&plan.freeze), "instance"),
            time(FREEZE_AFTER)
        )
    } else if !plan.reclaim.is_empty() {
        format!(
            "give back the memory of {}: no request for {}",
            many(count(&plan.reclaim), "instance"),
            time(RECLAIM_AFTER)
        )
    } else {
        let mut text = format!(
            "{} awake, {} frozen, {} without their memory",
            at(Tier::Awake),
            at(Tier::Frozen),
            at(Tier::Reclaimed)
        );
        let barred = |tier: Tier| {
            let stopped = |view: &&TierView| view.in_flight == 0 && view.tier < tier;
            let mut all = views
                .iter()
                .filter(stopped)
                .filter_map(|v| v.barred.as_ref());
            all.find(|(first, _)| *first == tier).map(|(_, why)| why)
        };
        if let Some(why) = barred(Tier::Frozen) {
            text.push_str(&format!("; not frozen: {why}"));
        }
        if let Some(why) = barred(Tier::Reclaimed).filter(|_| at(Tier::Frozen) > 0) {
            text.push_str(&format!("; memory of the idle is kept: {why}"));
        }
        text
    };
    let mut because = Because::new(summary)
        .fact("awake", at(Tier::Awake))
        .fact("frozen", at(Tier::Frozen))
        .fact("memory given back", at(Tier::Reclaimed));
    because.next_look = plan.next;
    Some(because)
}

#[cfg(test)]
mod tests;
