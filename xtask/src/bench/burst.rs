//! From nothing to fifty: 4,000 requests at once to a sleeping service that may have 50 instances of 80 requests each.
//!
//! When an instance was ready is told by the server's own journal: a request that waited for a start is noted with its arrival
//! and the time until the ingress had reached its instance.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, bail};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::Settings;
use super::server::Server;
use super::stats::table;

const INSTANCES: usize = 50;
const CONCURRENCY: usize = 80;
/// The app holds each request so long: longer than the wakes take, so that no instance can serve a second lot of them.
const HELD: Duration = Duration::from_millis(2_000);
const ROUNDS: usize = 3;
/// Files this program needs besides the connections.
const OTHER_FILES: u64 = 100;
/// Longest wait for an answer, and for the journal.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one burst came to.
struct Burst {
    /// From the first byte sent to the last byte of the last answer.
    last: Duration,
    /// From the first byte sent until the ingress had reached the last instance that was started.
    ready: Duration,
    /// The same for the first instance.
    first_ready: Duration,
    instances: usize,
    /// How often each outcome was seen.
    outcomes: BTreeMap<String, usize>,
}

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let files = utsuwa_runtime::privilege::raise_open_files().context("raise the open files")?;
    let wanted = INSTANCES * CONCURRENCY;
    let connections = wanted.min(usize::try_from(files.saturating_sub(OTHER_FILES))?);
    let server = Server::start(settings, "burst", &[])?;
    server.deploy_template(
        "burst",
        &json!({
            "annotations": {"autoscaling.knative.dev/window": "6s"},
            "maxInstanceRequestConcurrency": CONCURRENCY,
            "scaling": {"maxInstanceCount": INSTANCES},
            "containers": [{"image": "utsuwa.local/hello", "resources":
                {"limits": {"memory": "128Mi", "cpu": "1"}, "cpuIdle": true, "startupCpuBoost": true}}]}),
    )?;
    let mut rows = Vec::new();
    for round in 1..=ROUNDS {
        server.until_asleep(std::iter::once("burst"))?;
        let burst = one(&server, connections)?;
        let outcomes: Vec<String> = burst
            .outcomes
            .iter()
            .map(|(outcome, count)| format!("{count} × {outcome}"))
            .collect();
        rows.push(vec![
            round.to_string(),
            format!("{:.0}", burst.first_ready.as_secs_f64() * 1000.0),
            format!("{:.0}", burst.ready.as_secs_f64() * 1000.0),
            format!("{:.0}", burst.last.as_secs_f64() * 1000.0),
            burst.instances.to_string(),
            outcomes.join(", "),
        ]);
    }
    let head = [
        "round",
        "first ready",
        "last ready",
        "last answer",
        "instances",
        "answers",
    ];
    Ok(format!(
        "\n## 0 → {INSTANCES} instances by {connections} requests at once over as many connections, concurrency {CONCURRENCY}, each held {} ms by the app (ms)\n{}",
        HELD.as_millis(),
        table(&head, &rows)
    ))
}

fn one(server: &Server, connections: usize) -> anyhow::Result<Burst> {
    let before = journal(server)?.len();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (began, last, outcomes) = runtime.block_on(send(server, connections))?;
    let answered: usize = outcomes.values().sum();
    let deadline = Instant::now() + PATIENCE;
    let entries = loop {
        let mut entries = journal(server)?;
        if entries.len() >= before + answered {
            break entries.split_off(before);
        }
        if Instant::now() > deadline {
            bail!(
                "the journal has {} entries, not {}; answers: {outcomes:?}",
                entries.len(),
                before + answered
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    let ready = ready_times(&entries, began)?;
    Ok(Burst {
        last,
        first_ready: ready.values().min().copied().context("no cold start")?,
        ready: ready.values().max().copied().context("no cold start")?,
        instances: entries
            .iter()
            .filter_map(|entry| entry["instance"].as_str())
            .collect::<BTreeSet<_>>()
            .len(),
        outcomes,
    })
}

/// Connects first, then sends all requests: what is measured is the server, not how fast connections are made.
async fn send(
    server: &Server,
    connections: usize,
) -> anyhow::Result<(SystemTime, Duration, BTreeMap<String, usize>)> {
    let mut streams = Vec::with_capacity(connections);
    for number in 0..connections {
        let stream = TcpStream::connect(server.http)
            .await
            .with_context(|| format!("connection {number} of {connections}"))?;
        stream.set_nodelay(true)?;
        streams.push(stream);
    }
    let mut calls = JoinSet::new();
    let (wall, began) = (SystemTime::now(), Instant::now());
    for stream in streams {
        calls.spawn(async move {
            match tokio::time::timeout(PATIENCE, exchange(stream)).await {
                Ok(Ok(status)) => status,
                Ok(Err(error)) => error.to_string(),
                Err(_elapsed) => format!("no answer in {} s", PATIENCE.as_secs()),
            }
        });
    }
    let mut outcomes = BTreeMap::new();
    while let Some(outcome) = calls.join_next().await {
        *outcomes.entry(outcome?).or_default() += 1;
    }
    Ok((wall, began.elapsed(), outcomes))
}

/// Sends the request and reads the whole answer; its status.
async fn exchange(mut stream: TcpStream) -> std::io::Result<String> {
    let request = format!(
        "GET /sleep?ms={} HTTP/1.1\r\nhost: burst.localhost\r\nconnection: close\r\n\r\n",
        HELD.as_millis()
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await?;
    let text = String::from_utf8_lossy(&answer);
    Ok(text
        .split(' ')
        .nth(1)
        .unwrap_or("an answer without a status")
        .to_owned())
}

/// The requests in the service's journal, oldest first.
fn journal(server: &Server) -> anyhow::Result<Vec<Value>> {
    let folder = server.data.join("journal/demo/asia-northeast1/burst");
    let mut entries = Vec::new();
    for name in ["journal.jsonl.old", "journal.jsonl"] {
        let text = match std::fs::read_to_string(folder.join(name)) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error).context("read the journal"),
        };
        // A line that is just being written isn't whole yet; it is read the next time.
        entries.extend(
            text.lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .filter(|entry| entry["httpRequest"].is_object()),
        );
    }
    Ok(entries)
}

/// When the ingress had reached each instance, after `began`.
fn ready_times(entries: &[Value], began: SystemTime) -> anyhow::Result<BTreeMap<String, Duration>> {
    let began_us = began
        .duration_since(SystemTime::UNIX_EPOCH)
        .context("the clock")?
        .as_secs_f64()
        * 1e6;
    let mut ready: BTreeMap<String, Duration> = BTreeMap::new();
    for entry in entries {
        let cold = &entry["coldStartMs"];
        let (Some(instance), Some(at), Some(total), Some(answer)) = (
            entry["instance"].as_str(),
            entry["at"].as_f64(),
            cold["total"].as_f64(),
            cold["answer"].as_f64(),
        ) else {
            continue;
        };
        let after_us = (at - began_us + (total - answer) * 1000.0).max(0.0);
        let after = Duration::from_secs_f64(after_us / 1e6);
        ready
            .entry(instance.to_owned())
            .and_modify(|known| *known = (*known).min(after))
            .or_insert(after);
    }
    Ok(ready)
}
