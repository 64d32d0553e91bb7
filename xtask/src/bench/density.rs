//! Many idle instances: what each costs beyond its app.
//!
//! What is used is what the kernel says isn't free, before and after, with the caches dropped both times: so everything counts that
//! an instance takes, whoever holds it; and so does what others take or free meanwhile. What is counted by kind (the kernel's
//! memory, and our processes) hardly knows others. The same with as many bare processes of the same program says what of it is the app. Services
//! are deployed and asleep before; what a service costs is not in it (section `many`).

use std::collections::BTreeMap;
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::Settings;
use super::cold::drop_caches;
use super::programs::hello;
use super::rest::pss_kib;
use super::server::Server;
use super::stats::table;
use super::tiers;

/// Until dropping caches frees nothing more, less than this in KiB and at most so often: the kernel frees part of it later.
const SETTLED: i64 = 256;
const DROPS: usize = 20;
/// Longest wait for all bare processes to listen.
const PATIENCE: Duration = Duration::from_secs(30);
/// Kinds of kernel memory in /proc/meminfo that don't overlap (stacks are in `VmallocUsed`).
const KINDS: [&str; 4] = ["Slab", "PageTables", "Percpu", "VmallocUsed"];

/// In KiB.
#[derive(Debug, Default)]
struct Memory {
    used: i64,
    kinds: BTreeMap<&'static str, i64>,
    /// PSS of all processes of our program.
    ours: i64,
    /// PSS of the apps.
    apps: i64,
}

impl Memory {
    /// Beyond the apps: the kernel's, and our processes.
    fn by_kind(&self) -> i64 {
        self.ours + self.kinds.values().sum::<i64>()
    }
}

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let bare = bare(settings)?;
    let utsuwa = utsuwa(settings)?;
    let rows: Vec<Vec<String>> = [
        ("bare process", &bare),
        ("utsuwa, idle and frozen", &utsuwa),
    ]
    .into_iter()
    .map(|(name, memory)| row(name, memory, settings.idle))
    .collect();
    let mut head = vec![
        "",
        "all",
        "app (PSS)",
        "all − app",
        "by kind",
        "our processes (PSS)",
    ];
    head.extend(KINDS);
    Ok(format!(
        "\n## {} idle instances of hello: KiB for each (promised: under 1,024 beyond the app)\n{}beyond the same app as a bare process: {:.0} KiB each; by kind {:.0}\n",
        settings.idle,
        table(&head, &rows),
        each(utsuwa.used - bare.used, settings.idle),
        each(utsuwa.by_kind() - bare.by_kind(), settings.idle),
    ))
}

fn row(name: &str, memory: &Memory, count: usize) -> Vec<String> {
    let each = |kib: i64| format!("{:.0}", each(kib, count));
    let mut row = vec![
        name.to_owned(),
        each(memory.used),
        each(memory.apps),
        each(memory.used - memory.apps),
        each(memory.by_kind()),
        each(memory.ours),
    ];
    row.extend(
        KINDS
            .iter()
            .map(|kind| each(memory.kinds.get(kind).copied().unwrap_or(0))),
    );
    row
}

#[expect(clippy::cast_precision_loss, reason = "shown without decimals")]
fn each(kib: i64, count: usize) -> f64 {
    kib as f64 / count.max(1) as f64
}

/// What `after` has more than `before`.
fn more(before: &Memory, after: &Memory) -> Memory {
    let kinds = after.kinds.iter().map(|(kind, kib)| {
        let then = before.kinds.get(kind).copied().unwrap_or(0);
        (*kind, kib - then)
    });
    Memory {
        used: after.used - before.used,
        kinds: kinds.collect(),
        ours: after.ours - before.ours,
        apps: after.apps - before.apps,
    }
}

/// Drops caches until that changes nothing more, and answers what is used then, in KiB: without files' pages, most of which are
/// of others and, while they are written, can't be dropped.
fn used() -> anyhow::Result<i64> {
    let mut last = i64::MAX;
    for _ in 0..DROPS {
        drop_caches()?;
        std::thread::sleep(Duration::from_millis(500));
        let text = meminfo()?;
        let files = kib(&text, "Buffers")? + kib(&text, "Cached")? - kib(&text, "Shmem")?;
        let now = kib(&text, "MemTotal")? - kib(&text, "MemFree")? - files;
        if last.saturating_sub(now) < SETTLED {
            return Ok(now);
        }
        last = now;
    }
    bail!("the memory in use goes on falling: somebody else is freeing some");
}

fn meminfo() -> anyhow::Result<String> {
    std::fs::read_to_string("/proc/meminfo").context("read /proc/meminfo")
}

fn kib(meminfo: &str, name: &str) -> anyhow::Result<i64> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .with_context(|| format!("/proc/meminfo: no {name}"))
}

/// `program` and `server` tell which processes are ours; `apps` are the apps'.
fn memory(ours: Option<(&Server, &str)>, apps: &[u32]) -> anyhow::Result<Memory> {
    let used = used()?;
    let text = meminfo()?;
    let mut all = Memory {
        used,
        ..Memory::default()
    };
    if let Some((server, program)) = ours {
        for (pid, role) in super::rest::ours(server.pid(), program)? {
            match pss_kib(pid) {
                Ok(kib) => all.ours += i64::try_from(kib)?,
                // The pool lets go of a sandbox now and then.
                Err(_) if !Path::new(&format!("/proc/{pid}")).exists() => {}
                Err(error) => return Err(error.context(role)),
            }
        }
    }
    for pid in apps {
        all.apps += i64::try_from(pss_kib(*pid)?)?;
    }
    for kind in KINDS {
        all.kinds.insert(kind, kib(&text, kind)?);
    }
    Ok(all)
}

fn utsuwa(settings: &Settings) -> anyhow::Result<Memory> {
    let server = Server::start(settings, "density", &[])?;
    let names: Vec<String> = (0..settings.idle).map(|i| format!("idle-{i}")).collect();
    for name in &names {
        server.deploy(name, "utsuwa.local/hello", "3600s", "128Mi")?;
    }
    server.until_asleep(names.iter().map(String::as_str))?;
    let program = settings.utsuwa.to_string_lossy();
    let before = memory(Some((&server, &program)), &[])?;
    for name in &names {
        server.call(name, "/")?;
    }
    tiers::until(&server, &names, "frozen")?;
    let mut apps = Vec::new();
    for name in &names {
        for (_, pid) in server.instances(name)? {
            apps.push(u32::try_from(pid)?);
        }
    }
    if apps.len() != names.len() {
        bail!("{} instances instead of {}", apps.len(), names.len());
    }
    Ok(more(&before, &memory(Some((&server, &program)), &apps)?))
}

/// As many bare processes of the same program.
#[derive(Debug)]
struct Bare(Vec<Child>);

impl Drop for Bare {
    fn drop(&mut self) {
        for child in &mut self.0 {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

fn bare(settings: &Settings) -> anyhow::Result<Memory> {
    let app = hello(settings)?;
    let said = settings.work.join("density-bare.log");
    let log = File::create(&said)?;
    let before = memory(None, &[])?;
    let mut bare = Bare(Vec::new());
    for _ in 0..settings.idle {
        let child = Command::new(app.root.join("hello"))
            .env_clear()
            .env("PATH", "/")
            // Any free port.
            .env("PORT", "0")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(Stdio::null())
            .spawn()
            .context("start hello")?;
        bare.0.push(child);
    }
    until_listening(&said, settings.idle)?;
    let apps: Vec<u32> = bare.0.iter().map(Child::id).collect();
    Ok(more(&before, &memory(None, &apps)?))
}

/// Until `count` lines say that somebody listens.
fn until_listening(said: &Path, count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let text = std::fs::read_to_string(said)?;
        let listening = text.matches("hello listens").count();
        if listening >= count {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("{listening} of {count} processes listen");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}
