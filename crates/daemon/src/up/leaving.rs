//! The files in `leaving/`: what a server that made place still has inside instances, for the next one to know.
//!
//! Invariant: a file is locked as long as its process lives, so that a killed one is never believed.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tokio_util::sync::CancellationToken;
use utsuwa_ingress::Ingress;
use utsuwa_model::InstanceId;

use super::leave::LOOK;

/// Where servers that made place tell what they still have inside instances.
pub(super) const LEAVING: &str = "leaving";

/// What this process has inside instances, as a file that it holds locked. Gone with it.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) path: PathBuf,
    file: File,
}

impl Rest {
    pub(super) fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(std::process::id().to_string());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        file.lock()?;
        Ok(Self { path, file })
    }

    pub(super) fn tell(&self, inside: &BTreeMap<InstanceId, u32>) -> io::Result<()> {
        let text = lines(inside);
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        // What stays is taken for a killed server's and removed by the next look.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An instance a line, closed by a line that says that it is whole.
fn lines(inside: &BTreeMap<InstanceId, u32>) -> String {
    let mut text: String = inside
        .iter()
        .map(|(id, count)| format!("{id} {count}\n"))
        .collect();
    text.push_str("end\n");
    text
}

/// `None`: half written.
fn parse(text: &str) -> Option<BTreeMap<InstanceId, u32>> {
    let (whole, _) = text.split_once("end\n")?;
    whole
        .lines()
        .map(|line| {
            let (id, count) = line.split_once(' ')?;
            Some((id.parse().ok()?, count.parse().ok()?))
        })
        .collect()
}

/// The processes of servers that made place and go on, for whoever ends everything. Nothing is followed or believed there that
/// the server's user could have made up: it must be a process of the directory's owner.
///
/// # Errors
/// The directory can't be read.
pub(crate) fn leaving_servers(data: &Path) -> io::Result<Vec<u32>> {
    let folder = data.join(LEAVING);
    let owner = match std::fs::symlink_metadata(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        metadata => metadata?,
    };
    if !owner.is_dir() {
        return Ok(Vec::new());
    }
    let lives = |path: &Path| {
        let pid = path.file_name()?.to_str()?.parse::<u32>().ok()?;
        let file = OpenOptions::new()
            .read(true)
            // A pipe there would keep whoever opens it.
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)
            .ok()
            .filter(|file| file.metadata().is_ok_and(|there| there.is_file()))?;
        let process = std::fs::metadata(format!("/proc/{pid}")).ok()?;
        (matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && process.uid() == owner.uid())
            .then_some(pid)
    };
    let mut pids = Vec::new();
    for file in std::fs::read_dir(&folder)? {
        pids.extend(lives(&file?.path()));
    }
    Ok(pids)
}

/// The files of servers that made place and live; those of others are removed.
///
/// # Errors
/// Whether one lives can't be found out.
fn leaving(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let files = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let mut alive = Vec::new();
    for path in files {
        let path = path?.path();
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // it has just ended
            file => file?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => alive.push(path),
            // Its process is gone and left it; perhaps somebody else has just removed it.
            Ok(()) => drop(std::fs::remove_file(&path)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(alive)
}

/// What servers before this one still have inside instances. `None`: none of them is left.
#[derive(Debug)]
pub(super) struct Before {
    folder: PathBuf,
    /// By file, as last read.
    known: BTreeMap<PathBuf, BTreeMap<InstanceId, u32>>,
}

impl Before {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            known: BTreeMap::new(),
        }
    }

    /// Reads what there is; `None` once there is nothing. What can't be read is taken for what it was: to think that nothing is
    /// inside an instance may end it under a stream.
    pub(super) fn look(&mut self) -> Option<BTreeMap<InstanceId, u32>> {
        match leaving(&self.folder) {
            Ok(alive) => {
                let read = |path: PathBuf| {
                    let last = self.known.remove(&path).unwrap_or_default();
                    let text = std::fs::read_to_string(&path).ok();
                    let now = text.and_then(|text| parse(&text)).unwrap_or(last);
                    (path, now)
                };
                self.known = alive.into_iter().map(read).collect();
                if self.known.is_empty() {
                    return None;
                }
            }
            Err(error) => {
                tracing::debug!(%error, folder = %self.folder.display(), "look what servers before this one have inside instances");
            }
        }
        let mut all = BTreeMap::new();
        for (id, count) in self.known.values().flatten() {
            *all.entry(id.clone()).or_insert(0) += count;
        }
        Some(all)
    }

    /// Keeps `ingress` told until nothing is left, or `stop`.
    pub(super) async fn follow(mut self, ingress: Ingress, stop: CancellationToken) {
        let follow = async {
            while let Some(held) = self.look() {
                ingress.hold(held);
                tokio::time::sleep(LOOK).await;
            }
            ingress.hold(BTreeMap::new());
        };
        tokio::select! {
            () = follow => {}
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> InstanceId {
        digit.to_string().repeat(32).parse().unwrap()
    }

    #[test]
    fn what_is_told_is_read_while_its_process_lives() {
        let folder = tempfile::tempdir().unwrap();
        let mut before = Before::new(folder.path().to_owned());
        assert_eq!(before.look(), None);
        let rest = Rest::open(folder.path()).unwrap();
        let inside = BTreeMap::from([(id('a'), 2), (id('b'), 1)]);
        rest.tell(&inside).unwrap();
        assert_eq!(before.look(), Some(inside.clone()));
        // Half written: what was known stays.
        rest.file.set_len(10).unwrap();
        assert_eq!(before.look(), Some(inside));
        rest.tell(&BTreeMap::new()).unwrap();
        assert_eq!(before.look(), Some(BTreeMap::new()));
        drop(rest);
        assert_eq!(before.look(), None);
        // One that was killed leaves its file, and not the lock.
        std::fs::write(
            folder.path().join("7"),
            lines(&BTreeMap::from([(id('c'), 9)])),
        )
        .unwrap();
        assert_eq!(before.look(), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
