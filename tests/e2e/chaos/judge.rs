//! Whether a failed request was inside what was killed with −9: by what the server wrote of it, never by its time alone.
//!
//! An instance: the request's entry in the log, found by the client's trace, names the instance that was killed. The server
//! itself can't write any more what it had; there the client's port must be one of the connections that the killed process had
//! open when it was stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::load::{Kind, Outcome};
use crate::harness::until;

/// After its death an instance may be sent requests until the server knows of it: no longer than this on a busy machine.
const UNKNOWN: Duration = Duration::from_secs(1);
/// So soon a client must learn what it lost.
const LEARNT: Duration = Duration::from_secs(5);

/// Something killed with −9.
#[derive(Debug)]
pub(super) struct Kill {
    begun: Instant,
    begun_us: i64,
    done: Instant,
    pub(super) victim: Victim,
}

#[derive(Debug)]
pub(super) enum Victim {
    /// Its id.
    Instance(String),
    /// Clients' ports of the connections that it had.
    Server(BTreeSet<u16>),
}

impl Kill {
    pub(super) fn of(victim: Victim, kill: impl FnOnce()) -> Self {
        let (begun, begun_us) = (Instant::now(), now_us());
        kill();
        Self {
            begun,
            begun_us,
            done: Instant::now(),
            victim,
        }
    }

    fn had(&self, outcome: &Outcome, entry: Option<&Entry>) -> bool {
        if !(self.begun..self.done + LEARNT).contains(&outcome.ended) {
            return false;
        }
        match &self.victim {
            Victim::Instance(id) => entry.is_some_and(|entry| {
                let unknown = i64::try_from(UNKNOWN.as_micros()).unwrap();
                entry.instance == *id
                    && entry.ended_us >= self.begun_us
                    && entry.began_us <= self.begun_us + unknown
            }),
            Victim::Server(ports) => {
                outcome.due <= self.done + UNKNOWN
                    && ports.contains(&outcome.mark.port.load(Ordering::Relaxed))
            }
        }
    }
}

fn now_us() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_micros()).unwrap()
}

/// What the server wrote of a request.
#[derive(Debug)]
struct Entry {
    instance: String,
    began_us: i64,
    ended_us: i64,
    line: String,
}

impl Entry {
    fn of(line: &str) -> Option<Self> {
        let entry: Value = serde_json::from_str(line).ok()?;
        let began_us = entry["at"].as_i64()?;
        let latency = entry["httpRequest"]["latency"]
            .as_str()?
            .strip_suffix('s')?;
        let took = Duration::try_from_secs_f64(latency.parse().ok()?).ok()?;
        Some(Self {
            instance: entry["instance"].as_str().unwrap_or_default().to_owned(),
            began_us,
            ended_us: began_us + i64::try_from(took.as_micros()).ok()?,
            line: line.to_owned(),
        })
    }
}

/// The entries of these traces, as far as they are written yet.
fn entries(data_dir: &Path, traces: &BTreeSet<&str>) -> BTreeMap<String, Entry> {
    let mut found = BTreeMap::new();
    for service in ["web", "grpc"] {
        let folder = data_dir.join("journal/demo/asia-northeast1").join(service);
        for file in ["journal.jsonl.old", "journal.jsonl"] {
            let text = std::fs::read_to_string(folder.join(file)).unwrap_or_default();
            for line in text.lines() {
                let trace = line
                    .split_once("/traces/")
                    .and_then(|(_, rest)| rest.get(..32));
                if let Some(trace) = trace.filter(|trace| traces.contains(trace))
                    && let Some(entry) = Entry::of(line)
                {
                    found.insert(trace.to_owned(), entry);
                }
            }
        }
    }
    found
}

/// Failed requests, judged.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Inside what was killed.
    pub(super) excused: BTreeMap<Kind, usize>,
    /// Connections that were not taken: never, whatever was killed.
    pub(super) refused: usize,
    /// All others, and what the server wrote of each.
    pub(super) lost: Vec<String>,
}

pub(super) fn judge(data_dir: &Path, kills: &[Kill], seen: &[Outcome]) -> Verdict {
    let failed: Vec<&Outcome> = seen.iter().filter(|o| o.result.is_err()).collect();
    let by_server = |outcome: &Outcome| {
        let mut servers = kills
            .iter()
            .filter(|kill| matches!(kill.victim, Victim::Server(_)));
        servers.any(|kill| kill.had(outcome, None))
    };
    let traces: BTreeSet<&str> = failed
        .iter()
        .filter(|outcome| !by_server(outcome))
        .map(|outcome| outcome.mark.trace.as_str())
        .collect();
    // The log is written a moment behind. What never comes counts as lost.
    let deadline = Instant::now() + Duration::from_secs(10);
    let entries = until(
        "the log of the failed requests",
        Duration::from_secs(20),
        || {
            let found = entries(data_dir, &traces);
            (found.len() == traces.len() || Instant::now() > deadline).then_some(found)
        },
    );
    let mut verdict = Verdict {
        refused: seen.iter().filter(|outcome| outcome.is_refused()).count(),
        ..Verdict::default()
    };
    for outcome in failed {
        let entry = entries.get(&outcome.mark.trace);
        if kills.iter().any(|kill| kill.had(outcome, entry)) {
            *verdict.excused.entry(outcome.kind).or_insert(0) += 1;
        } else {
            let wrote = entry.map_or("nothing in the log", |entry| &entry.line);
            verdict.lost.push(format!("{outcome:?}: {wrote}"));
        }
    }
    verdict
}

/// The other ends of the connections to `port` that a process has open.
pub(super) fn ports_of(pid: u32, port: u16) -> BTreeSet<u16> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let sockets: BTreeSet<String> = files
        .filter_map(|file| std::fs::read_link(file.ok()?.path()).ok())
        .filter_map(|link| {
            let link = link.to_str()?.strip_prefix("socket:[")?;
            Some(link.strip_suffix(']')?.to_owned())
        })
        .collect();
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let port_in = |address: &str| u16::from_str_radix(address.rsplit_once(':')?.1, 16).ok();
    let rows = table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (local, remote) = (port_in(fields.get(1)?)?, port_in(fields.get(2)?)?);
        (local == port && sockets.contains(*fields.get(9)?)).then_some(remote)
    });
    rows.collect()
}
