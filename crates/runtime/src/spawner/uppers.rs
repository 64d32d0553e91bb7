//! One file system for what the next instance writes, mounted before anybody needs it: a mount and three directories less on a wake.
//!
//! Owns: it, its name, and what size it has: that of the last start, which mostly is that of the next. Doesn't: let go of those in use.

use crate::sandbox::rootfs::Upper;
use crate::spawner::SpawnError;

/// The next one, and what it should be.
#[derive(Debug, Default)]
pub(super) struct Uppers {
    spare: Option<Upper>,
    /// Memory of the last start; `None`: nothing is made ahead.
    usual: Option<u64>,
    made: u64,
}

impl Uppers {
    /// The one made ahead, or one made now.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the step.
    pub(super) fn take(&mut self, memory_bytes: u64) -> Result<Upper, SpawnError> {
        self.usual = Some(memory_bytes);
        match self.spare.take_if(|spare| spare.fits(memory_bytes)) {
            Some(spare) => Ok(spare),
            None => self.make(memory_bytes),
        }
    }

    /// Whether [`Self::replenish`] would make one.
    pub(super) fn are_wanting(&self) -> bool {
        self.usual.is_some_and(|usual| {
            let spare = self.spare.as_ref();
            spare.is_none_or(|spare| !spare.fits(usual))
        })
    }

    /// Makes the next one; answers one of another size that is to be let go of.
    pub(super) fn replenish(&mut self) -> Option<String> {
        let usual = self.usual.filter(|_| self.are_wanting())?;
        let other = self.spare.take();
        match self.make(usual) {
            Ok(made) => self.spare = Some(made),
            Err(error) => {
                // The next start tries itself, and is told.
                tracing::warn!(%error, "prepare the files of the next start");
                self.usual = None;
            }
        }
        other.map(Upper::into_name)
    }

    /// One more, whatever stands ready.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the step.
    pub(super) fn make(&mut self, memory_bytes: u64) -> Result<Upper, SpawnError> {
        self.made += 1;
        Upper::make(format!("_{}", self.made), memory_bytes)
    }
}
