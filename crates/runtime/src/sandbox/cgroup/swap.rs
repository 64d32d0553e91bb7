//! Whether pages of a sandbox may go to swap.
//!
//! Only while we ask for it: on v2 the kernel then writes out none else. On v1, where memory and swap together have the limit,
//! and on a v2 without swap accounting there is no such promise: `memory.swappiness` keeps v1 from it until the whole host has
//! nothing else left to take.

use std::fs;
use std::path::Path;

use super::{SandboxCgroup, Tree, optional};
use crate::sandbox::process::write_file;
use crate::spawner::SpawnError;

/// v1: the kernel writes out what we ask it to, not what it likes.
pub(super) fn leave_to_us(memory: &Path) -> Result<(), SpawnError> {
    optional(write_file(memory.join("memory.swappiness"), "0"), memory)
}

impl SandboxCgroup {
    /// v2: whether its pages may go to swap, and no more than it may have in memory: what compressed swap holds is the host's
    /// memory too.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the file.
    pub(crate) fn allow_swap(&self, allowed: bool) -> Result<(), SpawnError> {
        let Tree::V2 { root } = &self.tree else {
            return Ok(());
        };
        let most = if allowed {
            let file = root.join("memory.max");
            fs::read_to_string(&file)
                .map_err(|e| SpawnError::sys("read", e, file.display().to_string()))?
        } else {
            "0".to_owned()
        };
        let file = root.join("memory.swap.max");
        optional(write_file(file, most.trim()), root)
    }
}
