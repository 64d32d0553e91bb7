//! What Utsuwa itself has to say about a service: one JSON line per request, per end of an instance, per refused connection.
//! Written by a thread of its own, beside what instances write.
//!
//! Invariants: 1. A request never waits for the disk: what the bounded channel can't take is counted and told.
//! 2. A service's journal is at most two files of [`MAX_BYTES`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use utsuwa_ingress::seam::{AnsweredBy, ColdStart, RequestLog, RequestRecord};
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};

/// One file's size before it becomes the old one.
const MAX_BYTES: u64 = 8 << 20;
/// Entries that may wait for the disk: a second of heavy load.
const WAITING: usize = 16_384;
/// Open files at most; the least recently opened goes first.
const MAX_FILES: usize = 256;

/// Something that happened to an instance.
#[derive(Debug)]
pub(super) struct Happening {
    pub at: Timestamp,
    pub service: ServiceKey,
    pub revision: String,
    pub instance: Option<InstanceId>,
    /// Cloud Logging's severities: `INFO`, `WARNING`, `ERROR`.
    pub severity: &'static str,
    pub text: String,
    /// Told once it is on its way to the disk.
    pub written: Option<tokio::sync::oneshot::Sender<()>>,
}

#[derive(Debug)]
enum Entry {
    Request(Box<RequestRecord>),
    Happening(Box<Happening>),
    /// The server ends: write what is waiting, then stop.
    End,
}

/// Takes entries; clones write to the same journal.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    sender: SyncSender<Entry>,
    dropped: Arc<AtomicU64>,
    /// Grows with every line written, so that followers need not poll the disk.
    written: Arc<tokio::sync::watch::Sender<u64>>,
    root: PathBuf,
}

impl Journal {
    /// Starts the writer below `root`. The thread ends when the last handle is dropped.
    ///
    /// # Errors
    /// No thread can be made.
    pub(super) fn start(root: PathBuf) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(WAITING);
        let written = Arc::new(tokio::sync::watch::Sender::new(0));
        let (folder, told) = (root.clone(), Arc::clone(&written));
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || write_all(&folder, &receiver, &told))?;
        Ok((
            Self {
                sender,
                dropped: Arc::default(),
                written,
                root,
            },
            thread,
        ))
    }

    pub(super) fn note(&self, happening: Happening) {
        self.send(Entry::Happening(Box::new(happening)));
    }

    /// Has the writer end once everything before this is written.
    pub(super) fn end(&self) {
        self.send(Entry::End);
    }

    /// The files of a service, oldest first; they need not exist.
    pub(super) fn files(&self, service: &ServiceKey) -> [PathBuf; 2] {
        let folder = folder(&self.root, service);
        [
            folder.join("journal.jsonl.old"),
            folder.join("journal.jsonl"),
        ]
    }

    /// Changes when something was written.
    pub(super) fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.written.subscribe()
    }

    fn send(&self, entry: Entry) {
        if self.sender.try_send(entry).is_err() {
            // Told once in a while, not per entry: a journal that can't keep up must not be loud as well.
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            if dropped.is_power_of_two() {
                tracing::warn!(dropped, "the journal can't keep up; entries are dropped");
            }
        }
    }
}

impl RequestLog for Journal {
    fn record(&self, record: RequestRecord) {
        // Requests to unknown hosts belong to no service; they are in the server's own log at debug level.
        if record.service().is_none() {
            tracing::debug!(host = %record.host, path = %record.path, status = record.status, "request without a service");
            return;
        }
        self.send(Entry::Request(Box::new(record)));
    }
}

fn folder(root: &Path, key: &ServiceKey) -> PathBuf {
    root.join(key.project.as_str())
        .join(key.region.as_str())
        .join(key.service.as_str())
}

struct Output {
    file: File,
    bytes: u64,
    opened: u64,
}

fn write_all(root: &Path, receiver: &Receiver<Entry>, written: &tokio::sync::watch::Sender<u64>) {
    let mut outputs: BTreeMap<PathBuf, Output> = BTreeMap::new();
    let mut count = 0;
    while let Ok(entry) = receiver.recv() {
        let (service, line) = match &entry {
            Entry::Request(record) => match record.service() {
                Some(service) => (service, request_line(record)),
                None => continue,
            },
            Entry::Happening(happening) => (&happening.service, happening_line(happening)),
            Entry::End => return,
        };
        if let Entry::Request(record) = &entry
            && let Some(cold) = &record.cold
        {
            tracing::info!(service = %service.service, total_ms = ms(cold.total), listen_ms = ms(cold.listen), "cold start");
        }
        count += 1;
        let folder = folder(root, service);
        if let Err(error) = write_one(&mut outputs, &folder, &line, count) {
            tracing::warn!(folder = %folder.display(), %error, "write the journal");
        }
        if let Entry::Happening(happening) = entry
            && let Some(done) = happening.written
        {
            // Nobody need be waiting.
            let _ = done.send(());
        }
        written.send_replace(count);
    }
}

fn write_one(
    outputs: &mut BTreeMap<PathBuf, Output>,
    folder: &Path,
    line: &str,
    count: u64,
) -> std::io::Result<()> {
    let path = folder.join("journal.jsonl");
    if !outputs.contains_key(folder) {
        if outputs.len() >= MAX_FILES
            && let Some(oldest) = outputs
                .iter()
                .min_by_key(|(_, o)| o.opened)
                .map(|(path, _)| path.clone())
        {
            outputs.remove(&oldest);
        }
        std::fs::create_dir_all(folder)?;
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)?;
        let bytes = file.metadata()?.len();
        outputs.insert(
            folder.to_owned(),
            Output {
                file,
                bytes,
                opened: count,
            },
        );
    }
    let Some(output) = outputs.get_mut(folder) else {
        return Ok(());
    };
    // One write per entry: a kill leaves no half line that a later one would be glued to.
    output.file.write_all(line.as_bytes())?;
    output.bytes += line.len() as u64;
    if output.bytes > MAX_BYTES {
        std::fs::rename(&path, folder.join("journal.jsonl.old"))?;
        outputs.remove(folder);
    }
    Ok(())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "microseconds of a request fit a double exactly"
)]
fn ms(duration: std::time::Duration) -> f64 {
    duration.as_micros() as f64 / 1000.0
}

fn happening_line(happening: &Happening) -> String {
    let json = json!({
        "at": happening.at.0,
        "revision": happening.revision,
        "instance": happening.instance.as_ref().map(InstanceId::as_str),
        "severity": happening.severity,
        "text": happening.text,
    });
    format!("{json}\n")
}

fn request_line(record: &RequestRecord) -> String {
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

/// A stored entry, as `utsuwa logs` shows it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub at: Timestamp,
    pub revision: String,
    pub instance: Option<InstanceId>,
    pub text: String,
}

/// Reads one stored line; `None` for a line that isn't one of ours.
pub(super) fn read(line: &str) -> Option<Shown> {
    let entry: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| entry[key].as_str().unwrap_or_default().to_owned();
    let shown = if entry["text"].is_string() {
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
    Some(Shown {
        at: Timestamp(entry["at"].as_i64()?),
        revision: text("revision"),
        instance: text("instance").parse().ok(),
        text: shown,
    })
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn what_is_written_can_be_read_and_files_stay_small() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, thread) = Journal::start(dir.path().to_owned()).unwrap();
        let service: ServiceKey = "demo/here/hello".parse().unwrap();
        journal.note(Happening {
            at: Timestamp(5),
            service: service.clone(),
            revision: "hello-00001-abc".to_owned(),
            instance: None,
            severity: "ERROR",
            text: "exited with status 7".to_owned(),
            written: None,
        });
        let [_, current] = journal.files(&service);
        drop(journal);
        thread.join().unwrap();
        let text = std::fs::read_to_string(current).unwrap();
        let shown = read(text.trim()).unwrap();
        assert_eq!(
            (shown.at, shown.text.as_str()),
            (Timestamp(5), "exited with status 7")
        );
        assert_eq!(read("not json"), None);
    }

    /// §2.11: the request log has every request of the service, also one that no revision ever saw.
    #[test]
    fn a_rejected_request_is_in_the_journal_of_its_service() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, thread) = Journal::start(dir.path().to_owned()).unwrap();
        let service: ServiceKey = "demo/here/hello".parse().unwrap();
        let rejected = |service: Option<ServiceKey>| RequestRecord {
            at: Timestamp(5),
            host: "hello.localhost".to_owned(),
            method: "GET".to_owned(),
            path: "/".to_owned(),
            status: 403,
            answered_by: AnsweredBy::Utsuwa {
                why: "The request was not authenticated.".to_owned(),
            },
            service,
            revision: None,
            instance: None,
            remote: "127.0.0.1".to_owned(),
            user_agent: String::new(),
            trace: String::new(),
            request_bytes: 0,
            response_bytes: 0,
            latency: std::time::Duration::ZERO,
            cold: None,
        };
        journal.record(rejected(None));
        journal.record(rejected(Some(service.clone())));
        let [_, current] = journal.files(&service);
        drop(journal);
        thread.join().unwrap();
        let text = std::fs::read_to_string(current).unwrap();
        assert_eq!(text.lines().count(), 1);
        let shown = read(text.trim()).unwrap();
        assert!(
            shown.text.contains(" 403 ") && shown.text.ends_with("not authenticated."),
            "{}",
            shown.text
        );
    }
}
