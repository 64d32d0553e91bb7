//! The autoscaler's part of a look: averages, judged once per tick.

use std::time::Duration;

use utsuwa_model::Timestamp;
use utsuwa_model::scaling::{Metric, ScalingSettings};

use super::{ScaleInput, ScalerState, TICK};
use crate::kpa::{self, KpaInput};
use crate::words::{number, time};

/// The arithmetic's part of a look, as judged at one tick.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct ByWindow {
    at: Timestamp,
    pub(super) stable: f64,
    pub(super) panic: f64,
    pub(super) answer: kpa::KpaAnswer,
}

impl ByWindow {
    pub(super) fn summary(&self, settings: &ScalingSettings) -> String {
        let unit = match settings.metric {
            Metric::Concurrency => "in flight",
            Metric::RequestsPerSecond => "requests per second",
        };
        let want = self.answer.desired;
        let raw = format!(
            "{} {unit} over {}",
            number(self.stable),
            time(settings.stable_window)
        );
        let target = number(settings.target);
        if self.answer.in_panic {
            format!(
                "want {want}: panic ({} {unit} over {}), {raw}, ÷ target {target}",
                number(self.panic),
                time(panic_window(settings))
            )
        } else if self.answer.held {
            format!("want {want}: {raw} ÷ target {target}, held by rate or delay")
        } else {
            format!("want {want}: {raw} ÷ target {target}")
        }
    }
}

/// The averages as judged at the last tick, or now if that is long enough ago. `None`: too little was seen.
pub(super) fn windows(input: &ScaleInput<'_>, state: &mut ScalerState) -> Option<ByWindow> {
    let settings = input.settings;
    if let Some(last) = state.tick.filter(|last| input.now.since(last.at) < TICK) {
        return Some(last);
    }
    let stable = input.history.average(input.now, settings.stable_window)?;
    let panic = input.history.average(input.now, panic_window(settings))?;
    let (stable, panic) = match settings.metric {
        Metric::Concurrency => (stable.concurrency, panic.concurrency),
        Metric::RequestsPerSecond => (stable.per_second, panic.per_second),
    };
    let kpa_input = KpaInput {
        stable,
        panic,
        ready: input.ready,
        reachable: input.routed,
        now: input.now,
    };
    state.tick = Some(ByWindow {
        at: input.now,
        stable,
        panic,
        answer: kpa::look(&kpa_input, settings, &mut state.kpa),
    });
    state.tick
}

/// A part of the stable window, but at least one bucket: 10 % of 6 s would be too short to hold a measurement.
fn panic_window(settings: &ScalingSettings) -> Duration {
    settings
        .stable_window
        .mul_f64((settings.panic_window_percent / 100.0).clamp(0.01, 1.0))
        .max(Duration::from_secs(1))
}

/// What one instance should hold, for counting who waits (a rate says nothing about those).
pub(super) fn target_in_flight(settings: &ScalingSettings) -> f64 {
    match settings.metric {
        Metric::Concurrency => settings.target,
        Metric::RequestsPerSecond => {
            ScalingSettings::for_concurrency(settings.container_concurrency, Duration::ZERO).target
        }
    }
}
