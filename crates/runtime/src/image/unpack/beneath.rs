//! Finding and making places beneath the root of a layer: never through a link, never outside.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::error::{EntryProblem, UnpackError, printable};
use super::extract::{Unpacker, sys};
use super::path::join;

impl Unpacker<'_> {
    /// Calls `make` with the parent; what stands in the way is removed first.
    pub(super) fn make<T>(
        &mut self,
        path: &[u8],
        directory: &[u8],
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> Result<T, Errno>,
    ) -> Result<T, UnpackError> {
        let parent = self.parent(directory, path)?;
        match make(parent) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(|errno| sys("make", path, errno)),
        }
        let stat = fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| sys("look at", path, errno))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            remove_tree(parent, name).map_err(|errno| sys("replace", path, errno))?;
            let mut below = path.to_vec();
            below.push(b'/');
            self.opaque
                .retain(|opaque| opaque != path && !opaque.starts_with(&below));
            // The directory at hand may have been inside.
            self.parent = None;
        } else {
            fs::unlinkat(parent, name, AtFlags::empty())
                .map_err(|errno| sys("replace", path, errno))?;
        }
        make(self.parent(directory, path)?).map_err(|errno| sys("make", path, errno))
    }

    /// The directory `path`, made with its parents if missing. `entry` is named in errors.
    pub(super) fn parent(
        &mut self,
        path: &[u8],
        entry: &[u8],
    ) -> Result<BorrowedFd<'_>, UnpackError> {
        if self.parent.as_ref().is_none_or(|(at, _fd)| at != path) {
            let handle = match self.open_beneath(path, OFlags::PATH | OFlags::DIRECTORY) {
                Ok(handle) => handle,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                    self.make_parents(path, entry)?
                }
                Err(errno) => return Err(sys("open the directory of", entry, errno)),
            };
            self.parent = Some((path.to_vec(), handle));
        }
        match &self.parent {
            Some((_path, handle)) => Ok(handle.as_fd()),
            None => Ok(self.root),
        }
    }

    pub(super) fn make_parents(
        &mut self,
        path: &[u8],
        entry: &[u8],
    ) -> Result<OwnedFd, UnpackError> {
        let problem = |problem| UnpackError::Entry {
            name: printable(entry),
            problem,
        };
        let open =
            |at: BorrowedFd<'_>, name: &[u8]| open_one(at, name, OFlags::PATH | OFlags::DIRECTORY);
        let mut at =
            open(self.root, b".").map_err(|errno| sys("open the root for", entry, errno))?;
        let mut walked = Vec::new();
        for name in path
            .split(|byte| *byte == b'/')
            .filter(|name| !name.is_empty())
        {
            walked = join(&walked, name);
            let next = match open(at.as_fd(), name) {
                Ok(next) => next,
                Err(Errno::LOOP) => return Err(problem(EntryProblem::ThroughSymlink)),
                Err(first @ (Errno::NOENT | Errno::NOTDIR)) => {
                    if first == Errno::NOTDIR {
                        let stat = fs::statat(&at, name, AtFlags::SYMLINK_NOFOLLOW)
                            .map_err(|errno| sys("look at the directory of", entry, errno))?;
                        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                            return Err(problem(EntryProblem::ThroughSymlink));
                        }
                        if !is_whiteout(&stat) {
                            return Err(problem(EntryProblem::NotADirectory));
                        }
                        fs::unlinkat(&at, name, AtFlags::empty())
                            .map_err(|errno| sys("replace a part of", entry, errno))?;
                        self.opaque.insert(walked.clone());
                    }
                    // The umask is zero in the unpacking process; elsewhere it may only take rights away.
                    fs::mkdirat(&at, name, Mode::from_raw_mode(0o755))
                        .map_err(|errno| sys("make the directory of", entry, errno))?;
                    self.unchecked_made += 1;
                    open(at.as_fd(), name)
                        .map_err(|errno| sys("open the directory of", entry, errno))?
                }
                Err(errno) => return Err(sys("open the directory of", entry, errno)),
            };
            at = next;
        }
        Ok(at)
    }

    pub(super) fn open_beneath(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        open_one(self.root, if path.is_empty() { b"." } else { path }, flags)
    }
}

pub(super) fn open_one(at: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    fs::openat2(at, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

pub(super) fn is_whiteout(stat: &fs::Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Removes a directory that an earlier entry of the same layer made. Never leaves it: no symbolic link is followed.
pub(super) fn remove_tree(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let directory = open_one(parent, name, OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut names = Vec::new();
    for entry in fs::Dir::read_from(&directory)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if child != b"." && child != b".." {
            names.push(child.to_vec());
        }
    }
    for child in names {
        match fs::unlinkat(&directory, child.as_slice(), AtFlags::empty()) {
            Err(Errno::ISDIR | Errno::PERM) => remove_tree(directory.as_fd(), &child)?,
            other => other?,
        }
    }
    fs::unlinkat(parent, name, AtFlags::REMOVEDIR)
}
