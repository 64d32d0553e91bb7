//! Section `http`: the data path beside nginx, haproxy and caddy as reverse proxies, in one run.
//!
//! All of them stream bodies both ways as we do, which nginx does only when it is told to (`proxy_buffering off`): that is the row
//! "nginx", which ratios refer to. "nginx-buffered" is nginx as it is by default.
//!
//! Every proxy has CPU 0 to itself; upstream app, load generator and this program share the last CPU, the same way for everybody. The app is
//! the sample `hello` (`/ticks`, a few bytes) but for large bodies up and WebSockets: for us in its sandbox, for the peers as a plain process, which spares them the
//! way through a network namespace. For us limits, metrics and request log are on; the peers write their access log, nginx
//! with a buffer, since ours is batched too. Load: h2load, one thread. CPU is user and system time of all the proxy's processes.

mod apps;
mod bodies;
mod held;
mod load;
mod memory;
mod peer;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use apps::Apps;
use load::{Load, Measured};
use peer::{Proxy, Work};

use super::server::{Server, free_port};
use super::stats::table;
use super::{Settings, http};

const CONNECTIONS: [usize; 3] = [1, 64, 256];
const PROXY_CPU: usize = 0;
/// More than idle connections need, on both sides.
const OPEN_FILES: usize = 65_536;

/// What the client speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spoken {
    Http1,
    H2c,
    Tls,
}

impl Spoken {
    const ALL: [Self; 3] = [Self::Http1, Self::H2c, Self::Tls];

    const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2c => "h2c",
            Self::Tls => "tls",
        }
    }
}

pub(super) fn run(settings: &Settings) -> anyhow::Result<String> {
    let open_files = raise_open_files()?;
    let wants = |part: &str| settings.http.is_empty() || settings.http.iter().any(|p| p == part);
    let work = Work::new(settings)?;
    let apps = Apps::start(settings)?;
    let https = free_port()?;
    let flags = ["--listen-https", &format!("127.0.0.1:{https}")];
    let server = Server::start(settings, "http", &flags)?;
    apps.deploy(&server, settings)?;
    server.call("http", "/ticks")?;
    let mut proxies = vec![Proxy::utsuwa(&server, https)?];
    proxies.extend(Proxy::peers(&work, &apps)?);
    for proxy in &proxies {
        for pid in proxy.pids() {
            pin(pid, PROXY_CPU)?;
        }
    }
    let _elsewhere = Elsewhere::go(apps.cpu)?;
    let mut report = String::from(
        "\n## Requests through a proxy\nnginx: unbuffered, as the others are; nginx-buffered: its default\n",
    );
    for spoken in Spoken::ALL {
        if wants(spoken.name()) {
            let text = requests(&proxies, spoken, apps.cpu, settings)?;
            crate::say(&text);
            report.push_str(&text);
        }
    }
    let compared: Vec<&Proxy> = proxies.iter().filter(|p| p.name != "caddy").collect();
    // Buffers are for bodies: a connection that is held is the same with and without.
    let held: Vec<&Proxy> = compared
        .iter()
        .filter(|p| p.name != peer::BUFFERED)
        .copied()
        .collect();
    for part in ["bodies", "idle", "websockets"] {
        if wants(part) {
            let text = match part {
                "bodies" => bodies::run(&compared, apps.cpu, settings)?,
                "idle" => held::idle(&held, open_files)?,
                _ => held::websockets(&held)?,
            };
            crate::say(&text);
            report.push_str(&text);
        }
    }
    Ok(report)
}

fn requests(
    proxies: &[Proxy],
    spoken: Spoken,
    cpu: usize,
    settings: &Settings,
) -> anyhow::Result<String> {
    let mut rows = Vec::new();
    for connections in CONNECTIONS {
        let mut taken: Vec<(&str, Measured)> = Vec::new();
        for proxy in proxies {
            let Some(target) = proxy.target(spoken) else {
                continue;
            };
            let load = Load {
                target,
                path: "/ticks",
                connections,
                body: None,
                cpu,
            };
            load.run(Duration::from_secs(1), proxy, &settings.work)?;
            let measured = load
                .run(Duration::from_secs(3), proxy, &settings.work)
                .with_context(|| {
                    format!(
                        "{}, {connections} connections, {}",
                        proxy.name,
                        spoken.name()
                    )
                })?;
            taken.push((proxy.name, measured));
        }
        let nginx = taken
            .iter()
            .find(|(name, _)| *name == "nginx")
            .map(|(_, m)| m.clone());
        for (name, measured) in taken {
            let ratio = |own: f64, of: fn(&Measured) -> f64| {
                nginx
                    .as_ref()
                    .map_or_else(String::new, |nginx| format!("{:.2}", own / of(nginx)))
            };
            rows.push(vec![
                connections.to_string(),
                name.to_owned(),
                format!("{:.0}", measured.per_second),
                ratio(measured.per_second, |m| m.per_second),
                format!("{:.0}", measured.p50_us),
                format!("{:.0}", measured.p99_us),
                ratio(measured.p99_us, |m| m.p99_us),
                format!("{:.1}", measured.cpu_us),
                ratio(measured.cpu_us, |m| m.cpu_us),
            ]);
        }
    }
    if rows.is_empty() {
        return Ok(format!("{}: nothing here speaks it\n", spoken.name()));
    }
    let head = [
        "conn.",
        spoken.name(),
        "req/s",
        "÷ nginx",
        "p50 µs",
        "p99 µs",
        "÷ nginx",
        "CPU µs/req",
        "÷ nginx",
    ];
    Ok(format!("{}\n", table(&head, &rows)))
}

/// Waits until somebody answers 200 at a port of this machine.
fn until_answers(port: u16) -> anyhow::Result<()> {
    let address = std::net::SocketAddr::from((std::net::Ipv4Addr::LOCALHOST, port));
    http::until_up(address, "/ticks", Instant::now(), || None).map(drop)
}

/// Keeps all threads of a process on one processor.
fn pin(pid: u32, cpu: usize) -> anyhow::Result<()> {
    on(pid, &cpu.to_string())
}

fn on(pid: u32, cpus: &str) -> anyhow::Result<()> {
    quietly(Command::new("taskset").args(["-a", "-c", "-p", cpus, &pid.to_string()]))
}

/// This program on another processor than the proxies', as long as this is there.
struct Elsewhere {
    before: String,
}

impl Elsewhere {
    fn go(cpu: usize) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let before = status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
            .context("which processors this program may use")?;
        let before = before.trim().to_owned();
        pin(std::process::id(), cpu)?;
        Ok(Self { before })
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // What cannot be undone shows in the figures of other sections, which say how many processors they had.
        drop(on(std::process::id(), &self.before));
    }
}

/// As many open files as this process may have; what it starts inherits that. Answers how many.
fn raise_open_files() -> anyhow::Result<usize> {
    let limits = std::fs::read_to_string("/proc/self/limits").context("read the limits")?;
    let hard = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))
        .and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(OPEN_FILES);
    let most = hard.min(OPEN_FILES);
    let limit = format!("--nofile={most}:{hard}");
    quietly(Command::new("prlimit").args(["--pid", &std::process::id().to_string(), &limit]))?;
    Ok(most)
}

fn quietly(command: &mut Command) -> anyhow::Result<()> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {command:?}"))?;
    if !done.status.success() {
        bail!(
            "{command:?}: {}: {}",
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(())
}
