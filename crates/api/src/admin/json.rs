//! What runs, as JSON. Times are RFC 3339, numbers are numbers.

use serde_json::{Value, json};
use utsuwa_model::demand::FailingProbe;
use utsuwa_model::{Because, Condition, ConditionState, Timestamp};

use crate::seam::{
    ImageInsight, InstanceInsight, LogLine, LoopInsight, PullInsight, RevisionInsight,
};

/// RFC 3339 with microseconds; a time out of the calendar's range is its number.
pub(super) fn time(at: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(at.0).map_or_else(|_| at.0.to_string(), |t| format!("{t:.6}"))
}

fn time_or_null(at: Option<Timestamp>) -> Value {
    at.map_or(Value::Null, |t| Value::from(time(t)))
}

pub(super) fn of_because(because: &Because) -> Value {
    let facts: Vec<Value> = because
        .facts
        .iter()
        .map(|(name, value)| json!([name, value]))
        .collect();
    json!({"summary": because.summary, "facts": facts, "nextLook": time_or_null(because.next_look)})
}

fn of_instance(instance: &InstanceInsight) -> Value {
    json!({
        "id": instance.id,
        "state": instance.state,
        "pid": instance.pid,
        "inFlight": instance.in_flight,
        "started": time(instance.started),
        "since": time_or_null(instance.standing.since),
        "because": instance.standing.because,
        "next": instance.standing.next.iter().map(of_next).collect::<Vec<_>>(),
        "kept": instance.standing.kept,
        "failingProbes": instance.failing.iter().map(of_probe).collect::<Vec<_>>(),
    })
}

fn of_next((what, at): &(String, Timestamp)) -> Value {
    json!({"what": what, "at": time(*at)})
}

fn of_probe(failing: &FailingProbe) -> Value {
    json!({
        "probe": failing.probe,
        "asks": failing.asks,
        "since": time(failing.since),
        "lastAnswer": failing.last_answer,
        "failures": failing.failures,
        "failureThreshold": failing.failure_threshold,
        "advice": failing.advice,
    })
}

fn of_failure((at, message): &(Timestamp, String)) -> Value {
    json!({"at": time(*at), "message": message})
}

pub(super) fn of_revision(revision: &RevisionInsight) -> Value {
    json!({
        "revision": revision.revision.revision,
        "percent": revision.percent,
        "inFlight": revision.in_flight,
        "queued": revision.queued,
        "instances": revision.instances.iter().map(of_instance).collect::<Vec<_>>(),
        "because": revision.because.iter().map(of_because).collect::<Vec<_>>(),
        "decidedAt": time_or_null(revision.decided_at),
        "lastFailure": revision.last_failure.as_ref().map(of_failure),
        "failuresInARow": revision.failures_in_a_row,
    })
}

pub(super) fn of_condition(condition: &Condition) -> Value {
    json!({
        "type": condition.kind,
        "status": match condition.state {
            ConditionState::True => "True",
            ConditionState::False => "False",
            ConditionState::Unknown => "Unknown",
        },
        "reason": condition.reason,
        "message": condition.message,
        "lastTransition": time(condition.last_transition),
    })
}

pub(super) fn of_loop(insight: &LoopInsight) -> Value {
    json!({
        "name": insight.name,
        "key": insight.key,
        "lastPass": time(insight.last_pass),
        "durationUs": insight.duration_us,
        "because": insight.because,
        "nextWake": time_or_null(insight.next_wake),
        "lastError": insight.last_error,
    })
}

pub(super) fn of_image(image: &ImageInsight) -> Value {
    json!({
        "reference": image.reference,
        "digest": image.digest,
        "sizeBytes": image.size_bytes,
        "inUse": image.in_use,
        "leftOut": image.left_out,
    })
}

pub(super) fn of_pull(pull: &PullInsight) -> Value {
    json!({
        "layers": pull.layers,
        "layersReady": pull.layers_ready,
        "totalBytes": pull.total_bytes,
        "doneBytes": pull.done_bytes,
    })
}

pub(super) fn of_line(line: &LogLine) -> Value {
    let mut shown = json!({
        "at": time(line.at),
        "instance": line.instance,
        "revision": line.revision,
        "stream": line.stream,
        "sequence": line.sequence,
        "text": line.text,
    });
    if !line.container.is_empty() {
        shown["container"] = json!(line.container);
    }
    shown
}
