//! One running copy of a revision: how to start it, what is known of it, how it ended.

mod group;

use std::time::Duration;

pub use group::{Group, Sidecar};
use serde::{Deserialize, Serialize};

use crate::quantity::{MemoryBytes, MilliCpu};
use crate::{InstanceId, RevisionKey, Timestamp};

/// All a driver needs to start an instance. The image must have been prepared under `rootfs`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceSpec {
    pub id: InstanceId,
    pub revision: RevisionKey,
    pub rootfs: RootfsSpec,
    pub process: ProcessSpec,
    pub limits: Limits,
    /// The container's port: where the ingress will dial `eth0`.
    pub port: u16,
    /// Directories in memory that the instance has besides its root.
    #[serde(default)]
    pub volumes: Vec<MemoryVolume>,
    /// Directories of the host that it sees.
    #[serde(default)]
    pub host_dirs: Vec<HostMount>,
    /// Absent in what was written before there was a choice.
    #[serde(default)]
    pub kernel: Kernel,
    /// Its other containers; all above is then of the one that takes requests.
    #[serde(default)]
    pub group: Option<Group>,
    /// Started for the sake of a later start; `None`: as always.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zygote: Option<Zygote>,
}

/// Who answers the system calls of an instance's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kernel {
    /// The host's, behind our walls.
    #[default]
    Host,
    /// gVisor's, a process of the instance's own behind the same walls.
    Gvisor,
}

/// What an instance does for a quicker start: its own, or that of those after it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Zygote {
    /// It starts as always, and the modules that it imports are noted.
    Learn,
    /// Its runtime starts and imports these modules; then it waits, before anything of the app runs, until it is let go on.
    Park { modules: Vec<String> },
}

impl InstanceSpec {
    /// Whether it waits after the first part of its start.
    #[must_use]
    pub const fn parks(&self) -> bool {
        matches!(self.zygote, Some(Zygote::Park { .. }))
    }
}

/// A file system in memory, as long-lived as its instance and charged to its memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryVolume {
    pub size: MemoryBytes,
    /// Where it is seen; never empty.
    pub mounts: Vec<MountPoint>,
    /// The name under which containers of one instance share it; empty for one that only one has.
    #[serde(default)]
    pub shared: String,
}

/// A directory of the host in an instance. By itself it opens nothing: the keeper's own rules say which directories there are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostMount {
    /// The path of the rule ([`HostDir`](crate::host_dir::HostDir)) that allows it.
    pub rule: String,
    /// The directory below that; empty for the rule's own.
    pub beneath: String,
    pub read_only: bool,
    /// Where it is seen; never empty.
    pub mounts: Vec<MountPoint>,
}

/// One place where a volume is seen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPoint {
    /// Absolute, in the instance.
    pub path: String,
    /// The directory of the volume that is seen there; empty for all of it.
    pub sub_path: String,
    pub read_only: bool,
}

/// What the root file system is made of: read-only layers under a memory-backed upper directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RootfsSpec {
    /// Uncompressed layer digests (`sha256:…`), lowest first.
    pub layers: Vec<String>,
    /// First uid and gid of the service's own range of 65,536 (decision 7).
    pub uid_base: u32,
}

/// The process to run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// Program and arguments; never empty. A program without `/` is looked up in the environment's PATH inside the image.
    pub args: Vec<String>,
    /// `NAME=VALUE`; later wins.
    pub env: Vec<String>,
    /// Absolute; made if missing. Empty means `/`.
    pub cwd: String,
    /// As in the image configuration (`user[:group]`, names or numbers); empty means root (inside).
    pub user: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    pub cpu: MilliCpu,
    pub memory: MemoryBytes,
    pub pids: u32,
}

/// How an instance ended, as far as could be learned.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Exit {
    Code(i32),
    Signal(i32),
    /// Killed by the kernel because the memory limit was reached.
    OutOfMemory {
        limit: MemoryBytes,
    },
    /// It ended while nobody could be told how (the keeper was gone).
    Unknown {
        why: String,
    },
}

impl Exit {
    /// In the user's words.
    #[must_use]
    pub fn describe(&self) -> String {
        self.told("")
    }

    /// The same with when it was (`before it listened`), before what there is to say or do about it.
    #[must_use]
    pub fn describe_when(&self, when: &str) -> String {
        self.told(&format!(" {when}"))
    }

    fn told(&self, when: &str) -> String {
        match self {
            Self::Code(code) => format!("exited with status {code}{when}"),
            Self::Signal(signal) => {
                format!("was ended by signal {signal}{}{when}", signal_name(*signal))
            }
            Self::OutOfMemory { limit } => format!(
                "used more than its memory limit of {limit} and was ended{when}; raise it with --memory"
            ),
            Self::Unknown { why } => format!("ended{when}, and how could not be learned: {why}"),
        }
    }
}

impl Exit {
    /// The line of the system log. Google's sentence first where there is one (§2.6), since people and scripts look for it; then
    /// what we know better. Used is what was allowed: the kernel ends who asks for one page more. `container` is the one that ended
    /// first, empty where there is only one.
    #[must_use]
    pub fn log_line(&self, container: &str) -> String {
        let ours = if container.is_empty() {
            format!("The instance {}.", self.describe())
        } else {
            let how = self.describe();
            format!("The container {container:?} {how}; its instance has ended with it.")
        };
        match self {
            Self::OutOfMemory { limit } => {
                let mib = limit.0.div_ceil(1 << 20);
                format!(
                    "Memory limit of {mib} MiB exceeded with {mib} MiB used. Consider increasing the memory limit. {ours}"
                )
            }
            _ => ours,
        }
    }
}

fn signal_name(signal: i32) -> &'static str {
    match signal {
        1 => " (SIGHUP)",
        2 => " (SIGINT)",
        4 => " (SIGILL)",
        6 => " (SIGABRT)",
        7 => " (SIGBUS)",
        8 => " (SIGFPE)",
        9 => " (SIGKILL)",
        11 => " (SIGSEGV)",
        13 => " (SIGPIPE)",
        15 => " (SIGTERM)",
        31 => " (SIGSYS: a system call that is not allowed)",
        _ => "",
    }
}

/// How much of an instance is awake.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// It runs, or may.
    #[default]
    Awake,
    /// It gets no CPU; everything else is as it was.
    Frozen,
    /// Frozen, and its memory was given back as far as it could be.
    Reclaimed,
}

/// What a driver sees of an instance that is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceObservation {
    pub id: InstanceId,
    pub revision: RevisionKey,
    pub port: u16,
    /// Process id on the host.
    pub pid: u32,
    pub started: Timestamp,
    pub limits: Limits,
    /// A driver that freezes nothing doesn't say.
    #[serde(default)]
    pub tier: Tier,
    /// It waits for the rest of its start ([`Zygote::Park`]).
    #[serde(default)]
    pub parked: bool,
}

/// Where the time of a start went, as measured by the driver. Zero for a phase that did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct StartPhases {
    /// Waiting for a sandbox (namespaces, network) from the pool.
    pub sandbox: Duration,
    /// Mounting the root file system.
    pub rootfs: Duration,
    /// Limits, privileges, up to the program's first instruction.
    pub exec: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_in_googles_words_and_ours() {
        let limit = MemoryBytes(512 << 20);
        assert_eq!(
            Exit::OutOfMemory { limit }.log_line(""),
            "Memory limit of 512 MiB exceeded with 512 MiB used. Consider increasing the memory limit. \
             The instance used more than its memory limit of 512Mi and was ended; raise it with --memory."
        );
        assert_eq!(
            Exit::Code(7).log_line(""),
            "The instance exited with status 7."
        );
        assert_eq!(
            Exit::Code(7).log_line("side"),
            "The container \"side\" exited with status 7; its instance has ended with it."
        );
    }

    #[test]
    fn when_it_ended_comes_before_what_to_do() {
        let limit = MemoryBytes(128 << 20);
        let why = "its keeper was gone".to_owned();
        for (exit, said) in [
            (Exit::Code(3), "exited with status 3 at once"),
            (Exit::Signal(9), "was ended by signal 9 (SIGKILL) at once"),
            (
                Exit::OutOfMemory { limit },
                "used more than its memory limit of 128Mi and was ended at once; raise it with --memory",
            ),
            (
                Exit::Unknown { why },
                "ended at once, and how could not be learned: its keeper was gone",
            ),
        ] {
            assert_eq!(exit.describe_when("at once"), said);
        }
    }
}
