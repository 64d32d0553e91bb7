//! `cargo xtask bench`: the promises of SPECIFICATION.md, measured side by side with what is installed, in one run.
//!
//! Decision 28: "bare" is the same program spawned by this program with no sandbox, in a chroot; everybody is probed by the same
//! code; p50, p95 and p99; quiet and with both CPUs busy; warm and with dropped caches. Ratios count, absolute times don't.
//! Load goes to loopback only, is bounded, and everything started here is ended here by its process id.

mod burst;
mod cold;
mod density;
mod fit;
mod http;
mod kernel;
mod many;
mod peers;
mod programs;
mod proxies;
mod pull;
mod rate;
mod rest;
mod server;
mod stats;
mod tiers;
mod zygote;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// What to measure and with what.
#[derive(Debug)]
pub(crate) struct Settings {
    pub utsuwa: PathBuf,
    /// Where everything is made; removed at the end.
    pub work: PathBuf,
    pub rounds: usize,
    pub many: usize,
    /// Idle instances of the section `density`.
    pub idle: usize,
    /// How long the section `rate` starts and stops sandboxes.
    pub seconds: u64,
    pub sections: Vec<String>,
    /// Conditions of the cold starts: `quiet`, `busy`, `dropped`.
    pub conditions: Vec<String>,
    /// Programs that are started: `hello`, `flask`.
    pub apps: Vec<String>,
    /// Parts of the section `http`: `http1`, `h2c`, `tls`, `bodies`, `idle`, `websockets`; all when empty.
    pub http: Vec<String>,
    /// OCI archive of examples/flask-chat, if it was built.
    pub flask: Option<PathBuf>,
}

const SECTIONS: &[&str] = &[
    "cold", "zygote", "tiers", "pull", "rest", "twenty", "burst", "rate", "density", "fit", "many",
    "http",
];

pub(crate) fn main(args: &[String]) -> anyhow::Result<String> {
    let settings = parse(args)?;
    if !Path::new("/proc/self/ns/user").exists() || !is_root() {
        bail!("the benchmark starts servers and sandboxes and needs root");
    }
    std::fs::create_dir_all(&settings.work)
        .with_context(|| format!("make {}", settings.work.display()))?;
    crate::say(&conditions());
    let mut report = String::new();
    for section in &settings.sections {
        let text = match section.as_str() {
            "cold" => cold::run(&settings),
            "zygote" => zygote::run(&settings),
            "tiers" => tiers::run(&settings),
            "pull" => pull::run(&settings),
            "rest" => rest::run(&settings),
            "twenty" => many::twenty(&settings),
            "burst" => burst::run(&settings),
            "rate" => rate::run(&settings),
            "density" => density::run(&settings),
            "fit" => fit::run(&settings),
            "http" => proxies::run(&settings),
            _ => many::run(&settings),
        }
        .with_context(|| format!("section {section}"))?;
        // These show what they have as soon as they have it.
        if !["cold", "tiers", "rate", "http"].contains(&section.as_str()) {
            crate::say(&text);
        }
        report.push_str(&text);
    }
    let kept = settings.work.join("report.txt");
    std::fs::write(&kept, format!("{}\n{report}", conditions()))
        .with_context(|| format!("write {}", kept.display()))?;
    Ok(format!("kept in {}", kept.display()))
}

#[expect(
    clippy::disallowed_methods,
    reason = "`make bench` names its inputs in the environment"
)]
fn parse(args: &[String]) -> anyhow::Result<Settings> {
    let mut settings = Settings {
        utsuwa: PathBuf::new(),
        work: PathBuf::from("target/bench"),
        rounds: 50,
        many: 1000,
        idle: 500,
        seconds: 60,
        sections: SECTIONS.iter().map(|s| (*s).to_owned()).collect(),
        conditions: ["quiet", "busy", "dropped"].map(str::to_owned).to_vec(),
        apps: ["hello", "flask"].map(str::to_owned).to_vec(),
        http: Vec::new(),
        flask: std::env::var_os("UTSUWA_TEST_FLASK_IMAGE").map(PathBuf::from),
    };
    let mut rest = args.iter();
    while let Some(flag) = rest.next() {
        let value = rest
            .next()
            .with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--utsuwa" => settings.utsuwa = PathBuf::from(value),
            "--work" => settings.work = PathBuf::from(value),
            "--rounds" => settings.rounds = value.parse().context("--rounds")?,
            "--many" => settings.many = value.parse().context("--many")?,
            "--idle" => settings.idle = value.parse().context("--idle")?,
            "--seconds" => settings.seconds = value.parse().context("--seconds")?,
            "--flask" => settings.flask = Some(PathBuf::from(value)),
            "--conditions" => settings.conditions = value.split(',').map(str::to_owned).collect(),
            "--apps" => settings.apps = value.split(',').map(str::to_owned).collect(),
            "--http" => settings.http = value.split(',').map(str::to_owned).collect(),
            "--only" => settings.sections = value.split(',').map(str::to_owned).collect(),
            other => bail!(
                "{other}: no such flag; there are --utsuwa, --work, --rounds, --many, --idle, --seconds, --flask, --conditions quiet,busy,dropped, --apps hello,flask, --http http1,h2c,tls,bodies,idle,websockets, --only {}",
                SECTIONS.join(",")
            ),
        }
    }
    if let Some(unknown) = settings
        .sections
        .iter()
        .find(|s| !SECTIONS.contains(&s.as_str()))
    {
        bail!("--only {unknown}: there are {}", SECTIONS.join(", "));
    }
    settings.utsuwa = settings
        .utsuwa
        .canonicalize()
        .context("--utsuwa PROGRAM is needed (cargo build --release)")?;
    std::fs::create_dir_all(&settings.work)?;
    settings.work = settings.work.canonicalize()?;
    Ok(settings)
}

fn is_root() -> bool {
    std::fs::read_to_string("/proc/self/status").is_ok_and(|status| {
        status
            .lines()
            .any(|l| l.starts_with("Uid:") && l.split_whitespace().nth(2) == Some("0"))
    })
}

/// Kernel, cgroup version, processors: what figures depend on.
fn conditions() -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let cgroup = if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
        "v2"
    } else {
        "v1"
    };
    format!("kernel {}, {cpus} CPUs, cgroup {cgroup}", kernel.trim())
}
