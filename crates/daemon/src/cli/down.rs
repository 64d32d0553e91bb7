//! `utsuwa down`: ends the server, its instances and its keeper, and leaves no kernel object behind. Data stays.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use utsuwa_runtime::keeper::{self, KeeperConfig};
use utsuwa_runtime::privilege;
use utsuwa_runtime::rootless::World;

use super::words::shell_quote;
use super::{ClientArgs, numbers};
use crate::client::Failure;
use crate::output::note;

#[derive(Debug, Args)]
pub(crate) struct DownArgs {
    /// Data directory of the server to end.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Configuration file, for the data directory.
    #[arg(long, value_name = "FILE", env = "UTSUWA_CONFIG")]
    config: Option<PathBuf>,
    /// Seconds that instances have to end by themselves.
    #[arg(long, default_value_t = 10, value_name = "SECONDS", value_parser = numbers::seconds)]
    grace: u64,
}

/// Longest wait for the server's own orderly end.
const SERVER_END: Duration = Duration::from_secs(15);

pub(crate) fn run(args: &DownArgs, client: &ClientArgs) -> Result<(), Failure> {
    let data = match &args.data_dir {
        Some(dir) => dir.clone(),
        None => super::configured_data_dir(args.config.clone())?,
    };
    if !data.join("id").exists() {
        let hint = elsewhere(&data, client);
        return Err(Failure::failed(format!(
            "{}: is no data directory of a server",
            data.display()
        ))
        .hint(hint.unwrap_or_else(|| "name it with --data-dir".to_owned())));
    }
    let world = match privilege::is_root() {
        true => None,
        false => match enter(&data)? {
            Some(world) => Some(world),
            None => return nothing_runs(&data, args, client),
        },
    };
    let ended = end(&data, Duration::from_secs(args.grace));
    if let Some(world) = world.filter(|_| ended.is_ok()) {
        world.end();
    }
    match ended? {
        true => Ok(()),
        false => nothing_runs(&data, args, client),
    }
}

/// To end what has ended is no mistake. But who named no directory may have meant another one, over which something runs: that nothing
/// was ended must not look as if it had been.
fn nothing_runs(data: &Path, args: &DownArgs, client: &ClientArgs) -> Result<(), Failure> {
    let named = args.data_dir.is_some()
        || crate::environment::variable(&crate::config::variable("data-dir")).is_some();
    let hint = if named { None } else { elsewhere(data, client) };
    match hint {
        Some(hint) => Err(Failure::failed(format!(
            "nothing runs over {}; nothing was ended",
            data.display()
        ))
        .hint(hint)),
        None => {
            note(&format!("Nothing runs over {}.", data.display()));
            Ok(())
        }
    }
}

/// What runs over other directories than `data`, and how it is ended: what this user's keepers hold; without any, whatever answers at
/// the API's address. Not ended unasked: that address may be another machine's, and the directory one of this.
fn elsewhere(data: &Path, client: &ClientArgs) -> Option<String> {
    let real = data.canonicalize().ok();
    let is_other =
        |dir: &PathBuf| dir != data && (real.is_none() || dir.canonicalize().ok() != real);
    let mut kept = keeper::running();
    kept.retain(is_other);
    if !kept.is_empty() {
        let each: Vec<String> = kept.iter().map(|dir| command(dir)).collect();
        let here = kept.iter().map(|dir| dir.display().to_string());
        return Some(format!(
            "what runs here is over {}: {}",
            here.collect::<Vec<_>>().join(" and "),
            each.join("; ")
        ));
    }
    let dir = super::doctor::running_data_dir(client).filter(is_other)?;
    Some(format!(
        "the server at {} runs over {}: {}",
        client.api,
        dir.display(),
        command(&dir)
    ))
}

/// What ends the server over `data`, as a shell takes it.
pub(crate) fn command(data: &Path) -> String {
    format!(
        "utsuwa down --data-dir {}",
        shell_quote(&data.display().to_string())
    )
}

/// The namespaces of a user's server; `None` if nobody is in them.
fn enter(data: &Path) -> Result<Option<World>, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::failed(format!("{}: {e}", data.display()));
    let place = crate::up::place(data).map_err(|e| {
        failed(&format!("{e:#}")).hint("if root started the server: sudo utsuwa down")
    })?;
    if !place.is_inhabited() {
        return Ok(None);
    }
    place.enter().map(Some).map_err(|e| failed(&e))
}

/// Answers whether there was anything to end.
fn end(data: &Path, grace: Duration) -> Result<bool, Failure> {
    crate::up::is_of_this_user(data)
        .map_err(|e| Failure::failed(format!("{e:#}")).hint("run utsuwa down as that user"))?;
    let id = keeper::data_id(data).map_err(|e| {
        Failure::failed(format!(
            "{}: identify the data directory: {e}",
            data.display()
        ))
    })?;
    let server = crate::up::running_server(&id);
    if let Some(pid) = server {
        end_server(pid)?;
    }
    let left = end_leaving(data)?;
    if server.is_none() && !left && !keeper::socket_path(&id).exists() {
        return Ok(false);
    }
    drop(std::fs::remove_file(crate::up::pid_file(&id)));
    let keeper = match existing(&id) {
        Some(keeper) => keeper,
        None => KeeperConfig::new(data, 0, 0, None)
            .map_err(|e| Failure::failed(format!("{}: {e}", data.display())))?,
    };
    let report = keeper::down(&keeper, grace)
        .map_err(|e| Failure::failed(format!("end the keeper: {e}")))?;
    note(&format!(
        "Stopped {} instance{} ({} had to be killed) and removed {} sandbox{}. Data stays in {}.",
        report.instances_stopped,
        if report.instances_stopped == 1 {
            ""
        } else {
            "s"
        },
        report.instances_killed,
        report.sandboxes_removed,
        if report.sandboxes_removed == 1 {
            ""
        } else {
            "es"
        },
        data.display()
    ));
    if report.problems.is_empty() {
        Ok(true)
    } else {
        Err(Failure::failed(format!(
            "some things could not be removed:\n  {}",
            report.problems.join("\n  ")
        )))
    }
}

/// The configuration that the running keeper was started with.
fn existing(id: &str) -> Option<KeeperConfig> {
    let text = std::fs::read(keeper::runtime_dir(id).join("keeper.json")).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Ends servers that made place for another and still have streams: their sockets hold what instances had. Answers whether there
/// were any.
fn end_leaving(data: &Path) -> Result<bool, Failure> {
    let leaving = crate::up::leaving_servers(data)
        .map_err(|e| Failure::failed(format!("{}: find earlier servers: {e}", data.display())))?;
    for pid in &leaving {
        note(&format!(
            "Ending what goes on in an earlier server (process {pid})."
        ));
        end_server(*pid)?;
    }
    Ok(!leaving.is_empty())
}

fn end_server(pid: u32) -> Result<(), Failure> {
    let Some(process) = i32::try_from(pid).ok().and_then(Pid::from_raw) else {
        return Ok(());
    };
    let signal = |signal: Signal| match kill_process(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(Failure::failed(format!(
            "end the server (process {pid}): {error}"
        ))),
    };
    signal(Signal::TERM)?;
    let deadline = Instant::now() + SERVER_END;
    while test_kill_process(process).is_ok() && !is_zombie(pid) {
        if Instant::now() > deadline {
            note(&format!(
                "The server (process {pid}) did not end within {} s; killing it.",
                SERVER_END.as_secs()
            ));
            return signal(Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Ended, but its parent hasn't asked yet.
fn is_zombie(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
    })
}
