//! Directories of the host for instances, as the operator allows them: found and opened by the starter, with the host's rights.
//!
//! Owns: which directory that is, and how it is seen: its ids, what may be done in it. Doesn't: read rules (`model::host_dir`), or
//! mount into an instance (`inside::host_dirs`).
//!
//! Invariants
//! 1. A directory is found from the keeper's own rule and never leaves it: below the rule's directory no link, `..` or mount point
//!    leads out (`BENEATH`, `NO_MAGICLINKS`, `NO_XDEV`), also not one that a service made there, and what was found is handed on by
//!    descriptor.
//! 2. Seen is that one file system alone, without what is mounted in it, nosuid and nodev, read-only unless the rule says otherwise.
//! 3. Root in the instance is the owner of the rule's directory, its other users are the service's own ids; nobody else of the host
//!    is anybody there. A directory of root's can only be read: what a service writes must not be root's.
//! 4. Where ids can't be mapped, all of the host are nobody, and what is written has the service's ids.
//!
//! Failure: [`SpawnError::Invalid`] naming the directory and what the operator can do.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use utsuwa_model::host_dir::HostDir;
use utsuwa_model::instance::HostMount;

use super::process::{ID_COUNT, user_namespace_of};
use super::sys;
use crate::spawner::SpawnError;

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// User and group that the rule's directory belongs to.
///
/// # Errors
/// It can't be opened, or is no directory.
pub fn owner(rule: &HostDir) -> io::Result<(u32, u32)> {
    let directory = open(rule)?;
    let stat = rustix::fs::fstat(directory)?;
    Ok((stat.st_uid, stat.st_gid))
}

/// No link is followed, in none of its parts: below another rule a service may have put one there since the operator looked.
fn open(rule: &HostDir) -> Result<OwnedFd, Errno> {
    let path = rule.path.as_str();
    let resolve = ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(rustix::fs::CWD, path, DIRECTORY, Mode::empty(), resolve)
}

/// Mounts of all that is `wanted`, attached nowhere: one for each place where it is to be seen, in their order.
pub(crate) fn trees(
    rules: &[HostDir],
    wanted: &[HostMount],
    uid_base: u32,
) -> Result<Vec<OwnedFd>, SpawnError> {
    let mut trees = Vec::new();
    for one in wanted {
        let rule = rules.iter().find(|rule| rule.path == one.rule);
        let rule = rule.ok_or_else(|| {
            let path = &one.rule;
            refused(format!(
                "the directory {path:?} of the host is not open to services; to allow it, start the server with --allow-host-dir \
                 {path} (to read) or {path}:rw"
            ))
        })?;
        let base = open(rule).map_err(|errno| not_opened(rule, errno))?;
        let stat =
            rustix::fs::fstat(&base).map_err(|e| SpawnError::sys("fstat", e, rule.path.clone()))?;
        for point in &one.mounts {
            let read_only = one.read_only || point.read_only || !rule.writable;
            if !read_only && stat.st_uid == 0 {
                return Err(refused(format!(
                    "the directory {:?} of the host belongs to root, so a service may only read it: give it to another user, or set \
                     readOnly to true",
                    rule.path
                )));
            }
            let tree = beneath(rule, &base, &one.beneath, &point.sub_path)?;
            protect(&tree, rule, (stat.st_uid, stat.st_gid), read_only, uid_base)?;
            trees.push(tree);
        }
    }
    Ok(trees)
}

fn not_opened(rule: &HostDir, errno: Errno) -> SpawnError {
    let path = &rule.path;
    let why = match errno {
        Errno::LOOP => "a link lies on the way to it; start the server with --allow-host-dir and the directory's real path (realpath shows it)".to_owned(),
        Errno::NOENT => "it is not there any more; make it".to_owned(),
        errno => errno.to_string(),
    };
    refused(format!("open the directory {path:?} of the host: {why}"))
}

fn beneath(rule: &HostDir, base: &OwnedFd, below: &str, part: &str) -> Result<OwnedFd, SpawnError> {
    let path = format!("./{below}/{part}");
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    let found = rustix::fs::openat2(base, &path, DIRECTORY, Mode::empty(), resolve);
    let found = found.map_err(|errno| {
        let why = match errno {
            Errno::XDEV => "a link leads out of it, or another file system is mounted there; allow that directory itself".to_owned(),
            Errno::NOENT => "it is not there; make it".to_owned(),
            Errno::NOTDIR => "it is not a directory".to_owned(),
            Errno::LOOP => "links lead in a circle, or into /proc".to_owned(),
            other => io::Error::from(other).to_string(),
        };
        let path = [below, part].iter().filter(|p| !p.is_empty()).copied().collect::<Vec<_>>();
        refused(format!(
            "the directory {:?} in {:?} of the host: {why}",
            path.join("/"),
            rule.path
        ))
    })?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    rustix::mount::open_tree(&found, c"", flags)
        .map_err(|e| SpawnError::sys("open_tree", e, rule.path.clone()))
}

fn protect(
    tree: &OwnedFd,
    rule: &HostDir,
    (uid, gid): (u32, u32),
    read_only: bool,
    uid_base: u32,
) -> Result<(), SpawnError> {
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    if read_only {
        attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY;
    }
    let attributes = u64::from(attributes.bits());
    let failed = |e| SpawnError::sys("mount_setattr", e, rule.path.clone());
    // First without ids: what follows may fail, and this must not be lost with it.
    sys::mount_setattr(tree.as_fd(), attributes, None, false).map_err(failed)?;
    let ids: File = user_namespace_of(&map(uid, uid_base), &map(gid, uid_base))?.into();
    match sys::mount_setattr(tree.as_fd(), attributes, Some(ids.as_fd()), false) {
        Ok(()) => Ok(()),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINVAL | libc::EPERM | libc::EOPNOTSUPP)
            ) =>
        {
            tracing::info!(directory = %rule.path, %error, "its owners are seen as nobody: ids can't be mapped on its file system");
            Ok(())
        }
        Err(error) => Err(failed(error)),
    }
}

/// On the disk → in the instance: the owner is its root, the service's own ids are themselves. The service's root has no place on
/// the disk then: its number is the owner's.
fn map(owner: u32, base: u32) -> String {
    let rest = ID_COUNT - 1;
    let first = base + 1;
    if (base..=base + rest).contains(&owner) {
        return format!("{base} {base} {ID_COUNT}\n");
    }
    format!("{owner} {base} 1\n{first} {first} {rest}\n")
}

fn refused(why: String) -> SpawnError {
    SpawnError::Invalid {
        field: "volumes".to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_but_the_owner_and_the_service_is_mapped() {
        assert_eq!(
            map(1000, 0x2000_0000),
            "1000 536870912 1\n536870913 536870913 65535\n"
        );
        // A service's own directory: as it is.
        assert_eq!(map(0x2000_0007, 0x2000_0000), "536870912 536870912 65536\n");
    }

    #[test]
    fn a_link_on_the_way_is_not_followed_and_named() {
        let dir = tempfile::tempdir().unwrap();
        // The folder's own path may have links.
        let real = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(real.join("data/in")).unwrap();
        std::os::unix::fs::symlink(real.join("data"), real.join("way")).unwrap();
        let rule = |path: &str| HostDir {
            path: real.join(path).to_str().unwrap().to_owned(),
            writable: false,
        };
        assert!(owner(&rule("data/in")).is_ok());
        let words = |path: &str| {
            let rule = rule(path);
            not_opened(&rule, open(&rule).unwrap_err()).to_string()
        };
        assert!(words("way/in").contains("a link lies on the way"));
        assert!(words("way").contains("a link lies on the way"));
        assert!(words("gone").contains("not there any more"));
    }
}
