//! Rules of a container's probes (§1.3, §2.7).

use crate::Violations;
use crate::service::{Container, Probe, ProbeAction};

/// How long the attempts of a startup probe may take together, and each value of it alone (§2.7).
const STARTUP_SECS: u32 = 240;
/// Each time of a liveness or readiness probe (§2.7).
const HEALTH_SECS: u32 = 3600;
/// Attempts or successes in a row that a probe may ask for.
const THRESHOLD: u32 = 1000;

pub(super) fn check(base: &str, container: &Container, found: &mut Violations) {
    let at = |field: &str| format!("{base}.{field}");
    if let Some(probe) = &container.startup_probe {
        check_probe(&at("startupProbe"), probe, STARTUP_SECS, found);
        check_startup(&at("startupProbe"), probe, found);
        check_successes(&at("startupProbe"), probe, 1, found);
    }
    for (field, probe) in [
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
    ] {
        if let Some(probe) = probe {
            check_probe(&at(field), probe, HEALTH_SECS, found);
            check_health(&at(field), probe, field == "readinessProbe", found);
        }
    }
}

/// `most` is the limit of delay, period and time-out in seconds (240 at start, 3600 later).
fn check_probe(field: &str, probe: &Probe, most: u32, found: &mut Violations) {
    let mut range = |name: &str, value: Option<u32>, least: u32, most: u32| {
        if let Some(value) = value
            && !(least..=most).contains(&value)
        {
            found.add(
                format!("{field}.{name}"),
                format!("expected {least} <= {value} <= {most}"),
            );
        }
    };
    range("initialDelaySeconds", probe.initial_delay_secs, 0, most);
    // gcloud writes 0 for "default".
    range("periodSeconds", probe.period_secs, 0, most);
    range("timeoutSeconds", probe.timeout_secs, 0, most);
    range("failureThreshold", probe.failure_threshold, 0, THRESHOLD);
    let full = probe.defaulted(0);
    if let (Some(timeout), Some(period)) = (full.timeout_secs, full.period_secs)
        && timeout > period
        && timeout <= most
    {
        found.add(
            format!("{field}.timeoutSeconds"),
            format!("must not be longer than periodSeconds: {timeout} > {period}"),
        );
    }
    match &probe.action {
        ProbeAction::Http { path, headers, .. } => {
            if !path.is_empty() && !path.starts_with('/') {
                found.add(
                    format!("{field}.httpGet.path"),
                    format!("{path:?} must start with '/'"),
                );
            } else if !path.bytes().all(is_of_url) {
                found.add(
                    format!("{field}.httpGet.path"),
                    format!("{path:?} has characters that a URL can't have: write them as %XX"),
                );
            }
            if headers.iter().any(|(name, value)| {
                name.is_empty()
                    || name.contains([' ', ':', '\r', '\n'])
                    || value.contains(['\r', '\n'])
            }) {
                found.add(
                    format!("{field}.httpGet.httpHeaders"),
                    "a header needs a name without spaces and colons, and a value of one line",
                );
            }
        }
        ProbeAction::Tcp { .. } | ProbeAction::Grpc { .. } => {}
    }
}

/// A path with its query (RFC 3986); no fragment, which is never sent.
fn is_of_url(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:@/?".contains(&byte)
}

/// Rules of liveness and readiness probes alone.
fn check_health(field: &str, probe: &Probe, readiness: bool, found: &mut Violations) {
    if matches!(probe.action, ProbeAction::Tcp { .. }) {
        found.add(
            format!("{field}.tcpSocket"),
            "is for startup probes only, since a program that hangs still accepts connections: use httpGet or grpc",
        );
    }
    check_successes(field, probe, if readiness { THRESHOLD } else { 1 }, found);
}

fn check_successes(field: &str, probe: &Probe, most: u32, found: &mut Violations) {
    let field = format!("{field}.successThreshold");
    match probe.success_threshold {
        Some(given) if given > most && most == 1 => found.add(
            field,
            format!("must be 1, not {given}: only readiness probes count successes"),
        ),
        Some(given) if given > most => found.add(field, format!("expected 0 <= {given} <= {most}")),
        _ => {}
    }
}

/// All attempts of a startup probe together: a start has four minutes (§2.7; the delay before the first isn't part of the rule).
fn check_startup(field: &str, probe: &Probe, found: &mut Violations) {
    let full = probe.defaulted(0);
    let (period, threshold) = (
        full.period_secs.unwrap_or(0),
        full.failure_threshold.unwrap_or(0),
    );
    let seconds = u64::from(period) * u64::from(threshold);
    // A single value beyond its own range has been named already.
    if period <= STARTUP_SECS && seconds > u64::from(STARTUP_SECS) {
        found.add(
            format!("{field}.failureThreshold"),
            format!(
                "periodSeconds * failureThreshold must not exceed {STARTUP_SECS}: {period} * {threshold} = {seconds}; lower one of them"
            ),
        );
    }
}
