//! How many instances a revision should have now, and why (`cloud-run-spec.md` §3; decisions 19 and 20).
//!
//! Owns: the whole answer: the autoscaler's arithmetic ([`crate::kpa`]), what waits in the queue, zero, bounds, manual
//! scaling, a revision being proven. Deliberately not here: which instances ([`crate::instances`]).
//!
//! Invariants:
//! 1. Whoever waits gets at least one instance at once: no tick stands in the way.
//! 2. The answer never exceeds the maximum and, while routed, never falls below the minimum.
//! 3. Zero is only answered when nothing is in the system.
//! 4. Missing data changes nothing: what is there stays.
//! 5. At rest (nothing there, nothing asked) there is no next look.
//! 6. Looks may come at any time and as often as wished: averages are judged once per tick, so that many looks don't take
//!    many steps down; and what a queue asked for is held like a panic, so that it isn't taken away when the queue is empty.

use std::time::Duration;

use utsuwa_model::scaling::{Ceiling, ScalingSettings};
use utsuwa_model::{Because, Timestamp};

use crate::demand::DemandHistory;
use crate::kpa::{KpaState, ceil_count};
use crate::words::{many, number, time};

mod window;
use window::{ByWindow, target_in_flight, windows};

/// How often an active revision is looked at (§3.1, tick).
pub const TICK: Duration = Duration::from_secs(2);

/// How often while requests wait: a burst is mostly not there yet when its first request wakes the revision.
pub const QUEUE_LOOK: Duration = Duration::from_millis(100);

/// How long an instance that was started only to prove a deploy stays without a request (decision 20): long enough for the
/// first visitor, short enough that a thousand deploys don't fill the machine.
pub const PROOF_IDLE: Duration = Duration::from_secs(10);

/// What is remembered of a revision from one look to the next. In memory only; [`ScalerState::adopt`] after a restart.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ScalerState {
    pub kpa: KpaState,
    /// When a request was last in the system, as far as known.
    pub last_active: Option<Timestamp>,
    /// As many as the initial scale were ready once.
    pub reached_initial: bool,
    /// The averages as judged at the last tick.
    tick: Option<ByWindow>,
}

impl ScalerState {
    /// For a revision found running with `ready` instances: nothing is taken away before there is data, and idleness counts
    /// from now, because what was before is unknown.
    #[must_use]
    pub fn adopt(ready: u32, now: Timestamp) -> Self {
        Self {
            kpa: KpaState::adopt(ready, now),
            last_active: Some(now),
            reached_initial: true,
            tick: None,
        }
    }
}

/// Everything one look rests on.
#[derive(Debug, Clone, Copy)]
pub struct ScaleInput<'a> {
    pub now: Timestamp,
    pub settings: &'a ScalingSettings,
    pub history: &'a DemandHistory,
    /// Requests inside instances.
    pub in_flight: u32,
    /// Requests held.
    pub queued: u32,
    /// When the ingress last saw a request come or go.
    pub last_active: Option<Timestamp>,
    /// Instances the ingress has reached and not retired.
    pub ready: u32,
    /// Started, not reached yet.
    pub starting: u32,
    /// When the longest idle wait began: the latest of the instances' last ends (or their becoming ready).
    pub idle_since: Option<Timestamp>,
    /// Some host leads to the revision.
    pub routed: bool,
    /// The revision is being proven: not ready yet, and nobody may call it.
    pub proving: bool,
}

/// How many, and why.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaleDecision {
    pub desired: u32,
    pub because: Because,
    /// When to look again without any other cause.
    pub wake_at: Option<Timestamp>,
    pub in_panic: bool,
    /// Room for a burst (§3.2 item 8). Reported only: our ingress is always in the path.
    pub excess_burst_capacity: i64,
}

/// Looks at a revision. Changes `state`.
#[must_use]
pub fn look(input: &ScaleInput<'_>, state: &mut ScalerState) -> ScaleDecision {
    let (now, settings) = (input.now, input.settings);
    let in_system = input.in_flight.saturating_add(input.queued);
    let present = input.ready.saturating_add(input.starting);
    state.last_active = state.last_active.max(input.last_active);
    if in_system > 0 {
        state.last_active = Some(now);
    }
    if input.ready >= settings.initial_scale {
        state.reached_initial = true;
    }

    let decision = if let Some(count) = settings.manual {
        manual(count, input, in_system)
    } else if present == 0
        && in_system == 0
        && !input.proving
        && (settings.min == 0 || !input.routed)
    {
        // The next life starts without the memory of this one.
        state.kpa = KpaState::default();
        state.tick = None;
        Draft::new(0, "want 0: nobody asks for it".to_owned(), None)
    } else {
        automatic(input, state, in_system, present)
    };
    finish(decision, input, in_system, present)
}

/// A decision before the last facts are added.
struct Draft {
    desired: u32,
    summary: String,
    wake_at: Option<Timestamp>,
    averages: Option<(f64, f64)>,
    in_panic: bool,
    excess_burst_capacity: i64,
}

impl Draft {
    fn new(desired: u32, summary: String, wake_at: Option<Timestamp>) -> Self {
        Self {
            desired,
            summary,
            wake_at,
            averages: None,
            in_panic: false,
            excess_burst_capacity: 0,
        }
    }
}

fn manual(count: u32, input: &ScaleInput<'_>, in_system: u32) -> Draft {
    if input.proving {
        let want = input.settings.initial_scale;
        return Draft::new(
            want,
            format!("want {want}: the revision is being proven"),
            None,
        );
    }
    if !input.routed && in_system == 0 {
        return Draft::new(
            0,
            "want 0: manual scaling, but no traffic leads here".to_owned(),
            None,
        );
    }
    Draft::new(count, format!("want {count}: set by hand"), None)
}

fn automatic(
    input: &ScaleInput<'_>,
    state: &mut ScalerState,
    in_system: u32,
    present: u32,
) -> Draft {
    let (now, settings) = (input.now, input.settings);
    let by_window = windows(input, state);
    let mut draft = match &by_window {
        Some(w) => Draft {
            averages: Some((w.stable, w.panic)),
            excess_burst_capacity: w.answer.excess_burst_capacity,
            ..Draft::new(w.answer.desired, w.summary(settings), None)
        },
        // Missing data is no decision (invariant 4).
        None => Draft::new(
            present,
            format!("keep {present}: too little was seen yet to judge"),
            None,
        ),
    };

    // Who waits now doesn't wait for an average. More instances than requests would help nobody.
    if input.queued > 0 {
        let target = target_in_flight(settings);
        let mut need = ceil_count(f64::from(in_system) / target)
            .min(in_system)
            .max(1);
        let mut summary = format!(
            "want {need}: {} in the system, {} waiting, ÷ target {}",
            many(in_system, "request"),
            input.queued,
            number(target)
        );
        if present == 0 && settings.activation_scale > need {
            need = settings.activation_scale;
            summary = format!("want {need}: waking goes to the activation scale at once");
        }
        if need > draft.desired || present == 0 {
            draft.desired = draft.desired.max(need);
            draft.summary = summary;
        }
        // calm or panic → panic, because somebody waits: held for a stable window.
        state.kpa.panic_since = Some(now);
        state.kpa.max_panic = state.kpa.max_panic.max(draft.desired);
    }
    if state.kpa.panic_since.is_some() && state.kpa.max_panic > draft.desired {
        draft.desired = state.kpa.max_panic;
        draft.summary = format!(
            "keep {}: as many were needed within the last {}",
            draft.desired,
            time(settings.stable_window)
        );
    }
    // Idle long enough is idle long enough, whatever the averages still remember (decision 19). A scale-down delay was asked for.
    let idle_end = state
        .last_active
        .map(|active| active.plus(settings.retention));
    if in_system == 0
        && settings.scale_down_delay.is_zero()
        && idle_end.is_some_and(|end| end <= now)
    {
        draft.desired = 0;
    }
    draft.in_panic = state.kpa.panic_since.is_some();
    if in_system > 0 && draft.desired == 0 {
        draft.desired = 1;
        draft.summary = format!("want 1: {} in the system", many(in_system, "request"));
    }

    let hold_until = (draft.desired <= 1 && in_system == 0 && present > 0)
        .then(|| hold(input, state, &mut draft))
        .flatten();
    bound(input, state, in_system, &mut draft);

    // Averages, a panic and delayed wishes run down by themselves: they are looked at until they have.
    let moving =
        by_window.is_none_or(|w| w.stable > 0.0) || draft.in_panic || !state.kpa.wishes.is_empty();
    let idle_end = idle_end.filter(|end| in_system == 0 && present > 0 && *end > now);
    let tick = (in_system > 0 || draft.desired < present || (present > 0 && moving))
        .then(|| now.plus(TICK));
    draft.wake_at = if input.queued > 0 {
        Some(now.plus(QUEUE_LOOK))
    } else {
        [tick, hold_until, idle_end].into_iter().flatten().min()
    };
    draft
}

/// The last instance stays until it was idle long enough. Answers until when.
fn hold(input: &ScaleInput<'_>, state: &ScalerState, draft: &mut Draft) -> Option<Timestamp> {
    let now = input.now;
    let idle = idle(
        state.last_active,
        input.idle_since.unwrap_or(now),
        input.settings,
    );
    let (until, what, keep) = (idle.since.plus(idle.keep), idle.what(), time(idle.keep));
    if now < until {
        draft.desired = 1;
        // Without the time gone by: this is read long after it was decided.
        draft.summary = format!(
            "keep 1: {what}, and the last one stays {keep} ({})",
            idle.rule()
        );
        return Some(until);
    }
    // With a delay asked for, the averages may still hold one.
    if draft.desired == 0 {
        let gone = time(now.since(idle.since));
        draft.summary = format!("want 0: {what} for {gone}, and {keep} are enough");
    }
    None
}

/// How long a revision has been idle, and how long it may be.
pub(crate) struct Idle {
    pub(crate) since: Timestamp,
    pub(crate) keep: Duration,
    used: bool,
}

impl Idle {
    const fn what(&self) -> &'static str {
        match self.used {
            true => "no request",
            false => "started to prove the deploy, not used",
        }
    }

    pub(crate) const fn rule(&self) -> &'static str {
        match self.used {
            true => "retention period",
            false => "nobody called it since it was deployed",
        }
    }
}

/// `ready_since` counts where there was no request at all.
pub(crate) fn idle(
    last_active: Option<Timestamp>,
    ready_since: Timestamp,
    settings: &ScalingSettings,
) -> Idle {
    match last_active {
        Some(since) => Idle {
            since,
            keep: settings.retention,
            used: true,
        },
        None => Idle {
            since: ready_since,
            keep: settings.retention.min(PROOF_IDLE),
            used: false,
        },
    }
}

/// Routing, initial scale, minimum and maximum, in this order.
fn bound(input: &ScaleInput<'_>, state: &ScalerState, in_system: u32, draft: &mut Draft) {
    let settings = input.settings;
    if input.proving {
        let want = settings.initial_scale;
        if draft.desired < want || !state.reached_initial {
            draft.desired = draft.desired.max(want);
            draft.summary = format!("want {}: the revision is being proven", draft.desired);
        }
    } else if !input.routed && in_system == 0 {
        draft.desired = 0;
        draft.summary = "want 0: no traffic leads here any more".to_owned();
    } else if input.routed
        && (draft.desired < settings.min || (draft.desired == settings.min && in_system == 0))
        && settings.min > 0
    {
        draft.desired = settings.min;
        draft.summary = format!("want {}: the minimum", settings.min);
    }
    if let Ceiling::AtMost(most) = settings.max
        && draft.desired > most
    {
        draft.summary = format!("want {most}: the maximum; without it {}", draft.summary);
        draft.desired = most;
    }
}

fn finish(draft: Draft, input: &ScaleInput<'_>, in_system: u32, present: u32) -> ScaleDecision {
    let mut because = Because::new(draft.summary)
        .fact("ready", input.ready)
        .fact("starting", present - input.ready)
        .fact("in flight", input.in_flight)
        .fact("waiting", in_system - input.in_flight)
        .fact("target", number(input.settings.target));
    if let Some((stable, panic)) = draft.averages {
        because = because
            .fact("stable average", number(stable))
            .fact("panic average", number(panic));
    }
    because = because.fact("minimum", input.settings.min).fact(
        "maximum",
        match input.settings.max {
            Ceiling::AtMost(most) => most.to_string(),
            Ceiling::Unlimited => "none".to_owned(),
        },
    );
    because.next_look = draft.wake_at;
    ScaleDecision {
        desired: draft.desired,
        because,
        wake_at: draft.wake_at,
        in_panic: draft.in_panic,
        excess_burst_capacity: draft.excess_burst_capacity,
    }
}

#[cfg(test)]
mod tests;
