//! Where our cgroups are: mounted hierarchies, the directories of ours in them, and which of the kernel's two interfaces.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::sandbox::process::write_file;
use crate::spawner::SpawnError;

pub(super) const NEEDED: [&str; 3] = ["cpu", "memory", "pids"];

/// Which kernel interface holds the controllers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tree {
    V2 {
        root: PathBuf,
    },
    /// Directories `…/utsuwa-ID` of each hierarchy; `cpu` and `cpuacct` may be the same one, and a host may have no freezer.
    V1 {
        cpu: PathBuf,
        cpuacct: PathBuf,
        memory: PathBuf,
        pids: PathBuf,
        freezer: Option<PathBuf>,
    },
    /// A user's server to whom no cgroup was delegated: sandboxes have none.
    None,
}

/// A mounted hierarchy with controllers, as `/proc/self/mountinfo` tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    pub(crate) mount: PathBuf,
    /// Empty for v2.
    pub(crate) controllers: Vec<String>,
    pub(crate) v2: bool,
}

/// Mounted cgroup hierarchies of this process's mount namespace.
pub(crate) fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    Ok(parse_hierarchies(&fs::read_to_string(
        "/proc/self/mountinfo",
    )?))
}

pub(super) fn parse_hierarchies(mountinfo: &str) -> Vec<Hierarchy> {
    let known = [
        "cpu", "cpuacct", "memory", "pids", "cpuset", "freezer", "devices", "blkio",
    ];
    mountinfo
        .lines()
        .filter_map(|line| {
            let (head, tail) = line.split_once(" - ")?;
            let mount = PathBuf::from(head.split(' ').nth(4)?);
            let mut tail = tail.split(' ');
            let (kind, options) = (tail.next()?, tail.nth(1)?);
            match kind {
                "cgroup2" => Some(Hierarchy {
                    mount,
                    controllers: Vec::new(),
                    v2: true,
                }),
                "cgroup" => {
                    let controllers = options
                        .split(',')
                        .filter(|o| known.contains(o))
                        .map(str::to_owned)
                        .collect::<Vec<_>>();
                    Some(Hierarchy {
                        mount,
                        controllers,
                        v2: false,
                    })
                }
                _ => None,
            }
        })
        .collect()
}

impl Tree {
    pub(super) fn map(&self, f: impl Fn(&Path) -> PathBuf) -> Self {
        match self {
            Self::V2 { root } => Self::V2 { root: f(root) },
            Self::V1 {
                cpu,
                cpuacct,
                memory,
                pids,
                freezer,
            } => Self::V1 {
                cpu: f(cpu),
                cpuacct: f(cpuacct),
                memory: f(memory),
                pids: f(pids),
                freezer: freezer.as_deref().map(&f),
            },
            Self::None => Self::None,
        }
    }

    /// Each directory once.
    pub(super) fn directories(&self) -> Vec<&Path> {
        match self {
            Self::V2 { root } => vec![root],
            Self::V1 {
                cpu,
                cpuacct,
                memory,
                pids,
                freezer,
            } => {
                let mut all: Vec<&Path> = vec![memory, pids, cpu];
                if !same_hierarchy(cpu, cpuacct) {
                    all.push(cpuacct);
                }
                all.extend(freezer.as_deref());
                all
            }
            Self::None => Vec::new(),
        }
    }
}

/// `cpu` and `cpuacct` usually are symbolic links to one hierarchy `cpu,cpuacct`, listed once in mountinfo.
fn same_hierarchy(a: &Path, b: &Path) -> bool {
    a == b
}

/// Where on v2 our directory goes.
///
/// Beside our own leaf when systemd delegated the parent to us (`DelegateSubgroup=`), else at the top: a delegated unit
/// without a subgroup can't hold a tree that outlives a restart, since systemd could not put the new process back into a
/// cgroup that hands out controllers.
pub(super) fn v2_parent(mount: &Path) -> PathBuf {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    let Some(parent) = mount
        .join(own)
        .parent()
        .map(Path::to_owned)
        .filter(|_| !own.is_empty())
    else {
        return mount.to_owned();
    };
    let mut value = [0u8; 4];
    let delegated = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        matches!(rustix::fs::getxattr(&parent, *name, &mut value), Ok(1..)) && value[0] == b'1'
    });
    if delegated { parent } else { mount.to_owned() }
}

pub(super) fn enable_controllers(directory: &Path) -> io::Result<()> {
    let file = directory.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&file)?;
    let missing: Vec<String> = NEEDED
        .iter()
        .filter(|n| !enabled.split_whitespace().any(|e| e == **n))
        .map(|n| format!("+{n}"))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        write_file(file, &missing.join(" "))
    }
}

pub(super) fn make_directory(directory: &Path) -> Result<(), SpawnError> {
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(SpawnError::sys(
            "mkdir",
            error,
            directory.display().to_string(),
        )),
        _ => Ok(()),
    }
}

pub(super) fn remove_directories(tree: &Tree) -> Result<(), SpawnError> {
    tree.directories()
        .into_iter()
        .try_for_each(remove_directory)
}

pub(super) fn remove_directory(directory: &Path) -> Result<(), SpawnError> {
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SpawnError::sys(
            "rmdir",
            error,
            directory.display().to_string(),
        )),
        _ => Ok(()),
    }
}
