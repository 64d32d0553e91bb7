//! `utsuwa doctor`: what this machine can and can't do, and the command that would fix it.

use std::net::ToSocketAddrs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args;
use serde_json::{Value, json};
use utsuwa_runtime::sandbox::cgroup::freezer;
use utsuwa_runtime::sandbox::probe::{CgroupMode, probe};
use utsuwa_runtime::sandbox::reclaim::swap;

use super::ClientArgs;
use crate::client::Failure;
use crate::output::{Format, items, line};

#[derive(Debug, Args)]
pub(crate) struct DoctorArgs {
    /// Data directory to look at.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/utsuwa")]
    data_dir: PathBuf,
}

/// One finding: `ok`, `note` (works, but less) or `bad` (instances can't run).
struct Finding {
    state: &'static str,
    what: String,
    says: String,
}

pub(crate) fn run(args: &DoctorArgs, client: &ClientArgs) -> Result<(), Failure> {
    let mut findings = kernel(&args.data_dir);
    findings.extend(idle());
    findings.push(root());
    findings.push(tool(
        "nft",
        "instances can't reach the internet without it",
        "apt-get install nftables",
    ));
    findings.push(names());
    findings.push(server(client));
    findings.push(disk(&args.data_dir));
    findings.push(files());
    let bad = findings.iter().filter(|f| f.state == "bad").count();
    if client.format == Format::Table {
        for finding in &findings {
            line(&format!(
                "{:<4}  {:<22} {}",
                finding.state, finding.what, finding.says
            ));
        }
        line("");
        line(&match bad {
            0 => "This machine can run instances.".to_owned(),
            1 => "1 thing must be fixed before instances can run.".to_owned(),
            n => format!("{n} things must be fixed before instances can run."),
        });
    } else {
        let all: Vec<Value> = findings
            .iter()
            .map(|f| json!({"state": f.state, "what": f.what, "says": f.says}))
            .collect();
        items(&client.format, &all, &[])?;
    }
    if bad == 0 {
        Ok(())
    } else {
        Err(Failure::failed("this machine can't run instances yet"))
    }
}

fn finding(state: &'static str, what: &str, says: impl Into<String>) -> Finding {
    Finding {
        state,
        what: what.to_owned(),
        says: says.into(),
    }
}

fn kernel(data: &Path) -> Vec<Finding> {
    let features = probe();
    let mode = match features.cgroup {
        CgroupMode::V2 => "v2",
        CgroupMode::V1 => "v1",
        CgroupMode::Hybrid => "v1 controllers beside an empty v2",
        CgroupMode::None => "none",
    };
    let mut all = vec![finding(
        "ok",
        "kernel",
        format!("Linux {}, cgroup {mode}", features.kernel),
    )];
    let required: Vec<&str> = features.lacking().iter().map(|(name, _)| *name).collect();
    for (name, feature) in features.all() {
        all.push(match feature {
            Ok(()) => finding("ok", name, "there"),
            Err(missing) if required.contains(&name) => finding("bad", name, missing.to_string()),
            Err(missing) => finding("note", name, missing.to_string()),
        });
    }
    let place = data
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or_else(|| Path::new("/"));
    all.push(match features.idmapped_overlay_on(place) {
        Ok(()) => finding(
            "ok",
            "data directory",
            format!("layers in {} need no copies", place.display()),
        ),
        Err(missing) => finding("note", "data directory", missing.to_string()),
    });
    all
}

/// What idle instances can be spared.
fn idle() -> [Finding; 2] {
    [
        match freezer() {
            Ok(()) => finding("ok", "CPU of the idle", "taken away between requests"),
            Err(why) => finding("note", "CPU of the idle", format!("kept: {why}")),
        },
        match swap() {
            Ok(device) => {
                let says = format!("given back to {device} after a minute");
                finding("ok", "memory of the idle", says)
            }
            Err(why) => finding("note", "memory of the idle", format!("kept: {why}")),
        },
    ]
}

fn root() -> Finding {
    if utsuwa_runtime::privilege::is_root() {
        finding("ok", "root", "yes; the server itself gives it up")
    } else {
        finding(
            "bad",
            "root",
            "no: the keeper makes namespaces, cgroups and mounts; run utsuwa up with sudo",
        )
    }
}

fn tool(name: &'static str, why: &str, fix: &str) -> Finding {
    let there = [
        name.to_owned(),
        format!("/usr/sbin/{name}"),
        format!("/sbin/{name}"),
    ]
    .iter()
    .any(|p| {
        Command::new(p)
            .arg("--version")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok()
    });
    if there {
        finding("ok", name, "installed")
    } else {
        finding("bad", name, format!("not installed: {why}; {fix}"))
    }
}

/// Whether programs that ask the C library find `*.localhost`; curl and browsers do so by themselves.
fn names() -> Finding {
    match ("hello.localhost", 80).to_socket_addrs() {
        Ok(addresses) if addresses.clone().all(|a| a.ip().is_loopback()) && addresses.len() > 0 => {
            finding("ok", "*.localhost", "resolves everywhere on this machine")
        }
        _ => finding(
            "note",
            "*.localhost",
            "resolves in curl and browsers only; other programs need a Host header, or: apt-get install libnss-myhostname",
        ),
    }
}

fn server(client: &ClientArgs) -> Finding {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    match runtime.map(|r| r.block_on(client.connect())) {
        Ok(Ok(api)) => finding(
            "ok",
            "server",
            format!(
                "answers at {} (project {}, region {})",
                client.api, api.project, api.region
            ),
        ),
        Ok(Err(failure)) => finding(
            "note",
            "server",
            format!("{failure}; start it with: utsuwa up"),
        ),
        Err(error) => finding("note", "server", format!("could not be asked: {error}")),
    }
}

fn disk(data: &Path) -> Finding {
    let place = data
        .ancestors()
        .find(|p| p.exists())
        .unwrap_or_else(|| Path::new("/"));
    match rustix::fs::statvfs(place) {
        Ok(stat) => {
            let free = stat.f_bavail * stat.f_frsize;
            let state = if free < 1 << 30 { "note" } else { "ok" };
            finding(
                state,
                "disk",
                format!("{} MiB free at {}", free >> 20, place.display()),
            )
        }
        Err(error) => finding("note", "disk", format!("{}: {error}", place.display())),
    }
}

fn files() -> Finding {
    let text = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let hard = text
        .lines()
        .find(|l| l.starts_with("Max open files"))
        .and_then(|l| l.split_whitespace().nth(4))
        .unwrap_or("?")
        .to_owned();
    let few = hard.parse::<u64>().is_ok_and(|n| n < 65_536);
    let says = format!("{hard} at most; an instance takes about 10");
    finding(if few { "note" } else { "ok" }, "open files", says)
}
