//! Bodies: 1 MiB both ways, 1 GiB down in pieces, and what the proxy's memory does meanwhile.
//!
//! 1 GiB up is not here: over HTTP/1.1 a request has at most 32 MiB, as on Cloud Run, and hello speaks nothing else.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::super::rest::mib;
use super::Settings;
use super::load::Load;
use super::peer::Proxy;
use super::{Spoken, table};

const MIB: u64 = 1 << 20;
const CONNECTIONS: usize = 8;
/// How often memory is looked at.
const LOOK: Duration = Duration::from_millis(20);

pub(super) fn run(proxies: &[&Proxy], cpu: usize, settings: &Settings) -> anyhow::Result<String> {
    let body = settings.work.join("1MiB");
    std::fs::write(&body, vec![b'x'; usize::try_from(MIB)?])?;
    let mut rows = Vec::new();
    for proxy in proxies {
        for (what, path, body) in [
            ("1 MiB down, 8 conn.", "/bytes?n=1048576", None),
            ("1 MiB up, 8 conn.", "/bytes", Some(body.as_path())),
        ] {
            let target = proxy.target(Spoken::Http1).context("HTTP/1.1")?;
            let load = Load {
                target,
                path,
                connections: CONNECTIONS,
                body,
                cpu,
            };
            let before = proxy.resident_kib();
            let measured = load.run(Duration::from_secs(2), proxy, &settings.work)?;
            rows.push(vec![
                what.to_owned(),
                proxy.name.to_owned(),
                format!("{:.0}", measured.per_second),
                format!("{:.0}", measured.cpu_us),
                format!("{:.1} → {:.1}", mib(before), mib(proxy.resident_kib())),
            ]);
        }
        rows.push(large(proxy, cpu)?);
    }
    rows.sort_by_key(|row| row[0].clone());
    let head = ["body", "proxy", "MiB/s", "CPU µs/MiB", "memory MiB"];
    Ok(format!("\n### Bodies\n{}", table(&head, &rows)))
}

/// 1 GiB down one connection; memory is the largest that was seen.
fn large(proxy: &Proxy, cpu: usize) -> anyhow::Result<Vec<String>> {
    let (memory, used, started) = (proxy.resident_kib(), proxy.cpu(), Instant::now());
    let mut child = Command::new("taskset")
        .args([
            "-c",
            &cpu.to_string(),
            "curl",
            "-sS",
            "--fail",
            "-o",
            "/dev/null",
        ])
        .args(["-w", "%{size_download}", "-H", "Host: http.localhost"])
        .arg(format!(
            "http://127.0.0.1:{}/bytes?n={}",
            proxy.port(),
            1024 * MIB
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run curl")?;
    let mut most = memory;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        most = most.max(proxy.resident_kib());
        std::thread::sleep(LOOK);
    };
    let took = started.elapsed();
    let used = proxy.cpu().saturating_sub(used);
    let said = std::io::read_to_string(child.stdout.take().context("curl's stdout")?)?;
    if !status.success() || said != (1024 * MIB).to_string() {
        bail!("{}: 1 GiB: {status}, {said} bytes", proxy.name);
    }
    Ok(vec![
        "1 GiB down, 1 conn.".to_owned(),
        proxy.name.to_owned(),
        format!("{:.0}", 1024.0 / took.as_secs_f64()),
        format!("{:.0}", used.as_secs_f64() * 1e6 / 1024.0),
        format!("{:.1} → at most {:.1}", mib(memory), mib(most)),
    ])
}
