//! Whom the answers of the spawners are for.

use std::os::fd::OwnedFd;

use utsuwa_model::InstanceId;

use crate::driver::DriverError;
use crate::keeper::core::Keeper;
use crate::keeper::protocol::{KeeperError, Reply as ServerReply};
use crate::keeper::tiers::Reclaim;
use crate::spawner::protocol::{Op, Reply, SpawnError};

/// Whom an answer of a spawner is for.
#[derive(Debug)]
pub(crate) enum Pending {
    Make(u32),
    Start(InstanceId),
    /// A sandbox for a further container of an instance.
    Join {
        sandbox: u32,
        id: InstanceId,
    },
    /// The start of one of several containers.
    Container {
        id: InstanceId,
        container: usize,
    },
    /// What its start found missing is being copied.
    ContainerCopies {
        id: InstanceId,
        container: usize,
    },
    Destroy {
        sandbox: u32,
        attempts: u32,
    },
    /// Pass it on to a session.
    Session {
        session: u32,
        request: u64,
    },
    /// Memory that is being given back.
    Reclaim(Reclaim),
    /// After success, ask the spawner `index` for `op`, and pass its answer on.
    Then {
        session: u32,
        request: u64,
        index: u32,
        op: Op,
    },
    /// What an instance's start found missing is being copied. Its sandbox's descriptors, for the next attempt.
    Copies {
        id: InstanceId,
        descriptors: Vec<OwnedFd>,
    },
    Refusals,
}

impl Keeper {
    pub(super) fn answered(
        &mut self,
        pending: Pending,
        result: Result<Reply, SpawnError>,
        descriptors: Vec<OwnedFd>,
    ) {
        match pending {
            Pending::Make(number) => self.made(number, result, descriptors),
            Pending::Start(id) => match result {
                Err(SpawnError::NotPrepared { .. }) if self.may_prepare(&id) => {
                    self.prepare_first(id, descriptors)
                }
                result => self.started(&id, result, descriptors),
            },
            Pending::Join { sandbox, id } => self.joined(sandbox, id, result, descriptors),
            Pending::Container { id, container } => {
                let missing = matches!(result, Err(SpawnError::NotPrepared { .. }));
                let mut parcel = descriptors;
                if !missing || !self.copy_first(&id, container, &mut parcel) {
                    self.container_started(&id, container, result);
                }
            }
            Pending::ContainerCopies { id, container } => self.copied(&id, container, result),
            Pending::Copies { id, descriptors } => self.prepared(id, result, descriptors),
            Pending::Destroy { sandbox, attempts } => self.destroyed(sandbox, attempts, result),
            Pending::Session { session, request } => {
                let reply = match result {
                    Ok(Reply::Unpacked {
                        entries,
                        bytes,
                        skipped,
                    }) => Ok(ServerReply::Unpacked {
                        entries,
                        bytes,
                        skipped,
                    }),
                    Ok(_) => Ok(ServerReply::Done),
                    Err(error) => Err(to_keeper_error(&error)),
                };
                self.reply(session, request, reply, Vec::new());
            }
            Pending::Reclaim(reclaim) => self.reclaimed(&reclaim, result.map(drop)),
            Pending::Then {
                session,
                request,
                index,
                op,
            } => match result {
                Ok(_) => {
                    let pending = Pending::Session { session, request };
                    self.ask(index, op, Vec::new(), pending);
                }
                Err(error) => {
                    self.reply(session, request, Err(to_keeper_error(&error)), Vec::new())
                }
            },
            Pending::Refusals => match result {
                Ok(_) => {
                    self.refusals = descriptors;
                    self.announce_refusals();
                }
                Err(error) => tracing::warn!(%error, "refused connections won't be shown"),
            },
        }
    }
}

/// As seen by the server.
pub(crate) fn to_keeper_error(error: &SpawnError) -> KeeperError {
    match error.to_driver() {
        DriverError::Refused(text) => KeeperError::Refused(text),
        DriverError::Exhausted(text) | DriverError::Unavailable(text) => {
            KeeperError::Exhausted(text)
        }
        DriverError::NotFound(id) => KeeperError::NotFound(id),
        DriverError::Internal(text) => KeeperError::Internal(text),
    }
}
