//! Who works on which content right now: one at a time, and nothing in use is collected.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::OwnedMutexGuard;

use crate::image::digest::Digest;

/// Counts of users by digest, and a turn for each digest somebody works on.
#[derive(Debug, Default)]
pub(super) struct Claims {
    users: Mutex<HashMap<Digest, usize>>,
    turns: Mutex<HashMap<Digest, Arc<tokio::sync::Mutex<()>>>>,
}

/// While it lives, the digests it names are not collected.
#[derive(Debug)]
pub(super) struct Claim {
    claims: Arc<Claims>,
    digests: Vec<Digest>,
}

impl Claims {
    pub(super) fn claim(self: &Arc<Self>, digests: impl IntoIterator<Item = Digest>) -> Claim {
        let digests: Vec<Digest> = digests.into_iter().collect();
        let mut users = self.users.lock();
        for digest in &digests {
            *users.entry(*digest).or_default() += 1;
        }
        Claim {
            claims: Arc::clone(self),
            digests,
        }
    }

    /// Waits until nobody else makes or removes `digest`.
    pub(super) async fn turn(&self, digest: Digest) -> OwnedMutexGuard<()> {
        let turn = Arc::clone(self.turns.lock().entry(digest).or_default());
        let guard = turn.lock_owned().await;
        self.forget_idle_turns();
        guard
    }

    /// The turn for removing, if nobody uses the content or works on it.
    pub(super) fn turn_if_unused(&self, digest: Digest) -> Option<OwnedMutexGuard<()>> {
        let turn = Arc::clone(self.turns.lock().entry(digest).or_default());
        let guard = turn.try_lock_owned().ok()?;
        // In this order: whoever claims after this look waits for the turn before it looks at the disk.
        (!self.users.lock().contains_key(&digest)).then_some(guard)
    }

    fn forget_idle_turns(&self) {
        let mut turns = self.turns.lock();
        if turns.len() > 1024 {
            turns.retain(|_digest, turn| Arc::strong_count(turn) > 1);
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut users = self.claims.users.lock();
        for digest in &self.digests {
            if let Some(count) = users.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    users.remove(digest);
                }
            }
        }
    }
}
