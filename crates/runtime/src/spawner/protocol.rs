//! What the keeper asks a spawner for, and what comes back.
//!
//! Owns: the message types. Doesn't: frame them ([`Channel`] does), decide who asks for what, or keep connections.
//!
//! Invariant: requests are pipelined; a response carries its request's id and may overtake earlier ones.

use serde::{Deserialize, Serialize};
use utsuwa_model::instance::{InstanceSpec, RootfsSpec, StartPhases};

pub use super::channel::{Channel, DESCRIPTOR_LIMIT, INLINE_LIMIT, MESSAGE_LIMIT};
pub use super::error::SpawnError;
pub use super::trails::Start;
pub use crate::network::{NetInfo, SocketRole};

/// Version of this protocol; keeper and spawner are normally the same executable, but an upgraded keeper may meet an old one.
pub const PROTOCOL_VERSION: u32 = 1;

/// Id of requests that have no answer, and of the error with which a spawner says that it can't begin to work.
pub const NO_REQUEST: u64 = 0;

/// From the keeper to a spawner.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the keeper; the response carries it back.
    pub id: u64,
    pub op: Op,
}

/// What a spawner can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Op {
    /// Makes a pooled sandbox. Reply: [`Reply::Made`] with the descriptors `[pidfd, netns, control, net.sockets…]`. The keeper
    /// is the parent of the process and must reap it. Housekeeper only.
    MakeSandbox { sandbox: u32 },
    /// Makes the sandbox of a further container of an instance, in the network and the user namespace of its first. Descriptors
    /// in: `[netns, userns]`. Reply: [`Reply::Joined`] with the descriptors `[pidfd, control]`. The keeper must reap the process
    /// and the helper it came from, which has ended. Housekeeper only.
    JoinSandbox { sandbox: u32 },
    /// Turns a pooled sandbox into an instance. Descriptors in: `[control, stdout, stderr]`. Reply: [`Reply::Started`] once
    /// the program's `execve` succeeded. After an error the keeper kills the process and sends [`Op::DestroySandbox`]. Only
    /// [`SpawnError::NotPrepared`] comes with the descriptors given back: after [`Op::Prepare`] it may be sent again.
    Start {
        sandbox: u32,
        pid: u32,
        spec: Box<InstanceSpec>,
        net: NetInfo,
        /// Set for one of several containers; `spec` is then as if it were the only one.
        #[serde(default)]
        member: Option<Member>,
        /// Its cgroup has the limits of `spec` already.
        #[serde(default)]
        limited: bool,
    },
    /// After the process was reaped: removes its cgroup and network. Idempotent. Reply: [`Reply::Done`]. Housekeeper only.
    DestroySandbox { sandbox: u32 },
    /// Makes the layers of `rootfs` ready for its uid range: the housekeeper copies them where they can't be idmapped, the
    /// starter mounts them. Idempotent. Reply: [`Reply::Done`]. Send it to the housekeeper first.
    Prepare { rootfs: RootfsSpec },
    /// Unpacks a layer into the image store. Descriptors in: `[blob]`. Reply: [`Reply::Unpacked`]. Housekeeper only.
    Unpack { diff_id: String, media_type: String },
    /// Forgets a layer: the starter lets go of its mounts, the housekeeper deletes its files. Send it to the starter first.
    RemoveLayer { diff_id: String },
    /// No instance has ids of this range any more: the starter lets go of its mounts, the housekeeper deletes its copies. Send
    /// it to the starter first.
    ReleaseIds { uid_base: u32 },
    /// Writes the memory of a frozen sandbox to swap, unless it is thawed meanwhile. Reply: [`Reply::Done`]. Housekeeper only.
    Reclaim {
        sandbox: u32,
        /// Those of its further containers.
        #[serde(default)]
        others: Vec<u32>,
    },
    /// Deletes the logs that were put aside for it. Reply: [`Reply::Done`]. Housekeeper only.
    RemoveOldLogs,
    /// Reply: [`Reply::Done`] with the sockets of `Gateway::refusal_sockets` as descriptors. Housekeeper only.
    RefusalSockets,
    /// Learns what an instance's program has looked up by now, to look it up ahead of the next that starts alike. No reply. Starter
    /// only.
    Learn {
        start: Start,
        pid: u32,
        /// It is about to end: what starts alike is likely to be the next to be woken. A keeper from before this field doesn't say.
        #[serde(default)]
        ends: bool,
    },
    /// Keeps the descriptors that come along under `name` (a name held before is replaced), in a
    /// [`Held`](crate::keeper::held::Held), so that they outlive a keeper that is killed. No reply. Starter only: when the
    /// channel ends it calls `crate::keeper::become_keeper(&config.on_keeper_gone, held)`.
    Hold { name: String },
    /// Closes what is held under `name`. No reply.
    Release { name: String },
}

/// What a container shares with the others of its instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The sandbox of the container that takes requests: owner of network, user ids and shared volumes.
    pub of: u32,
    /// All containers, itself included.
    pub names: Vec<String>,
    /// Shared volumes that were made for containers before it.
    pub seen: Vec<String>,
}

/// From a spawner to the keeper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    pub id: u64,
    pub result: Result<Reply, SpawnError>,
}

/// What a spawner did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    Made {
        pid: u32,
        net: NetInfo,
    },
    Joined {
        pid: u32,
        helper: u32,
    },
    /// With the descriptor of what is learnt, if that was asked for.
    Started {
        phases: StartPhases,
        /// Whether it does what its spec's `zygote` asks for.
        #[serde(default)]
        zygote: bool,
    },
    /// `entries` and `bytes` written; `skipped` says in words what of the layer was left out, for example device nodes.
    Unpacked {
        entries: u64,
        bytes: u64,
        skipped: Vec<String>,
    },
    Done,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An upgraded spawner may be asked by the keeper of before.
    #[test]
    fn a_keeper_that_does_not_say_whether_a_program_ends_is_understood() {
        let start = serde_json::json!({"uid_base": 1, "layers": [], "args": []});
        let asked = serde_json::json!({"id": 0, "op": {"op": "learn", "start": start, "pid": 7}});
        let request: Request = serde_json::from_value(asked).unwrap();
        let Op::Learn { pid, ends, .. } = request.op else {
            panic!("{request:?}")
        };
        assert_eq!((pid, ends), (7, false));
    }
}
