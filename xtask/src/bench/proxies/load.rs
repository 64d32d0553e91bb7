//! One load on one proxy: h2load, and what it and the kernel say about it.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::Spoken;
use super::peer::{Proxy, Target};

/// What is sent.
#[derive(Debug)]
pub(super) struct Load<'a> {
    pub target: Target,
    pub path: &'a str,
    pub connections: usize,
    /// A file that each request carries.
    pub body: Option<&'a Path>,
    pub cpu: usize,
}

/// What came of it.
#[derive(Debug, Clone)]
pub(super) struct Measured {
    pub per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// Of all the proxy's processes, per request.
    pub cpu_us: f64,
}

impl Load<'_> {
    /// Sends for `time`, one request at a time on each connection.
    pub(super) fn run(
        &self,
        time: Duration,
        proxy: &Proxy,
        work: &Path,
    ) -> anyhow::Result<Measured> {
        let log = work.join("h2load.log");
        drop(std::fs::remove_file(&log));
        let scheme = if self.target.spoken == Spoken::Tls {
            "https"
        } else {
            "http"
        };
        let port = self.target.port;
        let mut command = Command::new("taskset");
        command
            .args(["-c", &self.cpu.to_string(), "h2load", "-t1", "-m1"])
            .args(["-c", &self.connections.to_string()])
            .args(["-D", &time.as_secs().to_string()])
            .args(["--connect-to", &format!("127.0.0.1:{port}")])
            .arg(format!("--log-file={}", log.display()));
        if self.target.spoken == Spoken::Http1 {
            command.arg("--h1");
        }
        if let Some(body) = self.body {
            command.arg("-d").arg(body);
        }
        command.arg(format!("{scheme}://http.localhost:{port}{}", self.path));
        let before = proxy.cpu();
        let done = command
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output()
            .context("run h2load")?;
        let used = proxy.cpu().saturating_sub(before);
        let said = String::from_utf8_lossy(&done.stdout);
        if !done.status.success() || !said.contains(" 0 failed, 0 errored, 0 timeout") {
            bail!("h2load {}: {said}", done.status);
        }
        measured(&std::fs::read_to_string(&log)?, time, used)
    }
}

/// h2load's log: start, status and time of each request, in microseconds.
fn measured(log: &str, time: Duration, used: Duration) -> anyhow::Result<Measured> {
    let mut took = Vec::new();
    for line in log.lines() {
        let mut fields = line.split('\t').skip(1);
        let (status, time) = (
            fields.next(),
            fields.next().and_then(|t| t.parse::<u32>().ok()),
        );
        match (status, time) {
            (Some("200"), Some(time)) => took.push(time),
            _ => bail!("an answer that is not 200: {line}"),
        }
    }
    took.sort_unstable();
    let last = took
        .len()
        .checked_sub(1)
        .context("no request was answered")?;
    let at = |percent: usize| f64::from(took[(took.len() * percent / 100).min(last)]);
    #[expect(clippy::cast_precision_loss, reason = "a count of requests")]
    let count = took.len() as f64;
    Ok(Measured {
        per_second: count / time.as_secs_f64(),
        p50_us: at(50),
        p99_us: at(99),
        cpu_us: used.as_secs_f64() * 1e6 / count,
    })
}
