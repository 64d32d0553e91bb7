//! One stream of one instance as lines.
//!
//! Owns: where a line begins and ends, its number and its time. The number is counted from the content alone, so every
//! reader at any time gives a line the same number.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use utsuwa_model::Timestamp;

use super::layout::{self, Dropped, INDEX_ENTRY, StreamKey};
use super::{LogLine, LogRecord};

/// Read at once.
const CHUNK: usize = 256 * 1024;
/// The keeper writes the time of bytes right after the bytes.
const ENTRY_WAIT: Duration = Duration::from_secs(1);
/// A line longer than this is cut; the rest is skipped and counted in the text.
pub const LINE_LIMIT: usize = 1024 * 1024;

/// Reads a stream from its beginning on, as far as it goes, and later further.
#[derive(Debug)]
pub(super) struct Lines {
    key: StreamKey,
    directory: PathBuf,
    /// Of the next byte to read.
    offset: u64,
    /// Number of the next line to complete, from 0.
    number: u64,
    /// The beginning of a line whose end wasn't there yet.
    partial: Vec<u8>,
    /// Bytes of it beyond [`LINE_LIMIT`].
    cut: u64,
    segment: Option<Open>,
    ready: VecDeque<LogRecord>,
    ended: bool,
}

#[derive(Debug)]
struct Open {
    start: u64,
    file: File,
    index: Option<File>,
    index_path: std::path::PathBuf,
    /// Entries read: end offset and time.
    times: VecDeque<(u64, i64)>,
    index_offset: u64,
}

impl Lines {
    pub(super) fn new(directory: PathBuf, key: StreamKey) -> Self {
        Self {
            key,
            directory,
            offset: 0,
            number: 0,
            partial: Vec::new(),
            cut: 0,
            segment: None,
            ready: VecDeque::new(),
            ended: false,
        }
    }

    /// The next record that is complete now.
    pub(super) fn peek(&mut self) -> io::Result<Option<&LogRecord>> {
        while self.ready.is_empty() && self.read_more()? {}
        Ok(self.ready.front())
    }

    pub(super) fn pop(&mut self) -> Option<LogRecord> {
        self.ready.pop_front()
    }

    /// Whether its instance has ended and everything was read.
    pub(super) fn is_done(&self) -> bool {
        self.ended && self.ready.is_empty()
    }

    /// `false`: nothing more is there now.
    fn read_more(&mut self) -> io::Result<bool> {
        if self.ended {
            return Ok(false);
        }
        if self.segment.is_none() && !self.open_next()? {
            return Ok(false);
        }
        let Some(segment) = &mut self.segment else {
            return Ok(false);
        };
        // Times first: an entry is written after its bytes, so the bytes of all entries read are there.
        segment.read_times()?;
        let mut buffer = vec![0; segment.readable_from(self.offset)?];
        let count = segment
            .file
            .read_at(&mut buffer, self.offset - segment.start)?;
        if count > 0 {
            self.split(&buffer[..count]);
            return Ok(true);
        }
        if let Some(at) = segment.end_mark(self.offset) {
            self.ended = true;
            if !self.partial.is_empty() {
                self.complete(Timestamp(at));
            }
            return Ok(true);
        }
        // The next segment begins exactly where this one ends; until it is there this one may still grow.
        let next = self.key.segment(&self.directory, self.offset);
        let rolled = self.offset > segment.start && next.exists();
        if rolled || Dropped::read(&self.key.marker(&self.directory)).bytes > self.offset {
            self.segment = None;
            return Ok(true);
        }
        Ok(false)
    }

    fn open_next(&mut self) -> io::Result<bool> {
        loop {
            if self.open_at(self.offset)? {
                return Ok(true);
            }
            // Not there: never written, or dropped by the budget.
            let dropped = Dropped::read(&self.key.marker(&self.directory));
            if dropped.bytes <= self.offset {
                return Ok(false);
            }
            let lines = dropped.lines.saturating_sub(self.number);
            self.ready.push_back(LogRecord::Dropped {
                instance: Some(self.key.instance.clone()),
                stream: Some(self.key.stream),
                bytes: dropped.bytes - self.offset,
                lines,
            });
            self.partial.clear();
            self.cut = 0;
            self.offset = dropped.bytes;
            self.number = dropped.lines;
        }
    }

    fn open_at(&mut self, start: u64) -> io::Result<bool> {
        let file = match File::open(self.key.segment(&self.directory, start)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let index_path = self.key.index(&self.directory, start);
        let index = File::open(&index_path).ok();
        self.segment = Some(Open {
            start,
            file,
            index,
            index_path,
            times: VecDeque::new(),
            index_offset: 0,
        });
        Ok(true)
    }

    fn split(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            self.extend(&bytes[..end]);
            self.offset += end as u64 + 1;
            let at = self.time_of(self.offset - 1);
            self.complete(at);
            bytes = &bytes[end + 1..];
        }
        self.extend(bytes);
        self.offset += bytes.len() as u64;
    }

    fn extend(&mut self, bytes: &[u8]) {
        let room = LINE_LIMIT
            .saturating_sub(self.partial.len())
            .min(bytes.len());
        self.partial.extend_from_slice(&bytes[..room]);
        self.cut += (bytes.len() - room) as u64;
    }

    /// When the byte at `offset` was written: that of the first entry that ends after it.
    fn time_of(&mut self, offset: u64) -> Timestamp {
        let Some(segment) = &mut self.segment else {
            return Timestamp::default();
        };
        while segment.times.front().is_some_and(|(end, _)| *end <= offset)
            && segment.times.len() > 1
        {
            segment.times.pop_front();
        }
        match segment.times.front() {
            Some((end, at)) if *end > offset => Timestamp(at.abs()),
            // Just written, its entry isn't yet (or was lost with a keeper): the file's own time.
            last => {
                let last = last.map_or(0, |(_, at)| at.abs());
                segment.modified().unwrap_or(Timestamp(last))
            }
        }
    }

    fn complete(&mut self, at: Timestamp) {
        let mut text = String::from_utf8_lossy(&self.partial).into_owned();
        if text.ends_with('\r') {
            text.pop();
        }
        if self.cut > 0 {
            text.push_str(&format!(" … ({} bytes more)", self.cut));
        }
        self.partial.clear();
        self.cut = 0;
        self.number += 1;
        self.ready.push_back(LogRecord::Line(LogLine {
            instance: self.key.instance.clone(),
            container: self.key.container.clone(),
            stream: self.key.stream,
            sequence: self.number,
            at,
            text,
        }));
    }
}

impl Open {
    fn read_times(&mut self) -> io::Result<()> {
        // The keeper makes the segment first: a reader that came between the two looks again.
        if self.index.is_none() {
            self.index = File::open(&self.index_path).ok();
        }
        let Some(index) = &self.index else {
            return Ok(());
        };
        let mut buffer = vec![0; INDEX_ENTRY * 4096];
        loop {
            let count = index.read_at(&mut buffer, self.index_offset)? / INDEX_ENTRY * INDEX_ENTRY;
            if count == 0 {
                return Ok(());
            }
            self.index_offset += count as u64;
            for entry in buffer[..count].chunks_exact(INDEX_ENTRY) {
                let number =
                    |range: std::ops::Range<usize>| entry[range].try_into().unwrap_or([0; 8]);
                self.times.push_back((
                    u64::from_le_bytes(number(0..8)),
                    i64::from_le_bytes(number(8..16)),
                ));
            }
        }
    }

    /// How many bytes may be read at `offset`: those whose times are known, at most [`CHUNK`]. Bytes without an entry get one
    /// within moments; where a killed keeper left none, they are taken after [`ENTRY_WAIT`].
    fn readable_from(&self, offset: u64) -> io::Result<usize> {
        let known = self
            .times
            .back()
            .map_or(self.start, |(end, _)| *end)
            .saturating_sub(offset);
        if known > 0 {
            return Ok(usize::try_from(known).unwrap_or(CHUNK).min(CHUNK));
        }
        let metadata = self.file.metadata()?;
        let left_alone = metadata
            .modified()?
            .elapsed()
            .is_ok_and(|age| age > ENTRY_WAIT);
        let more = self.start + metadata.len() > offset;
        Ok(if more && left_alone { CHUNK } else { 0 })
    }

    /// The time of the end, if the stream ended at `offset`.
    fn end_mark(&self, offset: u64) -> Option<i64> {
        self.times
            .back()
            .filter(|(end, at)| *end == offset && *at < 0)
            .map(|(_, at)| at.abs())
    }

    fn modified(&self) -> Option<Timestamp> {
        let modified = self.file.metadata().ok()?.modified().ok()?;
        let since = modified.duration_since(std::time::UNIX_EPOCH).ok()?;
        i64::try_from(since.as_micros()).ok().map(Timestamp)
    }
}

/// Streams that `directory` has files of, most recently written first.
pub(super) fn streams(
    directory: &std::path::Path,
) -> io::Result<Vec<(StreamKey, std::time::SystemTime)>> {
    let mut newest: std::collections::BTreeMap<StreamKey, std::time::SystemTime> =
        std::collections::BTreeMap::new();
    for segment in layout::segments(directory)? {
        let at = newest.entry(segment.key).or_insert(segment.modified);
        *at = segment.modified.max(*at);
    }
    let mut all: Vec<_> = newest.into_iter().collect();
    all.sort_by_key(|(_, at)| std::cmp::Reverse(*at));
    Ok(all)
}
