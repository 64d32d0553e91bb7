//! What `utsuwa up` and `utsuwa down` do about the keeper, as root.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::config::{BUILD, KeeperConfig, socket_path};
use super::core::now;
use super::process::READY;
use super::protocol::{DownReport, Op, Reply};
use super::visitor::{VisitError, Visitor};

/// Attempts to reach a keeper that is replacing itself.
const REPLACING: Duration = Duration::from_secs(5);

/// Why there is no keeper.
#[derive(Debug, thiserror::Error)]
pub enum UpError {
    #[error("{step}: {source}")]
    Io { step: String, source: io::Error },
    #[error("the keeper did not start: {reason} (its messages are in {log})")]
    NotStarted { reason: String, log: String },
    #[error(transparent)]
    Visit(#[from] VisitError),
}

fn io_error(step: impl Into<String>) -> impl FnOnce(io::Error) -> UpError {
    let step = step.into();
    move |source| UpError::Io { step, source }
}

/// Makes sure that a keeper with this configuration and this build runs, and returns where it listens. As root, before
/// the server gives up its privileges. A keeper of another build or configuration replaces itself without letting go of
/// anything.
///
/// # Errors
/// [`UpError`].
pub fn ensure_keeper(config: &KeeperConfig) -> Result<PathBuf, UpError> {
    let directory = config.runtime_dir();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(&directory)
        .map_err(io_error(format!("make {}", directory.display())))?;
    match Visitor::connect(&config.socket(), &config.id) {
        Ok(visitor) => {
            let running = fs::read(config.file())
                .ok()
                .and_then(|text| serde_json::from_slice::<KeeperConfig>(&text).ok());
            if running.as_ref() != Some(config) || visitor.build() != config.build {
                config
                    .write()
                    .map_err(io_error("write the keeper's configuration"))?;
                upgrade(visitor, config)?;
            }
        }
        Err(VisitError::NoKeeper { .. }) => {
            config
                .write()
                .map_err(io_error("write the keeper's configuration"))?;
            launch(config)?;
        }
        Err(error) => return Err(error.into()),
    }
    // The server's user may be another one than at the last start.
    std::os::unix::fs::chown(
        config.socket(),
        Some(config.server_uid),
        Some(config.server_gid),
    )
    .map_err(io_error(format!(
        "give {} to the server's user",
        config.socket().display()
    )))?;
    Ok(config.socket())
}

fn launch(config: &KeeperConfig) -> Result<(), UpError> {
    let log = config.log_file.display().to_string();
    let network = crate::rootless::network_of_holder(&config.runtime_dir());
    let child = Command::new(&config.binary)
        .args(["internal", "keeper", "--daemonize", "--config"])
        .arg(config.file())
        .args(
            network
                .iter()
                .flat_map(|path| [OsStr::new("--network"), path.as_os_str()]),
        )
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(io_error(format!("execute {}", config.binary.display())))?;
    // Its end of the pipe closes when the keeper is ready, or has given up.
    let output = child
        .wait_with_output()
        .map_err(io_error("wait for the keeper"))?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    if said == READY {
        return Ok(());
    }
    let reason = if said.is_empty() {
        String::from_utf8_lossy(&output.stderr).trim().to_owned()
    } else {
        said
    };
    Err(UpError::NotStarted { reason, log })
}

/// Has the running keeper execute our binary with all it holds.
fn upgrade(mut visitor: Visitor, config: &KeeperConfig) -> Result<(), UpError> {
    let binary = File::open(&config.binary)
        .map_err(io_error(format!("open {}", config.binary.display())))?;
    let op = Op::Upgrade {
        build: config.build.clone(),
    };
    visitor.ask(op, &[binary.as_fd()])?;
    drop(visitor);
    let deadline = now() + REPLACING;
    loop {
        // The listening socket lives on, so that this waits in its queue until the new executable accepts.
        match Visitor::connect(&config.socket(), &config.id) {
            Ok(visitor) if visitor.build() == config.build => return Ok(()),
            Ok(visitor) if now() > deadline => {
                let reason = format!(
                    "it still is build {} instead of {}",
                    visitor.build(),
                    config.build
                );
                return Err(UpError::NotStarted {
                    reason,
                    log: config.log_file.display().to_string(),
                });
            }
            Err(error) if now() > deadline => return Err(error.into()),
            Ok(_) | Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Asks the server of the data directory with `data_id` to drain and end, through the keeper it is connected to: nobody is
/// signalled by a number that might be another process's by now. As root. What it holds stays with the keeper. Doesn't wait;
/// asking again changes nothing.
///
/// # Errors
/// [`UpError`]: no keeper answers, or it is of a build that can't pass this on.
pub fn end_server(data_id: &str) -> Result<(), UpError> {
    let mut visitor = Visitor::connect(&socket_path(data_id), data_id)?;
    let by = BUILD.to_owned();
    visitor.ask(Op::EndServer { by }, &[])?;
    Ok(())
}

/// The listening sockets (name, address) that the keeper of `data_id` holds; none without a keeper.
#[must_use]
pub fn held_listeners(data_id: &str) -> Vec<(String, String)> {
    let Ok(mut visitor) = Visitor::connect(&socket_path(data_id), data_id) else {
        return Vec::new();
    };
    match visitor.ask(Op::Status, &[]) {
        Ok((Reply::Status(status), _)) => status.listeners,
        _ => Vec::new(),
    }
}

/// Stops all instances and removes every kernel object of this server. Starts a keeper first if none runs, so that what
/// an earlier one left behind goes too.
///
/// # Errors
/// [`UpError`]; what could not be removed is in the report.
pub fn down(config: &KeeperConfig, grace: Duration) -> Result<DownReport, UpError> {
    ensure_keeper(config)?;
    let mut visitor = Visitor::connect(&config.socket(), &config.id)?;
    let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
    match visitor
        .ask(
            Op::Shutdown {
                stop_instances: true,
                tear_down: true,
                grace_ms,
            },
            &[],
        )?
        .0
    {
        Reply::ShutDown(report) => {
            visitor.until_closed();
            Ok(report)
        }
        other => Err(UpError::NotStarted {
            reason: format!("it answered {other:?} when asked to end"),
            log: config.log_file.display().to_string(),
        }),
    }
}
