//! What the server and the keeper say to each other.
//!
//! Owns: the messages and their version. One JSON value per SOCK_SEQPACKET packet (see [`crate::spawner::protocol::Channel`]).
//!
//! Invariants:
//! 1. Requests carry an id; exactly one reply with that id comes back unless the connection ends. Replies may overtake.
//! 2. The keeper answers this version and the one before ([`agree`]). Fields are only ever added, with defaults. An operation
//!    that it doesn't know is answered with [`KeeperError::NotUnderstood`], and the connection goes on.
//! 3. No request names a path: things are named by id or passed as descriptors. (A listening Unix socket is bound by the
//!    server itself and given; its name is only a label.)

mod report;

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};
use utsuwa_model::instance::{InstanceObservation, InstanceSpec, Kernel, RootfsSpec, StartPhases};
use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::{InstanceId, RevisionKey, ServiceKey, Timestamp};

use crate::network::NetInfo;

pub use report::{ExitReport, Stop};

/// Version of this protocol. 2: [`Op::ReleaseIds`], [`Op::RemoveLogs`], [`Op::SetCpu`], [`Op::EndServer`], [`FromKeeper::Leave`].
/// 3: [`Op::Freeze`], [`Op::Thaw`], [`Op::Reclaim`]. 4: [`Op::StartWhole`], [`Op::StartContainer`],
/// [`Op::GoOn`]. Only what was released counts: until the first release the latest version still grows.
pub const VERSION: u32 = 4;
/// Oldest version still answered.
pub const OLDEST: u32 = 1;
/// A server of an older version would never thaw what another one had frozen.
pub(crate) const KNOWS_TIERS: u32 = 3;
/// One of an older version takes a parked instance for one that serves.
pub(crate) const KNOWS_PARKED: u32 = 4;
/// The version that brought [`FromKeeper::Leave`]; servers of earlier ones get a signal instead.
pub(crate) const LEAVE_SINCE: u32 = 2;
/// Instances in one page of [`Reply::List`].
pub const LIST_PAGE: usize = 128;

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientKind {
    /// The one server: gets events and internal sockets, and supersedes the server before it.
    Server,
    /// Asks and leaves (`down`, `doctor`, `up` before it becomes the server); gets no events.
    Visitor,
}

/// To the keeper, which reads operations as raw JSON first: one of a later version can then still be answered.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToKeeper<O = Op> {
    /// The first packet of each connection.
    Hello {
        /// The latest version that the client speaks.
        version: u32,
        /// The oldest; 0 from a client that speaks one only.
        #[serde(default)]
        oldest: u32,
        /// Build of the client, for the keeper's log.
        build: String,
        /// The id of the data directory: guards against talking to somebody else's keeper.
        data_id: String,
        kind: ClientKind,
        /// Sandboxes whose internal sockets the client holds already (after the keeper was replaced).
        #[serde(default)]
        holds: Vec<u32>,
    },
    Request {
        id: u64,
        op: O,
    },
}

/// The latest version that both speak: we those from [`OLDEST`] to [`VERSION`], the client those from `oldest` to `version`.
pub(crate) fn agree(version: u32, oldest: u32) -> Option<u32> {
    let oldest = if oldest == 0 { version } else { oldest };
    Some(version.min(VERSION)).filter(|agreed| *agreed >= oldest.max(OLDEST))
}

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Op {
    /// Reply [`Reply::Started`] with a few unconnected sockets.
    Start {
        spec: Box<InstanceSpec>,
    },
    /// The same for an instance of several containers, once those run that don't wait for another; and for any that an older keeper
    /// would start without what it doesn't know: on the host's kernel, or without a directory of the host.
    StartWhole {
        spec: Box<InstanceSpec>,
    },
    /// Starts a container that waits, by its number. Reply [`Reply::Done`] once its program runs.
    StartContainer {
        id: InstanceId,
        container: usize,
    },
    /// Reply [`Reply::Done`] once nothing of it is left.
    Stop {
        id: InstanceId,
        grace_ms: u64,
    },
    /// Running instances with an id after `after`, in order.
    List {
        after: Option<InstanceId>,
    },
    /// Reply [`Reply::Sockets`] with `count` descriptors.
    Sockets {
        id: InstanceId,
        count: u32,
    },
    Usage {
        id: InstanceId,
    },
    /// Changes the CPU limit of a running instance.
    SetCpu {
        id: InstanceId,
        cpu: MilliCpu,
    },
    /// Takes the CPU away from a running instance. Refused where that can't be done, and for one that starts or stops.
    Freeze {
        id: InstanceId,
    },
    /// Gives it back; no error for one that isn't frozen.
    Thaw {
        id: InstanceId,
    },
    /// Lets a parked instance go on with its start; no error for one that isn't parked.
    GoOn {
        id: InstanceId,
    },
    /// Gives back the memory of a frozen instance. Reply [`Reply::Reclaimed`]. Refused without swap that may hold it.
    Reclaim {
        id: InstanceId,
    },
    Prepare {
        rootfs: RootfsSpec,
    },
    /// With one descriptor: the compressed blob.
    Unpack {
        diff_id: String,
        media_type: String,
    },
    RemoveLayer {
        diff_id: String,
    },
    /// The service whose ids these were is being deleted: lets go of what was made for them. Reply [`Reply::Done`], or
    /// [`KeeperError::Exhausted`] while an instance has them.
    ReleaseIds {
        uid_base: u32,
    },
    /// Deletes all that instances of a service wrote, if the last of it was written before `before`. Reply [`Reply::Done`]
    /// once nothing is left, or [`KeeperError::Exhausted`] while an instance may still write.
    RemoveLogs {
        service: ServiceKey,
        before: Option<Timestamp>,
    },
    /// Reply [`Reply::Listener`], with the socket if there is one. `bind`: make it where there is none.
    TakeListener {
        name: String,
        address: String,
        bind: bool,
    },
    /// With one descriptor: a listening socket that shall survive the server.
    GiveListener {
        name: String,
        address: String,
    },
    /// Closes all listening sockets but these (name, address).
    RetainListeners {
        keep: Vec<(String, String)>,
    },
    /// With the descriptors of [`NetInfo::sockets`], in order: gives back what an earlier keeper handed out.
    GiveSandboxSockets {
        sandbox: u32,
    },
    /// The exit was passed on; it needn't be told again.
    AckExit {
        id: InstanceId,
    },
    Status,
    /// Root only. Asks the server, if one is connected, to end in order: another one (of build `by`) waits for its place.
    /// Reply [`Reply::Done`] at once; asking again changes nothing.
    EndServer {
        by: String,
    },
    /// Root only. With one descriptor: an executable that takes the keeper's place with all its descriptors.
    Upgrade {
        build: String,
    },
    /// Root only. Reply [`Reply::ShutDown`], then the keeper ends.
    Shutdown {
        stop_instances: bool,
        tear_down: bool,
        grace_ms: u64,
    },
}

impl Op {
    /// An operation of its own for what an older keeper would leave out without a word.
    pub(crate) fn start(spec: InstanceSpec) -> Self {
        let spec = Box::new(spec);
        if spec.group.is_some() || spec.kernel != Kernel::Host || !spec.host_dirs.is_empty() {
            Self::StartWhole { spec }
        } else {
            Self::Start { spec }
        }
    }
}

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FromKeeper {
    Welcome {
        /// The one to be spoken from now on.
        version: u32,
        build: String,
        pid: u32,
        /// Why no instance can be frozen; empty where they can, and from a keeper that doesn't say.
        #[serde(default)]
        never_freezes: String,
    },
    /// Instead of [`FromKeeper::Welcome`]; the connection ends.
    Refused {
        reason: String,
    },
    /// A newer server connected: this one gets nothing more and must end.
    Superseded {
        by: String,
    },
    /// To a server from version 2 on: another one waits for its place. It goes on being served until it has drained and ended.
    Leave {
        by: String,
    },
    Reply {
        id: u64,
        result: Result<Reply, KeeperError>,
    },
    Event(Event),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    Done,
    Started {
        phases: StartPhases,
        sandbox: u32,
        address: SocketAddr,
        /// Process id on the host; 0 from a keeper that doesn't say.
        #[serde(default)]
        pid: u32,
        /// It does what its spec's `zygote` asks for. A keeper that doesn't know of that doesn't say.
        #[serde(default)]
        zygote: bool,
        /// The last descriptor is what is learnt of it.
        #[serde(default)]
        learns: bool,
    },
    List {
        instances: Vec<InstanceObservation>,
        more: bool,
    },
    Sockets {
        address: SocketAddr,
    },
    Usage {
        memory_bytes: u64,
        cpu_us: u64,
        pids: u32,
    },
    /// What it had in memory before and after.
    Reclaimed {
        before_bytes: u64,
        after_bytes: u64,
    },
    Unpacked {
        entries: u64,
        bytes: u64,
        skipped: Vec<String>,
    },
    Listener {
        found: bool,
    },
    Status(Status),
    ShutDown(DownReport),
}

/// Unasked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// Repeated to each new server until acknowledged.
    Exited(ExitReport),
    /// With descriptors in the order of `net.sockets`.
    SandboxSockets {
        sandbox: u32,
        net: NetInfo,
    },
    /// From now on the sandbox is this instance.
    SandboxAssigned {
        sandbox: u32,
        instance: InstanceId,
        revision: RevisionKey,
    },
    SandboxGone {
        sandbox: u32,
    },
    /// With descriptors: sockets that tell of refused connections.
    RefusalSockets,
}

/// What the keeper holds; for `doctor` and tests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub pid: u32,
    pub build: String,
    pub instances: usize,
    pub exits_unacknowledged: usize,
    pub pool_ready: usize,
    pub pool_making: usize,
    pub pool_target: usize,
    pub sandboxes: usize,
    pub spawner_pids: Vec<u32>,
    pub listeners: Vec<(String, String)>,
    /// Why the last sandbox could not be made; empty when the last one could.
    pub pool_error: String,
}

/// What `utsuwa down` removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DownReport {
    pub instances_stopped: usize,
    pub instances_killed: usize,
    pub sandboxes_removed: usize,
    /// What could not be removed, in the user's words.
    pub problems: Vec<String>,
}

/// Why the keeper could not do it. The texts are for the user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum KeeperError {
    #[error("{0}")]
    Refused(String),
    #[error("instance {0} is not running")]
    NotFound(InstanceId),
    #[error("{0}")]
    Exhausted(String),
    #[error("{0}")]
    Internal(String),
    /// Only root may ask for this.
    #[error("only root may ask the keeper for this")]
    NotPermitted,
    /// An operation of another version.
    #[error(
        "the keeper doesn't understand the operation {op} ({why}): it is of another build; start the server once as root, so \
         that it replaces the keeper"
    )]
    NotUnderstood { op: String, why: String },
}

/// Where the ingress dials an instance.
#[must_use]
pub fn dial_address(net: &NetInfo, port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(net.address), port)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_version_that_both_speak_is_agreed_on() {
        assert_eq!(agree(VERSION, OLDEST), Some(VERSION));
        assert_eq!(agree(VERSION + 1, VERSION), Some(VERSION));
        assert_eq!(agree(OLDEST, 0), Some(OLDEST));
        assert_eq!(agree(VERSION + 1, 0), None);
        assert_eq!(agree(VERSION + 2, VERSION + 1), None);
        assert_eq!(agree(OLDEST - 1, 0), None);
    }
}
