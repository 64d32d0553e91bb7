//! The keeper as a process: arguments, becoming a daemon, the lock, the socket, its replacement.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Duration;

use rustix::fs::FlockOperation;
use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

use super::config::KeeperConfig;
use super::core::{Keeper, Outcome, Parts, now};
use super::held::Held;
use crate::sandbox::sys;
use crate::spawner::turn;
use crate::{precedence, privilege};

/// Said on standard output once the keeper answers.
pub(crate) const READY: &str = "ready";

/// Bytes of the message file; looked at when a keeper or spawner starts.
const LOG_LIMIT: u64 = 16 << 20;

/// How long to wait for the lock of a keeper that doesn't answer any more.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// What `internal keeper` was called with.
#[derive(Debug, Default)]
struct Arguments {
    config: PathBuf,
    /// Descriptor that lists those of the process before us.
    held: Option<i32>,
    /// Go on in a process of its own, and end.
    daemonize: bool,
    /// The network namespace to live in, of a user's server.
    network: Option<PathBuf>,
}

impl Arguments {
    fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self, String> {
        let mut parsed = Self::default();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || {
                arguments
                    .next()
                    .ok_or_else(|| format!("{argument} needs a value"))
            };
            match argument.as_str() {
                "--config" => parsed.config = PathBuf::from(value()?),
                "--held" => {
                    parsed.held = Some(
                        value()?
                            .parse()
                            .map_err(|error| format!("--held: {error}"))?,
                    )
                }
                "--daemonize" => parsed.daemonize = true,
                "--network" => parsed.network = Some(PathBuf::from(value()?)),
                other => return Err(format!("unknown argument {other:?}")),
            }
        }
        if parsed.config.as_os_str().is_empty() {
            return Err("--config FILE is missing".to_owned());
        }
        Ok(parsed)
    }
}

/// `utsuwa internal keeper ARGUMENTS`: to be called before the process has a second thread.
pub fn main(arguments: impl IntoIterator<Item = String>) -> ExitCode {
    let outcome = Arguments::parse(arguments).and_then(|arguments| {
        if arguments.daemonize {
            daemonize(&arguments)
                .map_err(|error| format!("start the keeper in a process of its own: {error}"))
        } else {
            run(&arguments).map_err(|error| error.to_string())
        }
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "the keeper ends");
            // Whoever waits for READY reads this instead.
            let _ = writeln!(io::stdout(), "{error}");
            ExitCode::FAILURE
        }
    }
}

/// The keeper shall not be a child of whoever started it.
fn daemonize(arguments: &Arguments) -> io::Result<()> {
    // What whoever called `up` has open (a lock of a script, say) is not the keeper's, which lives on for weeks.
    sys::cloexec_from(3)?;
    let config = read_config(&arguments.config)?;
    let log = open_log(&config)?;
    if let Some(network) = &arguments.network {
        nix::sched::setns(File::open(network)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
    }
    Command::new("/proc/self/exe")
        .arg0("utsuwa")
        .args(["internal", "keeper", "--config"])
        .arg(&arguments.config)
        .current_dir("/")
        .stdin(Stdio::null())
        .stderr(log)
        .spawn()?;
    Ok(())
}

fn read_config(path: &Path) -> io::Result<KeeperConfig> {
    let read = || -> io::Result<KeeperConfig> { Ok(serde_json::from_slice(&fs::read(path)?)?) };
    read().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Where messages go. A large file makes place for a new one.
pub(crate) fn open_log(config: &KeeperConfig) -> io::Result<File> {
    if fs::symlink_metadata(&config.log_file).is_ok_and(|file| file.len() > LOG_LIMIT) {
        let mut old = config.log_file.clone().into_os_string();
        old.push(".1");
        let _ = fs::rename(&config.log_file, old);
    }
    let mut options = OpenOptions::new();
    options
        .create(true)
        .append(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    options.open(&config.log_file).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("{}: {error}", config.log_file.display()),
        )
    })
}

fn run(arguments: &Arguments) -> io::Result<()> {
    start_tracing();
    let _ = rustix::process::setsid();
    precedence::is_prompt();
    // A successor comes from the starter, which works elsewhere.
    rustix::process::chdir("/")?;
    let successor = arguments.held.is_some();
    let mut held = arguments
        .held
        .map_or_else(|| Ok(Held::default()), Held::from_exec)?;
    let config = read_config(&arguments.config)?;
    if let Err(error) = privilege::raise_open_files() {
        tracing::warn!(%error, "raise the limit of open files");
    }
    if successor {
        // The starter's layer mounts would pile up with each generation; its own successor makes them again.
        let mounts = config.runtime_dir().join("mounts");
        while rustix::mount::unmount(&mounts, rustix::mount::UnmountFlags::DETACH).is_ok() {}
    } else {
        // A mount namespace of our own: nothing of ours shows in the host's table, while the host's unmounts reach us.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).map_err(io::Error::from)?;
        mount_change(
            "/",
            MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        )?;
    }
    let lock = match held.take("lock").and_then(|mut all| all.pop()) {
        Some(lock) => lock,
        None => take_lock(&config)?,
    };
    let socket = match held.take("listen").and_then(|mut all| all.pop()) {
        Some(socket) => socket,
        None => open_socket(&config)?,
    };
    let mut keeper = Keeper::new(Parts {
        config,
        lock,
        listen: socket,
    })?;
    tracing::info!(build = %keeper.config.build, successor, "keeper started");
    // What the one before us has begun would come to light after we have looked.
    if let Err(error) = turn::end_earlier(&keeper.config.runtime_dir()) {
        tracing::error!(%error, "an earlier keeper's housekeeper is in the way; what it makes may be left behind");
    }
    let leftovers = keeper.adopt(held)?;
    keeper.start_spawners();
    for number in leftovers {
        keeper.destroy(number, 1);
    }
    announce_ready(&keeper.config);
    match keeper.run()? {
        Outcome::Finished => {
            tracing::info!("keeper finished");
            // Its connections close with the process, so that whoever waits for that finds nothing of it left.
            std::mem::forget(keeper);
            Ok(())
        }
        Outcome::Replace(executable) => {
            let held = keeper.hold_all()?;
            let path = format!("/proc/self/fd/{}", executable.as_raw_fd());
            Err(replace(
                &path,
                &super::successor_arguments(&keeper.config),
                held,
            ))
        }
    }
}

/// Becomes the keeper, with the descriptors it needs; called by the starter spawner whose keeper died. Doesn't return.
pub fn become_keeper(arguments: &[String], held: Held) -> ! {
    let error = replace("/proc/self/exe", arguments, held);
    tracing::error!(%error, "take the keeper's place");
    std::process::abort()
}

/// Executes `path` in this process; returns only if that fails.
fn replace(path: &str, arguments: &[String], held: Held) -> io::Error {
    let list = match held.into_exec() {
        Ok(list) => list,
        Err(error) => return error,
    };
    Command::new(path)
        .arg0("utsuwa")
        .args(arguments)
        .args(["--held", &list.to_string()])
        // The starter's, whose heap keeps what it has: ours, and that of all we start, gives back what was a peak.
        .env_remove(super::spawners::HEAP_VARIABLE)
        .exec()
}

fn take_lock(config: &KeeperConfig) -> io::Result<OwnedFd> {
    let path = config.runtime_dir().join("keeper.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)?;
    let deadline = now() + LOCK_PATIENCE;
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file.into()),
            // One that was killed a moment ago may still be letting go.
            Err(rustix::io::Errno::WOULDBLOCK) if now() < deadline => {
                std::thread::sleep(Duration::from_millis(5))
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let text = "another keeper runs for this data directory and does not answer";
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn open_socket(config: &KeeperConfig) -> io::Result<OwnedFd> {
    let path = config.socket();
    // The lock says that nobody listens there any more.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    bind(socket.as_fd(), &SocketAddrUnix::new(&path)?)?;
    // Nobody can connect before `listen`, so the mode is in time.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    std::os::unix::fs::chown(&path, Some(config.server_uid), Some(config.server_gid))?;
    listen(&socket, 64)?;
    Ok(socket)
}

/// Tells who started us, then lets go of its standard output.
fn announce_ready(config: &KeeperConfig) {
    let _ = writeln!(io::stdout(), "{READY}");
    let _ = io::stdout().flush();
    let null = OpenOptions::new().read(true).write(true).open("/dev/null");
    if let Ok(null) = null {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
    }
    if let Ok(log) = open_log(config) {
        let _ = rustix::stdio::dup2_stderr(&log);
    }
}

/// Standard error is the log file. A subscriber that is there already (tests) stays.
fn start_tracing() {
    let _ = tracing_subscriber::fmt()
        .with_writer(io::stderr)
        .with_ansi(false)
        .try_init();
}
