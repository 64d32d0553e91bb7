//! What needs root before the server gives it up: directories, ports, credentials, the keeper.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use utsuwa_runtime::image::DockerConfig;
use utsuwa_runtime::keeper::{self, KeeperConfig};
use utsuwa_runtime::network::{EgressRule, NetConfig};
use utsuwa_runtime::privilege::{self, ServerUser};
use utsuwa_runtime::rootless::is_rootless;

use super::journal::JournalLimits;
use super::{Refusal, ahead, folders, named, ports};
use crate::config::{Config, Layers};
use crate::output::note;

/// The journal's part of a service's log budget: a request takes some 300 bytes there, an app writes as much as it likes.
const JOURNAL_SHARE: u64 = 4;

/// What the unprivileged server stands on.
#[derive(Debug)]
pub(super) struct Ground {
    pub config: Config,
    pub user: ServerUser,
    pub keeper: KeeperConfig,
    pub docker: Option<DockerConfig>,
    pub egress: Vec<EgressRule>,
    pub journal: JournalLimits,
    pub pid_file: PidFile,
    /// The API answers deploys of images of at most what the descriptors allow; kept for `doctor` and logs.
    pub open_files: u64,
}

/// `replace`: a server that runs over the data directory makes place first.
pub(super) fn prepare(
    mut config: Config,
    layers: &Layers,
    docker: Option<DockerConfig>,
    replace: bool,
) -> anyhow::Result<Ground> {
    let user = if is_rootless() {
        privilege::server_of_user()
    } else {
        privilege::find_user(&config.user).context("find the server's user")?
    };
    let open_files = privilege::raise_open_files().context("raise the number of open files")?;
    let features = utsuwa_runtime::sandbox::probe::probe();
    if let Some((name, missing)) = features.lacking().first() {
        return Err(Refusal::new(
            format!("this machine can't run instances: {name}: {missing}"),
            "`utsuwa doctor` shows everything that is missing at once",
        ));
    }
    utsuwa_runtime::network::check_programs().context(
        "this machine can't run instances: their network needs a program that can't be run",
    )?;
    // A directory without an id was never anybody's: nothing runs over it, and nothing is made in it before all is checked.
    let known = config.data_dir.join("id").exists();
    if known {
        super::rootless::is_of_this_user(&config.data_dir)?;
    }
    let known = known.then(|| identify(&config.data_dir)).transpose()?;
    if let Some(id) = known.as_ref().filter(|_| !replace) {
        refuse_second(id, &config.data_dir)?;
    }
    let egress: Vec<EgressRule> = config
        .allow_egress
        .iter()
        .map(|rule| {
            rule.parse()
                .with_context(|| format!("--allow-egress {rule}"))
        })
        .collect::<anyhow::Result<_>>()?;
    if is_rootless() {
        super::rootless::can_be_opened(&egress)?;
        super::rootless::opens_no_directory(&config.host_dirs)?;
    }
    named::check(&config, &user)?;
    for listen in [&mut config.listen_api, &mut config.listen_http]
        .into_iter()
        .chain(&mut config.listen_https)
    {
        ports::choose(listen)?;
    }
    let held = known.as_deref().map(keeper::held_listeners);
    let held = held.unwrap_or_default();
    let keeper_runs = !held.is_empty();
    if replace {
        ports::stay(&config, layers, &held)?;
    }
    ports::check(&mut config, &held)?;
    folders::can_be_entered(&config.data_dir, &user)?;
    if replace || !keeper_runs {
        // Not where a keeper waits for its server: it takes two processes, and the start itself finds out soon enough.
        ahead::check(&config, layers)?;
    }
    // What can be found wrong without making anything was looked for: only now something is made, and the one that serves is
    // asked to go.
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("make the directory {}", config.data_dir.display()))?;
    let id = match known {
        Some(id) => id,
        None => identify(&config.data_dir)?,
    };
    if replace {
        make_place(&id)?;
    } else {
        refuse_second(&id, &config.data_dir)?;
    }
    // Not earlier: folders may change owners.
    folders::make(&config.data_dir, &user)?;
    let net = NetConfig {
        id,
        ingress_ports: std::iter::once(&config.listen_http)
            .chain(&config.listen_https)
            .map(|listen| listen.port)
            .collect(),
        allow: egress.clone(),
        mtu: None,
    };
    let mut keeper = KeeperConfig::new(&config.data_dir, user.uid, user.gid, Some(net))
        .context("configure the keeper")?;
    // Logs stop when pulls have stopped already, and the database has the rest.
    let reserve = config.disk_reserve / 2;
    let journal = JournalLimits {
        service_budget: config.log_budget / JOURNAL_SHARE,
        reserve,
    };
    keeper.logs.service_budget = config.log_budget - journal.service_budget;
    keeper.logs.reserve = reserve;
    keeper.disk_reserve = config.disk_reserve;
    keeper.host_dirs.clone_from(&config.host_dirs);
    keeper.privileged_ports = [&config.listen_api, &config.listen_http]
        .into_iter()
        .chain(&config.listen_https)
        .map(|l| l.port)
        .filter(|p| *p < 1024)
        .collect();
    keeper::ensure_keeper(&keeper).context("start the keeper")?;
    let pid_file = PidFile::open(&keeper)?;
    Ok(Ground {
        config,
        user,
        keeper,
        docker,
        egress,
        journal,
        pid_file,
        open_files,
    })
}

fn identify(data_dir: &Path) -> anyhow::Result<String> {
    keeper::data_id(data_dir)
        .with_context(|| format!("identify the data directory {}", data_dir.display()))
}

/// The file that tells which process is the server: id and start time, so that a reused id is never mistaken.
pub(crate) fn pid_file(id: &str) -> PathBuf {
    keeper::runtime_dir(id).join("server.pid")
}

/// The server that runs over this data directory, if it does: its process id.
pub(crate) fn running_server(id: &str) -> Option<u32> {
    let text = std::fs::read_to_string(pid_file(id)).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    (start_time(pid)? == started).then_some(pid)
}

/// Field 22 of `/proc/PID/stat`: ticks since boot. `None` for a process that has ended, asked for by its parent or not.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name (field 2) may contain spaces and parentheses: count from behind it.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let ended = matches!(fields.next()?, "Z" | "X");
    // The first thread is dead while others still let go of what they hold, the database's lock among it.
    let threads = || std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if ended && threads() <= 1 {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

/// A server that was just killed may need a moment to be gone.
const ENDING: Duration = Duration::from_millis(500);

fn refuse_second(id: &str, data_dir: &Path) -> anyhow::Result<()> {
    let deadline = Instant::now() + ENDING;
    while running_server(id).is_some() && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
    let Some(pid) = running_server(id) else {
        return Ok(());
    };
    let data = data_dir.display();
    Err(Refusal::new(
        format!("another server (process {pid}) runs over the data directory {data}"),
        format!(
            "`utsuwa up --replace` with the same options takes its place without refusing a request; `utsuwa down --data-dir {data}` ends it; \
             --data-dir names another directory"
        ),
    ))
}

/// How often a server that is to end is looked at.
const LOOK: Duration = Duration::from_millis(2);
/// How often it is asked: the one that was asked first may not have been connected to its keeper at that moment.
const ASK: Duration = Duration::from_secs(1);
/// What a server needs at most to give up its place: requests that wait for instances (ten seconds), its loops; and as much
/// again.
const PLACE: Duration = Duration::from_secs(40);

/// Has the server over this data directory, if there is one, give up its place; streams go on in it until they end. Its sockets, its instances and their logs stay
/// with the keeper, so that connections wait for the next server instead of being refused.
fn make_place(id: &str) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut asked: Option<Instant> = None;
    let mut told = false;
    while let Some(pid) = running_server(id) {
        if !told && started.elapsed() > ASK {
            told = true;
            note(&format!(
                "waiting for the server (process {pid}) to make place, up to {} s",
                PLACE.as_secs()
            ));
        }
        if started.elapsed() > PLACE {
            return Err(Refusal::new(
                format!(
                    "the server (process {pid}) was asked to make place and still runs after {} s",
                    PLACE.as_secs()
                ),
                format!(
                    "see what it says in its log; `kill -9 {pid}` ends it, instances go on, and `utsuwa up` starts the next one"
                ),
            ));
        }
        if asked.is_none_or(|at| at.elapsed() >= ASK) {
            if asked.is_none() {
                tracing::info!(pid, "asking the server to make place");
            }
            keeper::end_server(id).map_err(|error| {
                Refusal::new(
                    format!("ask the server (process {pid}) to make place: {error}"),
                    format!("end it with `kill {pid}`, then start this one without --replace"),
                )
            })?;
            asked = Some(Instant::now());
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// [`pid_file`], opened while root can and written by the server once the database is its own: of two that start at the
/// same moment only one gets so far.
#[derive(Debug)]
pub(super) struct PidFile {
    path: PathBuf,
    file: File,
}

impl PidFile {
    fn open(keeper: &KeeperConfig) -> anyhow::Result<Self> {
        let path = pid_file(&keeper.id);
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .with_context(|| format!("open {}", path.display()))?;
        Ok(Self { path, file })
    }

    /// Nobody is the server.
    pub(super) fn clear(&self) -> std::io::Result<()> {
        self.file.set_len(0)
    }

    pub(super) fn write(&self) -> anyhow::Result<()> {
        let pid = std::process::id();
        let started = start_time(pid).context("read this process's start time")?;
        self.file
            .set_len(0)
            .and_then(|()| {
                self.file
                    .write_all_at(format!("{pid} {started}\n").as_bytes(), 0)
            })
            .with_context(|| format!("write {}", self.path.display()))
    }
}

/// Read while root can: the server's user has no right to the operator's home.
pub(super) fn docker_config(config: &Config) -> anyhow::Result<Option<DockerConfig>> {
    let (path, asked_for) = match &config.docker_config {
        Some(path) => (path.clone(), true),
        None => match crate::environment::variable("HOME") {
            Some(home) => (PathBuf::from(home).join(".docker/config.json"), false),
            None => return Ok(None),
        },
    };
    match std::fs::read(&path) {
        Ok(content) => Ok(Some(DockerConfig::parse(&path, &content))),
        Err(error) if !asked_for && error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => bail!(
            "{}: read the registry credentials (docker-config): {error}",
            path.display()
        ),
    }
}
