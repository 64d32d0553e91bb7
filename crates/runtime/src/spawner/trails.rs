//! Going ahead of programs that start: what an instance looked up is looked up for the next one of the same, while it begins.
//!
//! Owns: which trails are known, and the children that learn and walk them. Doesn't: know how (`sandbox::trail`).
//!
//! Invariants
//! 1. A trail is known to its own service only (the ids are part of its key, and it goes with them): none can see, or spoil, how
//!    another starts.
//! 2. Its children have everybody's turn on the processors: a program that catches up with one waits for it.
//! 3. All of it may fail without anybody being told: a start doesn't need it.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use serde::{Deserialize, Serialize};
use utsuwa_model::instance::InstanceSpec;

use super::child::Child;
use super::error::SpawnError;
use crate::precedence;
use crate::sandbox::trail;

/// A program that looks up fewer is through before anybody could help.
const WORTH_IT: usize = 64;
/// So many starts at once have somebody ahead of them. With more, processors are what is short.
const AT_ONCE: usize = 4;
/// Learnt anew so often: the first time nothing was asked of it yet.
const TIMES: u32 = 3;
/// Bytes of all trails, and how many there are at most. An app of Python has some 30 KB: services that take turns, as many as there
/// are, would each find theirs gone if there were more of them than fit.
const BYTES: usize = 16 << 20;
const MANY: usize = 1_024;

/// What starts alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    layers: Vec<String>,
    uid_base: u32,
    args: Vec<String>,
}

impl Start {
    pub(super) fn uid_base(&self) -> u32 {
        self.uid_base
    }

    pub(super) fn has_ids(&self, uid_base: u32) -> bool {
        self.uid_base == uid_base
    }

    pub(super) fn has_layer(&self, diff_id: &str) -> bool {
        self.layers.iter().any(|layer| layer == diff_id)
    }

    pub(crate) fn of(spec: &InstanceSpec) -> Self {
        Self {
            layers: spec.rootfs.layers.clone(),
            uid_base: spec.rootfs.uid_base,
            args: spec.process.args.clone(),
        }
    }
}

#[derive(Debug)]
struct Known {
    start: Start,
    trail: String,
    /// How often it was learnt.
    times: u32,
}

impl Known {
    fn bytes(&self) -> usize {
        let words = self.start.layers.iter().chain(&self.start.args);
        self.trail.len() + words.map(String::len).sum::<usize>()
    }
}

/// Those of one starter.
#[derive(Debug, Default)]
pub(super) struct Trails {
    /// The one used last comes last.
    known: VecDeque<Known>,
    learning: Option<(Start, Child)>,
    ahead: Vec<Child>,
}

impl Trails {
    /// Learns what the program `pid` has looked up, unless enough is known of such starts.
    /// `owner` is who its root file system belongs to.
    pub(super) fn learn(&mut self, start: Start, pid: u32, owner: u32) {
        let times = self.find(&start).map_or(0, |index| self.known[index].times);
        if times >= TIMES || self.learning.is_some() {
            return;
        }
        let child = Child::fork("learn what a program looked up", || {
            precedence::goes_on_with_others();
            trail::of(pid, owner)
                .map_err(|e| SpawnError::sys("open", e, format!("/proc/{pid}/root")))
        });
        match child {
            Ok(child) => self.learning = Some((start, child)),
            Err(error) => tracing::debug!(%error, "what a program looked up isn't learnt"),
        }
    }

    /// Goes ahead of the program `pid` that has just begun.
    pub(super) fn lead(&mut self, start: &Start, pid: u32, owner: u32) {
        let Some(index) = self.find(start).filter(|_| self.ahead.len() < AT_ONCE) else {
            return;
        };
        let Some(known) = self.known.remove(index) else {
            return;
        };
        if trail::is_longer_than(&known.trail, WORTH_IT) {
            let child = Child::fork("go ahead of a program", || {
                precedence::goes_on_with_others();
                trail::walk(pid, owner, &known.trail)
                    .map_err(|e| SpawnError::sys("open", e, format!("/proc/{pid}/root")))
            });
            match child {
                Ok(child) => self.ahead.push(child),
                Err(error) => tracing::debug!(%error, "nobody goes ahead of a program"),
            }
        }
        self.known.push_back(known);
    }

    /// No service has these ids any more, or there is no such layer.
    pub(super) fn forget(&mut self, gone: impl Fn(&Start) -> bool) {
        self.known.retain(|known| !gone(&known.start));
        self.learning.take_if(|(start, _)| gone(start));
    }

    fn find(&self, start: &Start) -> Option<usize> {
        self.known.iter().rposition(|known| known.start == *start)
    }

    /// Descriptors whose readability means that a child has gone on, as [`Self::wake`] counts them.
    pub(super) fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let learning = self.learning.iter().map(|(_, child)| child);
        self.ahead.iter().chain(learning).map(Child::waits_for)
    }

    pub(super) fn wake(&mut self, index: usize) {
        if let Some(child) = self.ahead.get_mut(index) {
            if child.advance() {
                self.ahead.remove(index);
            }
            return;
        }
        if let Some((start, mut child)) = self.learning.take() {
            if !child.advance() {
                self.learning = Some((start, child));
            } else if let Ok(Ok(trail)) =
                serde_json::from_slice::<Result<String, SpawnError>>(child.finish())
            {
                self.keep(start, trail);
            }
        }
    }

    /// The longer one stays: an instance that served looked up more than one that only began.
    fn keep(&mut self, start: Start, trail: String) {
        let before = self.find(&start).and_then(|index| self.known.remove(index));
        let times = before.as_ref().map_or(0, |before| before.times) + 1;
        let trail = match before {
            Some(before) if before.trail.len() > trail.len() => before.trail,
            _ => trail,
        };
        self.known.push_back(Known {
            start,
            trail,
            times,
        });
        let mut bytes: usize = self.known.iter().map(Known::bytes).sum();
        while (bytes > BYTES || self.known.len() > MANY)
            && let Some(oldest) = self.known.pop_front()
        {
            bytes -= oldest.bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start(uid_base: u32) -> Start {
        Start {
            layers: vec!["sha256:1".to_owned()],
            uid_base,
            args: vec!["/app".to_owned()],
        }
    }

    #[test]
    fn the_longer_of_what_was_learnt_stays_and_is_learnt_no_more_than_needed() {
        let mut trails = Trails::default();
        for (trail, stays) in [("a\0", "a\0"), ("a\0b\0", "a\0b\0"), ("a\0", "a\0b\0")] {
            trails.keep(start(1), trail.to_owned());
            assert_eq!(trails.known.len(), 1);
            assert_eq!(trails.known[0].trail, stays);
        }
        assert_eq!(trails.known[0].times, TIMES);
        // No process of that number is looked at: nothing is begun.
        trails.learn(start(1), u32::MAX, 0);
        assert!(trails.learning.is_none());
    }

    #[test]
    fn what_was_not_used_for_long_makes_room() {
        let mut trails = Trails::default();
        let long = "a".repeat(BYTES / 4 - 100);
        for uid_base in 0..4 {
            trails.keep(start(uid_base), long.clone());
        }
        // Used: not the oldest any more.
        trails.lead(&start(0), u32::MAX, 0);
        trails.keep(start(4), long.clone());
        let kept: Vec<u32> = trails
            .known
            .iter()
            .map(|known| known.start.uid_base)
            .collect();
        assert_eq!(kept, [2, 3, 0, 4]);
    }

    #[test]
    fn a_trail_goes_with_its_service_and_its_image() {
        let mut trails = Trails::default();
        for uid_base in [1, 2] {
            trails.keep(start(uid_base), "a\0".to_owned());
        }
        trails.forget(|start| start.has_ids(1));
        assert!(trails.find(&start(1)).is_none() && trails.find(&start(2)).is_some());
        trails.forget(|start| start.has_layer("sha256:1"));
        assert!(trails.known.is_empty());
    }

    #[test]
    fn many_short_ones_make_room_too() {
        let mut trails = Trails::default();
        for uid_base in 0..2_000 {
            trails.keep(start(uid_base), String::new());
        }
        assert_eq!(trails.known.len(), MANY);
    }

    #[test]
    fn a_start_of_another_service_knows_nothing_of_it() {
        let mut trails = Trails::default();
        trails.keep(start(1), "a\0".repeat(1_000));
        trails.lead(&start(2), u32::MAX, 0);
        assert!(trails.ahead.is_empty());
    }
}
