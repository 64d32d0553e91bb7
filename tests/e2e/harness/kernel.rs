//! What the kernel holds that could be ours: counted before and after, so that nothing is left behind.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::roles;

/// Counts by kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KernelObjects(BTreeMap<&'static str, usize>);

impl KernelObjects {
    pub(crate) fn count() -> Self {
        let lines = |program: &str, args: &[&str]| {
            Command::new(program)
                .args(args)
                .output()
                .map_or(0, |o| String::from_utf8_lossy(&o.stdout).lines().count())
        };
        let mut counts = BTreeMap::new();
        counts.insert(
            "network namespaces",
            lines("lsns", &["--noheadings", "--type", "net"]),
        );
        counts.insert(
            "user namespaces",
            lines("lsns", &["--noheadings", "--type", "user"]),
        );
        counts.insert(
            "pid namespaces",
            lines("lsns", &["--noheadings", "--type", "pid"]),
        );
        counts.insert(
            "mounts",
            std::fs::read_to_string("/proc/self/mountinfo").map_or(0, |t| t.lines().count()),
        );
        counts.insert("network devices", lines("ip", &["-brief", "link"]));
        counts.insert("nftables tables", lines("nft", &["list", "tables"]));
        counts.insert("cgroups of ours", cgroups());
        counts.insert("run directories", run_directories().len());
        // Nobody of ours may outlive `down`, and so no descriptor: whatever is open is open in somebody.
        let ours = roles::all_of_ours();
        let descriptors = ours.iter().map(|pid| roles::descriptors(*pid)).sum();
        counts.insert("processes of ours", ours.len());
        counts.insert("descriptors of ours", descriptors);
        Self(counts)
    }

    /// Waits a moment for the kernel to finish (namespaces are freed in the background), then compares.
    pub(crate) fn assert_same(&self) {
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        loop {
            let now = Self::count();
            // Fewer is no leak: something of somebody else's ended meanwhile.
            if now
                .0
                .iter()
                .all(|(kind, count)| count <= self.0.get(kind).unwrap_or(&0))
            {
                return;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "left behind: before {:?}, now {:?}; processes: {:?}",
                self.0,
                now.0,
                roles::named(&roles::all_of_ours())
            );
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// What servers have that dies with a boot: root's, and those of users (without a session).
pub(super) fn run_directories() -> Vec<PathBuf> {
    let within = |folder: &Path| {
        std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.path())
    };
    let users = within(Path::new("/tmp")).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.strip_prefix("utsuwa-")
            .is_some_and(|uid| uid.parse::<u32>().is_ok())
    });
    std::iter::once(PathBuf::from("/run/utsuwa"))
        .chain(users)
        .flat_map(|base| within(&base))
        .collect()
}

fn cgroups() -> usize {
    let find = Command::new("find")
        .args([
            "/sys/fs/cgroup",
            "-maxdepth",
            "4",
            "-type",
            "d",
            "-name",
            "utsuwa-*",
        ])
        .output();
    find.map_or(0, |o| String::from_utf8_lossy(&o.stdout).lines().count())
}
