//! What the driver's handle and the connection's task have in common.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use tokio::sync::{Notify, broadcast, oneshot};

use super::sockets::SocketCache;
use crate::driver::{DriverError, InstanceEvent};
use crate::keeper::protocol::{KeeperError, Op, Reply};

/// The answer to a request.
pub(super) type Answer = Result<(Reply, Vec<OwnedFd>), DriverError>;

/// One request under way.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) op: Op,
    pub(super) descriptors: Vec<OwnedFd>,
    pub(super) answer: oneshot::Sender<Answer>,
}

/// What the driver's handle and the task share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) socket: PathBuf,
    pub(super) data_id: String,
    pub(super) build: String,
    pub(super) events: broadcast::Sender<InstanceEvent>,
    /// A receiver of events came: exits that waited for one can go.
    pub(super) listening: Notify,
    pub(super) superseded: AtomicBool,
    /// Another server waits for this one's end. Everything works until then.
    pub(super) leave: AtomicBool,
    pub(super) superseded_wake: Notify,
    /// This server has made place: it must not come back as the server, whatever its connection does.
    pub(super) gave_place: AtomicBool,
    /// As the keeper said at last: why no instance can be frozen; empty where they can.
    pub(super) never_freezes: parking_lot::Mutex<String>,
    pub(super) sockets: SocketCache,
    /// Copies of what an earlier keeper may have lost.
    pub(super) listeners: parking_lot::Mutex<HashMap<(String, String), OwnedFd>>,
}

pub(super) fn superseded() -> DriverError {
    DriverError::Unavailable(
        "another server has taken over this data directory; this one must end".to_owned(),
    )
}

pub(super) fn to_driver_error(error: KeeperError) -> DriverError {
    match error {
        KeeperError::Refused(text) => DriverError::Refused(text),
        KeeperError::NotFound(id) => DriverError::NotFound(id),
        KeeperError::Exhausted(text) => DriverError::Exhausted(text),
        KeeperError::Internal(text) => DriverError::Internal(text),
        // Asking again changes nothing.
        KeeperError::NotUnderstood { .. } | KeeperError::NotPermitted => {
            DriverError::Refused(error.to_string())
        }
    }
}

/// What was unpacked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub entries: u64,
    pub bytes: u64,
    /// What of the layer was left out, in words.
    pub skipped: Vec<String>,
}

pub(super) fn unexpected(reply: &Reply) -> DriverError {
    DriverError::Internal(format!("the keeper answered something else: {reply:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_keeper_does_not_know_is_not_asked_for_again() {
        let unknown = KeeperError::NotUnderstood {
            op: "thaw".to_owned(),
            why: "unknown variant".to_owned(),
        };
        let refused = to_driver_error(unknown);
        assert!(matches!(&refused, DriverError::Refused(why) if why.contains("thaw")));
    }
}
