//! Moves what instances write from their FIFOs to files, and keeps each service within its budget.
//!
//! Owns: the log files (their layout is `logs::layout`); here what is kept of each service, in `stream` how one stream is
//! stored. Doesn't: read lines; the reader does that.
//!
//! Invariants:
//! 1. Bytes leave the FIFO and enter the file in one system call (`splice`), so no kill can lose or double them. On
//!    return the position is the file's size.
//! 2. What is dropped (budget, full disk) is counted, and the count is in the files before the bytes are gone.
//! 3. Files are root's, readable by the server's group from the moment they have their name; the directory is held open, so
//!    that nobody can put a link in the way.
//!
//! Failure: where a file can't be written (disk full) the bytes are read and counted, never left in the FIFO: an app
//! must not stand still because of its log.

mod stream;

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};

use crate::logs::layout::{self, Dropped, SERVICE_MARKER, StreamKey};

pub(crate) use stream::Capture;

/// A file this small counts as this large: it takes a block and a directory entry.
const SMALLEST: u64 = 4096;
/// Free space is looked at again after this many bytes.
const LOOK_AFTER: u64 = 4 * 1024 * 1024;
/// And while there is too little, after this time.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Limits of the log store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct LogLimits {
    /// Bytes that the logs of one service may take.
    pub service_budget: u64,
    /// Bytes of one segment: what is dropped at once.
    pub segment: u64,
    /// Bytes that must stay free on the disk.
    pub reserve: u64,
}

impl Default for LogLimits {
    fn default() -> Self {
        Self {
            service_budget: 64 << 20,
            segment: 8 << 20,
            reserve: 64 << 20,
        }
    }
}

/// Where the logs of all services go.
#[derive(Debug)]
pub(crate) struct LogStore {
    /// Kept open; all paths go through it.
    root: OwnedFd,
    gid: u32,
    limits: LogLimits,
    used: HashMap<PathBuf, u64>,
    since_look: u64,
    disk_low: bool,
    /// When the disk was looked at.
    looked: Timestamp,
}

impl LogStore {
    /// Opens (and makes) the directory of all logs, which must be root's own.
    pub(crate) fn open(path: &Path, gid: u32, limits: LogLimits) -> io::Result<Self> {
        make_directory(path, gid)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::RDONLY;
        let root = rustix::fs::open(path, flags, Mode::empty())?;
        let owner = rustix::fs::fstat(&root)?.st_uid;
        if owner != rustix::process::geteuid().as_raw() {
            let text = format!(
                "{} belongs to uid {owner} instead of root: move it away, then start again",
                path.display()
            );
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(Self {
            root,
            gid,
            limits,
            used: HashMap::new(),
            since_look: LOOK_AFTER,
            disk_low: false,
            looked: Timestamp(0),
        })
    }

    /// Its path, through the descriptor.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.root.as_raw_fd()))
    }

    /// No reader finds the logs of `service` any more; what there was is to be deleted. With `before`, only what was last
    /// written earlier: what is newer may be of another service of that name. No instance of it may be writing.
    pub(crate) fn put_aside(
        &mut self,
        service: &ServiceKey,
        before: Option<Timestamp>,
    ) -> io::Result<()> {
        let directory = layout::service_directory(&self.path(), service);
        if let Some(before) = before
            && let Some(newest) = layout::newest_change(&directory)?
        {
            let newest = newest.duration_since(UNIX_EPOCH).unwrap_or_default();
            if i64::try_from(newest.as_micros()).unwrap_or(i64::MAX) >= before.0 {
                return Err(io::Error::other("written to meanwhile"));
            }
        }
        self.used.remove(&directory);
        layout::put_aside(&self.path(), service).map(|_| ())
    }

    /// Begins (or, after a restart of the keeper, resumes) to store a stream.
    pub(crate) fn capture(
        &self,
        service: &ServiceKey,
        key: StreamKey,
        fifo: OwnedFd,
        resume: bool,
    ) -> Capture {
        let directory = layout::service_directory(&self.path(), service);
        Capture::new(key, directory, fifo, resume)
    }

    /// Moves what is in the FIFO now, at most about 64 KiB. Zero: it was empty.
    pub(crate) fn drain(&mut self, capture: &mut Capture, now: Timestamp) -> u64 {
        // Programs that write little must not lose lines long after there is room again.
        let again = self.disk_low && now.since(self.looked) >= LOOK_AGAIN;
        if self.since_look >= LOOK_AFTER || again {
            self.since_look = 0;
            self.looked = now;
            self.disk_low = self.is_disk_low();
        }
        let moved = if self.disk_low {
            Err(io::Error::from(Errno::NOSPC))
        } else {
            capture.store(self, now)
        };
        match moved {
            Ok(moved) => {
                self.since_look += moved;
                if moved > 0 && !std::mem::replace(&mut capture.accounted, true) {
                    self.account_files(capture);
                }
                let used = self.used.entry(capture.directory.clone()).or_insert(0);
                *used += moved + layout::INDEX_ENTRY as u64;
                moved
            }
            Err(error) => {
                self.since_look += 64 * 1024;
                let first = capture.gap.0 == 0;
                let moved = capture.discard();
                if first && moved > 0 {
                    tracing::warn!(instance = %capture.key.instance, %error, "log lines are being dropped");
                }
                moved
            }
        }
    }

    fn is_disk_low(&self) -> bool {
        rustix::fs::fstatvfs(&self.root)
            .is_ok_and(|disk| disk.f_bavail * disk.f_frsize < self.limits.reserve)
    }

    pub(crate) fn over_budget(&self, capture: &Capture) -> bool {
        self.used
            .get(&capture.directory)
            .is_some_and(|used| *used > self.limits.service_budget)
    }

    /// The service of `capture` may take no more than its budget: drops its oldest segments. `live` are the instances
    /// that still write. Returns whether live segments must be closed first (see [`Capture::roll`]).
    pub(crate) fn keep_budget(&mut self, capture: &Capture, live: &BTreeSet<InstanceId>) -> bool {
        let used = self.used.get(&capture.directory).copied().unwrap_or(0);
        if used <= self.limits.service_budget {
            return false;
        }
        match self.trim(&capture.directory, live) {
            Ok(left) => left > self.limits.service_budget,
            Err(error) => {
                tracing::warn!(directory = %capture.directory.display(), %error, "trim logs");
                // Looked at again when as much was written.
                self.used
                    .insert(capture.directory.clone(), self.limits.service_budget / 2);
                false
            }
        }
    }

    fn trim(&mut self, directory: &Path, live: &BTreeSet<InstanceId>) -> io::Result<u64> {
        let mut segments = layout::segments(directory)?;
        let size = |segment: &layout::Segment| {
            let index =
                fs::metadata(segment.key.index(directory, segment.start)).map_or(0, |m| m.len());
            segment.length.max(SMALLEST) + index.max(SMALLEST)
        };
        let mut total: u64 = segments.iter().map(size).sum();
        // A little below the budget, so that not each splice trims again.
        let goal = self.limits.service_budget - self.limits.service_budget / 8;
        segments.sort_by_key(|segment| (segment.modified, segment.start));
        let mut newest: HashMap<&StreamKey, u64> = HashMap::new();
        for segment in &segments {
            let start = newest.entry(&segment.key).or_insert(0);
            *start = segment.start.max(*start);
        }
        for segment in &segments {
            if total <= goal {
                break;
            }
            let last = newest.get(&segment.key) == Some(&segment.start);
            let alive = live.contains(&segment.key.instance);
            if alive && last {
                continue;
            }
            total = total.saturating_sub(size(segment));
            drop_segment(directory, segment, last)?;
        }
        self.used.insert(directory.to_owned(), total);
        Ok(total)
    }

    /// What a stream takes beyond its bytes.
    fn account_files(&mut self, capture: &Capture) {
        if !self.used.contains_key(&capture.directory) {
            // First use since the keeper started: count what is there.
            let used = layout::segments(&capture.directory)
                .map(|all| all.iter().map(|s| s.length.max(SMALLEST) + SMALLEST).sum())
                .unwrap_or(0);
            self.used.insert(capture.directory.clone(), used);
        }
        *self.used.entry(capture.directory.clone()).or_insert(0) += 2 * SMALLEST;
    }
}

fn drop_segment(directory: &Path, segment: &layout::Segment, last: bool) -> io::Result<()> {
    let path = segment.key.segment(directory, segment.start);
    let lines = count_file_lines(&path)?;
    let marker = segment.key.marker(directory);
    let mut dropped = Dropped::read(&marker);
    // Deleting may have been interrupted after counting: the marker's bytes are where the next segment begins.
    if segment.start >= dropped.bytes {
        dropped.bytes = segment.start + segment.length;
        dropped.lines += lines;
        dropped.write(&marker)?;
    }
    let _ = fs::remove_file(segment.key.index(directory, segment.start));
    fs::remove_file(path)?;
    if last {
        let service_marker = directory.join(SERVICE_MARKER);
        let mut all = Dropped::read(&service_marker);
        all.bytes += dropped.bytes;
        all.lines += dropped.lines;
        all.streams += 1;
        all.write(&service_marker)?;
        let _ = fs::remove_file(marker);
    }
    Ok(())
}

fn count_file_lines(path: &Path) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 256 * 1024];
    let mut lines = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(lines),
            count => lines += layout::count_lines(&buffer[..count]),
        }
    }
}

/// Where something that is to be `path` is made, until it is whole. No reader takes it for one of its own.
fn unseen(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.new"))
}

/// The server may look in at any moment, so it sees a directory only once its group may read it.
fn make_directory(path: &Path, gid: u32) -> io::Result<()> {
    if fs::symlink_metadata(path).is_ok() {
        return Ok(());
    }
    let unseen = unseen(path);
    match fs::DirBuilder::new().mode(0o750).create(&unseen) {
        // An earlier keeper was killed before it had a name.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        made => made?,
    }
    std::os::unix::fs::lchown(&unseen, None, Some(gid))?;
    fs::rename(&unseen, path)
}

fn make_directories(path: &Path, gid: u32) -> io::Result<()> {
    match make_directory(path, gid) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().ok_or(error)?;
            make_directories(parent, gid)?;
            make_directory(path, gid)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests;
