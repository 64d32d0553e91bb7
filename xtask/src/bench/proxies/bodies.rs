//! Bodies: 1 MiB and 1 GiB both ways, and what the proxy's memory does meanwhile.
//!
//! 1 GiB up goes over HTTP/2, in and out: over HTTP/1.1 a request has at most 32 MiB, as on Cloud Run.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::apps::TAKES;
use super::load::Load;
use super::memory::{Seen, Watch};
use super::peer::Proxy;
use super::{Settings, Spoken, table};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const CONNECTIONS: usize = 8;

/// One row before it is compared.
struct Row {
    what: &'static str,
    proxy: &'static str,
    per_second: f64,
    cpu_us: f64,
    memory: Seen,
}

pub(super) fn run(proxies: &[&Proxy], cpu: usize, settings: &Settings) -> anyhow::Result<String> {
    let small = settings.work.join("1MiB");
    std::fs::write(&small, vec![b'x'; usize::try_from(MIB)?])?;
    let large = settings.work.join("1GiB");
    std::fs::File::create(&large)?.set_len(GIB)?;
    // Whoever comes first would wait for the kernel's filling of the file's holes.
    std::io::copy(&mut std::fs::File::open(&large)?, &mut std::io::sink())?;
    let mut rows = Vec::new();
    for what in ["1 MiB down", "1 MiB up", "1 GiB down", "1 GiB up"] {
        for proxy in proxies {
            let row = match what {
                "1 MiB down" => many(what, proxy, "/bytes?n=1048576", None, cpu, settings),
                "1 MiB up" => many(what, proxy, "/bytes", Some(&small), cpu, settings),
                "1 GiB down" => one(what, proxy, None, cpu),
                _ => one(what, proxy, Some(&large), cpu),
            };
            rows.push(row.with_context(|| format!("{what} through {}", proxy.name))?);
        }
    }
    std::fs::remove_file(&large)?;
    let nginx = |what: &str| rows.iter().find(|r| r.what == what && r.proxy == "nginx");
    let shown: Vec<Vec<String>> = rows
        .iter()
        .map(|row| {
            let ratio = |of: fn(&Row) -> f64| {
                nginx(row.what).map_or_else(String::new, |n| format!("{:.2}", of(row) / of(n)))
            };
            vec![
                row.what.to_owned(),
                row.proxy.to_owned(),
                format!("{:.0}", row.per_second),
                ratio(|row| row.per_second),
                format!("{:.0}", row.cpu_us),
                ratio(|row| row.cpu_us),
                row.memory.to_string(),
            ]
        })
        .collect();
    let head = [
        "body",
        "proxy",
        "MiB/s",
        "÷ nginx",
        "CPU µs/MiB",
        "÷ nginx",
        "PSS before / most / after, MiB",
    ];
    Ok(format!(
        "\n### Bodies: 1 MiB over {CONNECTIONS} connections (HTTP/1.1), 1 GiB over one (down HTTP/1.1, up h2c)\n{}",
        table(&head, &shown)
    ))
}

fn many(
    what: &'static str,
    proxy: &Proxy,
    path: &str,
    body: Option<&Path>,
    cpu: usize,
    settings: &Settings,
) -> anyhow::Result<Row> {
    let load = Load {
        target: proxy.target(Spoken::Http1).context("HTTP/1.1")?,
        path,
        connections: CONNECTIONS,
        body,
        cpu,
    };
    load.run(Duration::from_secs(1), proxy, &settings.work)?;
    let watch = Watch::start(proxy)?;
    let measured = load.run(Duration::from_secs(3), proxy, &settings.work)?;
    Ok(Row {
        what,
        proxy: proxy.name,
        per_second: measured.per_second,
        cpu_us: measured.cpu_us,
        memory: watch.seen()?,
    })
}

/// One body of 1 GiB over one connection.
fn one(what: &'static str, proxy: &Proxy, body: Option<&Path>, cpu: usize) -> anyhow::Result<Row> {
    let mut curl = Command::new("taskset");
    curl.args(["-c", &cpu.to_string(), "curl", "-sS", "--fail"]);
    let (target, wanted) = match body {
        None => {
            let target = proxy.target(Spoken::Http1).context("HTTP/1.1")?;
            curl.args(["-H", "Host: http.localhost", "-o", "/dev/null"]);
            curl.args(["-w", "%{size_download}"]);
            curl.arg(format!("http://127.0.0.1:{}/bytes?n={GIB}", target.port));
            (target, GIB.to_string())
        }
        Some(body) => {
            let target = proxy.target(Spoken::H2c).context("h2c")?;
            curl.args(["-H", &format!("Host: {TAKES}.localhost")]);
            curl.arg("--http2-prior-knowledge").arg("-T").arg(body);
            curl.arg(format!("http://127.0.0.1:{}/{TAKES}", target.port));
            (target, format!("{GIB}\n"))
        }
    };
    let (watch, used, started) = (Watch::start(proxy)?, proxy.cpu(), Instant::now());
    let done = curl.stdin(Stdio::null()).output().context("run curl")?;
    let (took, used) = (started.elapsed(), proxy.cpu().saturating_sub(used));
    let said = String::from_utf8_lossy(&done.stdout);
    if !done.status.success() || said != wanted {
        bail!(
            "port {}: {}, {said} instead of {wanted}: {}",
            target.port,
            done.status,
            String::from_utf8_lossy(&done.stderr)
        );
    }
    Ok(Row {
        what,
        proxy: proxy.name,
        per_second: 1024.0 / took.as_secs_f64(),
        cpu_us: used.as_secs_f64() * 1e6 / 1024.0,
        memory: watch.seen()?,
    })
}
