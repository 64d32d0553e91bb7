//! The few files every instance has, whatever its image says.
//!
//! Owns: `/etc/resolv.conf`, `/etc/hosts`, `/etc/hostname`, and the mode of `/tmp`. Runs inside the image's root with the
//! instance's own ids, so links in the image lead nowhere else.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use crate::spawner::SpawnError;

const HOSTS: &str = "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n";
const EVERYBODY: u32 = 0o1777;

/// Writes them all. `containers` are the names of the instance's containers, which all are at its loopback address.
///
/// # Errors
/// [`SpawnError::Rootfs`] naming the path of the image that is in the way.
pub(crate) fn write_all(containers: &[String]) -> Result<(), SpawnError> {
    if let Err(error) = fs::create_dir("/etc")
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(in_the_way("/etc", &error));
    }
    let mut hosts = HOSTS.to_owned();
    for name in containers {
        hosts.push_str(&format!("127.0.0.1 {name}\n"));
    }
    for (path, content) in [
        ("/etc/resolv.conf", "nameserver 169.254.169.254\n"),
        ("/etc/hosts", hosts.as_str()),
        ("/etc/hostname", "localhost\n"),
    ] {
        write(path, content).map_err(|error| in_the_way(path, &error))?;
    }
    temporary_directory().map_err(|error| in_the_way("/tmp", &error))
}

fn write(path: &str, content: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .mode(0o644)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK);
    // A plain file is emptied in place (cheaper than removing it: no whiteout); a link or anything else is replaced.
    if fs::symlink_metadata(path).is_ok_and(|m| m.is_file()) {
        options
            .truncate(true)
            .open(path)?
            .write_all(content.as_bytes())
    } else {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        options
            .create_new(true)
            .open(path)?
            .write_all(content.as_bytes())
    }
}

fn temporary_directory() -> io::Result<()> {
    let mode = match fs::metadata("/tmp") {
        Ok(metadata) if metadata.is_dir() => metadata.permissions().mode() & 0o7777,
        Ok(_) => return Err(io::Error::from_raw_os_error(libc::ENOTDIR)),
        Err(_) => {
            fs::create_dir("/tmp")?;
            0
        }
    };
    // Changing it copies the directory up: only where it is needed.
    if mode == EVERYBODY {
        Ok(())
    } else {
        fs::set_permissions("/tmp", Permissions::from_mode(EVERYBODY))
    }
}

fn in_the_way(path: &str, error: &io::Error) -> SpawnError {
    let why = match error.raw_os_error() {
        Some(libc::ENOTDIR) => {
            "it is not a directory in the image; it must be one, or missing".to_owned()
        }
        Some(libc::EISDIR) => {
            "it is a directory in the image; it must be a file, or missing".to_owned()
        }
        _ => error.to_string(),
    };
    SpawnError::Rootfs {
        path: path.to_owned(),
        why,
    }
}
