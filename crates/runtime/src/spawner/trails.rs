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
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use utsuwa_model::instance::{InstanceSpec, RootfsSpec};

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
/// Who learns for longer, which takes milliseconds, makes way for the next: the kernel reads a directory whole before it says its
/// first name, however large somebody's image has it.
const LONGEST: Duration = Duration::from_secs(5);

/// What starts alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    // First: it tells most of them apart.
    uid_base: u32,
    layers: Vec<String>,
    args: Vec<String>,
}

impl Start {
    pub(super) fn rootfs(&self) -> RootfsSpec {
        RootfsSpec {
            layers: self.layers.clone(),
            uid_base: self.uid_base,
        }
    }

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

#[cfg(test)]
impl Start {
    pub(super) fn of_ids(uid_base: u32) -> Self {
        Self {
            layers: vec!["sha256:1".to_owned()],
            uid_base,
            args: vec!["/app".to_owned()],
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
    fn is_worth_it(&self) -> bool {
        trail::length(&self.trail) > WORTH_IT
    }

    fn bytes(&self) -> usize {
        let words = self.start.layers.iter().chain(&self.start.args);
        self.trail.len() + words.map(String::len).sum::<usize>()
    }
}

/// A child that learns.
#[derive(Debug)]
struct Learning {
    start: Start,
    child: Child,
    began: Instant,
}

/// Those of one starter.
#[derive(Debug, Default)]
pub(super) struct Trails {
    /// The one used last comes last.
    known: VecDeque<Known>,
    learning: Option<Learning>,
    ahead: Vec<Child>,
}

impl Trails {
    /// Learns what the program `pid` has looked up, unless enough is known of such starts.
    /// `owner` is who its root file system belongs to.
    pub(super) fn learn(&mut self, start: Start, pid: u32, owner: u32) {
        self.give_up(Instant::now());
        let times = self.find(&start).map_or(0, |index| self.known[index].times);
        if times >= TIMES || self.learning.is_some() {
            return;
        }
        let turn = precedence::goes_on_with_others;
        let child = Child::fork("learn what a program looked up", turn, || {
            trail::of(pid, owner)
                .map_err(|e| SpawnError::sys("open", e, format!("/proc/{pid}/root")))
        });
        match child {
            Ok(child) => {
                self.learning = Some(Learning {
                    start,
                    child,
                    began: Instant::now(),
                });
            }
            Err(error) => tracing::debug!(%error, "what a program looked up isn't learnt"),
        }
    }

    /// Ends who has been learning for too long: all services learn one after another.
    fn give_up(&mut self, now: Instant) {
        let slow = |learning: &mut Learning| now - learning.began > LONGEST;
        if let Some(Learning { start, .. }) = self.learning.take_if(slow) {
            self.keep(start, String::new());
        }
    }

    /// Whether a child is at work.
    pub(super) fn are_busy(&self) -> bool {
        self.learning.is_some() || !self.ahead.is_empty()
    }

    /// How many names somebody who goes ahead of such a start looks up; `None`: it isn't worth it.
    pub(super) fn length(&self, start: &Start) -> Option<usize> {
        let known = &self.known[self.find(start)?];
        known.is_worth_it().then(|| trail::length(&known.trail))
    }

    /// Goes ahead of a program that has just begun, or will begin, in the root file system that `/proc` shows at `root`.
    pub(super) fn lead(&mut self, start: &Start, root: &str, owner: u32) {
        let Some(index) = self.find(start).filter(|_| self.ahead.len() < AT_ONCE) else {
            return;
        };
        // It is the one used last.
        if let Some(known) = self.known.remove(index) {
            self.known.push_back(known);
        }
        let Some(known) = self.known.back().filter(|known| known.is_worth_it()) else {
            return;
        };
        let turn = precedence::goes_on_with_others;
        let child = Child::fork("go ahead of a program", turn, || {
            trail::walk(root, owner, &known.trail)
                .map_err(|e| SpawnError::sys("open", e, root.to_owned()))
        });
        match child {
            Ok(child) => self.ahead.push(child),
            Err(error) => tracing::debug!(%error, "nobody goes ahead of a program"),
        }
    }

    /// No service has these ids any more, or there is no such layer.
    pub(super) fn forget(&mut self, gone: impl Fn(&Start) -> bool) {
        self.known.retain(|known| !gone(&known.start));
        self.learning.take_if(|learning| gone(&learning.start));
    }

    fn find(&self, start: &Start) -> Option<usize> {
        self.known.iter().rposition(|known| known.start == *start)
    }

    /// Descriptors whose readability means that a child has gone on, as [`Self::wake`] counts them.
    pub(super) fn waiting(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let learning = self.learning.iter().map(|learning| &learning.child);
        self.ahead.iter().chain(learning).map(Child::waits_for)
    }

    pub(super) fn wake(&mut self, index: usize) {
        if let Some(child) = self.ahead.get_mut(index) {
            if child.advance() {
                self.ahead.remove(index);
            }
            return;
        }
        let said_all = |learning: &mut Learning| learning.child.advance();
        if let Some(mut learning) = self.learning.take_if(said_all) {
            self.learnt(learning.start, learning.child.finish());
        }
    }

    /// What a child that learned has said. Nothing that can be learnt is kept as that, or it would be tried again at every rest;
    /// but for a program that was gone before: the next one may be there longer.
    fn learnt(&mut self, start: Start, said: &[u8]) {
        match serde_json::from_slice::<Result<String, SpawnError>>(said) {
            Ok(Err(SpawnError::Sys { errno, .. })) if errno == libc::ENOENT => {}
            Ok(Ok(trail)) => self.keep(start, trail),
            Ok(Err(_)) | Err(_) => self.keep(start, String::new()),
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
    use std::fs::File;
    use std::io;
    use std::process::Command;

    use rustix::pipe::pipe;
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    fn start(uid_base: u32) -> Start {
        Start::of_ids(uid_base)
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

    /// An app may have given its root file system to somebody else: it would have a child at every rest.
    #[test]
    fn who_can_not_be_learnt_from_is_asked_no_more_often_than_others() {
        let failed = |errno| -> Vec<u8> {
            let error =
                SpawnError::sys("open", io::Error::from_raw_os_error(errno), "/proc/7/root");
            serde_json::to_vec(&Err::<String, _>(error)).unwrap()
        };
        let mut trails = Trails::default();
        // It ended before it was looked at.
        trails.learnt(start(1), &failed(libc::ENOENT));
        assert!(trails.known.is_empty());
        trails.learnt(start(1), br#"{"Ok":"a\u0000"}"#);
        // It said nothing: it was ended.
        for said in [failed(libc::ESRCH), Vec::new()] {
            trails.learnt(start(1), &said);
        }
        assert_eq!(trails.known[0].times, TIMES);
        assert_eq!(trails.known[0].trail, "a\0", "what was known stays so");
    }

    #[test]
    fn who_takes_too_long_makes_way() {
        let mut process = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&process);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let (reader, _writer) = pipe().unwrap();
        let began = Instant::now();
        let mut trails = Trails {
            learning: Some(Learning {
                start: start(1),
                child: Child::new(pidfd, File::from(reader)),
                began,
            }),
            ..Trails::default()
        };
        trails.give_up(began + LONGEST);
        assert!(process.try_wait().unwrap().is_none(), "it has its time");
        // Asked to learn from another.
        trails.give_up(began + LONGEST + Duration::from_millis(1));
        assert!(trails.learning.is_none());
        let gone = process.try_wait().unwrap_err();
        assert_eq!(gone.raw_os_error(), Some(libc::ECHILD), "it was ended");
        assert_eq!(trails.known[0].times, 1);
    }

    #[test]
    fn what_was_not_used_for_long_makes_room() {
        let mut trails = Trails::default();
        let long = "a".repeat(BYTES / 4 - 100);
        for uid_base in 0..4 {
            trails.keep(start(uid_base), long.clone());
        }
        // Used: not the oldest any more.
        trails.lead(&start(0), "/proc/0/root", 0);
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
        trails.lead(&start(2), "/proc/0/root", 0);
        assert!(trails.ahead.is_empty());
    }
}
