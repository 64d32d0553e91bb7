//! The request log: one JSON line per request and service, written by a thread of its own.
//!
//! Invariants: 1. A request never waits for the disk: what the bounded channel can't take is counted and told later.
//! 2. A service's log is at most two files of [`MAX_BYTES`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use utsuwa_ingress::seam::{AnsweredBy, ColdStart, RequestLog, RequestRecord};

/// The name of the file beside the instances' own.
pub(super) const FILE: &str = "requests.jsonl";

/// One file's size before it becomes the old one.
const MAX_BYTES: u64 = 8 << 20;
/// Records that may wait for the disk: a second of heavy load.
const WAITING: usize = 16_384;
/// Open files at most; the least recently opened goes first.
const MAX_FILES: usize = 256;

#[derive(Debug)]
pub(super) struct FileRequestLog {
    sender: SyncSender<RequestRecord>,
    dropped: AtomicU64,
}

impl FileRequestLog {
    /// Starts the writer below `logs`. The thread ends when the log is dropped.
    ///
    /// # Errors
    /// No thread can be made.
    pub(super) fn start(logs: PathBuf) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(WAITING);
        let thread = std::thread::Builder::new().name("request-log".into()).spawn(move || write_all(&logs, &receiver))?;
        Ok((Self { sender, dropped: AtomicU64::new(0) }, thread))
    }
}

impl RequestLog for FileRequestLog {
    fn record(&self, record: RequestRecord) {
        if self.sender.try_send(record).is_err() {
            // Told once in a while, not per record: a log that can't keep up must not be loud as well.
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "the request log can't keep up; records are dropped");
            }
        }
    }
}

struct Output {
    file: File,
    bytes: u64,
    opened: u64,
}

fn write_all(logs: &Path, receiver: &Receiver<RequestRecord>) {
    let mut outputs: BTreeMap<PathBuf, Output> = BTreeMap::new();
    let mut opened = 0;
    while let Ok(record) = receiver.recv() {
        // Requests to unknown hosts belong to no service; they are in the server's own log at debug level.
        let Some(revision) = &record.revision else {
            tracing::debug!(host = %record.host, path = %record.path, status = record.status, "request without a service");
            continue;
        };
        let key = &revision.service;
        let folder = logs.join(key.project.as_str()).join(key.region.as_str()).join(key.service.as_str());
        if let Some(cold) = &record.cold {
            tracing::info!(
                service = %key.service, revision = %revision.revision, total_ms = ms(cold.total), listen_ms = ms(cold.listen), "cold start"
            );
        }
        opened += 1;
        if let Err(error) = write_one(&mut outputs, &folder, &line(&record), opened) {
            tracing::warn!(folder = %folder.display(), %error, "write the request log");
        }
    }
}

fn write_one(outputs: &mut BTreeMap<PathBuf, Output>, folder: &Path, line: &str, opened: u64) -> std::io::Result<()> {
    if !outputs.contains_key(folder) {
        if outputs.len() >= MAX_FILES
            && let Some(oldest) = outputs.iter().min_by_key(|(_, o)| o.opened).map(|(path, _)| path.clone())
        {
            outputs.remove(&oldest);
        }
        std::fs::create_dir_all(folder)?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(folder.join(FILE))?;
        let bytes = file.metadata()?.len();
        outputs.insert(folder.to_owned(), Output { file, bytes, opened });
    }
    let Some(output) = outputs.get_mut(folder) else { return Ok(()) };
    // One write per record: a kill leaves no half line that a later one would be glued to.
    output.file.write_all(line.as_bytes())?;
    output.bytes += line.len() as u64;
    if output.bytes > MAX_BYTES {
        std::fs::rename(folder.join(FILE), folder.join(format!("{FILE}.old")))?;
        outputs.remove(folder);
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a request fit a double exactly")]
fn ms(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn line(record: &RequestRecord) -> String {
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
        "instance": record.instance.as_ref().map(utsuwa_model::InstanceId::as_str),
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

/// The readable form of a stored line, as `utsuwa logs` shows it.
pub(super) fn readable(line: &str) -> Option<(i64, String, String)> {
    let record: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
    let mut shown = format!("{} {} {} {:.1} ms", text("requestMethod"), text("requestUrl"), record["status"], record["latencyMs"].as_f64().unwrap_or(0.0));
    if let Some(total) = record["coldStartMs"]["total"].as_f64() {
        shown.push_str(&format!(" (cold start {total:.1} ms)"));
    }
    if let Some(why) = record["answeredByUtsuwa"].as_str() {
        shown.push_str(&format!(": {why}"));
    }
    Some((record["at"].as_i64()?, text("revision"), shown))
}
