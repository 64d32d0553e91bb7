//! What the starter does while nothing starts: it lets go of what was needed, and makes ready what will be.
//!
//! Owns: when layer mounts, uppers and roots go, and when the next ones are made. Doesn't: know which (`uppers`, `roots`).
//!
//! Invariant: a request that comes waits for one unmount only, each of which waits for the kernel's RCU; for more of them only
//! where so many have piled up that the next starts would suffer from it.

use std::time::Duration;

use super::Starter;
use crate::rootless::Ids;
use crate::sandbox::rootfs::{self, Marks, Rootfs, Upper};
use crate::spawner::SpawnError;

/// Uppers that are still attached here are let go when nothing else is to do, but never more than this many at once.
const ATTACHED_LIMIT: usize = 64;
/// Nothing came for this long: time for the unmounts.
const IDLE: Duration = Duration::from_millis(20);

impl Starter {
    /// When there is something to do, if nothing comes until then.
    pub(super) fn next_chore(&self) -> Option<Duration> {
        // Uppers of starts under way can't go yet: looking again and again would only take time from them.
        let too_many = self.attached.len() > ATTACHED_LIMIT.max(self.pending.len());
        if too_many || self.layers.is_behind() {
            return Some(Duration::ZERO);
        }
        let unmounts = !self.attached.is_empty() || self.layers.has_too_many();
        let roots = self.roots.are_wanting() && !self.trails.are_busy();
        let wanting = unmounts || roots || self.uppers.are_wanting();
        (wanting && self.pending.is_empty()).then_some(IDLE)
    }

    /// One step of it.
    pub(super) fn chores(&mut self) {
        let at_once = if self.attached.len() > ATTACHED_LIMIT {
            ATTACHED_LIMIT / 2
        } else {
            1
        };
        for _ in 0..at_once {
            // Uppers of starts under way stay.
            let free = self
                .attached
                .iter()
                .position(|upper| self.pending.iter().all(|pending| pending.upper != *upper));
            let Some(upper) = free.and_then(|index| self.attached.remove(index)) else {
                break;
            };
            rootfs::release(&upper);
        }
        if self.attached.is_empty() || self.layers.is_behind() {
            self.layers.let_go();
        }
        if self.attached.is_empty() && self.pending.is_empty() {
            self.attached.extend(self.uppers.replenish());
            if self.attached.is_empty() && !self.trails.are_busy() {
                self.make_root();
            }
        }
    }

    /// Makes the next of the roots that are expected to be needed.
    fn make_root(&mut self) {
        let Some(kind) = self.roots.next() else {
            return;
        };
        // For a program that looks up little it gains less than it disturbs others who start.
        let Some(names) = self.trails.length(&kind.start) else {
            return;
        };
        if !self.roots.have_room_for(names) {
            return;
        }
        let owner = self.ids.of_service(kind.start.uid_base());
        let made = self.layers.ensure(&kind.start.rootfs()).and_then(|names| {
            let upper = self.uppers.make(kind.memory_bytes)?;
            self.mount(&names, owner, upper)
        });
        match made {
            Ok(root) => {
                let start = kind.start.clone();
                let path = self.roots.put(kind, root, names);
                self.trails.lead(&start, &path, owner);
            }
            Err(error) => tracing::debug!(%error, "the root of a start isn't made ahead of it"),
        }
    }

    /// Mounts a root over the mounts `names` of its layers.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the step.
    pub(super) fn mount(
        &mut self,
        names: &[String],
        uid_base: u32,
        upper: Upper,
    ) -> Result<Rootfs, SpawnError> {
        let marks = if self.ids == Ids::OfEachService {
            Marks::OfRoot
        } else {
            Marks::OfUsers
        };
        let root = rootfs::mount(names, uid_base, upper, marks)?;
        // Whatever becomes of it, this is let go of in its turn.
        self.attached.push_back(root.upper.clone());
        Ok(root)
    }
}
