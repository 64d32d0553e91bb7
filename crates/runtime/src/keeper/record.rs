//! What a keeper writes down so that its successor can adopt what runs.
//!
//! `instances/ID.json` is there from just before an instance starts until its exit was acknowledged; `sandboxes/N/` is
//! there from before a sandbox is made until nothing of it is left.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use utsuwa_model::instance::InstanceSpec;
use utsuwa_model::{InstanceId, Timestamp};

use super::core::wall;
use super::protocol::ExitReport;
use crate::network::NetInfo;

/// One instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InstanceRecord {
    pub(crate) spec: InstanceSpec,
    pub(crate) sandbox: u32,
    pub(crate) process: ProcessRecord,
    pub(crate) net: NetInfo,
    /// By the host's clock as it was then.
    pub(crate) started: Timestamp,
    /// The same as time since the host was booted, in microseconds; `None` in records of older builds.
    #[serde(default)]
    pub(crate) started_after_boot: Option<u64>,
    /// Its further containers as far as their sandboxes are there, in order.
    #[serde(default)]
    pub(crate) sidecars: Vec<SidecarRecord>,
    /// Which of several containers run, or ran.
    #[serde(default)]
    pub(crate) begun: BTreeSet<usize>,
    pub(crate) exit: Option<ExitReport>,
}

/// By the host's clock as it is now, when it was `began` after boot.
fn ago(began: Option<u64>) -> Option<Timestamp> {
    let age = since_boot().checked_sub(began?)?;
    Some(wall().minus(Duration::from_micros(age)))
}

/// Microseconds since the host was booted, times of sleep included.
pub(crate) fn since_boot() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1000
}

/// A further container of an instance.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct SidecarRecord {
    pub(crate) sandbox: u32,
    pub(crate) process: ProcessRecord,
}

impl InstanceRecord {
    /// The sandboxes of its containers, in order.
    pub(crate) fn sandboxes(&self) -> Vec<u32> {
        let others = self.sidecars.iter().map(|one| one.sandbox);
        std::iter::once(self.sandbox).chain(others).collect()
    }

    /// When it was started, by the host's clock as it is now: as long ago as time has passed, whoever set the clock since.
    pub(crate) fn started_at(&self) -> Timestamp {
        ago(self.started_after_boot).unwrap_or(self.started)
    }

    /// Whether nothing of it waits to be started on its own.
    pub(crate) fn is_whole(&self) -> bool {
        self.spec.group.is_none() || self.begun.len() > self.spec.sidecars().len()
    }
}

/// Identifies a process beyond doubt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessRecord {
    pub(crate) pid: u32,
    /// Field 22 of `/proc/PID/stat`.
    pub(crate) start_time: u64,
    pub(crate) boot: String,
    /// Device and inode of what it executed as a pooled sandbox: while it still does, no instance has begun.
    pub(crate) executable: (u64, u64),
}

/// The files of one server.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    root: PathBuf,
}

impl Records {
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        for name in ["instances", "sandboxes"] {
            make_private_directory(&root.join(name))?;
        }
        Ok(Self {
            root: root.to_owned(),
        })
    }

    fn instance(&self, id: &InstanceId) -> PathBuf {
        self.root.join("instances").join(format!("{id}.json"))
    }

    pub(crate) fn sandbox(&self, number: u32) -> PathBuf {
        self.root.join("sandboxes").join(number.to_string())
    }

    pub(crate) fn write_instance(&self, record: &InstanceRecord) -> io::Result<()> {
        replace(&self.instance(&record.spec.id), record)
    }

    /// Makes the file that [`Self::write_first`] writes: a new file is most of what a record costs where this is a disk.
    pub(crate) fn prepare_first(&self, number: u32) -> io::Result<()> {
        fs::write(self.first(number), b"")
    }

    /// [`Self::write_instance`] of the instance that begins in sandbox `number`.
    pub(crate) fn write_first(&self, number: u32, record: &InstanceRecord) -> io::Result<()> {
        let prepared = self.first(number);
        fs::OpenOptions::new()
            .write(true)
            .open(&prepared)?
            .write_all(&serde_json::to_vec(record)?)?;
        fs::rename(prepared, self.instance(&record.spec.id))
    }

    fn first(&self, number: u32) -> PathBuf {
        self.sandbox(number).join("instance.new")
    }

    pub(crate) fn remove_instance(&self, id: &InstanceId) {
        let _ = fs::remove_file(self.instance(id));
    }

    /// All instances written down. An unreadable file is moved aside and reported.
    pub(crate) fn instances(&self) -> io::Result<Vec<InstanceRecord>> {
        let mut all = Vec::new();
        for entry in fs::read_dir(self.root.join("instances"))? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => all.push(record),
                Err(error) => {
                    tracing::error!(path = %path.display(), %error, "a record can't be read; moved aside");
                    fs::rename(&path, path.with_extension("unreadable"))?;
                }
            }
        }
        Ok(all)
    }

    pub(crate) fn make_sandbox(&self, number: u32) -> io::Result<PathBuf> {
        let directory = self.sandbox(number);
        make_private_directory(&directory)?;
        Ok(directory)
    }

    pub(crate) fn write_sandbox(&self, number: u32, process: &ProcessRecord) -> io::Result<()> {
        replace(&self.sandbox(number).join("process.json"), process)
    }

    pub(crate) fn sandbox_process(&self, number: u32) -> Option<ProcessRecord> {
        read(&self.sandbox(number).join("process.json")).ok()
    }

    pub(crate) fn remove_sandbox(&self, number: u32) {
        if let Err(error) = fs::remove_dir_all(self.sandbox(number))
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(number, %error, "remove the directory of a sandbox");
        }
    }

    pub(crate) fn sandboxes(&self) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir(self.root.join("sandboxes"))? {
            numbers.extend(
                entry?
                    .file_name()
                    .to_str()
                    .and_then(|name| name.parse::<u32>().ok()),
            );
        }
        Ok(numbers)
    }
}

/// This boot of this host.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map(|id| id.trim().to_owned())
        .unwrap_or_default()
}

fn make_private_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

fn replace<T: Serialize>(path: &Path, value: &T) -> io::Result<()> {
    let temporary = path.with_extension("new");
    fs::write(&temporary, serde_json::to_vec(value)?)?;
    fs::rename(temporary, path)
}

fn read<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_the_time_that_has_passed() {
        let minute = Duration::from_secs(60);
        let began = since_boot().saturating_sub(60_000_000);
        let found = ago(Some(began)).unwrap();
        let age = wall().since(found);
        assert!(age >= minute && age < 2 * minute, "{age:?}");
        // Nobody wrote it down, or before another boot.
        assert_eq!(ago(None), None);
        assert_eq!(ago(Some(u64::MAX)), None);
    }
}
