//! Conditions (§1.8): states, severities and the closed lists of reasons.

use utsuwa_model::condition;
use utsuwa_model::{Condition, ConditionState, Severity};
use utsuwa_wire::google::cloud::run::v2;
use v2::condition::{CommonReason, Reasons, RevisionReason, Severity as WireSeverity, State};

use super::timestamp;

/// One condition for the wire.
pub(super) fn write(condition: &Condition) -> v2::Condition {
    let state = match condition.state {
        ConditionState::True => State::ConditionSucceeded,
        ConditionState::False => State::ConditionFailed,
        ConditionState::Unknown => State::ConditionReconciling,
    };
    let severity = match condition.severity {
        Severity::Error if condition.state == ConditionState::False => WireSeverity::Error,
        Severity::Error => WireSeverity::Unspecified,
        Severity::Warning => WireSeverity::Warning,
        Severity::Info => WireSeverity::Info,
    };
    v2::Condition {
        r#type: condition.kind.clone(),
        state: state.into(),
        message: condition.message.clone(),
        last_transition_time: Some(timestamp(condition.last_transition)),
        severity: severity.into(),
        // A successful condition carries no reason.
        reasons: if state == State::ConditionSucceeded {
            None
        } else {
            reason(&condition.reason)
        },
    }
}

/// The summary, and whether work on `generation` is still going on.
pub(super) fn summary(
    conditions: &[Condition],
    observed: u64,
    generation: u64,
) -> (v2::Condition, bool) {
    let ready = condition::find(conditions, "Ready");
    let settled =
        observed == generation && ready.is_some_and(|r| r.state != ConditionState::Unknown);
    let wire = match ready {
        None => v2::Condition {
            r#type: "Ready".to_owned(),
            state: State::ConditionPending.into(),
            ..v2::Condition::default()
        },
        Some(ready) if observed == generation => write(ready),
        // It speaks of an older generation: its state must not be taken for the new one's.
        Some(ready) => v2::Condition {
            r#type: "Ready".to_owned(),
            state: State::ConditionReconciling.into(),
            last_transition_time: Some(timestamp(ready.last_transition)),
            ..v2::Condition::default()
        },
    };
    (wire, !settled)
}

/// `HealthCheckContainerError` is `HEALTH_CHECK_CONTAINER_ERROR`, of whichever list has it; other words are `UNKNOWN`.
fn reason(text: &str) -> Option<Reasons> {
    if text.is_empty() {
        return None;
    }
    // The program ended or never listened: v2 has one word for both.
    let text = if text.starts_with("ExitCode") {
        "HealthCheckContainerError"
    } else {
        text
    };
    let mut name = String::with_capacity(text.len() + 8);
    for (index, c) in text.chars().enumerate() {
        if c.is_ascii_uppercase() && index > 0 {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    if let Some(common) = CommonReason::from_str_name(&name) {
        return Some(Reasons::Reason(common.into()));
    }
    if let Some(revision) = RevisionReason::from_str_name(&name) {
        return Some(Reasons::RevisionReason(revision.into()));
    }
    Some(Reasons::Reason(CommonReason::Unknown.into()))
}
