//! The whole system at rest with 10 services: memory (PSS) of every process of ours.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Settings;
use super::server::Server;
use super::stats::table;

/// As many processes for so long: nothing is made any more.
const STANDS: Duration = Duration::from_secs(15);
const PATIENCE: Duration = Duration::from_secs(180);
const LOOK: Duration = Duration::from_millis(250);

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let server = Server::start(settings, "rest", &[])?;
    let names: Vec<String> = (0..10).map(|i| format!("rest-{i}")).collect();
    for name in &names {
        server.deploy(name, "utsuwa.local/hello", "6s", "512Mi")?;
    }
    server.until_asleep(names.iter().map(String::as_str))?;
    let program = settings.utsuwa.to_string_lossy();
    until_the_pool_stands(server.pid(), &program)?;
    let mut rows = Vec::new();
    let mut total = 0;
    for (pid, role) in ours(server.pid(), &program)? {
        let kib = pss_kib(pid)?;
        total += kib;
        rows.push(vec![role, pid.to_string(), format!("{:.1}", mib(kib))]);
    }
    rows.push(vec![
        "all".to_owned(),
        String::new(),
        format!("{:.1}", mib(total)),
    ]);
    Ok(format!(
        "\n## At rest with 10 services, the pool at its size: PSS (MiB; promised: under 60)\n{}",
        table(&["role", "pid", "MiB"], &rows)
    ))
}

/// The pool of sandboxes grows once all is calm: at rest is when it has its size.
fn until_the_pool_stands(server: u32, program: &str) -> anyhow::Result<()> {
    let began = Instant::now();
    let mut last = (0, Instant::now());
    while last.1.elapsed() < STANDS {
        let count = ours(server, program)?.len();
        if count != last.0 {
            last = (count, Instant::now());
        }
        if began.elapsed() > PATIENCE {
            bail!("the pool of sandboxes still changes after {PATIENCE:?}");
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
pub(super) fn mib(kib: u64) -> f64 {
    kib as f64 / 1024.0
}

/// Every process that runs our program: the server, its keeper, spawners and pooled sandboxes.
pub(super) fn ours(server: u32, program: &str) -> anyhow::Result<Vec<(u32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let exe = std::fs::read_link(entry.path().join("exe")).unwrap_or_default();
        if exe.to_string_lossy() != program {
            continue;
        }
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let words: Vec<String> = line
            .split(|b| *b == 0)
            .map(|w| String::from_utf8_lossy(w).into_owned())
            .collect();
        let role = if pid == server {
            "server".to_owned()
        } else {
            words.get(1..3).map(|w| w.join(" ")).unwrap_or_default()
        };
        found.push((pid, role));
    }
    found.sort();
    Ok(found)
}

pub(super) fn pss_kib(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    text.lines()
        .find_map(|l| l.strip_prefix("Pss:"))
        .and_then(|l| l.split_whitespace().next())
        .and_then(|n| n.parse().ok())
        .with_context(|| format!("{path}: no Pss"))
}
