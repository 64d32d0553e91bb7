//! Root file systems of starts that are expected, mounted before anybody needs them.
//!
//! An overlay knows no name at first: a program that begins by reading a thousand files has each looked up anew, at some 10 µs. So a
//! service of such a program whose instance ends has the root of its next instance mounted while nothing starts, and
//! walked as its last one walked (`trails`). What stands ready is a cache of the kernel's, which takes it back when memory is short.
//!
//! Owns: which starts are expected, and what stands ready for them. Doesn't: mount (`sandbox::rootfs`), or walk.
//!
//! Invariants
//! 1. A root is used once, by a start that is alike in layers, ids, program and memory.
//! 2. Nothing is made or let go of while something starts: both may take milliseconds.
//! 3. All of it is bounded by a share of the machine's memory and of the open files.
//! 4. All of it may fail without anybody being told: a start mounts its own then.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;

use rustix::process::{Resource, getrlimit};

use super::trails::Start;
use crate::sandbox::rootfs::Rootfs;

/// What stands ready takes at most one part in so many of the machine's memory.
const SHARE_OF_MEMORY: u64 = 128;
/// An entry and an inode of an overlay in the kernel.
const BYTES_OF_NAME: u64 = 1 << 10;
/// Two file systems without files.
const BYTES_OF_ROOT: u64 = 32 << 10;
/// And so many stand ready at most, each of which has two open files of the starter's.
const MANY: usize = 128;
/// Of its open files at most one in so many.
const SHARE_OF_FILES: u64 = 16;
/// Kept of the last starts.
const REMEMBERED: usize = 1_024;

/// A kind of starts, and the memory its instances have.
#[derive(Debug, Clone)]
pub(super) struct Kind {
    pub(super) start: Start,
    pub(super) memory_bytes: u64,
}

#[derive(Debug)]
struct Ready {
    kind: Kind,
    root: Rootfs,
    bytes: u64,
}

/// Those of one starter.
#[derive(Debug)]
pub(super) struct Roots {
    /// The one started last comes last.
    known: VecDeque<Kind>,
    wanted: VecDeque<Kind>,
    /// The one made last comes last.
    ready: VecDeque<Ready>,
    /// To be let go of once nothing starts.
    gone: Vec<Rootfs>,
    most_bytes: u64,
    most: usize,
}

impl Roots {
    /// For this machine and this process.
    pub(super) fn here() -> Self {
        let info = rustix::system::sysinfo();
        let memory_bytes = info.totalram as u64 * u64::from(info.mem_unit);
        let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        Self::of(memory_bytes, files)
    }

    fn of(memory_bytes: u64, open_files: u64) -> Self {
        let files = usize::try_from(open_files / SHARE_OF_FILES / 2).unwrap_or(MANY);
        Self {
            known: VecDeque::new(),
            wanted: VecDeque::new(),
            ready: VecDeque::new(),
            gone: Vec::new(),
            most_bytes: memory_bytes / SHARE_OF_MEMORY,
            most: files.min(MANY),
        }
    }

    /// The root that stands ready for such a start.
    pub(super) fn take(&mut self, kind: &Kind) -> Option<Rootfs> {
        let alike = |ready: &Ready| ready.kind.start == kind.start;
        let index = self.ready.iter().rposition(alike)?;
        let ready = self.ready.remove(index)?;
        if ready.kind.memory_bytes == kind.memory_bytes {
            return Some(ready.root);
        }
        self.gone.push(ready.root);
        None
    }

    /// An instance was started: others of its kind may follow.
    pub(super) fn started(&mut self, kind: Kind) {
        self.known.retain(|known| known.start != kind.start);
        self.known.push_back(kind);
        if self.known.len() > REMEMBERED {
            self.known.pop_front();
        }
    }

    /// An instance ends: the next one of its kind is to find its root.
    pub(super) fn expect(&mut self, start: &Start) {
        let ready = self.ready.iter().map(|ready| &ready.kind);
        let mut those = ready.chain(&self.wanted);
        if self.most == 0 || those.any(|kind| kind.start == *start) {
            return;
        }
        let kind = self.known.iter().rfind(|known| known.start == *start);
        self.wanted.extend(kind.cloned());
    }

    /// Whether there is anything to do once nothing starts.
    pub(super) fn are_wanting(&self) -> bool {
        !self.wanted.is_empty() || !self.gone.is_empty()
    }

    /// Lets go of one that nobody will use, or answers whose root is to be made next.
    pub(super) fn next(&mut self) -> Option<Kind> {
        match self.gone.pop() {
            Some(_unmounted) => None,
            None => self.wanted.pop_front(),
        }
    }

    /// Whether one with so many names may stand ready at all.
    pub(super) fn have_room_for(&self, names: usize) -> bool {
        bytes_of(names) <= self.most_bytes
    }

    /// `root` stands ready from now on, with `names` in it that are about to be looked up. Answers where others find it as long
    /// as it does.
    pub(super) fn put(&mut self, kind: Kind, root: Rootfs, names: usize) -> String {
        let (process, file) = (std::process::id(), root.root.as_raw_fd());
        self.ready.push_back(Ready {
            kind,
            root,
            bytes: bytes_of(names),
        });
        let mut bytes: u64 = self.ready.iter().map(|ready| ready.bytes).sum();
        while (bytes > self.most_bytes || self.ready.len() > self.most)
            && let Some(oldest) = self.ready.pop_front()
        {
            bytes -= oldest.bytes;
            self.gone.push(oldest.root);
        }
        format!("/proc/{process}/fd/{file}")
    }

    /// No service has these ids any more, or there is no such layer.
    pub(super) fn forget(&mut self, gone: impl Fn(&Start) -> bool) {
        self.known.retain(|kind| !gone(&kind.start));
        self.wanted.retain(|kind| !gone(&kind.start));
        let all = std::mem::take(&mut self.ready).into_iter();
        let (forgotten, kept): (Vec<Ready>, Vec<Ready>) =
            all.partition(|ready| gone(&ready.kind.start));
        self.ready = kept.into();
        self.gone
            .extend(forgotten.into_iter().map(|ready| ready.root));
    }
}

const fn bytes_of(names: usize) -> u64 {
    BYTES_OF_ROOT + names as u64 * BYTES_OF_NAME
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;

    use super::*;

    const LITTLE: u64 = 128 << 20;

    fn kind(uid_base: u32) -> Kind {
        Kind {
            start: Start::of_ids(uid_base),
            memory_bytes: LITTLE,
        }
    }

    fn root(name: &str) -> Rootfs {
        let file = || OwnedFd::from(File::open("/dev/null").unwrap());
        Rootfs {
            root: file(),
            shm: file(),
            upper: name.to_owned(),
        }
    }

    /// With room for `count` roots of no names.
    fn roots(count: u64) -> Roots {
        Roots::of(count * BYTES_OF_ROOT * SHARE_OF_MEMORY, 1 << 20)
    }

    #[test]
    fn a_root_is_made_for_who_was_awake_and_used_once() {
        let mut roots = roots(4);
        roots.expect(&kind(1).start);
        assert!(!roots.are_wanting(), "nothing is known of it");
        roots.started(kind(1));
        assert!(roots.take(&kind(1)).is_none());
        for _ in 0..2 {
            roots.expect(&kind(1).start);
        }
        let next = roots.next().unwrap();
        assert_eq!(next.start, kind(1).start);
        assert!(roots.next().is_none(), "asked for twice, made once");
        let path = roots.put(next, root("a"), 0);
        assert!(std::fs::metadata(path).is_ok());
        roots.expect(&kind(1).start);
        assert!(!roots.are_wanting(), "it stands ready");
        assert!(roots.take(&kind(2)).is_none());
        assert_eq!(roots.take(&kind(1)).unwrap().upper, "a");
        assert!(roots.take(&kind(1)).is_none());
    }

    #[test]
    fn one_of_another_size_is_let_go_of_later() {
        let mut roots = roots(4);
        roots.put(kind(1), root("a"), 0);
        let larger = Kind {
            memory_bytes: LITTLE * 2,
            ..kind(1)
        };
        assert!(roots.take(&larger).is_none() && roots.take(&kind(1)).is_none());
        assert_eq!(roots.gone.len(), 1);
        assert!(roots.are_wanting());
        assert!(roots.next().is_none() && roots.gone.is_empty());
        // One unmount at a time, and nothing made with it.
        for number in 1..=2 {
            roots.put(kind(number), root("a"), 0);
        }
        roots.started(kind(3));
        roots.expect(&kind(3).start);
        roots.forget(|start| start.has_ids(1) || start.has_ids(2));
        for left in [1, 0] {
            assert!(roots.next().is_none());
            assert_eq!(roots.gone.len(), left);
        }
        assert!(roots.next().is_some());
    }

    #[test]
    fn the_oldest_make_room() {
        let mut roots = roots(3);
        for number in 1..=4 {
            roots.put(kind(number), root("a"), 0);
        }
        assert!(roots.take(&kind(1)).is_none() && roots.take(&kind(2)).is_some());
        // One with many names takes the room of others, and one that takes all of it isn't kept.
        let names = usize::try_from(BYTES_OF_ROOT / BYTES_OF_NAME).unwrap();
        roots.put(kind(5), root("a"), names);
        assert!(roots.take(&kind(3)).is_none() && roots.take(&kind(5)).is_some());
        assert!(roots.have_room_for(2 * names) && !roots.have_room_for(3 * names));
        let mut few = Roots::of(u64::MAX, 2 * 2 * SHARE_OF_FILES);
        for number in 1..=3 {
            few.put(kind(number), root("a"), 0);
        }
        assert_eq!(few.ready.len(), 2);
        let mut none = Roots::of(u64::MAX, 0);
        none.started(kind(1));
        none.expect(&kind(1).start);
        assert!(!none.are_wanting());
    }

    #[test]
    fn they_go_with_their_service_and_their_image() {
        let mut roots = roots(4);
        for number in 1..=3 {
            roots.started(kind(number));
        }
        roots.put(kind(1), root("a"), 0);
        roots.expect(&kind(2).start);
        roots.forget(|start| start.has_ids(1) || start.has_ids(2));
        assert_eq!((roots.known.len(), roots.gone.len()), (1, 1));
        assert!(roots.next().is_none() && roots.take(&kind(1)).is_none());
    }
}
