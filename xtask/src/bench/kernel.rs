//! What the kernel holds for one server: counted before and after, so that a leak is seen.
//!
//! Seen from outside: what is open in a process, mounted somewhere or listed by the kernel, whoever made it. The machine must be
//! left alone meanwhile.

use std::collections::BTreeSet;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::Settings;
use super::server::Server;

const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Counts {
    namespaces: usize,
    /// In all mount namespaces.
    mounts: usize,
    /// Of this server.
    cgroups: usize,
    /// Of all processes of this server's program.
    descriptors: usize,
    processes: usize,
    /// In all network namespaces.
    devices: usize,
}

impl Counts {
    pub(super) fn take(settings: &Settings, server: &Server) -> anyhow::Result<Self> {
        let id = utsuwa_runtime::keeper::data_id(&server.data)?;
        let mut namespaces = BTreeSet::new();
        let (mut mounts, mut devices) = (0, 0);
        for process in std::fs::read_dir("/proc")?.flatten() {
            for kind in NAMESPACES {
                let Ok(link) = std::fs::read_link(process.path().join("ns").join(kind)) else {
                    continue;
                };
                // The first process of a namespace speaks for it.
                if !namespaces.insert(link) {
                    continue;
                }
                match kind {
                    "mnt" => mounts += lines(&process.path().join("mountinfo")),
                    "net" => devices += lines(&process.path().join("net/dev")).saturating_sub(2),
                    _ => {}
                }
            }
        }
        let mut cgroups = 0;
        let name = format!("utsuwa-{id}");
        for hierarchy in std::fs::read_dir("/sys/fs/cgroup")?.flatten() {
            cgroups += directories(&hierarchy.path().join(&name));
        }
        cgroups += directories(&Path::new("/sys/fs/cgroup").join(&name));
        let program = settings.utsuwa.to_string_lossy();
        let ours = super::rest::ours(server.pid(), &program)?;
        let descriptors = ours
            .iter()
            .filter_map(|(pid, _)| std::fs::read_dir(format!("/proc/{pid}/fd")).ok())
            .map(Iterator::count)
            .sum();
        Ok(Self {
            namespaces: namespaces.len(),
            mounts,
            cgroups,
            descriptors,
            processes: ours.len(),
            devices,
        })
    }

    /// The counts once nothing is above `self`, or what they are after `patience`.
    pub(super) fn until_back(
        &self,
        settings: &Settings,
        server: &Server,
        patience: Duration,
    ) -> anyhow::Result<Self> {
        let deadline = Instant::now() + patience;
        loop {
            let now = Self::take(settings, server)?;
            if !now.exceeds(self) || Instant::now() > deadline {
                return Ok(now);
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// There is more of something than `before`.
    pub(super) fn exceeds(&self, before: &Self) -> bool {
        let pairs = self.all().into_iter().zip(before.all());
        pairs.into_iter().any(|((_, now), (_, then))| now > then)
    }

    fn all(&self) -> [(&'static str, usize); 6] {
        [
            ("namespaces", self.namespaces),
            ("mounts", self.mounts),
            ("cgroups", self.cgroups),
            ("descriptors", self.descriptors),
            ("processes", self.processes),
            ("network devices", self.devices),
        ]
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let all = self.all().map(|(what, count)| format!("{count} {what}"));
        f.write_str(&all.join(", "))
    }
}

fn lines(file: &Path) -> usize {
    std::fs::read_to_string(file).map_or(0, |text| text.lines().count())
}

/// `root` and all below it; none if it isn't there.
fn directories(root: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(root) else {
        return 0;
    };
    let below = entries
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    1 + below.map(|entry| directories(&entry.path())).sum::<usize>()
}
