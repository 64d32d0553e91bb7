//! Processes of ours, and what they hold: descriptors and memory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Server, kernel, processes, until};

/// Making or removing a sandbox, and closing a connection, take less.
const STILL: Duration = Duration::from_millis(300);

/// Processes of this program whichever server they belong to, and those in cgroups of ours: instances.
pub(crate) fn all_of_ours() -> Vec<u32> {
    let ours = |pid: u32| {
        let executes = std::fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| {
            // `utsuwa`, or a copy `utsuwa-other`; an executable that was replaced ends in " (deleted)".
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                matches!(name.split([' ', '-']).next(), Some("utsuwa"))
            })
        });
        executes
            || std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
                .is_ok_and(|text| text.contains("/utsuwa-"))
    };
    processes()
        .into_iter()
        .map(|(pid, _)| pid)
        .filter(|pid| ours(*pid))
        .collect()
}

/// With their command lines, for messages.
pub(crate) fn named(pids: &[u32]) -> Vec<(u32, Vec<String>)> {
    let mut all = processes();
    all.retain(|(pid, _)| pids.contains(pid));
    all
}

/// Open descriptors of a process; none of one that is gone.
pub(crate) fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

/// Memory that is a process's own, in KiB.
fn private_kib(pid: u32) -> usize {
    let kib = |line: &str| line.split_whitespace().nth(1)?.parse::<usize>().ok();
    std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).map_or(0, |text| {
        text.lines()
            .filter(|line| line.starts_with("Private_"))
            .filter_map(kib)
            .sum()
    })
}

/// What server, keeper and spawners of one server hold.
#[derive(Debug, Clone, Default)]
pub(crate) struct Holding {
    /// Pooled or in use. Each costs every role some descriptors.
    pub(crate) sandboxes: usize,
    pub(crate) descriptors: BTreeMap<&'static str, usize>,
    pub(crate) private_kib: BTreeMap<&'static str, usize>,
}

impl Server {
    /// The directory of what dies with a boot.
    pub(crate) fn runtime_dir(&self) -> Option<PathBuf> {
        let data = format!("{:?}", self.data_dir().to_string_lossy());
        // Its configuration names our data directory.
        kernel::run_directories().into_iter().find(|dir| {
            std::fs::read_to_string(dir.join("keeper.json")).is_ok_and(|text| text.contains(&data))
        })
    }

    /// Server, keeper and spawners that run now.
    pub(crate) fn roles(&self) -> Vec<(&'static str, u32)> {
        let Some(runtime) = self.runtime_dir() else {
            return Vec::new();
        };
        let runtime = runtime.to_string_lossy().into_owned();
        let role = |words: &[String]| match (words.get(1)?.as_str(), words.get(2)?.as_str()) {
            ("internal", "keeper") => Some("keeper"),
            ("internal", "spawner") if words.iter().any(|w| w.contains("\"starter\"")) => {
                Some("starter")
            }
            ("internal", "spawner") => Some("housekeeper"),
            _ => None,
        };
        let others = processes().into_iter().filter_map(|(pid, words)| {
            // A pooled sandbox still looks like its maker, but lives in a process namespace of its own.
            let ours = words.iter().any(|word| word.contains(&runtime)) && is_outside(pid);
            ours.then(|| role(&words)).flatten().map(|role| (role, pid))
        });
        std::iter::once(("server", self.pid()))
            .chain(others)
            .collect()
    }

    /// What all roles hold, once nothing changes any more.
    pub(crate) fn holding(&self) -> Holding {
        let mut last = (self.look(), Instant::now());
        until("the roles to be at rest", Duration::from_secs(30), || {
            let now = self.look();
            if (now.sandboxes, &now.descriptors) != (last.0.sandboxes, &last.0.descriptors) {
                last = (now, Instant::now());
            }
            (last.1.elapsed() > STILL).then_some(())
        });
        last.0
    }

    fn look(&self) -> Holding {
        let mut holding = Holding {
            sandboxes: self
                .runtime_dir()
                .map_or(0, |runtime| entries(&runtime.join("sandboxes"))),
            ..Holding::default()
        };
        for (role, pid) in self.roles() {
            *holding.descriptors.entry(role).or_default() += descriptors(pid);
            *holding.private_kib.entry(role).or_default() += private_kib(pid);
        }
        holding
    }
}

/// In the same process namespace as this test.
fn is_outside(pid: u32) -> bool {
    let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    namespace(&pid.to_string()) == namespace("self")
}

fn entries(directory: &Path) -> usize {
    std::fs::read_dir(directory).map_or(0, Iterator::count)
}
