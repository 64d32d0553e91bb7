//! An entry as one line of JSON, and back.

use std::time::Duration;

use serde_json::{Value, json};
use utsuwa_ingress::seam::{AnsweredBy, ColdStart, RequestRecord};
use utsuwa_model::{InstanceId, Timestamp};

use super::Happening;

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of a request fit a double exactly"
)]
pub(super) fn ms(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

pub(super) fn happening_line(happening: &Happening) -> String {
    let json = json!({
        "at": happening.at.0,
        "revision": happening.revision,
        "instance": happening.instance.as_ref().map(InstanceId::as_str),
        "severity": happening.severity,
        "text": happening.text,
    });
    format!("{json}\n")
}

pub(super) fn request_line(record: &RequestRecord) -> String {
    let mut json = json!({
        "at": record.at.0,
        "requestMethod": record.method,
        "requestUrl": format!("http://{}{}", record.host, record.path),
        "status": record.status,
        "latencyMs": ms(record.latency),
        "requestSize": record.request_bytes,
        "responseSize": record.response_bytes,
        "remoteIp": record.remote,
        "userAgent": record.user_agent,
        "trace": record.trace,
        "revision": record.revision.as_ref().map(|r| r.revision.as_str()),
        "instance": record.instance.as_ref().map(InstanceId::as_str),
    });
    if let AnsweredBy::Utsuwa { why } = &record.answered_by {
        json["answeredByUtsuwa"] = json!(why);
    }
    if let Some(cold) = &record.cold {
        json["coldStartMs"] = phases(cold);
    }
    format!("{json}\n")
}

fn phases(cold: &ColdStart) -> Value {
    json!({
        "decide": ms(cold.decide), "sandbox": ms(cold.start.sandbox), "rootfs": ms(cold.start.rootfs), "exec": ms(cold.start.exec),
        "listen": ms(cold.listen), "answer": ms(cold.answer), "total": ms(cold.total),
    })
}

/// What is missing here, told where it would be.
pub(super) fn missing_line(at: Timestamp, entries: u64, why: &str) -> String {
    let text = format!("{entries} entries of this journal are missing here: {why}");
    let json = json!({"at": at.0, "severity": "WARNING", "text": text});
    format!("{json}\n")
}

/// A stored entry, as `utsuwa logs` shows it.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::up) struct Shown {
    pub at: Timestamp,
    pub revision: String,
    pub instance: Option<InstanceId>,
    pub text: String,
    /// When it was written: a request, when it had ended.
    pub written: Timestamp,
    /// A request, not something that happened to an instance.
    pub request: bool,
}

/// Reads one stored line; `None` for a line that isn't one of ours.
pub(in crate::up) fn read(line: &str) -> Option<Shown> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let request = !entry["text"].is_string();
    let shown = if !request {
        text("text")
    } else {
        let mut shown = format!(
            "{} {} {} {:.1} ms",
            text("requestMethod"),
            text("requestUrl"),
            entry["status"],
            entry["latencyMs"].as_f64().unwrap_or(0.0)
        );
        if let Some(total) = entry["coldStartMs"]["total"].as_f64() {
            shown.push_str(&format!(" (cold start {total:.1} ms)"));
        }
        if let Some(why) = entry["answeredByUtsuwa"].as_str() {
            shown.push_str(&format!(": {why}"));
        }
        shown
    };
    let at = Timestamp(entry["at"].as_i64()?);
    let took = entry["latencyMs"].as_f64().unwrap_or(0.0).max(0.0) / 1000.0;
    let took = Duration::try_from_secs_f64(took).unwrap_or_default();
    Some(Shown {
        at,
        written: at.plus(took),
        revision: text("revision"),
        instance: text("instance").parse().ok(),
        text: shown,
        request,
    })
}
