//! Limits that not every kernel has.

use std::io;
use std::path::Path;

use crate::sandbox::process::write_file;
use crate::spawner::SpawnError;

/// What the kernel keeps for TCP connections is counted apart from memory on v1, and not at all until it has a limit.
pub(super) fn limit_sockets(memory: &Path, bytes: u64) -> Result<(), SpawnError> {
    let file = memory.join("memory.kmem.tcp.limit_in_bytes");
    optional(write_file(file, &bytes.to_string()), memory)
}

/// A limit that the kernel lacks is none; every other failure is one.
pub(super) fn optional(result: io::Result<()>, directory: &Path) -> Result<(), SpawnError> {
    match result {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) =>
        {
            Err(SpawnError::sys(
                "write",
                error,
                format!("set limits in {}", directory.display()),
            ))
        }
        _ => Ok(()),
    }
}
