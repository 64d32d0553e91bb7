//! One stream of one instance, stored in segments.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use utsuwa_model::Timestamp;

use super::{LogStore, make_directories, unseen};
use crate::logs::layout::{self, Dropped, StreamKey};

/// An active segment is closed to meet the budget only if it is at least this large.
const WORTH_ROLLING: u64 = 64 * 1024;

/// One stream of one instance.
#[derive(Debug)]
pub(crate) struct Capture {
    pub(super) key: StreamKey,
    pub(super) directory: PathBuf,
    fifo: OwnedFd,
    resume: bool,
    pub(super) accounted: bool,
    segment: Option<Segment>,
    /// Bytes and lines that could not be written since the last one that could.
    pub(super) gap: (u64, u64),
}

#[derive(Debug)]
struct Segment {
    start: u64,
    length: u64,
    file: File,
    index: File,
}

impl Capture {
    pub(super) fn new(key: StreamKey, directory: PathBuf, fifo: OwnedFd, resume: bool) -> Self {
        Self {
            key,
            directory,
            fifo,
            resume,
            accounted: false,
            segment: None,
            gap: (0, 0),
        }
    }

    pub(crate) fn fifo(&self) -> &OwnedFd {
        &self.fifo
    }

    /// One `splice`.
    pub(super) fn store(&mut self, store: &LogStore, now: Timestamp) -> io::Result<u64> {
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
    pub(super) fn discard(&mut self) -> u64 {
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
                .mode(0o640)
                .custom_flags(libc::O_NOFOLLOW);
            if append {
                options.append(true)
            } else {
                options.write(true)
            };
            match options.open(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => make(&options, path, gid),
                there => {
                    let file = there?;
                    if file.metadata()?.gid() != gid {
                        std::os::unix::fs::fchown(&file, None, Some(gid))?;
                    }
                    Ok(file)
                }
            }
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

/// A new file at `path`. A reader that finds it may read it: it gets its name last.
fn make(options: &OpenOptions, path: &Path, gid: u32) -> io::Result<File> {
    let unseen = unseen(path);
    // Of a keeper that was killed before this.
    let _ = fs::remove_file(&unseen);
    let file = options.clone().create_new(true).open(&unseen)?;
    std::os::unix::fs::fchown(&file, None, Some(gid))?;
    fs::rename(&unseen, path)?;
    Ok(file)
}

pub(super) fn has_data(fifo: &OwnedFd) -> bool {
    rustix::io::ioctl_fionread(fifo.as_fd()).is_ok_and(|bytes| bytes > 0)
}
