//! What a sandbox uses now.

use std::fs;
use std::path::{Path, PathBuf};

use super::SandboxCgroup;
use super::tree::Tree;
use crate::driver::Usage;
use crate::spawner::SpawnError;

impl SandboxCgroup {
    /// Memory (page cache of its files included), CPU time and processes.
    ///
    /// # Errors
    /// [`SpawnError::Sys`], for example `ENOENT` once removed.
    pub fn usage(&self) -> Result<Usage, SpawnError> {
        let number = |path: PathBuf| -> Result<u64, SpawnError> {
            let text = read(&path)?;
            Ok(text.trim().parse().unwrap_or(0))
        };
        let (memory_bytes, cpu_us, pids) = match &self.tree {
            Tree::V2 { root } => (
                number(root.join("memory.current"))?,
                keyed(&read(&root.join("cpu.stat"))?, "usage_usec").unwrap_or(0),
                number(root.join("pids.current"))?,
            ),
            Tree::V1 {
                cpuacct,
                memory,
                pids,
                ..
            } => (
                number(memory.join("memory.usage_in_bytes"))?,
                number(cpuacct.join("cpuacct.usage"))? / 1000,
                number(pids.join("pids.current"))?,
            ),
            Tree::None => {
                return Err(SpawnError::sys(
                    "read",
                    std::io::Error::from(std::io::ErrorKind::Unsupported),
                    "usage of an instance without a cgroup",
                ));
            }
        };
        Ok(Usage {
            memory_bytes,
            cpu_us,
            pids: u32::try_from(pids).unwrap_or(u32::MAX),
        })
    }
}

fn read(path: &Path) -> Result<String, SpawnError> {
    fs::read_to_string(path).map_err(|e| SpawnError::sys("read", e, path.display().to_string()))
}

pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        line.strip_prefix(key)?
            .strip_prefix(' ')?
            .trim()
            .parse()
            .ok()
    })
}
