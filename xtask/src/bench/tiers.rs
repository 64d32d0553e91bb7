//! Waking what exists already: from the request to the whole answer of an instance that is awake, frozen, without its memory, or
//! not there at all.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Settings;
use super::cold::image_of;
use super::peers::App;
use super::programs::apps;
use super::server::Server;
use super::stats::{Series, table};

/// Instances side by side: enough to take many samples in the time one of them needs to fall asleep.
const TOGETHER: usize = 25;
/// Longest wait for a tier: the startup boost and the minute after which memory is given back, and some.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two samples, so that what one leaves to do isn't in the next.
const SETTLE: Duration = Duration::from_millis(20);

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let mut report = String::from("\n## Waking (ms)\n");
    for app in &apps(settings, &mut report)? {
        let table = one(settings, app)?;
        crate::say(&table);
        report.push_str(&table);
    }
    Ok(report)
}

/// One table: an app in all its tiers.
fn one(settings: &Settings, app: &App) -> anyhow::Result<String> {
    let server = Server::start(settings, "tiers", &[])?;
    let image = image_of(app, &server)?;
    let together = TOGETHER.min(settings.rounds);
    let names: Vec<String> = (0..together).map(|i| format!("tier-{i}")).collect();
    for name in &names {
        server.deploy(name, &image, "3600s", "512Mi")?;
        server.call(name, app.path)?;
    }
    let mut rows = Vec::new();
    let mut row = |name: &str, samples: &Series| {
        rows.push(vec![
            name.to_owned(),
            format!("{:.2}", samples.ms(50)),
            format!("{:.2}", samples.ms(95)),
            format!("{:.2}", samples.ms(99)),
            samples.len().to_string(),
        ]);
    };
    let called = |state: &str, rounds: usize| -> anyhow::Result<Series> {
        let mut samples = Series::default();
        for _ in 0..rounds {
            if state != "ready" {
                until(&server, &names, state)?;
            }
            for name in &names {
                std::thread::sleep(SETTLE);
                if state == "ready" {
                    server.call(name, app.path)?;
                }
                samples.push(server.call(name, app.path)?);
            }
        }
        Ok(samples)
    };
    let rounds = settings.rounds.div_ceil(together);
    row("awake", &called("ready", rounds)?);
    row("frozen", &called("frozen", rounds)?);
    let memory = match swap() {
        Ok(swap) => {
            until(&server, &names, "frozen")?;
            let before = resident_mib(&server, &names)?;
            until(&server, &names, "reclaimed")?;
            let after = resident_mib(&server, &names)?;
            row("memory given back", &called("reclaimed", rounds.min(2))?);
            format!(
                "Resident per instance: {before:.1} MiB frozen, {after:.1} MiB after giving back to {swap} ({:.0} % returned).\n",
                (1.0 - after / before) * 100.0
            )
        }
        Err(why) => format!("\"memory given back\" was left out: {why}.\n"),
    };
    let cold: Vec<String> = (0..settings.rounds).map(|i| format!("cold-{i}")).collect();
    for name in &cold {
        server.deploy(name, &image, "6s", "512Mi")?;
    }
    server.until_asleep(cold.iter().map(String::as_str))?;
    let mut samples = Series::default();
    for name in &cold {
        std::thread::sleep(SETTLE);
        samples.push(server.call(name, app.path)?);
    }
    row("not there (cold)", &samples);
    let head = ["", "p50", "p95", "p99", "n"];
    Ok(format!(
        "\n### {}\n{}{memory}",
        app.name,
        table(&head, &rows)
    ))
}

/// Until the instance of each of `names` is in `state`.
pub(super) fn until(server: &Server, names: &[String], state: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for name in names {
        loop {
            let instances = server.instances(name)?;
            if matches!(instances.as_slice(), [(is, _)] if is == state) {
                break;
            }
            if Instant::now() > deadline {
                bail!("{name} does not become {state}: {instances:?}");
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
    Ok(())
}

/// What takes the memory, or why nothing does. As the server judges it; its own words are in `utsuwa doctor`.
pub(super) fn swap() -> Result<String, String> {
    let table = std::fs::read_to_string("/proc/swaps").unwrap_or_default();
    let devices: Vec<&str> = table
        .lines()
        .skip(1)
        .filter_map(|line| line.split_whitespace().next())
        .collect();
    if devices.is_empty() {
        return Err("this machine has no swap (zram would do)".to_owned());
    }
    match devices
        .iter()
        .find(|device| !device.starts_with("/dev/zram"))
    {
        Some(other) => Err(format!("the swap at {other} is not zram")),
        None => Ok(devices.join(", ")),
    }
}

/// Resident memory of the processes of an instance, on average.
fn resident_mib(server: &Server, names: &[String]) -> anyhow::Result<f64> {
    let mut kib = 0_u64;
    for name in names {
        for (_, pid) in server.instances(name)? {
            let inside = std::fs::read_link(format!("/proc/{pid}/ns/pid"))
                .with_context(|| format!("process {pid}"))?;
            kib += resident_kib(&inside)?;
        }
    }
    #[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mib = kib as f64 / 1024.0 / names.len() as f64;
    Ok(mib)
}

/// Of all processes in one pid namespace.
fn resident_kib(namespace: &Path) -> anyhow::Result<u64> {
    let mut kib = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let path = entry.path();
        if std::fs::read_link(path.join("ns/pid")).is_ok_and(|found| found == namespace) {
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"));
            let number = line.and_then(|l| l.split_whitespace().next());
            kib += number.and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(kib)
}
