//! What this kernel and this machine can do for us.
//!
//! Owns: [`Features`], found once at start and shown by `doctor`. Doesn't: change anything, except for trying out an idmapped
//! mount that nobody sees. Works without privileges as far as possible; what can't be known then says so.

use std::fmt;
use std::fs;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::mount::{FsOpenFlags, OpenTreeFlags};
use serde::{Deserialize, Serialize};

use super::{cgroup, process, sys};

/// Something that is not there, and what would help.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What is missing and what it means for us.
    pub what: String,
    /// A command or setting that changes it; empty when only another kernel does.
    pub fix: String,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.fix.is_empty() {
            f.write_str(&self.what)
        } else {
            write!(f, "{}; {}", self.what, self.fix)
        }
    }
}

/// Present, or what is missing.
pub type Feature = Result<(), Missing>;

/// Where the cpu, memory and pids controllers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CgroupMode {
    V2,
    V1,
    /// v1 controllers beside an empty v2 tree.
    Hybrid,
    None,
}

/// What this machine can do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// As `uname -r` says.
    pub kernel: String,
    pub cgroup: CgroupMode,
    /// Without them an instance has no limits: required.
    pub controllers: Feature,
    /// Sandboxes are born in their cgroup; otherwise they are moved, ahead of time.
    pub clone_into_cgroup: Feature,
    /// Required.
    pub user_namespaces: Feature,
    /// Required.
    pub overlay: Feature,
    /// Required.
    pub tmpfs: Feature,
    /// `fsopen`, `move_mount`, `mount_setattr`: required.
    pub mount_calls: Feature,
    /// Required.
    pub pidfd: Feature,
    /// Required.
    pub seccomp: Feature,
    /// Without it layers are copied for each service.
    pub idmapped_overlay: Feature,
    /// Without it an exit status is lost when the keeper dies.
    pub exit_by_pidfd: Feature,
    /// The host's `/proc` and `/sys` are visible in full, or new ones can't be mounted in sandboxes: required.
    pub full_proc: Feature,
    /// Names of v1 hierarchies (`cpu,cpuacct`) that hold our controllers.
    v1: Vec<String>,
}

impl Features {
    /// The directories of `/sys/fs/cgroup` an instance sees on v1.
    pub(crate) fn v1_controllers(&self) -> Vec<String> {
        self.v1.clone()
    }

    /// What must be there and isn't, by name.
    #[must_use]
    pub fn lacking(&self) -> Vec<(&'static str, &Missing)> {
        // A user's server does without limits, and says so.
        let limits = (!crate::rootless::is_rootless() && is_root())
            .then_some(("cgroup controllers", &self.controllers));
        [
            ("user namespaces", &self.user_namespaces),
            ("overlay", &self.overlay),
            ("tmpfs", &self.tmpfs),
            ("mount calls", &self.mount_calls),
            ("pidfd", &self.pidfd),
            ("seccomp", &self.seccomp),
            ("proc and sys", &self.full_proc),
        ]
        .into_iter()
        .chain(limits)
        .filter_map(|(name, feature)| feature.as_ref().err().map(|missing| (name, missing)))
        .collect()
    }

    /// Every feature by name, in a fixed order, required ones first.
    #[must_use]
    pub fn all(&self) -> Vec<(&'static str, &Feature)> {
        vec![
            ("cgroup controllers", &self.controllers),
            ("user namespaces", &self.user_namespaces),
            ("overlay", &self.overlay),
            ("tmpfs", &self.tmpfs),
            ("mount calls", &self.mount_calls),
            ("pidfd", &self.pidfd),
            ("seccomp", &self.seccomp),
            ("proc and sys", &self.full_proc),
            ("idmapped overlay", &self.idmapped_overlay),
            ("clone into cgroup", &self.clone_into_cgroup),
            ("exit status by pidfd", &self.exit_by_pidfd),
        ]
    }

    /// Whether layers in `directory` can be idmapped: kernel and file system. Tries it when privileged.
    ///
    /// # Errors
    /// What is missing.
    pub fn idmapped_overlay_on(&self, directory: &Path) -> Feature {
        self.idmapped_overlay.clone()?;
        if !is_root() {
            return Ok(());
        }
        // Before the first pull there is no image store: its file system is that of what is there already.
        let directory = directory
            .ancestors()
            .find(|d| d.is_dir())
            .unwrap_or(directory);
        let missing = |why: String| Missing {
            what: format!(
                "the file system of {} can't be idmapped ({why}): layers are copied for each service",
                directory.display()
            ),
            fix: "use ext4, xfs or btrfs for the data directory".to_owned(),
        };
        let userns = process::user_namespace(process::IMAGE_BASE, process::ID_COUNT)
            .map_err(|e| missing(e.to_string()))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(rustix::fs::CWD, directory, flags)
            .map_err(|e| missing(format!("open_tree: {e}")))?;
        sys::mount_setattr(tree.as_fd(), 0, Some(userns.as_fd()), false)
            .map_err(|e| missing(format!("mount_setattr: {e}")))
    }
}

/// Looks at this machine.
#[must_use]
pub fn probe() -> Features {
    let kernel = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let version = version(&kernel);
    let since = |needed: (u32, u32), what: &str| -> Feature {
        if version >= needed {
            Ok(())
        } else {
            let (major, minor) = needed;
            Err(Missing {
                what: format!("{what} needs Linux {major}.{minor}; this is {kernel}"),
                fix: String::new(),
            })
        }
    };
    let hierarchies = cgroup::hierarchies().unwrap_or_default();
    let (mode, controllers) = controllers(&hierarchies);
    let clone_into_cgroup = match mode {
        CgroupMode::V2 => since((5, 7), "CLONE_INTO_CGROUP"),
        _ => Err(Missing {
            what: "the controllers are on cgroup v1: sandboxes are moved into their cgroup ahead of time".to_owned(),
            fix: "boot with systemd.unified_cgroup_hierarchy=1 cgroup_no_v1=all for v2".to_owned(),
        }),
    };
    let v1 = hierarchies
        .iter()
        .filter(|h| {
            h.controllers
                .iter()
                .any(|c| ["cpu", "cpuacct", "cpuset", "memory", "pids"].contains(&c.as_str()))
        })
        .map(|h| h.controllers.join(","))
        .collect();
    Features {
        cgroup: mode,
        controllers,
        clone_into_cgroup,
        user_namespaces: user_namespaces(),
        overlay: file_system("overlay", "CONFIG_OVERLAY_FS"),
        tmpfs: file_system("tmpfs", "CONFIG_TMPFS"),
        mount_calls: since((5, 12), "mount_setattr").and_then(|()| mount_calls()),
        pidfd: pidfd(),
        seccomp: seccomp(),
        idmapped_overlay: since(
            (5, 19),
            "overlay over idmapped layers (layers are copied for each service)",
        ),
        exit_by_pidfd: since(
            (6, 15),
            "the exit status of instances that end while the keeper is restarted",
        ),
        full_proc: full_proc(),
        v1,
        kernel,
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether this kernel is of that version or a later one.
pub(crate) fn is_kernel(needed: (u32, u32)) -> bool {
    version(&rustix::system::uname().release().to_string_lossy()) >= needed
}

/// `6.1.0-18-amd64` → (6, 1).
fn version(release: &str) -> (u32, u32) {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn controllers(hierarchies: &[cgroup::Hierarchy]) -> (CgroupMode, Feature) {
    let needed = ["cpu", "memory", "pids"];
    let lacks = |has: &dyn Fn(&str) -> bool| {
        needed
            .iter()
            .filter(|n| !has(n))
            .copied()
            .collect::<Vec<_>>()
    };
    let v2 = hierarchies.iter().find(|h| h.v2);
    let mut absent = needed.to_vec();
    if let Some(v2) = v2 {
        let offered = fs::read_to_string(v2.mount.join("cgroup.controllers")).unwrap_or_default();
        absent = lacks(&|name| offered.split_whitespace().any(|o| o == name));
        if absent.is_empty() {
            return (CgroupMode::V2, Ok(()));
        }
    }
    let on_v1 = lacks(&|name| {
        hierarchies
            .iter()
            .any(|h| h.controllers.iter().any(|c| c == name))
    });
    if on_v1.is_empty() {
        return (
            if v2.is_some() {
                CgroupMode::Hybrid
            } else {
                CgroupMode::V1
            },
            Ok(()),
        );
    }
    let absent = if on_v1.len() < absent.len() {
        on_v1
    } else {
        absent
    };
    let fix = if absent == ["memory"] {
        "boot with cgroup_enable=memory (some boards switch it off)"
    } else {
        "mount -t cgroup2 none /sys/fs/cgroup, and look at /proc/cgroups for controllers that are switched off"
    };
    (
        CgroupMode::None,
        Err(Missing {
            what: format!(
                "no cgroup controller {}: instances could not be limited",
                absent.join(", ")
            ),
            fix: fix.to_owned(),
        }),
    )
}

fn user_namespaces() -> Feature {
    let missing = |what: &str, fix: &str| {
        Err(Missing {
            what: what.to_owned(),
            fix: fix.to_owned(),
        })
    };
    if !Path::new("/proc/self/ns/user").exists() {
        return missing("the kernel has no user namespaces (CONFIG_USER_NS)", "");
    }
    match fs::read_to_string("/proc/sys/user/max_user_namespaces")
        .ok()
        .and_then(|text| text.trim().parse::<u64>().ok())
    {
        Some(0) => missing(
            "user namespaces are switched off",
            "sysctl -w user.max_user_namespaces=15000",
        ),
        _ => Ok(()),
    }
}

fn file_system(name: &str, option: &str) -> Feature {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if known
        .lines()
        .any(|line| line.split_whitespace().last() == Some(name))
    {
        return Ok(());
    }
    // A module is loaded by the first mount; asking for a context does the same.
    if rustix::mount::fsopen(name, FsOpenFlags::FSOPEN_CLOEXEC).is_ok() {
        return Ok(());
    }
    Err(Missing {
        what: format!("the kernel has no {name} file system ({option})"),
        fix: format!("modprobe {name}"),
    })
}

fn mount_calls() -> Feature {
    match rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC) {
        Err(rustix::io::Errno::NOSYS) => Err(Missing {
            what: "fsopen is not there or not allowed".to_owned(),
            fix: String::new(),
        }),
        // Without privileges: refused, so it is there.
        _ => Ok(()),
    }
}

fn pidfd() -> Feature {
    match rustix::process::pidfd_open(
        rustix::process::getpid(),
        rustix::process::PidfdFlags::empty(),
    ) {
        Ok(_) => Ok(()),
        Err(error) => Err(Missing {
            what: format!("pidfd_open: {error}"),
            fix: String::new(),
        }),
    }
}

fn seccomp() -> Feature {
    let actions = fs::read_to_string("/proc/sys/kernel/seccomp/actions_avail").unwrap_or_default();
    if actions.split_whitespace().any(|action| action == "errno") {
        Ok(())
    } else {
        Err(Missing {
            what: "the kernel has no seccomp filters (CONFIG_SECCOMP_FILTER)".to_owned(),
            fix: String::new(),
        })
    }
}

/// Inside containers parts of `/proc` and `/sys` are covered; the kernel then allows no new ones in user namespaces.
fn full_proc() -> Feature {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let covered: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .filter(|point| {
            (point.starts_with("/proc/")
                && *point != "/proc/sys/fs/binfmt_misc"
                && *point != "/proc/fs/nfsd")
                || (point.starts_with("/sys/")
                    && !point.starts_with("/sys/fs/")
                    && !point.starts_with("/sys/kernel/")
                    && !point.starts_with("/sys/firmware/efi"))
        })
        .collect();
    if covered.is_empty() {
        return Ok(());
    }
    Err(Missing {
        what: format!("{} is covered, as inside a container: sandboxes can't have their own /proc", covered.join(", ")),
        fix: "run on the host, or start the container with --security-opt systempaths=unconfined (docker) or unmask=ALL (podman)".to_owned(),
    })
}

#[cfg(test)]
mod tests;
