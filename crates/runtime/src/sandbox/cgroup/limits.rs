//! Limits that not every kernel has.

use std::io;
use std::path::Path;

use crate::sandbox::process::write_file;
use crate::spawner::SpawnError;

/// What the kernel gives a cgroup by default (v1, v2): as much as one busy process.
pub(super) const CPU_SHARES: usize = 1024;
pub(super) const CPU_WEIGHT: usize = 100;
/// The largest weight v2 knows.
const WEIGHT_LIMIT: usize = 10_000;

/// What the kernel keeps for TCP connections is counted apart from memory on v1, and not at all until it has a limit.
pub(super) fn limit_sockets(memory: &Path, bytes: u64) -> Result<(), SpawnError> {
    let file = memory.join("memory.kmem.tcp.limit_in_bytes");
    optional(write_file(file, &bytes.to_string()), memory)
}

/// Memory, and memory with swap, which the kernel lets neither be less than the other at any time: so the order depends on whether
/// there were smaller limits before.
pub(super) fn set_memory(memory: &Path, bytes: &str) -> io::Result<()> {
    let with_swap = || match write_file(memory.join("memory.memsw.limit_in_bytes"), bytes) {
        // Absent where the kernel doesn't count swap.
        Err(error) if is_lacking(&error) => Ok(()),
        other => other,
    };
    let alone = || write_file(memory.join("memory.limit_in_bytes"), bytes);
    match alone() {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            with_swap().and_then(|()| alone())
        }
        other => other.and_then(|()| with_swap()),
    }
}

fn is_lacking(error: &io::Error) -> bool {
    use io::ErrorKind::{NotFound, PermissionDenied};
    matches!(error.kind(), NotFound | PermissionDenied)
}

/// A limit that the kernel lacks is none; every other failure is one.
pub(super) fn optional(result: io::Result<()>, directory: &Path) -> Result<(), SpawnError> {
    match result {
        Err(error) if !is_lacking(&error) => Err(SpawnError::sys(
            "write",
            error,
            format!("set limits in {}", directory.display()),
        )),
        _ => Ok(()),
    }
}

/// All instances together weigh as much as one busy process on each CPU, not on one: where a hundred of them start beside others
/// that are busy, they would have that one's share otherwise. Best effort: only who waits for whom depends on it.
pub(super) fn weigh(file: &Path, of_one: usize) {
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let weight = of_one.saturating_mul(cpus).min(WEIGHT_LIMIT);
    let _ = write_file(file, &weight.to_string());
}
