//! Cold start: from the request (or the spawn) to the whole first answer.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, bail};

use super::peers::{App, Peer, load_into_podman};
use super::programs::apps;
use super::server::Server;
use super::stats::{Series, table};
use super::{Settings, http};

/// Before each start, of everybody: what the one before left to be done (its end, a sandbox for the next) is over then. What it
/// costs when it isn't is the row "in a row".
const SETTLE: Duration = Duration::from_millis(50);

const BARE_IN_TURNS: &str = "bare process, in turns with the next";

/// Under which conditions a series is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Condition {
    Quiet,
    Busy,
    DroppedCaches,
}

impl Condition {
    fn name(self) -> &'static str {
        match self {
            Self::Quiet => "quiet",
            Self::Busy => "both CPUs busy",
            Self::DroppedCaches => "dropped caches",
        }
    }
}

pub(crate) fn run(settings: &Settings) -> anyhow::Result<String> {
    let mut report = String::from("\n## Cold start (ms)\n");
    for app in &apps(settings, &mut report)? {
        let all = [
            ("quiet", Condition::Quiet),
            ("busy", Condition::Busy),
            ("dropped", Condition::DroppedCaches),
        ];
        for (_, condition) in all
            .into_iter()
            .filter(|(name, _)| settings.conditions.iter().any(|c| c == name))
        {
            // Shown at once: a later failure must not hide what was measured.
            let table = series(settings, app, condition)?;
            crate::say(&table);
            report.push_str(&table);
        }
    }
    Ok(report)
}

/// One table: everybody under one condition.
fn series(settings: &Settings, app: &App, condition: Condition) -> anyhow::Result<String> {
    let rounds = settings.rounds;
    let mut burners = (condition == Condition::Busy)
        .then(Burners::start)
        .transpose()?;
    let mut rows = Vec::new();
    let (mut bare, mut bare_p99) = (f64::NAN, f64::NAN);
    let mut row = |name: &str, samples: &Series| {
        if name == Peer::Bare.name() || name == BARE_IN_TURNS {
            (bare, bare_p99) = (samples.ms(50), samples.ms(99));
        }
        rows.push(vec![
            name.to_owned(),
            format!("{:.2}", samples.ms(50)),
            format!("{:.2}", samples.ms(95)),
            format!("{:.2}", samples.ms(99)),
            format!("{:.2}×", samples.ms(50) / bare),
            format!("{:+.2}", samples.ms(50) - bare),
            format!("{:.2}×", samples.ms(99) / bare_p99),
            samples.len().to_string(),
        ]);
    };
    for peer in Peer::ALL {
        if !peer.available() {
            continue;
        }
        if peer == Peer::Podman {
            load_into_podman(app)?;
        }
        // Engines are slow and steady: fewer rounds say the same. So is everybody without caches.
        let slow = matches!(peer, Peer::Runsc | Peer::Podman | Peer::Docker);
        let rounds = if slow || condition == Condition::DroppedCaches {
            rounds.div_ceil(5)
        } else {
            rounds
        };
        let mut samples = Series::default();
        for _ in 0..rounds {
            if condition == Condition::DroppedCaches {
                drop_caches()?;
            }
            std::thread::sleep(SETTLE);
            match peer.start(app, &settings.work) {
                Ok(took) => samples.push(took),
                // A peer that doesn't run on this machine is said so and left out; without the bare process nothing can be told.
                Err(error) if peer != Peer::Bare => {
                    crate::say(&format!(
                        "{} can't run {}: {error:#}",
                        peer.name(),
                        app.name
                    ));
                    break;
                }
                Err(error) => return Err(error.context(format!("{} {}", peer.name(), app.name))),
            }
        }
        if samples.len() > 0 {
            row(peer.name(), &samples);
        }
    }
    let ours = utsuwa(settings, app, condition, rounds, None)?;
    if let Some(burners) = &mut burners {
        burners.still_burn()?;
    }
    if let Some(bare) = &ours.bare {
        row(BARE_IN_TURNS, bare);
    }
    row("utsuwa, full isolation, through the ingress", &ours.settled);
    if let Some(in_a_row) = &ours.in_a_row {
        row("the same, in a row without a pause", in_a_row);
    }
    if condition == Condition::Quiet && Peer::Runsc.available() {
        let gen1 = Some("EXECUTION_ENVIRONMENT_GEN1");
        let gen1 = utsuwa(settings, app, condition, rounds.div_ceil(5), gen1)?;
        row(
            "utsuwa on gVisor (gen1), through the ingress",
            &gen1.settled,
        );
    }
    let head = [
        "",
        "p50",
        "p95",
        "p99",
        "p50 ÷ bare",
        "p50 − bare",
        "p99 ÷ bare",
        "n",
    ];
    let difference = ours
        .bare
        .as_ref()
        .and_then(|bare| ours.settled.exceeds(bare));
    let in_turns = difference.map_or_else(String::new, |d| {
        format!(
            "in the same turn ours takes {:+.2} ms more than the bare process (median; 95 %: {:+.2} to {:+.2})\n",
            d.median, d.least, d.most
        )
    });
    Ok(format!(
        "\n### {}, {}\n{}{in_turns}",
        app.name,
        condition.name(),
        table(&head, &rows)
    ))
}

/// How ours fared.
struct Ours {
    settled: Series,
    /// On a quiet machine.
    in_a_row: Option<Series>,
    /// The bare process in turns with ours: what else the machine and its host do comes and goes within minutes, and moves what was
    /// taken before or after by more than what is asked of the difference. Not for gen1, which is far from it.
    bare: Option<Series>,
}

/// As many services as rounds, each asleep, each called once; and, on a quiet machine, once more without pauses. Of the two that take
/// turns each goes first every other time.
fn utsuwa(
    settings: &Settings,
    app: &App,
    condition: Condition,
    rounds: usize,
    environment: Option<&str>,
) -> anyhow::Result<Ours> {
    let server = Server::start(settings, "cold", &[])?;
    let image = image_of(app, &server)?;
    let names: Vec<String> = (0..rounds).map(|i| format!("cold-{i}")).collect();
    let window = awake_for(app, condition, rounds);
    for name in &names {
        server.deploy_in(name, &image, &format!("{window}s"), "512Mi", environment)?;
    }
    server.until_asleep(names.iter().map(String::as_str))?;
    let before = || -> anyhow::Result<()> {
        if condition == Condition::DroppedCaches {
            drop_caches()?;
        }
        std::thread::sleep(SETTLE);
        Ok(())
    };
    let (mut settled, mut bare) = (Series::default(), Series::default());
    for (turn, name) in names.iter().enumerate() {
        for ours in [turn % 2 == 0, turn % 2 == 1] {
            if ours {
                before()?;
                settled.push(server.call(name, app.path)?);
            } else if environment.is_none() {
                before()?;
                bare.push(Peer::Bare.start(app, &settings.work)?);
            }
        }
    }
    let bare = (bare.len() > 0).then_some(bare);
    if condition != Condition::Quiet {
        return Ok(Ours {
            settled,
            in_a_row: None,
            bare,
        });
    }
    server.until_asleep(names.iter().map(String::as_str))?;
    let mut in_a_row = Series::default();
    for name in &names {
        in_a_row.push(server.call(name, app.path)?);
    }
    Ok(Ours {
        settled,
        in_a_row: Some(in_a_row),
        bare,
    })
}

/// The stable window, in seconds: instances of a series end after it, so that their ends are no load beside the starts measured. With
/// caches dropped a series takes minutes, and reading from the disk is all that counts.
fn awake_for(app: &App, condition: Condition, rounds: usize) -> usize {
    let least = 6;
    let turn_ms = match condition {
        Condition::DroppedCaches => return least,
        Condition::Quiet | Condition::Busy if app.is_static => 200,
        Condition::Quiet => 1_200,
        Condition::Busy => 2_400,
    };
    least.max(rounds * turn_ms / 1_000)
}

/// The app's image, loaded into `server` if it isn't built in.
pub(super) fn image_of(app: &App, server: &Server) -> anyhow::Result<String> {
    match &app.archive {
        None => Ok("utsuwa.local/hello".to_owned()),
        Some(archive) => server.load(&format!("oci-archive:{}", archive.display())),
    }
}

pub(super) fn drop_caches() -> anyhow::Result<()> {
    std::fs::write("/proc/sys/vm/drop_caches", "3").context("drop caches")
}

/// Processes that keep every CPU busy until dropped.
#[derive(Debug)]
struct Burners(Vec<Child>);

impl Burners {
    /// Nobody burns for longer, should this program be killed; no series takes as long.
    const MOST_SECONDS: &str = "3600";

    fn start() -> anyhow::Result<Self> {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        // Filled one by one: those that run end with it if the next can't be started.
        let mut burners = Self(Vec::new());
        for _ in 0..cpus {
            burners.0.push(
                Command::new("timeout")
                    .args([Self::MOST_SECONDS, "sh", "-c", "while :; do :; done"])
                    .stdin(Stdio::null())
                    .spawn()
                    .context("keep a CPU busy (timeout of coreutils)")?,
            );
        }
        Ok(burners)
    }

    /// What was measured until now was measured beside all of them.
    fn still_burn(&mut self) -> anyhow::Result<()> {
        for child in &mut self.0 {
            if let Some(status) = child.try_wait()? {
                bail!(
                    "what keeps a CPU busy ended before the series did ({status}): its figures are of a quieter machine; take fewer rounds"
                );
            }
        }
        Ok(())
    }
}

impl Drop for Burners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // `timeout` passes SIGTERM on to the shell; SIGKILL would leave the shell burning.
            drop(Command::new("kill").arg(child.id().to_string()).status());
            drop(child.wait());
        }
    }
}

/// Waits until a service answers at all; used by the other sections.
pub(crate) fn warm_up(server: &Server, name: &str, path: &str) -> anyhow::Result<()> {
    let (status, body) = http::get(server.http, &format!("{name}.localhost"), path)?;
    if status == 200 {
        Ok(())
    } else {
        bail!("{name}{path}: {status} {body}")
    }
}
