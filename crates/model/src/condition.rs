//! Conditions: what is true of a resource, in Google's names and reasons (`cloud-run-spec.md` §1.8).

use serde::{Deserialize, Serialize};

use crate::Timestamp;

/// v1's `True|False|Unknown`, v2's `CONDITION_SUCCEEDED|FAILED|RECONCILING/PENDING`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConditionState {
    True,
    False,
    Unknown,
}

/// Only `Error` conditions take part in the summary (`Ready`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Severity {
    #[default]
    Error,
    Warning,
    Info,
}

/// One condition. `kind` is v1's `type`. `last_transition` changes only when `state` does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Condition {
    pub kind: String,
    pub state: ConditionState,
    #[serde(default)]
    pub reason: String,
    #[serde(default)]
    pub message: String,
    #[serde(default)]
    pub severity: Severity,
    pub last_transition: Timestamp,
}

/// Sets `kind` in `conditions`, keeping the transition time when the state stays the same.
pub fn set(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|c| c.kind == new.kind) {
        Some(old) => {
            if old.state == new.state {
                new.last_transition = old.last_transition;
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// The condition named `kind`, if it is there.
#[must_use]
pub fn find<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|c| c.kind == kind)
}

/// The summary over `dependents`: True iff all are True; False if any is False (the first one's reason and message); else
/// Unknown with the first unknown one's. Named `Ready`.
#[must_use]
pub fn summary(conditions: &[Condition], dependents: &[&str], now: Timestamp) -> Condition {
    let mut unknown: Option<(&str, &str)> = None;
    for kind in dependents {
        match find(conditions, kind) {
            Some(c) if c.state == ConditionState::True => {}
            Some(c) if c.state == ConditionState::False => {
                return ready(ConditionState::False, &c.reason, &c.message, now);
            }
            Some(c) => unknown = unknown.or(Some((c.reason.as_str(), c.message.as_str()))),
            None => unknown = unknown.or(Some(("", ""))),
        }
    }
    match unknown {
        Some((reason, message)) => ready(ConditionState::Unknown, reason, message, now),
        None => ready(ConditionState::True, "", "", now),
    }
}

fn ready(state: ConditionState, reason: &str, message: &str, now: Timestamp) -> Condition {
    Condition {
        kind: "Ready".to_owned(),
        state,
        reason: reason.to_owned(),
        message: message.to_owned(),
        severity: Severity::Error,
        last_transition: now,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn c(kind: &str, state: ConditionState, reason: &str) -> Condition {
        Condition {
            kind: kind.to_owned(),
            state,
            reason: reason.to_owned(),
            message: String::new(),
            severity: Severity::Error,
            last_transition: Timestamp(1),
        }
    }

    #[test]
    fn summary_prefers_false_over_unknown_over_true() {
        use ConditionState::{False, True, Unknown};
        let all = [
            c("A", True, ""),
            c("B", Unknown, "Deploying"),
            c("C", False, "RevisionFailed"),
        ];
        assert_eq!(
            summary(&all, &["A", "B", "C"], Timestamp(2)).reason,
            "RevisionFailed"
        );
        assert_eq!(summary(&all, &["A", "B"], Timestamp(2)).state, Unknown);
        assert_eq!(summary(&all, &["A"], Timestamp(2)).state, True);
        assert_eq!(
            summary(&all, &["A", "missing"], Timestamp(2)).state,
            Unknown
        );
    }

    #[test]
    fn transition_time_moves_only_with_the_state() {
        let mut all = vec![c("A", ConditionState::Unknown, "")];
        set(
            &mut all,
            Condition {
                last_transition: Timestamp(9),
                ..c("A", ConditionState::Unknown, "Later")
            },
        );
        assert_eq!(
            (all[0].last_transition, all[0].reason.as_str()),
            (Timestamp(1), "Later")
        );
        set(
            &mut all,
            Condition {
                last_transition: Timestamp(9),
                ..c("A", ConditionState::True, "")
            },
        );
        assert_eq!(all[0].last_transition, Timestamp(9));
    }
}
