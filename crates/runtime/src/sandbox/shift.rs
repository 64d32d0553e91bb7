//! A copy of a layer with its owners shifted, where the kernel or the file system can't idmap.
//!
//! Owns: copying; the copies live in `images/shifted/UID_BASE/HEX`. Doesn't: decide whether (the probe does) or when (the
//! housekeeper does, in a child of its own, because it takes as long as the layer is large).
//! The source is a finished layer that nobody writes; links are copied, never followed.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, Timespec, Timestamps, XattrFlags};

use super::process::{ID_COUNT, IMAGE_BASE};
use crate::spawner::SpawnError;

/// Where the copy of layer `hex` for `uid_base` is or will be.
pub(crate) fn place(images: &Path, uid_base: u32, hex: &str) -> PathBuf {
    all_of(images, uid_base).join(hex)
}

/// Where all copies for `uid_base` are.
pub(crate) fn all_of(images: &Path, uid_base: u32) -> PathBuf {
    images.join("shifted").join(uid_base.to_string())
}

/// Copies `layer` to `partial`, which must not exist, and has it on the disk when it returns. The caller gives it its
/// place: half a copy is never found there.
///
/// # Errors
/// [`SpawnError::Sys`] naming the layer; [`SpawnError::Exhausted`] before less than `reserve` bytes would be free.
pub(crate) fn copy_layer(
    layer: &Path,
    partial: &Path,
    uid_base: u32,
    reserve: u64,
) -> Result<(), SpawnError> {
    let context = || format!("copy {} for ids {uid_base}…", layer.display());
    let at = |e: io::Error| match e.kind() {
        io::ErrorKind::StorageFull => SpawnError::Exhausted {
            what: "space for copies of layers".to_owned(),
            detail: context(),
            advice: format!(
                "free some on the disk of the data directory, of which {reserve} bytes are kept in reserve"
            ),
        },
        _ => SpawnError::sys("copy", e, context()),
    };
    let mut copying = Copying {
        uid_base,
        reserve,
        links: BTreeMap::new(),
    };
    copying.copy(layer, partial).map_err(at)?;
    // A directory whose name outlives a power cut while its files don't would be taken for a whole layer.
    fs::File::open(partial)
        .and_then(|made| Ok(rustix::fs::syncfs(&made)?))
        .map_err(at)
}

struct Copying {
    uid_base: u32,
    /// Bytes that must stay free.
    reserve: u64,
    /// Inode of a file with several names → its copy.
    links: BTreeMap<u64, PathBuf>,
}

impl Copying {
    fn copy(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let metadata = fs::symlink_metadata(from)?;
        let kind = metadata.file_type();
        if !kind.is_dir() && metadata.nlink() > 1 {
            if let Some(first) = self.links.get(&metadata.ino()) {
                return fs::hard_link(first, to);
            }
            self.links.insert(metadata.ino(), to.to_owned());
        }
        if kind.is_dir() {
            fs::DirBuilder::new().mode(0o700).create(to)?;
            for entry in fs::read_dir(from)? {
                let entry = entry?;
                self.copy(&entry.path(), &to.join(entry.file_name()))?;
            }
        } else if kind.is_symlink() {
            symlink(fs::read_link(from)?, to)?;
        } else if kind.is_file() {
            self.leave_room(metadata.len(), to)?;
            fs::copy(from, to)?;
        } else {
            let file_type = if kind.is_char_device() {
                FileType::CharacterDevice
            } else if kind.is_fifo() {
                FileType::Fifo
            } else {
                // Sockets and block devices have no use in a layer, and unpacking makes none.
                return Ok(());
            };
            rustix::fs::mknodat(
                rustix::fs::CWD,
                to,
                file_type,
                Mode::from_raw_mode(0o600),
                metadata.rdev(),
            )?;
        }
        lchown(
            to,
            Some(shifted(metadata.uid(), self.uid_base)),
            Some(shifted(metadata.gid(), self.uid_base)),
        )?;
        if !kind.is_symlink() {
            // After chown, which takes set-id bits away.
            fs::set_permissions(to, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
        }
        copy_attributes(from, to)?;
        let time = |seconds, nanoseconds| Timespec {
            tv_sec: seconds,
            tv_nsec: nanoseconds,
        };
        let times = Timestamps {
            last_access: time(metadata.atime(), metadata.atime_nsec()),
            last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
        };
        rustix::fs::utimensat(rustix::fs::CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    fn leave_room(&self, wanted: u64, to: &Path) -> io::Result<()> {
        let parent = to.parent().unwrap_or(to);
        let disk = rustix::fs::statvfs(parent)?;
        let available = disk.f_bavail.saturating_mul(disk.f_frsize);
        if available < self.reserve.saturating_add(wanted) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }
}

fn shifted(id: u32, uid_base: u32) -> u32 {
    match id.checked_sub(IMAGE_BASE) {
        Some(offset) if offset < ID_COUNT => uid_base + offset,
        // Not an image's id: nobody's, rather than the host's.
        _ => uid_base + ID_COUNT - 1,
    }
}

/// Opaque directories above all (`trusted.overlay.opaque`). File capabilities name their user namespace's root and are
/// void on a nosuid mount: left out.
fn copy_attributes(from: &Path, to: &Path) -> io::Result<()> {
    let mut names = vec![0u8; 64 * 1024];
    let length = match rustix::fs::llistxattr(from, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let mut value = vec![0u8; 64 * 1024];
    for name in names[..length]
        .split(|b| *b == 0)
        .filter(|n| n.starts_with(b"trusted.overlay.") || n.starts_with(b"user."))
    {
        let size = rustix::fs::lgetxattr(from, name, &mut value[..])?;
        rustix::fs::lsetxattr(to, name, &value[..size], XattrFlags::empty())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_the_same_with_other_owners() {
        if !rustix::process::geteuid().is_root() {
            crate::skip::skip(crate::skip::here!(), "giving files away needs root");
            return;
        }
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer");
        fs::create_dir_all(layer.join("d")).unwrap();
        fs::write(layer.join("d/file"), "content").unwrap();
        fs::hard_link(layer.join("d/file"), layer.join("d/other")).unwrap();
        symlink("/etc/passwd", layer.join("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            layer.join("gone"),
            FileType::CharacterDevice,
            Mode::from_raw_mode(0),
            0,
        )
        .unwrap();
        lchown(
            layer.join("d/file"),
            Some(IMAGE_BASE + 5),
            Some(IMAGE_BASE + 6),
        )
        .unwrap();
        lchown(layer.join("link"), Some(IMAGE_BASE), Some(IMAGE_BASE)).unwrap();
        fs::set_permissions(layer.join("d/file"), fs::Permissions::from_mode(0o4755)).unwrap();
        rustix::fs::lsetxattr(
            layer.join("d"),
            "trusted.overlay.opaque",
            b"y",
            XattrFlags::empty(),
        )
        .unwrap();

        let copy = directory.path().join("copy");
        copy_layer(&layer, &copy, 500_000, 0).unwrap();
        let of = |name: &str| fs::symlink_metadata(copy.join(name)).unwrap();
        let file = of("d/file");
        assert_eq!(
            (file.uid(), file.gid(), file.mode() & 0o7777),
            (500_005, 500_006, 0o4755)
        );
        assert_eq!(file.ino(), of("d/other").ino());
        assert_eq!(
            file.mtime_nsec(),
            fs::metadata(layer.join("d/file")).unwrap().mtime_nsec()
        );
        assert_eq!(fs::read_to_string(copy.join("d/file")).unwrap(), "content");
        assert_eq!(
            (of("link").uid(), fs::read_link(copy.join("link")).unwrap()),
            (500_000, PathBuf::from("/etc/passwd"))
        );
        assert!(of("gone").file_type().is_char_device() && of("gone").rdev() == 0);
        let mut value = [0u8; 4];
        assert_eq!(
            rustix::fs::lgetxattr(copy.join("d"), "trusted.overlay.opaque", &mut value[..])
                .unwrap(),
            1
        );
    }

    #[test]
    fn a_copy_leaves_the_reserve_free() {
        let directory = tempfile::tempdir().unwrap();
        let layer = directory.path().join("layer");
        fs::create_dir_all(&layer).unwrap();
        fs::write(layer.join("file"), "content").unwrap();
        let error = copy_layer(
            &layer,
            &directory.path().join("copy"),
            500_000,
            u64::MAX / 2,
        )
        .unwrap_err();
        assert!(
            matches!(&error, SpawnError::Exhausted { what, .. } if what.contains("space")),
            "{error:?}"
        );
    }

    #[test]
    fn ids_outside_the_image_range_become_nobody() {
        assert_eq!(shifted(IMAGE_BASE, 100_000), 100_000);
        assert_eq!(shifted(IMAGE_BASE + 33, 100_000), 100_033);
        assert_eq!(shifted(0, 100_000), 165_535);
        assert_eq!(shifted(IMAGE_BASE + 65_536, 100_000), 165_535);
    }
}
