//! What a journal lets go for its budget, and the count of it, so that every line keeps its number.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

pub(super) const CURRENT: &str = "journal.jsonl";
pub(super) const OLD: &str = "journal.jsonl.old";
/// On its way out.
const GONE: &str = "journal.jsonl.gone";
const DROPPED: &str = "journal.dropped";

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
            let _ = dropped.add(file);
        }
        dropped
    }

    /// Adds a file that is dropped, unless it is counted already. `true`: it was not.
    fn add(&mut self, file: File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        if self.counted == mark(&metadata) {
            return Ok(false);
        }
        self.lines += BufReader::new(file).split(b'\n').count() as u64;
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
    let mut dropped = Dropped::read(folder);
    if dropped.add(file)? {
        dropped.write(folder)?;
    }
    fs::remove_file(gone)
}
