//! Network namespaces: make one that outlives its maker, find it again, do something inside, let it go.
//!
//! Owns: entering and leaving, and the file that holds the gateway namespace. Doesn't: put anything into namespaces.
//!
//! The holder is a bind mount in the *host's* mount namespace, since the keeper's own ends with the keeper, while
//! instances may outlive both. The host's is PID 1's; where that may not be entered (PID 1 has more rights than we), that of
//! the oldest process which sees the same runtime directory; where there is none, our own must do.
//!
//! Invariant: [`inside`] returns in the namespace in which it was called, or the process is lost ([`NetError::Lost`]).

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns, unshare};
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::NetError;

/// What dies with a boot.
pub(super) fn runtime_dir(id: &str) -> PathBuf {
    crate::keeper::runtime_dir(id)
}

fn holder(id: &str) -> PathBuf {
    runtime_dir(id).join("gateway.netns")
}

/// The thread's network namespace.
pub(super) fn current() -> Result<OwnedFd, NetError> {
    File::open("/proc/thread-self/ns/net")
        .map(Into::into)
        .map_err(|error| NetError::sys("open /proc/thread-self/ns/net", error))
}

/// Runs `work` with the thread in `netns`.
pub(super) fn inside<T>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, NetError>,
) -> Result<T, NetError> {
    let home = current()?;
    setns(netns, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetError::sys("enter a network namespace", errno))?;
    let result = work();
    setns(home, CloneFlags::CLONE_NEWNET).map_err(|errno| NetError::Lost(errno.into()))?;
    result
}

/// Makes a network namespace and holds it by a file, so that [`find`] finds it.
pub(super) fn make(id: &str) -> Result<OwnedFd, NetError> {
    let home = current()?;
    unshare(CloneFlags::CLONE_NEWNET)
        .map_err(|errno| NetError::sys("make the gateway namespace", errno))?;
    let made = current();
    setns(home, CloneFlags::CLONE_NEWNET).map_err(|errno| NetError::Lost(errno.into()))?;
    let made = made?;

    let path = holder(id);
    let failed =
        |step: &str, error: io::Error| NetError::sys(format!("{step} {}", path.display()), error);
    std::fs::create_dir_all(runtime_dir(id))
        .map_err(|error| failed("make the directory of", error))?;
    File::create(&path).map_err(|error| failed("make", error))?;
    let hold = || {
        setns(&made, CloneFlags::CLONE_NEWNET)?;
        mount_bind("/proc/thread-self/ns/net", &path)?;
        Ok(())
    };
    let mut held = Err(io::ErrorKind::NotFound.into());
    for mounts in candidates() {
        held = in_mounts(id, mounts.as_ref(), hold);
        if held.is_ok() {
            break;
        }
    }
    held.map_err(|error| failed("hold the gateway namespace by", error))?;
    Ok(made)
}

/// The namespace that [`make`] made, if it is still held.
pub(super) fn find(id: &str) -> Option<OwnedFd> {
    let path = holder(id);
    let open = || -> io::Result<OwnedFd> {
        let file = File::open(&path)?;
        // An unmounted holder is a plain file.
        if rustix::fs::fstatfs(&file)?.f_type != libc::NSFS_MAGIC as rustix::fs::FsWord {
            return Err(io::ErrorKind::NotFound.into());
        }
        Ok(file.into())
    };
    open().ok().or_else(|| {
        candidates()
            .into_iter()
            .find_map(|mounts| in_mounts(id, mounts.as_ref(), open).ok())
    })
}

/// Lets the namespace go; it ends once no process and no socket is in it.
pub(super) fn release(id: &str) -> Result<(), NetError> {
    let path = holder(id);
    let remove = || -> io::Result<()> {
        while unmount(&path, UnmountFlags::DETACH).is_ok() {}
        Ok(())
    };
    // Best effort: unlinking detaches what is mounted on the file in mount namespaces other than ours.
    for mounts in candidates() {
        let _ = in_mounts(id, mounts.as_ref(), remove);
    }
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(NetError::sys(format!("remove {}", path.display()), error))
        }
        _ => {
            // The directory is the keeper's; it goes only if nothing else is in it.
            let _ = std::fs::remove_dir(runtime_dir(id));
            Ok(())
        }
    }
}

/// Mount namespaces that may hold the holder, best first; `None` is ours. PID 1's, or else those of all processes, oldest
/// first. Ours is always among them.
fn candidates() -> Vec<Option<File>> {
    let identity = |file: &File| file.metadata().map(|found| found.ino()).ok();
    let ours = File::open("/proc/thread-self/ns/mnt")
        .ok()
        .as_ref()
        .and_then(identity);
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect();
    pids.sort_unstable();
    let mut seen = Vec::new();
    let mut found = Vec::new();
    for pid in pids {
        let Ok(mounts) = File::open(format!("/proc/{pid}/ns/mnt")) else {
            continue;
        };
        let inode = identity(&mounts);
        if seen.contains(&inode) {
            continue;
        }
        seen.push(inode);
        found.push((inode != ours).then_some(mounts));
        if pid == 1 {
            break;
        }
    }
    if !seen.contains(&ours) {
        found.push(None);
    }
    found
}

/// Runs `work` in a thread of its own; in another mount namespace if one is given and it sees the same runtime directory.
fn in_mounts<T: Send>(
    id: &str,
    mounts: Option<&File>,
    work: impl FnOnce() -> io::Result<T> + Send,
) -> io::Result<T> {
    let directory = runtime_dir(id);
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino()));
    let body = move || -> io::Result<T> {
        let before = identity(&directory)?;
        // A thread shares root and working directory with the others until it unshares them; only then may it move.
        unshare(CloneFlags::CLONE_FS)?;
        if let Some(mounts) = mounts {
            setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
            if identity(&directory)? != before {
                return Err(io::ErrorKind::NotFound.into());
            }
        }
        work()
    };
    std::thread::scope(|scope| scope.spawn(body).join())
        .unwrap_or_else(|_| Err(io::Error::other("the mount thread panicked")))
}
