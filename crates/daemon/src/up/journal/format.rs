//! An entry as one line of JSON, and back.

use std::fmt::Write;
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

/// One request as Cloud Logging has it (`cloud-run-spec.md` §2.11), and where its time went. Written field by field: building a
/// tree of values first costs more than forwarding the request.
/// Numbers go past the standard library's formatting for the same reason.
pub(super) fn request_line(out: &mut String, record: &RequestRecord) {
    let at = record.at.0;
    let severity = match record.status {
        ..400 => "INFO",
        400..500 => "WARNING",
        500.. => "ERROR",
    };
    // Writing into memory does not fail.
    let _ = write!(out, "{{\"at\":{at}");
    all(
        out,
        [
            ",\"severity\":\"",
            severity,
            "\",\"httpRequest\":{\"requestMethod\":",
        ],
    );
    text(out, record.method.as_str());
    out.push_str(",\"requestUrl\":");
    let scheme = record.scheme;
    url(out, scheme, (&record.host, record.port), &record.path);
    // 64-bit numbers are strings in Google's JSON.
    out.push_str(",\"requestSize\":\"");
    decimal(out, record.request_bytes);
    out.push_str("\",\"status\":");
    decimal(out, u64::from(record.status));
    out.push_str(",\"responseSize\":\"");
    decimal(out, record.response_bytes);
    let _ = write!(out, "\",\"remoteIp\":\"{}\"", record.remote);
    for (name, value) in [
        (",\"userAgent\":", &record.user_agent),
        (",\"referer\":", &record.referer),
    ] {
        if !value.is_empty() {
            out.push_str(name);
            text(out, value);
        }
    }
    if let Some(server) = record.server_ip {
        let _ = write!(out, ",\"serverIp\":\"{server}\"");
    }
    out.push_str(",\"latency\":\"");
    decimal(out, record.latency.as_secs());
    out.push('.');
    padded(out, record.latency.subsec_micros(), 6);
    all(out, ["s\",\"protocol\":\"", record.protocol, "\"}"]);
    if let Some(service) = record.service() {
        let (project, trace) = (service.project.as_str(), record.trace.as_str());
        all(out, [",\"trace\":\"projects/", project, "/traces/", trace]);
        let span = record.span;
        let _ = write!(out, "\",\"spanId\":\"{span:016x}\",\"traceSampled\":");
        out.push_str(if record.sampled { "true" } else { "false" });
    }
    if let Some(revision) = &record.revision {
        all(out, [",\"revision\":\"", revision.revision.as_str(), "\""]);
    }
    if let Some(instance) = &record.instance {
        all(out, [",\"instance\":\"", instance.as_str(), "\""]);
    }
    for (name, phase) in [
        (",\"phasesMs\":{\"queue\":", record.queued),
        (",\"firstByte\":", record.first_byte),
        (",\"lastByte\":", record.latency),
    ] {
        out.push_str(name);
        millis(out, phase);
    }
    out.push('}');
    if let Some(cold) = &record.cold {
        let _ = write!(out, ",\"coldStartMs\":{}", phases(cold));
    }
    if let AnsweredBy::Utsuwa { why } = &record.answered_by {
        out.push_str(",\"answeredByUtsuwa\":");
        text(out, why);
    }
    out.push_str("}\n");
}

fn all<const N: usize>(out: &mut String, parts: [&str; N]) {
    for part in parts {
        out.push_str(part);
    }
}

fn decimal(out: &mut String, mut number: u64) {
    let mut digits = [0_u8; 20];
    let mut from = digits.len();
    loop {
        from -= 1;
        digits[from] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.push_str(str::from_utf8(&digits[from..]).unwrap_or_default());
}

/// With zeros in front.
fn padded(out: &mut String, number: u32, digits: u32) {
    for place in (0..digits).rev() {
        let digit = number / 10_u32.pow(place) % 10;
        out.push(char::from(b'0' + digit as u8));
    }
}

/// Milliseconds with as many of three decimals as there are.
fn millis(out: &mut String, time: Duration) {
    let whole = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    decimal(out, whole);
    let rest = time.subsec_micros() % 1_000;
    if rest > 0 {
        out.push('.');
        padded(out, rest, 3);
        while out.ends_with('0') {
            out.pop();
        }
    }
}

/// A JSON string.
fn text(out: &mut String, value: &str) {
    out.push('"');
    within(out, value);
    out.push('"');
}

fn url(out: &mut String, scheme: &str, (host, port): (&str, Option<u16>), path: &str) {
    all(out, ["\"", scheme, "://"]);
    within(out, host);
    let usual = if scheme == "https" { 443 } else { 80 };
    if let Some(port) = port.filter(|port| *port != usual) {
        out.push(':');
        decimal(out, u64::from(port));
    }
    within(out, path);
    out.push('"');
}

/// What stands between the quotes.
fn within(out: &mut String, value: &str) {
    let plain = |byte: &u8| *byte >= b' ' && *byte != b'"' && *byte != b'\\';
    if value.as_bytes().iter().all(plain) {
        out.push_str(value);
        return;
    }
    for letter in value.chars() {
        match letter {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            letter if letter < ' ' => {
                let _ = write!(out, "\\u{:04x}", u32::from(letter));
            }
            letter => out.push(letter),
        }
    }
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
    // Builds before the request log was Cloud Logging's wrote the fields of a request beside the others.
    let http = if entry["httpRequest"].is_object() {
        &entry["httpRequest"]
    } else {
        &entry
    };
    let of = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let text = |key: &str| of(&entry, key);
    let took_ms = took_ms(http);
    let request = !entry["text"].is_string();
    let shown = if request {
        request_text(&entry, http, took_ms)
    } else {
        text("text")
    };
    let at = Timestamp(entry["at"].as_i64()?);
    let took = Duration::try_from_secs_f64(took_ms.max(0.0) / 1000.0).unwrap_or_default();
    Some(Shown {
        at,
        written: at.plus(took),
        revision: text("revision"),
        instance: text("instance").parse().ok(),
        text: shown,
        request,
    })
}

fn took_ms(http: &Value) -> f64 {
    let latency = http["latency"]
        .as_str()
        .and_then(|text| text.strip_suffix('s'));
    let seconds = latency.and_then(|text| text.parse::<f64>().ok());
    seconds
        .map(|seconds| seconds * 1000.0)
        .or_else(|| http["latencyMs"].as_f64())
        .unwrap_or(0.0)
}

/// A request in one line for people: what was asked, what came of it, how long that took and why.
fn request_text(entry: &Value, http: &Value, took_ms: f64) -> String {
    let of = |key: &str| http[key].as_str().unwrap_or_default();
    let (method, address) = (of("requestMethod"), of("requestUrl"));
    let mut shown = format!("{method} {address} {} {took_ms:.1} ms", http["status"]);
    let total = entry["coldStartMs"]["total"].as_f64();
    let queue = entry["phasesMs"]["queue"]
        .as_f64()
        .filter(|queue| *queue > 0.0);
    match (total, queue) {
        (Some(total), _) => shown.push_str(&format!(" (cold start {total:.1} ms)")),
        (None, Some(queue)) => shown.push_str(&format!(" (waited {queue:.1} ms for an instance)")),
        (None, None) => {}
    }
    if let Some(why) = entry["answeredByUtsuwa"].as_str() {
        shown.push_str(&format!(": {why}"));
    }
    shown
}
