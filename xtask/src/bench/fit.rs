//! How many sleeping apps fit into so much memory: services are called one after the other, and kept by the server, until it lets the
//! first go. Then each is called once more, as if all were wanted on one day.
//!
//! The server is told to leave all but that memory alone (`memory-reserve`), so what decides is the server's own judgement.

use std::collections::BTreeMap;

use anyhow::{Context, bail};

use super::Settings;
use super::cold::image_of;
use super::programs::apps;
use super::server::Server;
use super::stats::{Series, table};
use super::tiers;

/// What the apps may have together.
const ROOM: u64 = 8 << 30;
/// More are not tried.
const MOST: usize = 600;
/// Deployed between two looks at who is still there.
const STEP: usize = 20;

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let mut report = String::new();
    let apps = apps(settings, &mut report)?;
    let Some(app) = apps.iter().find(|app| app.archive.is_some()) else {
        return Ok(format!("\n## Sleeping apps in 8 GiB\n{report}"));
    };
    let reserve = available()?.checked_sub(ROOM).context(
        "this machine has less than 8 GiB available: there is no room to try how many fit into them",
    )?;
    let server = Server::start_with(
        settings,
        "fit",
        &[],
        &[("UTSUWA_MEMORY_RESERVE", &reserve.to_string())],
    )?;
    let image = image_of(app, &server)?;
    let mut names: Vec<String> = Vec::new();
    let kept = loop {
        for _ in 0..STEP {
            let name = format!("fit-{}", names.len());
            server.deploy(&name, &image, "3600s", "512Mi")?;
            server.call(&name, app.path)?;
            names.push(name);
        }
        let kept = states(&server, &names)?;
        let there = kept.values().filter(|state| *state != GONE).count();
        if there < names.len() || names.len() >= MOST {
            break there;
        }
    };
    let mut samples: BTreeMap<String, Series> = BTreeMap::new();
    for name in &names {
        let state = state(&server, name)?;
        let took = server.call(name, app.path)?;
        samples.entry(state).or_default().push(took);
    }
    let rows: Vec<Vec<String>> = samples
        .iter()
        .map(|(state, series)| {
            vec![
                state.clone(),
                series.len().to_string(),
                format!("{:.2}", series.ms(50)),
                format!("{:.2}", series.ms(95)),
            ]
        })
        .collect();
    let swap = tiers::swap().unwrap_or_else(|why| format!("none: {why}"));
    Ok(format!(
        "\n## Sleeping {} apps in 8 GiB\n{kept} of {} services kept their instance (memory given back to: {swap}); then each was called (ms)\n{}",
        app.name,
        names.len(),
        table(&["was", "n", "p50", "p95"], &rows)
    ))
}

const GONE: &str = "not there";

/// What the instance of each is.
fn states(server: &Server, names: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
    let each = names
        .iter()
        .map(|name| Ok((name.clone(), state(server, name)?)));
    each.collect()
}

fn state(server: &Server, name: &str) -> anyhow::Result<String> {
    match server.instances(name)?.as_slice() {
        [] => Ok(GONE.to_owned()),
        [(state, _)] => Ok(state.clone()),
        more => bail!("{name} has {} instances", more.len()),
    }
}

/// Bytes that programs can still have.
fn available() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .context("/proc/meminfo: no MemAvailable")?;
    Ok(kib * 1024)
}
