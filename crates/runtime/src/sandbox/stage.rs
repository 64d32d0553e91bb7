//! The directory every sandbox begins in: mount points, device names and links, made once by the housekeeper.
//!
//! Owns: its content. It is a small tmpfs in the housekeeper's own mount namespace, read-only for sandboxes, and stays below
//! an instance's root as the (unreachable, empty) bottom of its mount namespace.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::spawner::SpawnError;

/// Devices every instance has, bound from the host's `/dev`.
pub(crate) const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
const LINKS: [(&str, &str); 5] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
];

/// Makes the stage at `directory` (made if missing), with a mount point for each v1 `controllers` name.
///
/// # Errors
/// [`SpawnError::Sys`] naming the step.
pub(crate) fn build(directory: &Path, controllers: &[String]) -> Result<PathBuf, SpawnError> {
    let at =
        |e: io::Error, what: &str| SpawnError::sys("mkdir", e, format!("make the stage: {what}"));
    fs::create_dir_all(directory).map_err(|e| at(e, &directory.display().to_string()))?;
    rustix::mount::mount(
        "utsuwa-stage",
        directory,
        "tmpfs",
        rustix::mount::MountFlags::NOSUID | rustix::mount::MountFlags::NOEXEC,
        c"mode=755,size=64k,nr_inodes=96",
    )
    .map_err(|e| {
        SpawnError::sys(
            "mount",
            e,
            format!("make the stage: tmpfs at {}", directory.display()),
        )
    })?;
    for name in [
        "proc",
        "sys",
        "empty",
        "cgroup",
        // For gVisor: the image, what runsc writes, and what it mounts on.
        "image",
        "state",
        "tmp",
        "whole",
        "dev",
        "dev/pts",
        "dev/shm",
        "dev/mqueue",
    ] {
        fs::create_dir(directory.join(name)).map_err(|e| at(e, name))?;
    }
    for controller in controllers {
        fs::create_dir(directory.join("cgroup").join(controller)).map_err(|e| at(e, controller))?;
    }
    for name in DEVICES {
        fs::write(directory.join("dev").join(name), b"").map_err(|e| at(e, name))?;
    }
    for (name, target) in LINKS {
        symlink(target, directory.join("dev").join(name)).map_err(|e| at(e, name))?;
    }
    Ok(directory.to_owned())
}
