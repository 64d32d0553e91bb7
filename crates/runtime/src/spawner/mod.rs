//! The spawner role: makes sandboxes and starts instances in them, at the keeper's request.
//!
//! Owns: the two processes *starter* (on the way of a wake: nothing slow) and *housekeeper* (everything else), their loop and
//! the protocol. Doesn't: keep or reap sandboxes (the keeper is their parent), or know services.
//!
//! Invariants
//! 1. Single-threaded: `clone3` from a process with threads would copy locks nobody can release.
//! 2. Works in a mount namespace of its own; nothing it mounts is seen by the host.
//! 3. Answers every request once, by id, not necessarily in order.
//!
//! Failure: errors of requests are values. When the keeper is gone the starter becomes a keeper ([`SpawnerConfig::on_keeper_gone`]),
//! others end.

mod channel;
mod child;
mod chores;
pub mod error;
mod housekeeper;
mod joining;
mod making;
mod pending;
pub mod protocol;
mod roots;
mod shared;
mod starter;
mod trails;
pub(crate) mod turn;
mod unpacker;
mod upkeep;
mod uppers;

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

pub use error::SpawnError;
use protocol::{Channel, Request, Response};
use rustix::event::{PollFd, PollFlags, Timespec};
use serde::{Deserialize, Serialize};
use utsuwa_model::host_dir::HostDir;

use self::housekeeper::Housekeeper;
use self::turn::Turn;
use crate::keeper::held::Held;
use crate::precedence;
use crate::sandbox::{probe, sys};

/// Descriptor on which a spawner finds its [`protocol::Channel`] to the keeper.
pub const CHANNEL_FD: i32 = 3;

/// Which requests a spawner serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `Prepare`, `Start`, and letting go of layers: nothing slow, so that a wake never waits.
    Starter,
    /// Everything else.
    Housekeeper,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Starter => "starter",
            Self::Housekeeper => "housekeeper",
        }
    }
}

/// All a spawner needs to know. The keeper runs `internal spawner JSON` with the channel as descriptor [`CHANNEL_FD`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpawnerConfig {
    pub role: Role,
    /// The server's ID: carried by the name of every kernel object.
    pub id: String,
    /// `/run/utsuwa/ID`.
    pub runtime_dir: std::path::PathBuf,
    /// `images` in the data directory: `layers/`, `shifted/`.
    pub images_dir: std::path::PathBuf,
    /// `logs` in the data directory; `None`: this spawner deletes no logs.
    #[serde(default)]
    pub logs_dir: Option<std::path::PathBuf>,
    /// Copy layers for each service also where they could be idmapped.
    #[serde(default)]
    pub copy_layers: bool,
    /// Directories of the host that instances may have.
    #[serde(default)]
    pub host_dirs: Vec<HostDir>,
    /// Free bytes that unpacking leaves on the disk of `images_dir`.
    pub disk_reserve: u64,
    /// The gateway; `None` gives sandboxes no network but loopback (their [`NetInfo`](crate::network::NetInfo) is then all
    /// zeros).
    pub network: Option<crate::network::NetConfig>,
    /// What to re-execute as (`/proc/self/exe` with these arguments) when the keeper is gone; empty: exit.
    pub on_keeper_gone: Vec<String>,
}

/// Runs the role until the keeper is gone. `arguments` is what follows `internal spawner`: one [`SpawnerConfig`] as JSON.
///
/// Must be called before any thread exists.
#[must_use]
pub fn main(mut arguments: impl Iterator<Item = String>) -> ExitCode {
    let config = match arguments
        .next()
        .as_deref()
        .map(serde_json::from_str::<SpawnerConfig>)
    {
        Some(Ok(config)) => config,
        Some(Err(error)) => {
            tracing::error!(%error, "spawner: its configuration is not readable");
            return ExitCode::from(64);
        }
        None => {
            tracing::error!(
                "spawner: started without its configuration; it is started by the keeper, not by hand"
            );
            return ExitCode::from(64);
        }
    };
    let channel = match sys::adopt(CHANNEL_FD) {
        Ok(socket) => Channel::from(socket),
        Err(error) => {
            tracing::error!(%error, "spawner: descriptor 3 should be the keeper's socket");
            return ExitCode::from(64);
        }
    };
    let _ = sys::cloexec_from(3);
    precedence::goes_first();
    let role = config.role.name();
    let _ = rustix::thread::set_name(match config.role {
        Role::Starter => c"utsuwa-starter",
        Role::Housekeeper => c"utsuwa-houseke",
    });
    let held = match serve(&channel, &config) {
        Ok(held) => held,
        Err(error) => {
            tracing::error!(%error, role, "spawner: ends");
            return ExitCode::FAILURE;
        }
    };
    if config.on_keeper_gone.is_empty() {
        return ExitCode::SUCCESS;
    }
    drop(channel);
    // A keeper makes itself prompt.
    precedence::goes_on_with_others();
    crate::keeper::become_keeper(&config.on_keeper_gone, held)
}

/// What both roles have in common.
trait Worker {
    /// Serves one request: answers now, or later through `wake`.
    fn serve(
        &mut self,
        channel: &Channel,
        request: Request,
        descriptors: Vec<std::os::fd::OwnedFd>,
    );
    /// Descriptors whose readability means that something under way has gone on.
    fn waiting(&self) -> Vec<BorrowedFd<'_>>;
    /// One of them (by index) is readable.
    fn wake(&mut self, channel: &Channel, index: usize);
    /// When [`Worker::tick`] wants to be called at the latest; `None`: not at all.
    fn next_tick(&self) -> Option<std::time::Duration>;
    /// Nothing else was to be done, or the time has come.
    fn tick(&mut self, channel: &Channel);
    /// The keeper is gone: what it had deposited here.
    fn end(self: Box<Self>) -> Held;
}

/// What can go wrong before the first request. `None`: the keeper is gone already.
fn begin(channel: &Channel, config: &SpawnerConfig) -> Result<Option<Box<dyn Worker>>, SpawnError> {
    own_mount_namespace()?;
    let features = probe::probe();
    let worker: Box<dyn Worker> = match config.role {
        Role::Starter => Box::new(starter::Starter::new(config, &features)?),
        Role::Housekeeper => {
            let turn = Turn::wait(&config.runtime_dir, channel).map_err(|e| {
                SpawnError::sys("fcntl", e, config.runtime_dir.display().to_string())
            })?;
            match turn {
                Some(turn) => Box::new(Housekeeper::new(config, &features, turn)?),
                None => return Ok(None),
            }
        }
    };
    Ok(Some(worker))
}

fn serve(channel: &Channel, config: &SpawnerConfig) -> Result<Held, SpawnError> {
    let mut worker = match begin(channel, config) {
        Ok(Some(worker)) => worker,
        Ok(None) => return Ok(Held::default()),
        Err(error) => {
            // The keeper shows it to those who wait for a sandbox.
            respond(channel, protocol::NO_REQUEST, Err(error.clone()), &[]);
            return Err(error);
        }
    };
    loop {
        let waiting = worker.waiting();
        let mut polled: Vec<PollFd<'_>> = Vec::with_capacity(waiting.len() + 1);
        polled.push(PollFd::from_borrowed_fd(channel.as_fd(), PollFlags::IN));
        polled.extend(
            waiting
                .into_iter()
                .map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)),
        );
        let timeout = worker.next_tick().map(|after| Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(after.subsec_nanos()),
        });
        let ready = match rustix::event::poll(&mut polled, timeout.as_ref()) {
            Ok(ready) => ready,
            Err(rustix::io::Errno::INTR) => continue,
            Err(error) => return Err(SpawnError::sys("poll", error, "wait for requests")),
        };
        let readable: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(polled);
        if ready == 0 {
            worker.tick(channel);
            continue;
        }
        // Highest index first: a worker removes what it has finished.
        for index in (1..readable.len()).rev().filter(|index| readable[*index]) {
            worker.wake(channel, index - 1);
        }
        if readable[0] {
            match channel.receive::<Request>() {
                Ok(Some((request, descriptors))) => worker.serve(channel, request, descriptors),
                Ok(None) => return Ok(worker.end()),
                Err(error) => {
                    return Err(SpawnError::sys(
                        "recvmsg",
                        error,
                        "read a request of the keeper",
                    ));
                }
            }
        }
    }
}

/// What is mounted here is seen by nobody else.
fn own_mount_namespace() -> Result<(), SpawnError> {
    use rustix::mount::MountPropagationFlags;
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS)
        .map_err(|e| SpawnError::sys("unshare", e, "own mount namespace"))?;
    rustix::mount::mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(|e| SpawnError::sys("mount", e, "make mounts private"))
}

/// Sends a response; a keeper that is gone is noticed by the loop. What can't be sent is answered with the reason instead, since
/// the keeper waits for each answer as long as this process lives; where even that fails, it doesn't.
fn respond(
    channel: &Channel,
    id: u64,
    result: Result<protocol::Reply, SpawnError>,
    descriptors: &[BorrowedFd<'_>],
) {
    let Err(error) = channel.send(&Response { id, result }, descriptors) else {
        return;
    };
    tracing::warn!(%error, request = id, "spawner: an answer did not reach the keeper");
    if is_gone(&error) {
        return;
    }
    let result = Err(SpawnError::sys("sendmsg", error, "answer the keeper"));
    if let Err(error) = channel.send(&Response { id, result }, &[])
        && !is_gone(&error)
    {
        tracing::error!(%error, request = id, "spawner: the keeper can't be answered; another one takes over");
        sys::leave(1);
    }
}

fn is_gone(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(
        error.kind(),
        ErrorKind::BrokenPipe | ErrorKind::ConnectionReset
    )
}

fn wrong_role(op: &str, role: Role) -> SpawnError {
    SpawnError::WrongRole {
        op: op.to_owned(),
        role: role.name().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_sent_is_answered_with_the_reason() {
        let (ours, keepers) = Channel::pair().unwrap();
        let too_many = vec![ours.as_fd(); protocol::DESCRIPTOR_LIMIT + 1];
        respond(&ours, 7, Ok(protocol::Reply::Done), &too_many);
        drop(ours);
        let (answer, descriptors) = keepers.receive::<Response>().unwrap().expect("an answer");
        assert_eq!((answer.id, descriptors.len()), (7, 0));
        assert!(answer.result.is_err(), "{answer:?}");
    }

    #[test]
    fn a_keeper_that_is_gone_is_left_to_the_loop() {
        let (ours, keepers) = Channel::pair().unwrap();
        drop(keepers);
        respond(&ours, 7, Ok(protocol::Reply::Done), &[]);
    }
}
