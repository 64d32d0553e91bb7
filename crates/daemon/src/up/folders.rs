//! The folders of the data directory, and whose they are.
//!
//! Owns: making them at each start, their owners and modes, and having files follow a user that changed.
//! Doesn't: look into unpacked layers, or make files.
//!
//! Invariants
//! 1. Whatever root uses by its path lies in folders that only root can change: the server, however deceived, can't put a
//!    link into such a path.
//! 2. Below the data directory nothing is followed: each folder and file is opened from the descriptor of its parent, and
//!    changed by its own.
//! 3. A folder gets its new owner after all that is in it, so that an interrupted change is taken up by the next start.
//!
//! Fails with the path, and what to do about it. What was set before stays: it is right.

use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, bail};
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, Stat, Uid};
use rustix::io::Errno;
use utsuwa_runtime::privilege::ServerUser;

use super::Refusal;

#[cfg(test)]
mod tests;

/// Who writes in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    /// Root; the server's group reads. What is in it has owners of its own.
    Root,
    /// Root, all the way down; the server's group reads.
    RootTree,
    /// The server, and nobody else reads.
    Server,
    /// As `Server`; operators put files there too (a restored database), so that every start looks at each.
    ServerAndOperator,
}

/// Parents first.
const FOLDERS: &[(&str, Writer)] = &[
    ("images", Writer::Root),
    ("images/layers", Writer::Root),
    ("images/shifted", Writer::Root),
    ("images/blobs", Writer::Server),
    ("images/incoming", Writer::Server),
    ("images/index", Writer::Server),
    ("state", Writer::ServerAndOperator),
    ("keys", Writer::ServerAndOperator),
    ("journal", Writer::Server),
    ("leaving", Writer::Server),
    ("logs", Writer::RootTree),
];

const ROOT: u32 = 0;
const ROOTS_MODE: Mode = Mode::from_raw_mode(0o750);
const SERVERS_MODE: Mode = Mode::from_raw_mode(0o700);
/// The deepest of our own trees (logs and journals: project, region, service) has three levels.
const MAX_DEPTH: usize = 8;

/// Refuses a data directory below a folder that the server's user may not enter, such as a home: root would make it all, and
/// the server could open nothing. A folder with access lists is left to the kernel.
///
/// # Errors
/// Such a folder, with what opens it.
pub(super) fn can_be_entered(data: &Path, user: &ServerUser) -> anyhow::Result<()> {
    let absolute = std::path::absolute(data)
        .with_context(|| format!("find the directory {}", data.display()))?;
    // The directory itself is opened to the server at each start.
    let Some(above) = absolute.ancestors().skip(1).find(|path| path.exists()) else {
        return Ok(());
    };
    let above = above
        .canonicalize()
        .with_context(|| format!("find the directory {}", above.display()))?;
    for folder in above.ancestors() {
        let stat =
            rustix::fs::stat(folder).with_context(|| format!("look at {}", folder.display()))?;
        let lists = rustix::fs::getxattr(folder, c"system.posix_acl_access", &mut [0_u8; 0][..]);
        if enters(&stat, user) || lists.is_ok() {
            continue;
        }
        let folder = folder.display();
        return Err(Refusal::new(
            format!(
                "the server's user {} may not enter {folder} (mode {:04o}), so that it can't use the data directory {}",
                user.shown,
                stat.st_mode & 0o7777,
                data.display()
            ),
            format!("name another directory with --data-dir, or let it pass: chmod o+x {folder}"),
        ));
    }
    Ok(())
}

fn enters(stat: &Stat, user: &ServerUser) -> bool {
    let bit = if stat.st_uid == user.uid {
        0o100
    } else if stat.st_gid == user.gid {
        0o010
    } else {
        0o001
    };
    user.uid == ROOT || stat.st_mode & bit != 0
}

/// Makes what is missing and gives everything to whom it belongs.
///
/// # Errors
/// Something below `data` is a link or no folder, or the kernel refuses.
pub(super) fn make(data: &Path, user: &ServerUser) -> anyhow::Result<()> {
    std::fs::create_dir_all(data)
        .with_context(|| format!("make the directory {}", data.display()))?;
    // Where the data directory lies is the operator's choice, links included: the server has no hand in that.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(data, flags, Mode::empty())
        .with_context(|| format!("open the directory {}", data.display()))?;
    // Before anything else: from here on nobody but root can exchange one of the folders.
    give_folder(&root, ROOT, user.gid, ROOTS_MODE, data)?;
    for (name, writer) in FOLDERS {
        let path = data.join(name);
        let folder = open_below(&root, data, name)?;
        let (owner, mode) = match writer {
            Writer::Root | Writer::RootTree => (ROOT, ROOTS_MODE),
            Writer::Server | Writer::ServerAndOperator => (user.uid, SERVERS_MODE),
        };
        let had =
            rustix::fs::fstat(&folder).with_context(|| format!("look at {}", path.display()))?;
        let look_inside = match writer {
            Writer::Root => false,
            Writer::RootTree | Writer::Server => !owned(&had, owner, user.gid),
            Writer::ServerAndOperator => true,
        };
        if look_inside {
            give_content(&folder, owner, user.gid, &path, MAX_DEPTH)?;
        }
        give_folder(&folder, owner, user.gid, mode, &path)?;
    }
    Ok(())
}

/// Opens `name` (components with slashes between) below `root`, made if missing.
fn open_below(root: &OwnedFd, data: &Path, name: &str) -> anyhow::Result<OwnedFd> {
    let mut path = data.to_owned();
    let mut folder: Option<OwnedFd> = None;
    for component in name.split('/') {
        path.push(component);
        let parent = folder.as_ref().unwrap_or(root);
        match rustix::fs::mkdirat(parent, component, SERVERS_MODE) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => {
                return Err(error)
                    .with_context(|| format!("make the directory {}", path.display()));
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        folder = Some(
            match rustix::fs::openat(parent, component, flags, Mode::empty()) {
                Ok(opened) => opened,
                Err(Errno::NOTDIR | Errno::LOOP) => bail!(
                    "{} is a link or a file where a folder of this server must be; links are not followed there, because root would \
                 give away what they lead to. Remove it; to keep the folder elsewhere, mount it there: mount --bind ELSEWHERE {}",
                    path.display(),
                    path.display()
                ),
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("open the directory {}", path.display()));
                }
            },
        );
    }
    folder.context("a folder without a name")
}

/// Gives all that is in `folder` to `owner` and `group`; `depth` more levels at most.
fn give_content(
    folder: &OwnedFd,
    owner: u32,
    group: u32,
    path: &Path,
    depth: usize,
) -> anyhow::Result<()> {
    let Some(depth) = depth.checked_sub(1) else {
        bail!(
            "{} lies deeper than anything of this server does; move it out of the data directory",
            path.display()
        );
    };
    let entries = Dir::read_from(folder).with_context(|| format!("read {}", path.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("read {}", path.display()))?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        give_entry(
            folder.as_fd(),
            name,
            owner,
            group,
            &path.join(name.to_string_lossy().as_ref()),
            depth,
        )?;
    }
    Ok(())
}

fn give_entry(
    parent: BorrowedFd<'_>,
    name: &CStr,
    owner: u32,
    group: u32,
    path: &Path,
    depth: usize,
) -> anyhow::Result<()> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let entry = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(entry) => entry,
        // The keeper throws away old logs meanwhile.
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let stat = rustix::fs::fstat(&entry).with_context(|| format!("look at {}", path.display()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            // The very directory looked at, whatever the name means by now.
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let opened = rustix::fs::openat(&entry, c".", flags, Mode::empty())
                .with_context(|| format!("open {}", path.display()))?;
            give_content(&opened, owner, group, path, depth)?;
        }
        _ if owned(&stat, owner, group) => return Ok(()),
        FileType::RegularFile if stat.st_nlink > 1 => bail!(
            "{} is a hard link to a file that has other names too; giving it to the server's user could give away another's file. \
             Remove it, or copy it: cp {} COPY && mv COPY {}",
            path.display(),
            path.display(),
            path.display()
        ),
        FileType::RegularFile => {}
        _ => bail!(
            "{} is a link or something else that no server of this kind makes; remove it from the data directory",
            path.display()
        ),
    }
    rustix::fs::chownat(
        &entry,
        c"",
        Some(Uid::from_raw(owner)),
        Some(Gid::from_raw(group)),
        AtFlags::EMPTY_PATH,
    )
    .with_context(|| format!("give {} to uid {owner}, group {group}", path.display()))
}

fn give_folder(
    folder: &OwnedFd,
    owner: u32,
    group: u32,
    mode: Mode,
    path: &Path,
) -> anyhow::Result<()> {
    rustix::fs::fchown(
        folder,
        Some(Uid::from_raw(owner)),
        Some(Gid::from_raw(group)),
    )
    .with_context(|| format!("give {} to uid {owner}, group {group}", path.display()))?;
    rustix::fs::fchmod(folder, mode).with_context(|| format!("close {} to others", path.display()))
}

fn owned(stat: &Stat, owner: u32, group: u32) -> bool {
    (stat.st_uid, stat.st_gid) == (owner, group)
}
