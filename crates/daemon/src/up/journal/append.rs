//! Writing at the end of a journal's file.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use super::dropped::CURRENT;

/// A kill in the middle of a write may have left half a line. It must not be glued to the next one.
pub(super) fn end_half_line(path: &Path, mut append: &File) -> io::Result<()> {
    let length = append.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        File::open(path)?.read_exact_at(&mut last, length - 1)?;
    }
    if last == [b'\n'] {
        return Ok(());
    }
    append.write_all(b"\n")
}

/// Appends to a file that another process has, too. Between its turning and its next line there is none; and a service that was
/// deleted meanwhile gets one that is found and removed like every other without a service.
pub(super) fn append_beside(folder: &Path, line: &str) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    loop {
        let mut file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join(CURRENT))?;
        // It may be turned, counted and removed between these two steps: then a line in it would be neither there nor counted.
        file.lock()?;
        if file.metadata()?.nlink() > 0 {
            return file.write_all(line.as_bytes());
        }
    }
}
