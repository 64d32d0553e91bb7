//! Writes the entries of a layer under a directory, and nowhere else.
//!
//! Owns: files, directories, links, FIFOs, whiteouts, ownership, modes, times and extended attributes of one layer.
//! Doesn't: decompress, check digests, make namespaces, mark opaque directories (that needs a privilege this process
//! hasn't; they are reported and [`super::mark_opaque`] does it).
//!
//! Invariants:
//! 1. Every path is opened with `openat2` beneath the root, without following any symbolic link; the last component is made
//!    with a call that doesn't follow links either. So no entry can touch anything outside the root, whatever came before it.
//! 2. A later entry replaces an earlier one of the same name; two directories are one.
//! 3. A whiteout hides what is in lower layers, never what this layer brings itself, whatever their order in the archive.
//! 4. Memory grows with the number of directories only.
//!
//! Fails with [`UnpackError`] naming the entry. What is on disk then must be thrown away by the caller.

use std::collections::BTreeSet;
use std::io::BufRead;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::attributes::times;
use super::beneath::is_whiteout;
use super::error::{EntryProblem, UnpackError, printable};
use super::path::{base_name, directory_of, join, normal_path};
use super::tar::{Entry, Kind, TarReader};
use super::{Limits, UnpackReport};

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
/// How often the free space is looked at: after so many bytes, or after so many files and directories, whose inodes and
/// directory blocks count too (4 MiB for 1,024 directories on ext4).
const SPACE_CHECK_BYTES: u64 = 16 << 20;
const SPACE_CHECK_MADE: u64 = 1024;

/// Writes one layer under `root`.
#[derive(Debug)]
pub(crate) struct Unpacker<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) limits: Limits,
    pub(super) report: UnpackReport,
    /// The directory of the last entry: most entries follow others of the same directory.
    pub(super) parent: Option<(Vec<u8>, OwnedFd)>,
    pub(super) directory_times: Vec<(Vec<u8>, (i64, i64))>,
    pub(super) opaque: BTreeSet<Vec<u8>>,
    unchecked_bytes: u64,
    /// Files and directories made since the last look.
    pub(super) unchecked_made: u64,
}

impl<'a> Unpacker<'a> {
    pub(crate) fn new(root: BorrowedFd<'a>, limits: Limits) -> Self {
        Self {
            root,
            limits,
            report: UnpackReport::default(),
            parent: None,
            directory_times: Vec::new(),
            opaque: BTreeSet::new(),
            // The first entry looks.
            unchecked_bytes: SPACE_CHECK_BYTES,
            unchecked_made: 0,
        }
    }

    /// Unpacks everything that `input` (an uncompressed tar stream) holds, and gives it back read to its end.
    pub(crate) fn run<R: BufRead>(mut self, input: R) -> Result<(UnpackReport, R), UnpackError> {
        let mut reader = TarReader::new(input);
        while let Some(entry) = reader.next_entry()? {
            self.report.entries += 1;
            if self.report.entries > self.limits.max_entries {
                return Err(UnpackError::TooManyEntries {
                    limit: self.limits.max_entries,
                });
            }
            self.unchecked_made += 1;
            self.look_at_space_now_and_then()?;
            self.entry(&entry, &mut reader)?;
        }
        let input = reader.drain()?;
        self.parent = None;
        for (path, mtime) in std::mem::take(&mut self.directory_times) {
            // A later entry may have replaced the directory.
            if let Ok(directory) = self.open_beneath(&path, OFlags::RDONLY | OFlags::DIRECTORY) {
                fs::futimens(&directory, &times(mtime))
                    .map_err(|errno| sys("set the times of", &path, errno))?;
            }
        }
        self.report.opaque = self.opaque.into_iter().collect();
        Ok((self.report, input))
    }

    fn entry<R: BufRead>(
        &mut self,
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let path = normal_path(&entry.path)?;
        let Some(name) = base_name(&path) else {
            // The root itself: only a directory can describe it.
            if entry.kind == Kind::Directory {
                self.directory_attributes(&[], entry)?;
            }
            return Ok(());
        };
        let directory = directory_of(&path);
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            return self.whiteout(&path, directory, name, hidden);
        }
        match entry.kind {
            Kind::Directory => self.directory(&path, directory, name, entry),
            Kind::File => self.file(&path, directory, name, entry, reader),
            Kind::Symlink => {
                self.make(&path, directory, name, |parent| {
                    fs::symlinkat(entry.link.as_slice(), parent, name)
                })?;
                self.link_attributes(&path, name, entry)
            }
            Kind::Fifo => {
                self.make(&path, directory, name, |parent| {
                    fs::mknodat(parent, name, FileType::Fifo, Mode::from_raw_mode(0o600), 0)
                })?;
                self.link_attributes(&path, name, entry)?;
                // The name was made just now in a directory only this process writes to, so it is no symbolic link.
                let parent = self.parent(directory, &path)?;
                fs::chmodat(
                    parent,
                    name,
                    Mode::from_raw_mode(entry.mode),
                    AtFlags::empty(),
                )
                .map_err(|errno| sys("set the mode of", &path, errno))
            }
            Kind::HardLink => self.hard_link(&path, directory, name, entry),
            Kind::Device | Kind::Other => {
                self.report.skipped += 1;
                Ok(())
            }
        }
    }

    fn directory(
        &mut self,
        path: &[u8],
        directory: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let parent = self.parent(directory, path)?;
        match fs::mkdirat(parent, name, Mode::from_raw_mode(0o700)) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| sys("look at", path, errno))?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    let was_whiteout = is_whiteout(&stat);
                    fs::unlinkat(parent, name, AtFlags::empty())
                        .map_err(|errno| sys("replace", path, errno))?;
                    fs::mkdirat(parent, name, Mode::from_raw_mode(0o700))
                        .map_err(|errno| sys("make the directory", path, errno))?;
                    if was_whiteout {
                        self.opaque.insert(path.to_vec());
                    }
                }
            }
            Err(errno) => return Err(sys("make the directory", path, errno)),
        }
        self.directory_attributes(path, entry)
    }

    fn file<R: BufRead>(
        &mut self,
        path: &[u8],
        directory: &[u8],
        name: &[u8],
        entry: &Entry,
        reader: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let flags =
            OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.make(path, directory, name, |parent| {
            fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
        })?;
        match &entry.sparse {
            None => loop {
                let written = {
                    let data = reader.data()?;
                    if data.is_empty() {
                        break;
                    }
                    rustix::io::write(&file, data).map_err(|errno| sys("write", path, errno))?
                };
                reader.consume(written);
                self.count(written as u64)?;
            },
            Some(map) => self.sparse(&file, path, entry.size, map, reader)?,
        }
        self.attributes(file.as_fd(), path, entry)?;
        fs::futimens(&file, &times(entry.mtime))
            .map_err(|errno| sys("set the times of", path, errno))
    }

    fn sparse<R: BufRead>(
        &mut self,
        file: &OwnedFd,
        path: &[u8],
        size: u64,
        map: &[(u64, u64)],
        reader: &mut TarReader<R>,
    ) -> Result<(), UnpackError> {
        let bad = || UnpackError::Entry {
            name: printable(path),
            problem: EntryProblem::BadSparseMap,
        };
        if size > self.limits.max_bytes {
            return Err(UnpackError::TooLarge {
                limit: self.limits.max_bytes,
            });
        }
        let mut end_of_last = 0_u64;
        for (offset, length) in map {
            let end = offset.checked_add(*length).ok_or_else(bad)?;
            if *offset < end_of_last || end > size {
                return Err(bad());
            }
            end_of_last = end;
            let mut position = *offset;
            while position < end {
                let written = {
                    let data = reader.data()?;
                    if data.is_empty() {
                        return Err(bad());
                    }
                    let most = usize::try_from(end - position)
                        .unwrap_or(usize::MAX)
                        .min(data.len());
                    rustix::io::pwrite(file, &data[..most], position)
                        .map_err(|errno| sys("write", path, errno))?
                };
                reader.consume(written);
                position += written as u64;
                self.count(written as u64)?;
            }
        }
        fs::ftruncate(file, size).map_err(|errno| sys("set the size of", path, errno))
    }

    fn hard_link(
        &mut self,
        path: &[u8],
        directory: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let target = printable(&entry.link);
        let problem = |problem| UnpackError::Entry {
            name: printable(path),
            problem,
        };
        if entry.link.starts_with(b"/") {
            return Err(problem(EntryProblem::AbsoluteLink { target }));
        }
        let to = normal_path(&entry.link).map_err(|_error| {
            problem(EntryProblem::EscapingLink {
                target: target.clone(),
            })
        })?;
        if to == path {
            return Err(problem(EntryProblem::MissingLink { target }));
        }
        let missing = || {
            problem(EntryProblem::MissingLink {
                target: target.clone(),
            })
        };
        let to_name = base_name(&to).ok_or_else(missing)?;
        let to_parent = match self.open_beneath(directory_of(&to), OFlags::PATH | OFlags::DIRECTORY)
        {
            Ok(handle) => handle,
            Err(Errno::LOOP) => return Err(problem(EntryProblem::EscapingLink { target })),
            Err(_errno) => return Err(missing()),
        };
        let stat = fs::statat(&to_parent, to_name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|_errno| missing())?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory || is_whiteout(&stat) {
            return Err(missing());
        }
        self.make(path, directory, name, |parent| {
            fs::linkat(&to_parent, to_name, parent, name, AtFlags::empty())
        })
    }

    fn whiteout(
        &mut self,
        path: &[u8],
        directory: &[u8],
        name: &[u8],
        hidden: &[u8],
    ) -> Result<(), UnpackError> {
        if name == OPAQUE_MARKER {
            self.parent(directory, path)?;
            self.opaque.insert(directory.to_vec());
            return Ok(());
        }
        if name.starts_with(b".wh..wh.") {
            // Housekeeping of an old union file system; means nothing to anybody else.
            self.report.skipped += 1;
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(UnpackError::Entry {
                name: printable(path),
                problem: EntryProblem::BadWhiteout,
            });
        }
        let parent = self.parent(directory, path)?;
        match fs::mknodat(
            parent,
            hidden,
            FileType::CharacterDevice,
            Mode::empty(),
            fs::makedev(0, 0),
        ) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                let stat = fs::statat(parent, hidden, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|errno| sys("look at", path, errno))?;
                if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                    self.opaque.insert(join(directory, hidden));
                }
                Ok(())
            }
            Err(errno) => Err(sys("make the whiteout", path, errno)),
        }
    }

    /// Counts written bytes.
    fn count(&mut self, bytes: u64) -> Result<(), UnpackError> {
        self.report.bytes += bytes;
        self.unchecked_bytes += bytes;
        self.look_at_space_now_and_then()
    }

    fn look_at_space_now_and_then(&mut self) -> Result<(), UnpackError> {
        if self.unchecked_bytes < SPACE_CHECK_BYTES && self.unchecked_made < SPACE_CHECK_MADE {
            return Ok(());
        }
        self.unchecked_bytes = 0;
        self.unchecked_made = 0;
        let stat = fs::fstatvfs(self.root)
            .map_err(|errno| sys("look at the free space of", b".", errno))?;
        let available = stat.f_bavail.saturating_mul(stat.f_frsize);
        if available < self.limits.reserve_bytes {
            return Err(UnpackError::DiskReserve {
                available,
                reserve: self.limits.reserve_bytes,
            });
        }
        // A file system that makes inodes as it goes (btrfs) says that it has none at all.
        if stat.f_files > 0 && stat.f_favail < self.limits.reserve_inodes {
            return Err(UnpackError::InodeReserve {
                available: stat.f_favail,
                reserve: self.limits.reserve_inodes,
            });
        }
        Ok(())
    }
}

pub(super) fn sys(call: &str, path: &[u8], errno: Errno) -> UnpackError {
    if errno == Errno::NAMETOOLONG {
        return UnpackError::Entry {
            name: printable(path),
            problem: EntryProblem::TooLong,
        };
    }
    UnpackError::Sys {
        call: call.to_owned(),
        name: printable(path),
        errno: errno.raw_os_error(),
    }
}
