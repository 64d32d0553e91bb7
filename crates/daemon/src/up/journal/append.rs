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
    loop {
        fs::create_dir_all(folder)?;
        let opened = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(folder.join(CURRENT));
        let file = match opened {
            // Its service has just been deleted.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            file => file?,
        };
        // It may be turned, counted and removed between these two steps: then a line in it would be neither there nor counted.
        file.lock()?;
        if file.metadata()?.nlink() > 0 {
            return append_whole(&file, line).map(drop);
        }
    }
}

/// Appends all of `text` or nothing to a file whose lock the caller holds, and answers how long it was.
pub(super) fn append_whole(mut file: &File, text: &str) -> io::Result<u64> {
    let length = file.metadata()?.len();
    if let Err(error) = file.write_all(text.as_bytes()) {
        // What came after a half line would be glued to it.
        let _ = file.set_len(length);
        return Err(error);
    }
    Ok(length)
}
