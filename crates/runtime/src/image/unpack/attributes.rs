//! Owners, modes, times and extended attributes of what a layer brings.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{self, AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::error::UnpackError;
use super::extract::{Unpacker, sys};
use super::path::directory_of;
use super::tar::Entry;

/// Owners outside the mapped range can't exist in an instance; such files belong to nobody.
const NOBODY: u32 = 65_534;

impl Unpacker<'_> {
    pub(super) fn directory_attributes(
        &mut self,
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let handle = self
            .open_beneath(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|errno| sys("open the directory", path, errno))?;
        self.attributes(handle.as_fd(), path, entry)?;
        self.directory_times.push((path.to_vec(), entry.mtime));
        Ok(())
    }

    /// Owner, then mode (a change of owner clears setuid), then attributes.
    pub(super) fn attributes(
        &mut self,
        file: BorrowedFd<'_>,
        path: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let (uid, gid) = self.owner(entry);
        fs::fchown(file, Some(uid), Some(gid))
            .map_err(|errno| sys("set the owner of", path, errno))?;
        fs::fchmod(file, Mode::from_raw_mode(entry.mode))
            .map_err(|errno| sys("set the mode of", path, errno))?;
        for (name, value) in &entry.xattrs {
            let wanted = name.starts_with(b"user.") && !name.starts_with(b"user.overlay.")
                || name == b"security.capability";
            if !wanted {
                self.report.skipped_attributes += 1;
                continue;
            }
            match fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty()) {
                Ok(()) => {}
                // Capabilities count for nothing on a nosuid mount; and some file systems have no attributes.
                Err(Errno::PERM | Errno::NOTSUP | Errno::INVAL) => {
                    self.report.skipped_attributes += 1
                }
                Err(errno) => return Err(sys("set an attribute of", path, errno)),
            }
        }
        Ok(())
    }

    /// Owner and times of what can't be opened: symbolic links and FIFOs.
    pub(super) fn link_attributes(
        &mut self,
        path: &[u8],
        name: &[u8],
        entry: &Entry,
    ) -> Result<(), UnpackError> {
        let (uid, gid) = self.owner(entry);
        let parent = self.parent(directory_of(path), path)?;
        fs::chownat(
            parent,
            name,
            Some(uid),
            Some(gid),
            AtFlags::SYMLINK_NOFOLLOW,
        )
        .map_err(|errno| sys("set the owner of", path, errno))?;
        fs::utimensat(parent, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|errno| sys("set the times of", path, errno))
    }

    pub(super) fn owner(&mut self, entry: &Entry) -> (Uid, Gid) {
        let mut remapped = false;
        let count = self.limits.ids;
        let mut id = |id: u64| match u32::try_from(id) {
            Ok(id) if id < count => id,
            _ => {
                remapped = true;
                NOBODY.min(count.saturating_sub(1))
            }
        };
        let owner = (Uid::from_raw(id(entry.uid)), Gid::from_raw(id(entry.gid)));
        self.report.remapped_owners += u64::from(remapped);
        owner
    }
}

pub(super) fn times(mtime: (i64, i64)) -> Timestamps {
    let time = Timespec {
        tv_sec: mtime.0,
        tv_nsec: mtime.1,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
