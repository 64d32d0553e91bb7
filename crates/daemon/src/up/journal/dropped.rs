//! What a journal lets go for its budget, and the count of it, so that every line keeps its number.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub(super) const CURRENT: &str = "journal.jsonl";
pub(super) const OLD: &str = "journal.jsonl.old";
/// On its way out.
const GONE: &str = "journal.jsonl.gone";
const DROPPED: &str = "journal.dropped";

/// Bytes that are counted without a pause: a fraction of a millisecond. The kernel lets whoever computes go on to its next tick,
/// some milliseconds in which requests wait that share the processor.
const AT_ONCE: usize = 1 << 20;
const PAUSE: Duration = Duration::from_millis(1);

/// What a journal lost to its budget.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::up) struct Dropped {
    pub lines: u64,
    pub bytes: u64,
    /// The last file that was counted: it may still be there after a kill.
    #[serde(default)]
    counted: u64,
}

impl Dropped {
    /// What is counted, and what is on its way out since a kill and not counted yet: together with what is there, every line
    /// keeps its number for ever.
    pub(super) fn all(folder: &Path) -> Self {
        let mut dropped = Self::read(folder);
        if let Ok(file) = File::open(folder.join(GONE)) {
            // One that can't be read is as good as gone.
            let _ = dropped.add(&file, Duration::ZERO);
        }
        dropped
    }

    /// Adds a file that is dropped, unless it is counted already. `true`: it was not.
    fn add(&mut self, file: &File, pause: Duration) -> io::Result<bool> {
        let metadata = file.metadata()?;
        if self.counted == mark(&metadata) {
            return Ok(false);
        }
        self.lines += lines(file, pause);
        self.bytes += metadata.len();
        self.counted = mark(&metadata);
        Ok(true)
    }

    fn read(folder: &Path) -> Self {
        fs::read(folder.join(DROPPED))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    fn write(&self, folder: &Path) -> io::Result<()> {
        let temporary = folder.join("journal.dropped.new");
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, folder.join(DROPPED))
    }
}

/// As many as can be read: a disk that fails for good answers every further question with the same error. The last one may be
/// without its end. It takes a `pause` now and then.
fn lines(mut file: impl Read, pause: Duration) -> u64 {
    let mut buffer = vec![0; 64 << 10];
    let (mut lines, mut since, mut half) = (0, 0, false);
    loop {
        let read = match file.read(&mut buffer) {
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => return lines,
            Ok(0) => return lines + u64::from(half),
            Ok(read) => read,
        };
        let bytes = &buffer[..read];
        lines += memchr::memchr_iter(b'\n', bytes).count() as u64;
        half = bytes.last() != Some(&b'\n');
        since += read;
        if since >= AT_ONCE && !pause.is_zero() {
            since = 0;
            std::thread::sleep(pause);
        }
    }
}

/// Tells one file from others. Its number alone doesn't: the next file that is made may get that of one just deleted.
fn mark(metadata: &fs::Metadata) -> u64 {
    let nanos = metadata
        .mtime()
        .wrapping_mul(1_000_000_000)
        .wrapping_add(metadata.mtime_nsec());
    metadata.ino() ^ nanos.cast_unsigned()
}

/// The current file becomes the old one, and the old one goes.
pub(super) fn turn(folder: &Path) -> io::Result<()> {
    match fs::rename(folder.join(OLD), folder.join(GONE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    count_gone(folder)?;
    fs::rename(folder.join(CURRENT), folder.join(OLD))
}

/// Counts what is on its way out and deletes it, each once, whenever a kill comes.
pub(super) fn count_gone(folder: &Path) -> io::Result<()> {
    let gone = folder.join(GONE);
    let file = match File::open(&gone) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    // Until it is gone: a server that made place may be about to append to it (`append_beside`).
    file.lock()?;
    let mut dropped = Dropped::read(folder);
    if dropped.add(&file, PAUSE)? {
        dropped.write(folder)?;
    }
    fs::remove_file(gone)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// A file on a disk that fails after two lines.
    struct Failing {
        rest: &'static [u8],
        errors: u32,
    }

    impl Read for Failing {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if !self.rest.is_empty() {
                return self.rest.read(buffer);
            }
            self.errors += 1;
            assert!(self.errors < 10, "it is asked again and again");
            Err(io::Error::other("input/output error"))
        }
    }

    #[test]
    fn a_disk_that_fails_is_not_asked_for_ever() {
        let rest = b"one\ntwo\n";
        assert_eq!(lines(Failing { rest, errors: 0 }, PAUSE), 2);
        assert_eq!(lines(&b"one\ntwo\nthr"[..], PAUSE), 3);
        // Half of it at the end of what is read at once.
        let long = "x".repeat(AT_ONCE) + "\ny";
        assert_eq!(lines(long.as_bytes(), Duration::ZERO), 2);
        assert_eq!(lines(long.as_bytes(), PAUSE), 2);
    }
}
