//! The cgroup of each sandbox, on v2 and on v1 controllers.
//!
//! Owns: where our tree is (`utsuwa-ID`), creation, limits, usage, out-of-memory kills, removal.
//! Doesn't: decide limits, or kill on v1 (ending PID 1 of the sandbox ends all of it).
//!
//! Invariants
//! 1. Everything lies below a directory named `utsuwa-ID`, one directory `s<number>` per sandbox.
//! 2. All calls are idempotent: making what is there and removing what is gone succeed.
//!
//! Failure: [`SpawnError::Sys`] naming the file; a missing controller is found at [`Cgroups::open`], not at a start.

mod delegated;
mod freeze;
mod limits;
mod oom;
mod swap;
mod tree;
mod usage;

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use utsuwa_model::instance::Limits;

pub(crate) use delegated::delegated;
pub use freeze::{FreezeError, freezer};
use limits::{CPU_SHARES, CPU_WEIGHT, limit_sockets, optional, weigh};
pub(crate) use tree::{Hierarchy, hierarchies};
use tree::{
    NEEDED, Tree, enable_controllers, make_directory, remove_directories, remove_directory,
    v2_parent,
};

use super::process::write_file;
use super::walls::Wall;
use crate::spawner::SpawnError;

/// CPU quota is given per this many microseconds: the kernel's default, and what Kubernetes uses.
const CPU_PERIOD_US: u64 = 100_000;
/// The kernel refuses quotas below 1 ms.
const CPU_QUOTA_FLOOR_US: u64 = 1_000;

/// Part of the memory limit that buffers of connections may take (v1): beyond it the kernel keeps windows small.
const SOCKETS_SHARE: u64 = 4;
/// The same until the limits are known. The first limit of the machine changes the kernel's code: never on a wake.
const SOCKETS_AT_FIRST: u64 = 16 << 20;

/// The tree of one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroups {
    tree: Tree,
    /// v1 only: one directory for all sandboxes, see [`Cgroups::enter_cpuset`].
    cpuset: Option<PathBuf>,
}

/// The cgroup of one sandbox; a name, not a handle: it needn't exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxCgroup {
    tree: Tree,
}

impl Cgroups {
    /// Finds the controllers and makes our directory in each hierarchy that is needed.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the directory or the missing controller.
    pub fn open(id: &str) -> Result<Self, SpawnError> {
        if crate::rootless::is_rootless() {
            return Self::open_delegated(id);
        }
        let found =
            hierarchies().map_err(|e| SpawnError::sys("read", e, "/proc/self/mountinfo"))?;
        for hierarchy in found.iter().filter(|h| h.v2) {
            let offered =
                fs::read_to_string(hierarchy.mount.join("cgroup.controllers")).unwrap_or_default();
            if NEEDED
                .iter()
                .all(|needed| offered.split_whitespace().any(|o| o == *needed))
            {
                return Self::open_v2(&hierarchy.mount, id);
            }
        }
        let v1 = |controller: &str| {
            found
                .iter()
                .find(|h| h.controllers.iter().any(|c| c == controller))
                .map(|h| h.mount.join(format!("utsuwa-{id}")))
                .ok_or_else(|| {
                    let context = format!("find the cgroup controller {controller} (v1 or v2): mount it or enable it at boot");
                    SpawnError::Sys { call: "mountinfo".to_owned(), errno: libc::ENODEV, context }
                })
        };
        let tree = Tree::V1 {
            cpu: v1("cpu")?,
            cpuacct: v1("cpuacct")?,
            memory: v1("memory")?,
            pids: v1("pids")?,
            freezer: v1("freezer").ok(),
        };
        for directory in tree.directories() {
            make_directory(directory)?;
        }
        if let Tree::V1 { memory, .. } = &tree {
            // Without it (kernels before 5.11) limits of a parent would not hold for children; refused where it is fixed.
            let _ = write_file(memory.join("memory.use_hierarchy"), "1");
        }
        if let Tree::V1 { cpu, .. } = &tree {
            weigh(&cpu.join("cpu.shares"), CPU_SHARES);
        }
        let cpuset = found
            .iter()
            .find(|h| h.controllers.iter().any(|c| c == "cpuset"))
            .map(|h| h.mount.join(format!("utsuwa-{id}")));
        Ok(Self { tree, cpuset })
    }

    fn open_v2(mount: &Path, id: &str) -> Result<Self, SpawnError> {
        Self::open_below(&v2_parent(mount), id)
    }

    fn open_below(parent: &Path, id: &str) -> Result<Self, SpawnError> {
        if let Err(error) = enable_controllers(parent) {
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(SpawnError::sys(
                    "write",
                    error,
                    format!("enable controllers in {}", parent.display()),
                ));
            }
            // A cgroup with processes of its own can't hand out controllers; this happens at the root of a container,
            // never at the real root. Its processes move aside.
            let aside = parent.join(format!("utsuwa-{id}-main"));
            make_directory(&aside)?;
            for pid in fs::read_to_string(parent.join("cgroup.procs"))
                .unwrap_or_default()
                .lines()
            {
                let _ = write_file(aside.join("cgroup.procs"), pid);
            }
            enable_controllers(parent).map_err(|e| {
                SpawnError::sys(
                    "write",
                    e,
                    format!("enable controllers in {}", parent.display()),
                )
            })?;
        }
        let root = parent.join(format!("utsuwa-{id}"));
        make_directory(&root)?;
        enable_controllers(&root).map_err(|e| {
            SpawnError::sys(
                "write",
                e,
                format!("enable controllers in {}", root.display()),
            )
        })?;
        weigh(&root.join("cpu.weight"), CPU_WEIGHT);
        Ok(Self {
            tree: Tree::V2 { root },
            cpuset: None,
        })
    }

    /// Moves this process, and thereby all its later children, into a cpuset of ours; `false` where there is none to enter.
    ///
    /// It limits nothing. The Java VM respects a container's memory limit on v1 only when it finds a cpuset hierarchy
    /// too, and what an instance is shown must not be the host's. Inherited at birth, it costs a sandbox no move.
    #[must_use]
    pub fn enter_cpuset(&self) -> bool {
        let enter = |directory: &Path| -> io::Result<()> {
            match fs::create_dir(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            // A new cpuset is empty, and an empty one takes no process.
            let parent = directory.parent().unwrap_or(directory);
            for file in ["cpuset.cpus", "cpuset.mems"] {
                write_file(
                    directory.join(file),
                    fs::read_to_string(parent.join(file))?.trim(),
                )?;
            }
            write_file(directory.join("cgroup.procs"), "0")
        };
        self.cpuset
            .as_deref()
            .is_some_and(|directory| enter(directory).is_ok())
    }

    /// The cgroup of sandbox `number`.
    #[must_use]
    pub fn sandbox(&self, number: u32) -> SandboxCgroup {
        SandboxCgroup {
            tree: self
                .tree
                .map(|directory| directory.join(format!("s{number}"))),
        }
    }

    /// Whether processes are cloned into their cgroup (v2) rather than moved (v1).
    #[must_use]
    pub fn is_v2(&self) -> bool {
        matches!(self.tree, Tree::V2 { .. })
    }

    /// Numbers of the sandboxes that have a cgroup: what a sweep compares with what should be.
    #[must_use]
    pub fn list(&self) -> Vec<u32> {
        let mut numbers: Vec<u32> = Vec::new();
        for directory in self.tree.directories() {
            for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
                numbers.extend(
                    entry
                        .file_name()
                        .to_str()
                        .and_then(|n| n.strip_prefix('s'))
                        .and_then(|n| n.parse::<u32>().ok()),
                );
            }
        }
        numbers.sort_unstable();
        numbers.dedup();
        numbers
    }

    /// Removes our directories; fails with `EBUSY` while a sandbox or the housekeeper is left.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the directory.
    pub fn remove(&self) -> Result<(), SpawnError> {
        remove_directories(&self.tree)?;
        self.cpuset.as_deref().map_or(Ok(()), remove_directory)
    }
}

impl SandboxCgroup {
    /// Makes it, without limits.
    ///
    /// # Errors
    /// [`SpawnError`] naming the directory; `ENOSPC` when the kernel has no more cgroup ids.
    pub fn create(&self) -> Result<(), SpawnError> {
        self.tree
            .directories()
            .into_iter()
            .try_for_each(make_directory)?;
        match &self.tree {
            Tree::V1 { memory, .. } if Wall::Cgroup.stands() => {
                limit_sockets(memory, SOCKETS_AT_FIRST)
            }
            _ => Ok(()),
        }
    }

    /// For `CLONE_INTO_CGROUP`; `None` on v1.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the directory.
    pub(crate) fn clone_target(&self) -> Result<Option<OwnedFd>, SpawnError> {
        match &self.tree {
            Tree::V1 { .. } | Tree::None => Ok(None),
            Tree::V2 { root } => {
                let file = fs::File::open(root)
                    .map_err(|e| SpawnError::sys("open", e, root.display().to_string()))?;
                Ok(Some(file.into()))
            }
        }
    }

    /// Moves `pid` in. On v1 this takes 4–16 ms per hierarchy while CPUs are busy (an RCU grace period): never on a wake.
    ///
    /// # Errors
    /// [`SpawnError`] naming the directory.
    pub fn attach(&self, pid: u32) -> Result<(), SpawnError> {
        for directory in self.tree.directories() {
            let file = directory.join("cgroup.procs");
            write_file(&file, &pid.to_string()).map_err(|e| {
                SpawnError::sys(
                    "write",
                    e,
                    format!("attach {pid} to {}", directory.display()),
                )
            })?;
        }
        Ok(())
    }

    /// Sets CPU, memory (swap included: none) and process limits.
    ///
    /// # Errors
    /// [`SpawnError`] naming the file.
    pub fn apply(&self, limits: &Limits) -> Result<(), SpawnError> {
        let write = |path: PathBuf, text: String| {
            write_file(&path, &text).map_err(|e| {
                SpawnError::sys("write", e, format!("set {} to {text}", path.display()))
            })
        };
        self.set_cpu(limits.cpu)?;
        let memory_bytes = limits.memory.0.to_string();
        match &self.tree {
            Tree::V2 { root } => {
                write(root.join("memory.max"), memory_bytes)?;
                // Absent where the kernel has no swap accounting: then there is nothing to forbid.
                optional(write_file(root.join("memory.swap.max"), "0"), root)?;
                // One process killed for memory means the instance is: no half-dead apps.
                optional(write_file(root.join("memory.oom.group"), "1"), root)?;
                write(root.join("pids.max"), limits.pids.to_string())
            }
            Tree::V1 { memory, pids, .. } => {
                limits::set_memory(memory, &memory_bytes).map_err(|error| {
                    match error.raw_os_error() {
                        // Less than what is in use: the waiting process alone is larger.
                        Some(libc::EBUSY) => SpawnError::MemoryLimit {
                            limit: limits.memory.0,
                        },
                        _ => {
                            SpawnError::sys("write", error, format!("memory limit {memory_bytes}"))
                        }
                    }
                })?;
                limit_sockets(memory, limits.memory.0 / SOCKETS_SHARE)?;
                swap::leave_to_us(memory)?;
                write(pids.join("pids.max"), limits.pids.to_string())
            }
            Tree::None => Ok(()),
        }
    }

    /// Sets the CPU quota alone (startup boost, throttling between requests).
    ///
    /// # Errors
    /// [`SpawnError`] naming the file.
    pub fn set_cpu(&self, cpu: utsuwa_model::quantity::MilliCpu) -> Result<(), SpawnError> {
        // 500m of 100 ms are 50 ms.
        let quota = (u64::from(cpu.0) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_FLOOR_US);
        let (path, text) = match &self.tree {
            Tree::V2 { root } => (root.join("cpu.max"), format!("{quota} {CPU_PERIOD_US}")),
            // The period's default is the 100 ms we use.
            Tree::V1 { cpu, .. } => (cpu.join("cpu.cfs_quota_us"), quota.to_string()),
            Tree::None => return Ok(()),
        };
        write_file(&path, &text)
            .map_err(|e| SpawnError::sys("write", e, format!("set {} to {text}", path.display())))
    }

    /// The processes in it, as the host numbers them.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the file.
    pub(crate) fn processes(&self) -> Result<Vec<u32>, SpawnError> {
        let directory = match &self.tree {
            Tree::V2 { root } => root,
            Tree::V1 { memory, .. } => memory,
            Tree::None => return Ok(Vec::new()),
        };
        let file = directory.join("cgroup.procs");
        let text = fs::read_to_string(&file)
            .map_err(|e| SpawnError::sys("read", e, file.display().to_string()))?;
        Ok(text.lines().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// Kills everything in it with one write (v2, kernel 5.14); `false` where that isn't possible: kill the sandbox's PID 1.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the file.
    pub fn kill(&self) -> Result<bool, SpawnError> {
        let Tree::V2 { root } = &self.tree else {
            return Ok(false);
        };
        let file = root.join("cgroup.kill");
        match write_file(&file, "1") {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(SpawnError::sys("write", error, file.display().to_string())),
        }
    }

    /// Removes it; `EBUSY` while a process is still ending in it: try again a little later.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the directory.
    pub fn remove(&self) -> Result<(), SpawnError> {
        remove_directories(&self.tree)
    }
}

#[cfg(test)]
mod tests;
