//! The autoscaler's arithmetic: from two averages to a wanted count, with panic (`cloud-run-spec.md` §3.2).
//!
//! Owns: rates, panic, the scale-down delay, excess burst capacity. Deliberately not here: bounds, zero, what waits in the
//! queue ([`crate::scale`] adds those).
//!
//! Invariants:
//! 1. While in panic the answer never falls.
//! 2. One step up never exceeds `max_scale_up_rate` × ready, one step down never falls below ready ÷ `max_scale_down_rate`
//!    (unless the revision is no longer routed).

use std::collections::VecDeque;
use std::time::Duration;

use utsuwa_model::Timestamp;
use utsuwa_model::scaling::ScalingSettings;

/// Wishes closer than this share an entry in the scale-down delay's window (§3.2 item 7).
const GRANULARITY: Duration = Duration::from_secs(2);

/// What the arithmetic remembers from one look to the next.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct KpaState {
    /// Start of the panic, moved on while it is renewed.
    pub panic_since: Option<Timestamp>,
    /// The most that was wanted in this panic.
    pub max_panic: u32,
    /// Wishes of the past, for the scale-down delay.
    pub wishes: VecDeque<(Timestamp, u32)>,
}

impl KpaState {
    /// After a restart with `ready` instances: in panic, so that nothing is taken away before there is data (item 9).
    #[must_use]
    pub fn adopt(ready: u32, now: Timestamp) -> Self {
        if ready > 1 {
            Self {
                panic_since: Some(now),
                max_panic: ready,
                ..Self::default()
            }
        } else {
            Self::default()
        }
    }
}

/// One look.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KpaInput {
    /// Average over the stable window, in the metric's unit.
    pub stable: f64,
    /// Average over the panic window.
    pub panic: f64,
    /// Instances that the ingress has reached.
    pub ready: u32,
    /// Whether the revision is routed.
    pub reachable: bool,
    pub now: Timestamp,
}

/// What is wanted, and the numbers on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KpaAnswer {
    pub desired: u32,
    pub in_panic: bool,
    /// A rate or the delay held the answer back from what the averages ask for.
    pub held: bool,
    /// Room for a burst that is left: below zero a buffer must stand in front. Ours always does (law 4); reported.
    pub excess_burst_capacity: i64,
}

/// Wanted instances (§3.2, items 2–8). Changes `state`.
pub fn look(input: &KpaInput, settings: &ScalingSettings, state: &mut KpaState) -> KpaAnswer {
    let ready = f64::from(input.ready.max(1));
    let up = ceil_count(settings.max_scale_up_rate * ready);
    let down = if input.reachable {
        floor_count(ready / settings.max_scale_down_rate)
    } else {
        0
    };
    let (raw_stable, raw_panic) = (
        ceil_count(input.stable / settings.target),
        ceil_count(input.panic / settings.target),
    );
    let bounded = |raw: u32| {
        let clamped = raw.clamp(down.min(up), up);
        if settings.activation_scale > 1 && raw > 0 {
            clamped.max(settings.activation_scale)
        } else {
            clamped
        }
    };
    let (stable, panic) = (bounded(raw_stable), bounded(raw_panic));

    let over = f64::from(raw_panic) / ready >= settings.panic_threshold_percent / 100.0;
    match state.panic_since {
        // calm → panic, because the short window asks for a multiple of what is there.
        // panic → panic, renewed for the same reason.
        _ if over => state.panic_since = Some(input.now),
        // panic → calm, because a whole stable window has passed since the last alarm.
        Some(since) if since.plus(settings.stable_window) < input.now => {
            state.panic_since = None;
            state.max_panic = 0;
        }
        _ => {}
    }
    let mut desired = stable;
    if state.panic_since.is_some() {
        state.max_panic = state.max_panic.max(stable).max(panic);
        desired = state.max_panic;
    }
    if input.reachable && !settings.scale_down_delay.is_zero() {
        desired = delayed(
            &mut state.wishes,
            desired,
            settings.scale_down_delay,
            input.now,
        );
    } else {
        state.wishes.clear();
    }
    KpaAnswer {
        desired,
        in_panic: state.panic_since.is_some(),
        held: desired != raw_stable,
        excess_burst_capacity: excess_burst_capacity(input, settings),
    }
}

/// The largest wish of the last `delay`, this one included.
fn delayed(
    wishes: &mut VecDeque<(Timestamp, u32)>,
    desired: u32,
    delay: Duration,
    now: Timestamp,
) -> u32 {
    match wishes.back_mut() {
        Some((at, wish)) if now.since(*at) < GRANULARITY => *wish = (*wish).max(desired),
        _ => wishes.push_back((now, desired)),
    }
    while wishes
        .front()
        .is_some_and(|(at, _)| now.since(*at) >= delay)
    {
        wishes.pop_front();
    }
    wishes
        .iter()
        .map(|(_, wish)| *wish)
        .max()
        .unwrap_or(desired)
        .max(desired)
}

/// §3.2 item 8. Uses the true count of ready ones, not at least one.
fn excess_burst_capacity(input: &KpaInput, settings: &ScalingSettings) -> i64 {
    let capacity = settings.target_burst_capacity;
    if capacity == 0.0 {
        return 0;
    }
    if capacity < 0.0 {
        return -1;
    }
    let total = f64::from(if settings.container_concurrency == 0 {
        100
    } else {
        settings.container_concurrency
    });
    floor_signed(f64::from(input.ready) * total - capacity - input.panic)
}

/// Up to the next whole instance. Negative and not-a-number ask for none, the rest stops at the type's end.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and NaN becomes 0: wanted"
)]
pub(crate) fn ceil_count(value: f64) -> u32 {
    value.ceil() as u32
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and NaN becomes 0: wanted"
)]
fn floor_count(value: f64) -> u32 {
    value.floor() as u32
}

#[expect(clippy::cast_possible_truncation, reason = "`as` saturates: wanted")]
fn floor_signed(value: f64) -> i64 {
    value.floor() as i64
}

#[cfg(test)]
mod tests;
