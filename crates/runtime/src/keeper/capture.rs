//! Moves what instances write from their FIFOs to files, and keeps each service within its budget.
//!
//! Owns: the log files (their layout is `logs::layout`). Doesn't: read lines; the reader does that.
//!
//! Invariants:
//! 1. Bytes leave the FIFO and enter the file in one system call (`splice`), so no kill can lose or double them. On
//!    return the position is the file's size.
//! 2. What is dropped (budget, full disk) is counted, and the count is in the files before the bytes are gone.
//! 3. Files are root's, readable by the server's group; the directory is held open, so that nobody can put a link in
//!    the way.
//!
//! Failure: where a file can't be written (disk full) the bytes are read and counted, never left in the FIFO: an app
//! must not stand still because of its log.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};

use crate::logs::layout::{self, Dropped, SERVICE_MARKER, StreamKey};

/// A file this small counts as this large: it takes a block and a directory entry.
const SMALLEST: u64 = 4096;
/// An active segment is closed to meet the budget only if it is at least this large.
const WORTH_ROLLING: u64 = 64 * 1024;
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

/// One stream of one instance.
#[derive(Debug)]
pub(crate) struct Capture {
    key: StreamKey,
    directory: PathBuf,
    fifo: OwnedFd,
    resume: bool,
    accounted: bool,
    segment: Option<Segment>,
    /// Bytes and lines that could not be written since the last one that could.
    gap: (u64, u64),
}

#[derive(Debug)]
struct Segment {
    start: u64,
    length: u64,
    file: File,
    index: File,
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
        Capture {
            key,
            directory,
            fifo,
            resume,
            accounted: false,
            segment: None,
            gap: (0, 0),
        }
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

fn make_directory(path: &Path, gid: u32) -> io::Result<()> {
    match fs::DirBuilder::new().mode(0o750).create(path) {
        Ok(()) => std::os::unix::fs::chown(path, None, Some(gid)),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
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

impl Capture {
    pub(crate) fn fifo(&self) -> &OwnedFd {
        &self.fifo
    }

    /// One `splice`.
    fn store(&mut self, store: &LogStore, now: Timestamp) -> io::Result<u64> {
        if self.segment.is_none() {
            if !has_data(&self.fifo) {
                return Ok(0);
            }
            self.segment = Some(self.open_segment(store)?);
        }
        self.write_gap(now)?;
        if self
            .segment
            .as_ref()
            .is_some_and(|segment| segment.length >= store.limits.segment)
        {
            self.roll(store)?;
        }
        let Some(segment) = &mut self.segment else {
            return Ok(0);
        };
        let room = store
            .limits
            .segment
            .saturating_sub(segment.length)
            .clamp(1, 1 << 20);
        let mut offset = segment.length;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let room = usize::try_from(room).unwrap_or(usize::MAX);
        let moved = match splice(
            &self.fifo,
            None,
            &segment.file,
            Some(&mut offset),
            room,
            flags,
        ) {
            Ok(moved) => moved as u64,
            Err(Errno::AGAIN | Errno::INTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if moved > 0 {
            segment.length += moved;
            segment.note(now)?;
        }
        Ok(moved)
    }

    /// Closes the current segment; the next byte begins another.
    pub(crate) fn roll(&mut self, store: &LogStore) -> io::Result<()> {
        if let Some(old) = &self.segment {
            let next = Segment::open(
                &self.key,
                &self.directory,
                old.start + old.length,
                store.gid,
            )?;
            self.segment = Some(next);
        }
        Ok(())
    }

    /// Closes the current segment if dropping it would help the budget.
    pub(crate) fn roll_if_large(&mut self, store: &LogStore) {
        if self
            .segment
            .as_ref()
            .is_some_and(|segment| segment.length >= WORTH_ROLLING)
            && let Err(error) = self.roll(store)
        {
            tracing::warn!(instance = %self.key.instance, %error, "begin a new log segment");
        }
    }

    fn open_segment(&self, store: &LogStore) -> io::Result<Segment> {
        make_directories(&self.directory, store.gid)?;
        let mut start = 0;
        if self.resume {
            start = layout::segments(&self.directory)?
                .iter()
                .filter(|segment| segment.key == self.key)
                .map(|segment| segment.start)
                .max()
                .unwrap_or_else(|| Dropped::read(&self.key.marker(&self.directory)).bytes);
        }
        Segment::open(&self.key, &self.directory, start, store.gid)
    }

    /// Reads what can't be stored, and counts it.
    fn discard(&mut self) -> u64 {
        let mut buffer = vec![0; 64 * 1024];
        match rustix::io::read(&self.fifo, &mut buffer) {
            Ok(count) => {
                self.gap.0 += count as u64;
                self.gap.1 += layout::count_lines(&buffer[..count]);
                count as u64
            }
            Err(_) => 0,
        }
    }

    /// Says in the log itself how much is missing here.
    fn write_gap(&mut self, now: Timestamp) -> io::Result<()> {
        let (bytes, lines) = self.gap;
        let Some(segment) = &mut self.segment else {
            return Ok(());
        };
        if bytes == 0 {
            return Ok(());
        }
        let mut last = [b'\n'];
        if segment.length > 0 {
            segment.file.read_exact_at(&mut last, segment.length - 1)?;
        }
        let newline = if last[0] == b'\n' { "" } else { "\n" };
        let text = format!(
            "{newline}utsuwa: {bytes} bytes ({lines} lines) of this log are missing here: the disk was full\n"
        );
        if let Err(error) = segment.file.write_all_at(text.as_bytes(), segment.length) {
            segment.file.set_len(segment.length)?;
            return Err(error);
        }
        segment.length += text.len() as u64;
        self.gap = (0, 0);
        segment.note(now)
    }

    /// The stream has ended: what the reader has of an unfinished line is the line.
    pub(crate) fn finish(&mut self, store: &mut LogStore, now: Timestamp) {
        while store.drain(self, now) > 0 {}
        if self.segment.is_none() && self.resume {
            // Perhaps an earlier keeper stored something.
            let begun = layout::segments(&self.directory)
                .is_ok_and(|all| all.iter().any(|s| s.key == self.key));
            if begun {
                self.segment = self.open_segment(store).ok();
            }
        }
        let ended = self.write_gap(now).and_then(|()| match &mut self.segment {
            Some(segment) => segment.note(Timestamp(-now.0)),
            None => Ok(()),
        });
        if let Err(error) = ended {
            tracing::warn!(instance = %self.key.instance, %error, "mark the end of a log");
        }
    }

    /// The last `count` lines, oldest first.
    pub(crate) fn last_lines(&self, count: usize) -> Vec<String> {
        const WINDOW: u64 = 16 * 1024;
        let Some(segment) = &self.segment else {
            return Vec::new();
        };
        let from = segment.length.saturating_sub(WINDOW);
        let mut bytes = vec![0; usize::try_from(segment.length - from).unwrap_or(0)];
        if segment.file.read_exact_at(&mut bytes, from).is_err() {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&bytes);
        let mut lines: Vec<String> = text.lines().rev().take(count).map(str::to_owned).collect();
        lines.reverse();
        lines
    }
}

impl Segment {
    fn open(key: &StreamKey, directory: &Path, start: u64, gid: u32) -> io::Result<Self> {
        let open = |path: &Path, append: bool| -> io::Result<File> {
            let mut options = OpenOptions::new();
            // `splice` refuses files opened for appending; the index is written in the ordinary way.
            options
                .read(true)
                .create(true)
                .mode(0o640)
                .custom_flags(libc::O_NOFOLLOW);
            if append {
                options.append(true)
            } else {
                options.write(true)
            };
            let file = options.open(path)?;
            if file.metadata()?.gid() != gid {
                std::os::unix::fs::fchown(&file, None, Some(gid))?;
            }
            Ok(file)
        };
        let file = open(&key.segment(directory, start), false)?;
        let index = open(&key.index(directory, start), true)?;
        // An entry that a kill or a full disk cut off would shift all later ones.
        let whole =
            index.metadata()?.len() / layout::INDEX_ENTRY as u64 * layout::INDEX_ENTRY as u64;
        index.set_len(whole)?;
        let length = file.metadata()?.len();
        Ok(Self {
            start,
            length,
            file,
            index,
        })
    }

    fn note(&mut self, at: Timestamp) -> io::Result<()> {
        let mut entry = [0; layout::INDEX_ENTRY];
        entry[..8].copy_from_slice(&(self.start + self.length).to_le_bytes());
        entry[8..].copy_from_slice(&at.0.to_le_bytes());
        self.index.write_all(&entry)
    }
}

fn has_data(fifo: &OwnedFd) -> bool {
    rustix::io::ioctl_fionread(fifo.as_fd()).is_ok_and(|bytes| bytes > 0)
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
