//! What needs root before the server gives it up: directories, ports, credentials, the keeper.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::net::TcpListener;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use utsuwa_runtime::image::DockerConfig;
use utsuwa_runtime::keeper::{self, KeeperConfig};
use utsuwa_runtime::network::{EgressRule, NetConfig};
use utsuwa_runtime::privilege::{self, ServerUser};

use super::folders;
use super::ports::addresses_here;
use crate::config::{Config, Listen};

/// What the unprivileged server stands on.
#[derive(Debug)]
pub(super) struct Ground {
    pub config: Config,
    pub user: ServerUser,
    pub keeper: KeeperConfig,
    pub docker: DockerConfig,
    pub egress: Vec<EgressRule>,
    pub pid_file: PidFile,
    /// The API answers deploys of images of at most what the descriptors allow; kept for `doctor` and logs.
    pub open_files: u64,
}

pub(super) fn prepare(mut config: Config) -> anyhow::Result<Ground> {
    let user = privilege::find_user(&config.user).context("find the server's user")?;
    let open_files = privilege::raise_open_files().context("raise the number of open files")?;
    let features = utsuwa_runtime::sandbox::probe::probe();
    if let Some((name, missing)) = features.lacking().first() {
        bail!(
            "this machine can't run instances: {name}: {missing}. `utsuwa doctor` shows everything at once"
        );
    }
    utsuwa_runtime::network::check_programs().context(
        "this machine can't run instances: their network needs a program that can't be run",
    )?;
    std::fs::create_dir_all(&config.data_dir)
        .with_context(|| format!("make the directory {}", config.data_dir.display()))?;
    let id = keeper::data_id(&config.data_dir)
        .with_context(|| format!("identify the data directory {}", config.data_dir.display()))?;
    // Before folders change owners, perhaps under a server of another user.
    refuse_second(&id, &config.data_dir)?;
    folders::make(&config.data_dir, &user)?;
    let docker = docker_config(&config)?;
    for listen in [&mut config.listen_api, &mut config.listen_http] {
        choose_port(listen)?;
    }
    let egress: Vec<EgressRule> = config
        .allow_egress
        .iter()
        .map(|rule| {
            rule.parse()
                .with_context(|| format!("--allow-egress {rule}"))
        })
        .collect::<anyhow::Result<_>>()?;
    let net = NetConfig {
        id,
        ingress_ports: vec![config.listen_http.port],
        allow: egress.clone(),
        mtu: None,
    };
    let mut keeper = KeeperConfig::new(&config.data_dir, user.uid, user.gid, Some(net))
        .context("configure the keeper")?;
    keeper.logs.service_budget = config.log_budget;
    keeper.logs.reserve = config.disk_reserve / 2;
    keeper.disk_reserve = config.disk_reserve;
    keeper.privileged_ports = [&config.listen_api, &config.listen_http]
        .iter()
        .map(|l| l.port)
        .filter(|p| *p < 1024)
        .collect();
    if !keeper.socket().exists() {
        // Nobody of ours can hold the ports yet: find out now, before anything is made.
        for (flag, listen) in [
            ("--listen-api", &config.listen_api),
            ("--listen-http", &config.listen_http),
        ] {
            for address in addresses_here(listen) {
                match TcpListener::bind(address) {
                    Err(error) if error.kind() == ErrorKind::AddrInUse => {
                        bail!(
                            "{address} is taken by another program; name another address with {flag}, or find it with: ss -ltnp 'sport = :{}'",
                            address.port()
                        );
                    }
                    Err(error) => bail!("listen on {address}: {error}; change it with {flag}"),
                    Ok(_) => {}
                }
            }
        }
    }
    keeper::ensure_keeper(&keeper).context("start the keeper")?;
    let pid_file = PidFile::open(&keeper)?;
    Ok(Ground {
        config,
        user,
        keeper,
        docker,
        egress,
        pid_file,
        open_files,
    })
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
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18).map(str::to_owned)
}

/// A server that was just killed may need a moment to be gone.
const ENDING: std::time::Duration = std::time::Duration::from_millis(500);

fn refuse_second(id: &str, data_dir: &Path) -> anyhow::Result<()> {
    let deadline = std::time::Instant::now() + ENDING;
    while running_server(id).is_some() && std::time::Instant::now() < deadline {
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    match running_server(id) {
        Some(pid) => bail!(
            "another server (process {pid}) runs over the data directory {}; end it with `utsuwa down --data-dir {}` or \
             `kill {pid}` to restart it, or name another directory with --data-dir",
            data_dir.display(),
            data_dir.display()
        ),
        None => Ok(()),
    }
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
fn docker_config(config: &Config) -> anyhow::Result<DockerConfig> {
    let (path, asked_for) = match &config.docker_config {
        Some(path) => (path.clone(), true),
        None => match crate::environment::variable("HOME") {
            Some(home) => (PathBuf::from(home).join(".docker/config.json"), false),
            None => return Ok(DockerConfig::None),
        },
    };
    match std::fs::read_to_string(&path) {
        Ok(text) => Ok(DockerConfig::Content(text)),
        Err(error) if !asked_for && error.kind() == ErrorKind::NotFound => Ok(DockerConfig::None),
        Err(error) => bail!(
            "{}: read the registry credentials (docker-config): {error}",
            path.display()
        ),
    }
}

/// Port 0 means any free one; it is chosen now because instances are told it.
fn choose_port(listen: &mut Listen) -> anyhow::Result<()> {
    if listen.port == 0 {
        let address = *listen
            .addresses()
            .first()
            .context("no address to listen on")?;
        listen.port = TcpListener::bind(address)
            .and_then(|l| l.local_addr())
            .with_context(|| format!("find a free port on {}", address.ip()))?
            .port();
    }
    Ok(())
}
