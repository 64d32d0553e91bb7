//! Which services changed lately, kept in memory: for loops that were only told that something did.
//!
//! Owns: the notes of a write under way, and the ring of notes of what was committed. Deliberately not here: counting commits
//! (the writer does).
//!
//! Invariants:
//! 1. A commit is in the ring before its number can be seen, so nobody who saw the number misses its services.
//! 2. What was undone is never noted.
//! 3. The ring is bounded; whoever fell behind it is told to look at everything.

use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::ops::Deref;

use rusqlite::Connection;
use utsuwa_model::ServiceKey;

use crate::Store;

/// Services noted at most, over all commits in the ring.
const NOTES: usize = 4096;

/// What changed since a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// These services and no others. One that isn't there any more was removed.
    Keys(BTreeSet<ServiceKey>),
    /// Any: it was too long ago.
    All,
}

impl Store {
    /// Services that somebody asked to be different after commit `seq`, a number that [`Store::changes`] showed: made, changed
    /// or removed, a policy set, a revision told to go or gone. What loops write (status, new revisions) doesn't count. May name
    /// services of commits that `changes` shows only a moment later.
    #[must_use]
    pub fn changed_since(&self, seq: u64) -> Changed {
        let ring = self.inner.ring.lock();
        ring.since(seq, *self.inner.changes.borrow())
    }
}

/// The writer's connection inside one job, with what the job notes.
pub(crate) struct Noting<'a> {
    connection: &'a Connection,
    touched: RefCell<BTreeSet<ServiceKey>>,
}

impl<'a> Noting<'a> {
    pub(crate) fn new(connection: &'a Connection) -> Self {
        Self {
            connection,
            touched: RefCell::default(),
        }
    }

    /// Notes that loops must look at `service`, if this job is committed.
    pub(crate) fn touch(&self, service: &ServiceKey) {
        self.touched.borrow_mut().insert(service.clone());
    }

    pub(crate) fn into_touched(self) -> BTreeSet<ServiceKey> {
        self.touched.into_inner()
    }
}

impl Deref for Noting<'_> {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        self.connection
    }
}

/// Notes of the latest commits, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    commits: VecDeque<(u64, BTreeSet<ServiceKey>)>,
    notes: usize,
    /// The newest commit whose notes were forgotten.
    forgotten: u64,
}

impl Ring {
    /// Adds what commit `seq` touched, and forgets the oldest notes.
    pub(crate) fn push(&mut self, seq: u64, touched: BTreeSet<ServiceKey>) {
        if touched.is_empty() {
            return;
        }
        self.notes += touched.len();
        self.commits.push_back((seq, touched));
        while self.notes > NOTES
            && let Some((seq, oldest)) = self.commits.pop_front()
        {
            self.notes -= oldest.len();
            self.forgotten = seq;
        }
    }

    fn since(&self, seq: u64, newest: u64) -> Changed {
        // A number from the future is one of another run of the program.
        if seq < self.forgotten || seq > newest {
            return Changed::All;
        }
        let later = self.commits.iter().rev().take_while(|(n, _)| *n > seq);
        Changed::Keys(later.flat_map(|(_, keys)| keys.iter().cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(names: impl IntoIterator<Item = usize>) -> BTreeSet<ServiceKey> {
        let key = |n| format!("demo/r/s{n}").parse().expect("a key");
        names.into_iter().map(key).collect()
    }

    #[test]
    fn the_ring_answers_exactly_as_far_as_it_reaches() {
        let mut ring = Ring::default();
        assert_eq!(ring.since(0, 0), Changed::Keys(keys([])));
        assert_eq!(ring.since(1, 0), Changed::All, "of another run");
        ring.push(1, keys([1]));
        ring.push(2, keys([]));
        ring.push(3, keys([2, 3]));
        assert_eq!(ring.since(0, 3), Changed::Keys(keys([1, 2, 3])));
        assert_eq!(ring.since(1, 3), Changed::Keys(keys([2, 3])));
        assert_eq!(ring.since(3, 3), Changed::Keys(keys([])));

        ring.push(4, keys(10..10 + NOTES - 3));
        assert_eq!(
            ring.since(0, 4),
            Changed::Keys(keys((1..4).chain(10..7 + NOTES)))
        );
        ring.push(5, keys([4]));
        assert_eq!(ring.since(0, 5), Changed::All, "commit 1 was forgotten");
        assert_eq!(
            ring.since(1, 5),
            Changed::Keys(keys((2..5).chain(10..7 + NOTES)))
        );
        ring.push(6, keys(0..=NOTES));
        assert_eq!(ring.since(5, 6), Changed::All, "more than the ring holds");
        assert_eq!(ring.since(6, 6), Changed::Keys(keys([])));
    }
}
