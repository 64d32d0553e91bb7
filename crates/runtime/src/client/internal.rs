//! What the server is told about sockets that stand for sandboxes.

use std::os::fd::OwnedFd;

use utsuwa_model::{InstanceId, RevisionKey};

use crate::keeper::protocol::ExitReport;
use crate::network::{NetInfo, SocketRole};

/// For whoever serves the addresses inside instances (names, metadata, the host's services). A caller is the sandbox
/// whose socket it came in by, and a sandbox becomes an instance by [`InternalEvent::Assigned`].
#[derive(Debug)]
pub enum InternalEvent {
    /// A sandbox was made (or is told of again to a new server). Sockets that came before for it are void.
    Attached {
        sandbox: u32,
        net: NetInfo,
        sockets: Vec<(SocketRole, OwnedFd)>,
    },
    /// From now on the sandbox is this instance.
    Assigned {
        sandbox: u32,
        instance: InstanceId,
        revision: RevisionKey,
    },
    /// An instance ended. Told again to each new server until it was acknowledged
    /// ([`super::SandboxDriver::acknowledge`]): write it down first.
    Exited(ExitReport),
    /// Nothing comes from it any more: close its sockets.
    Gone { sandbox: u32 },
    /// Sockets that tell of refused connections; earlier ones are void.
    Refusals { sockets: Vec<OwnedFd> },
}
