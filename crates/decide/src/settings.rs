//! From what users wrote to what the autoscaler works with (`cloud-run-spec.md` §3.1, §3.6; decision 19).
//!
//! Owns: annotations, typed fields, defaults, and the share of service-level bounds a revision gets. Deliberately not here:
//! validation; a value the edge would have refused is read as absent, so that a stored revision always has settings.

use std::time::Duration;

use utsuwa_model::scaling::{Ceiling, DEFAULT_MAX_INSTANCES, Metric, ScalingSettings};
use utsuwa_model::service::{RevisionTemplate, ScalingMode, ServiceScaling};

use crate::kpa::ceil_count;

/// The settings of a revision that gets `percent` of its service's traffic. `idle` is the server's idle timeout.
#[must_use]
pub fn scaling_settings(
    template: &RevisionTemplate,
    service: &ServiceScaling,
    percent: u32,
    idle: Duration,
) -> ScalingSettings {
    let annotation = |name: &str| template.autoscaling(name);
    let number = |name: &str| {
        annotation(name)
            .and_then(|v| v.trim().parse::<f64>().ok())
            .filter(|v| v.is_finite())
    };
    let count = |name: &str| annotation(name).and_then(|v| v.trim().parse::<u32>().ok());
    let time = |name: &str| annotation(name).and_then(parse_duration);

    let concurrency = template.effective_concurrency();
    let mut settings = ScalingSettings::for_concurrency(concurrency, idle);

    // The target: an annotation is taken as it is (never above what one instance may hold), a utilization as its share.
    let utilization = number("target-utilization-percentage").map(|percent| percent / 100.0);
    let by_rate = annotation("metric") == Some("rps");
    if by_rate {
        settings.metric = Metric::RequestsPerSecond;
        let total = number("target").unwrap_or(200.0);
        settings.target = total
            * utilization.unwrap_or_else(|| if number("target").is_some() { 1.0 } else { 0.7 });
    } else {
        let total = f64::from(concurrency);
        settings.target = match number("target") {
            Some(target) => target.min(total) * utilization.unwrap_or(1.0),
            None => total * utilization.unwrap_or(0.6),
        };
    }
    settings.target = settings.target.max(0.01);

    if let Some(capacity) = number("target-burst-capacity") {
        settings.target_burst_capacity = capacity;
    }
    if let Some(percent) = number("panic-window-percentage") {
        settings.panic_window_percent = percent.clamp(1.0, 100.0);
    }
    if let Some(percent) = number("panic-threshold-percentage") {
        settings.panic_threshold_percent = percent.max(110.0);
    }
    let retention = time("scale-to-zero-pod-retention-period");
    if let Some(window) = time("window") {
        settings.stable_window = window.max(Duration::from_secs(1));
        // Decision 19: an explicit window says how long idle is; otherwise the server's idle timeout does.
        settings.retention = settings.stable_window;
    }
    if let Some(retention) = retention {
        // Knative judges zero by a whole window without requests first, and keeps the last one from then on.
        settings.retention = retention.max(settings.stable_window);
    }
    if let Some(delay) = time("scale-down-delay") {
        settings.scale_down_delay = delay;
    }
    if let Some(initial) = count("initial-scale").filter(|n| *n > 0) {
        settings.initial_scale = initial;
    }
    if let Some(activation) = count("activation-scale") {
        settings.activation_scale = activation;
    }
    bounds(&mut settings, template, &count, service, percent);
    settings
}

/// Minimum, maximum and manual count: the revision's own, then the service's by traffic share.
fn bounds(
    settings: &mut ScalingSettings,
    template: &RevisionTemplate,
    count: &dyn Fn(&str) -> Option<u32>,
    service: &ServiceScaling,
    percent: u32,
) {
    let share = |whole: u32| f64::from(whole) * f64::from(percent.min(100)) / 100.0;
    settings.min = template
        .min_instances
        .or_else(|| count("min-scale"))
        .unwrap_or(0);
    settings.max = match (
        template.max_instances.filter(|max| *max > 0),
        count("max-scale"),
    ) {
        (Some(max), _) => Ceiling::AtMost(max),
        (None, Some(0)) => Ceiling::Unlimited,
        (None, Some(max)) => Ceiling::AtMost(max),
        (None, None) => Ceiling::AtMost(DEFAULT_MAX_INSTANCES),
    };
    if let Some(min) = service.min {
        settings.min = settings.min.max(ceil_count(share(min)));
    }
    if let Some(max) = service.max.filter(|max| *max > 0) {
        // Rounded down, so that the shares never sum to more; but whatever can be asked must be able to answer.
        let most = ceil_count(share(max).floor()).max(1);
        settings.max = match settings.max {
            Ceiling::AtMost(own) => Ceiling::AtMost(own.min(most)),
            Ceiling::Unlimited => Ceiling::AtMost(most),
        };
    }
    if let Ceiling::AtMost(most) = settings.max {
        settings.min = settings.min.min(most);
        settings.initial_scale = settings.initial_scale.min(most);
        settings.activation_scale = settings.activation_scale.min(most);
    }
    if service.mode == ScalingMode::Manual {
        settings.manual = Some(ceil_count(share(service.manual.unwrap_or(1))));
    }
}

/// A duration as Go and Knative write it: `6s`, `1m30s`, `1h`, `1.5s`, `500ms`. `None` if it isn't one.
#[must_use]
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    if rest == "0" {
        return Some(Duration::ZERO);
    }
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let unit_at = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..unit_at].parse().ok()?;
        let tail = &rest[unit_at..];
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        seconds += value
            * match &tail[..unit_end] {
                "h" => 3600.0,
                "m" => 60.0,
                "s" => 1.0,
                "ms" => 1e-3,
                "us" | "µs" => 1e-6,
                _ => return None,
            };
        rest = &tail[unit_end..];
    }
    Duration::try_from_secs_f64(seconds).ok()
}

#[cfg(test)]
mod tests;
