//! The keeper's state and its loop.
//!
//! Owns: who holds what. Each concern has its own file with an `impl Keeper`: `sessions` (the server's requests),
//! `spawners`, `sandboxes` (the pool), `instances`, `adopt`, `ending`.
//!
//! Invariants:
//! 1. Single-threaded and never blocked: all sockets are non-blocking, slow work is a spawner's.
//! 2. A descriptor leaves the poll set before it is closed: a copy of it lives elsewhere (`held`), and the kernel would
//!    report it for ever.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, VecDeque};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::time::Timespec;
use utsuwa_model::instance::Limits;
use utsuwa_model::{InstanceId, Timestamp};

use super::capture::LogStore;
use super::config::KeeperConfig;
use super::demand::Demand;
use super::ending::Ending;
use super::instances::{Instance, QueuedStart};
use super::protocol::ExitReport;
use super::record::Records;
use super::sandboxes::Sandbox;
use super::sessions::Session;
use super::spawners::Spawner;
use crate::sandbox::cgroup::Cgroups;

/// What a poll event is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Accept,
    Session(u32),
    /// Index of the spawner.
    Spawner(u32),
    SpawnerEnded(u32),
    SandboxEnded(u32),
    Stdout(u32),
    Stderr(u32),
    /// Its memory ran out (cgroup v1).
    OutOfMemory(u32),
}

impl Token {
    fn pack(self) -> u64 {
        let (kind, value) = match self {
            Self::Accept => (0, 0),
            Self::Session(n) => (1, n),
            Self::Spawner(n) => (2, n),
            Self::SpawnerEnded(n) => (3, n),
            Self::SandboxEnded(n) => (4, n),
            Self::Stdout(n) => (5, n),
            Self::Stderr(n) => (6, n),
            Self::OutOfMemory(n) => (7, n),
        };
        (kind << 32) | u64::from(value)
    }

    fn unpack(data: u64) -> Option<Self> {
        let value = u32::try_from(data & 0xffff_ffff).ok()?;
        Some(match data >> 32 {
            0 => Self::Accept,
            1 => Self::Session(value),
            2 => Self::Spawner(value),
            3 => Self::SpawnerEnded(value),
            4 => Self::SandboxEnded(value),
            5 => Self::Stdout(value),
            6 => Self::Stderr(value),
            7 => Self::OutOfMemory(value),
            _ => return None,
        })
    }
}

/// What shall happen later. A timer that has lost its sense when it fires does nothing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    Kill(InstanceId),
    /// A queued start has waited long enough.
    StartQueue,
    /// Look again how a process ended that isn't our child.
    Learn {
        sandbox: u32,
        attempts: u32,
    },
    Destroy {
        sandbox: u32,
        attempts: u32,
    },
    /// Look again whether the kernel killed for memory.
    OutOfMemory {
        sandbox: u32,
        attempts: u32,
    },
    Refill,
    /// Make one more, should nothing else happen.
    Grow,
    /// Let go of sandboxes that are no longer needed.
    Shrink,
    StartSpawner(u32),
    Ending,
}

/// How a process is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Watch {
    /// Readable, as long as it is.
    Level,
    /// Readable or writable, at each change.
    Edge,
}

/// The keeper.
pub(crate) struct Keeper {
    pub(crate) config: KeeperConfig,
    pub(crate) records: Records,
    pub(crate) logs: LogStore,
    pub(crate) cgroups: Option<Cgroups>,
    pub(crate) boot: String,
    pub(crate) lock: OwnedFd,
    pub(crate) listen: OwnedFd,
    poll: OwnedFd,
    timers: BinaryHeap<Reverse<(Instant, Timer)>>,

    pub(crate) sessions: BTreeMap<u32, Session>,
    pub(crate) next_session: u32,
    /// The session of the one server.
    pub(crate) server: Option<u32>,

    pub(crate) spawners: Vec<Spawner>,
    pub(crate) host_netns: OwnedFd,

    pub(crate) sandboxes: BTreeMap<u32, Sandbox>,
    pub(crate) making: BTreeSet<u32>,
    /// Of which something is left to be removed, also those that were never finished.
    pub(crate) removing: BTreeSet<u32>,
    pub(crate) next_sandbox: u32,
    pub(crate) ready: VecDeque<u32>,
    pub(crate) demand: Demand,
    /// [`Timer::Grow`] will come.
    pub(crate) growing: bool,
    /// Those of the last start.
    pub(crate) usual_limits: Option<Limits>,
    pub(crate) pool_error: String,
    /// It was that something ran out, which may pass.
    pub(crate) pool_exhausted: bool,
    pub(crate) pool_failures: u32,
    pub(crate) refill_not_before: Option<Instant>,
    /// Sandboxes that were being made when the last failure was counted.
    pub(crate) failing_with: BTreeSet<u32>,

    pub(crate) queue: VecDeque<QueuedStart>,
    pub(crate) instances: BTreeMap<InstanceId, Instance>,
    pub(crate) exits: BTreeMap<InstanceId, ExitReport>,
    /// The sandboxes of instances that have ended, as long as something of them is left.
    pub(crate) last_sandboxes: HashMap<InstanceId, BTreeSet<u32>>,
    /// Who waits until nothing is left of a sandbox.
    pub(crate) stop_waiters: HashMap<u32, Vec<(u32, u64)>>,
    pub(crate) listeners: BTreeMap<(String, String), OwnedFd>,
    pub(crate) refusals: Vec<OwnedFd>,
    pub(crate) ending: Option<Ending>,
}

/// What the loop returns with.
pub(crate) enum Outcome {
    Finished,
    /// Replace this process by the executable behind the descriptor.
    Replace(OwnedFd),
}

/// Everything a keeper starts from.
pub(crate) struct Parts {
    pub(crate) config: KeeperConfig,
    pub(crate) lock: OwnedFd,
    pub(crate) listen: OwnedFd,
}

impl Keeper {
    pub(crate) fn new(parts: Parts) -> io::Result<Self> {
        let cgroups = Cgroups::open(&parts.config.id)
            .inspect_err(|error| tracing::error!(%error, "no cgroups: out-of-memory ends can't be told, usage not shown"))
            .ok();
        Self::with(parts, cgroups)
    }

    pub(super) fn with(parts: Parts, cgroups: Option<Cgroups>) -> io::Result<Self> {
        let Parts {
            config,
            lock,
            listen,
        } = parts;
        let poll = epoll::create(CreateFlags::CLOEXEC)?;
        let records = Records::open(&config.runtime_dir())?;
        let logs = LogStore::open(&config.logs_dir(), config.server_gid, config.logs)?;
        let keeper = Self {
            demand: Demand::new(config.pool),
            records,
            logs,
            cgroups,
            boot: super::record::boot_id(),
            lock,
            listen,
            poll,
            timers: BinaryHeap::new(),
            sessions: BTreeMap::new(),
            next_session: 1,
            server: None,
            spawners: Vec::new(),
            host_netns: std::fs::File::open("/proc/thread-self/ns/net")?.into(),
            sandboxes: BTreeMap::new(),
            making: BTreeSet::new(),
            removing: BTreeSet::new(),
            next_sandbox: 1,
            ready: VecDeque::new(),
            growing: false,
            usual_limits: None,
            pool_error: String::new(),
            pool_exhausted: false,
            pool_failures: 0,
            refill_not_before: None,
            failing_with: BTreeSet::new(),
            queue: VecDeque::new(),
            instances: BTreeMap::new(),
            exits: BTreeMap::new(),
            last_sandboxes: HashMap::new(),
            stop_waiters: HashMap::new(),
            listeners: BTreeMap::new(),
            refusals: Vec::new(),
            ending: None,
            config,
        };
        keeper.watch(&keeper.listen, Token::Accept, Watch::Level)?;
        Ok(keeper)
    }

    pub(crate) fn watch(&self, fd: impl AsFd, token: Token, watch: Watch) -> io::Result<()> {
        let flags = match watch {
            Watch::Level => EventFlags::IN,
            Watch::Edge => EventFlags::IN | EventFlags::OUT | EventFlags::ET,
        };
        Ok(epoll::add(
            &self.poll,
            fd,
            EventData::new_u64(token.pack()),
            flags,
        )?)
    }

    pub(crate) fn unwatch(&self, fd: impl AsFd) {
        // Fails only for what isn't watched, which is what is wanted.
        let _ = epoll::delete(&self.poll, fd);
    }

    pub(crate) fn at(&mut self, when: Instant, timer: Timer) {
        self.timers.push(Reverse((when, timer)));
    }

    pub(crate) fn after(&mut self, delay: Duration, timer: Timer) {
        self.at(now() + delay, timer);
    }

    /// Serves until the keeper is to end or to be replaced.
    pub(crate) fn run(&mut self) -> io::Result<Outcome> {
        self.after(Duration::from_secs(10), Timer::Shrink);
        self.refill();
        let mut events: [MaybeUninit<Event>; 64] = [const { MaybeUninit::uninit() }; 64];
        loop {
            if let Some(outcome) = self.ending_step() {
                return Ok(outcome);
            }
            let timeout = self
                .timers
                .peek()
                .map(|Reverse((when, _))| when.saturating_duration_since(now()));
            let timeout = timeout.and_then(|left| Timespec::try_from(left).ok());
            let found: Vec<Event> = match epoll::wait(&self.poll, &mut events, timeout.as_ref()) {
                Ok((found, _)) => found.to_vec(),
                Err(rustix::io::Errno::INTR) => Vec::new(),
                Err(errno) => return Err(errno.into()),
            };
            for event in found {
                let data = event.data;
                if let Some(token) = Token::unpack(data.u64()) {
                    self.handle(token);
                }
            }
            self.fire_timers();
        }
    }

    fn handle(&mut self, token: Token) {
        match token {
            Token::Accept => self.accept(),
            Token::Session(id) => self.serve_session(id),
            Token::Spawner(index) => self.serve_spawner(index),
            Token::SpawnerEnded(index) => self.spawner_ended(index),
            Token::SandboxEnded(number) => self.sandbox_ended(number, 0),
            Token::Stdout(number) => self.drain(number, 0),
            Token::Stderr(number) => self.drain(number, 1),
            Token::OutOfMemory(number) => self.memory_ran_out(number, 0),
        }
    }

    fn fire_timers(&mut self) {
        let now = now();
        while let Some(Reverse((when, _))) = self.timers.peek() {
            if *when > now {
                break;
            }
            let Some(Reverse((_, timer))) = self.timers.pop() else {
                break;
            };
            match timer {
                Timer::Kill(id) => self.grace_ended(&id),
                Timer::StartQueue => self.expire_queue(),
                Timer::Learn { sandbox, attempts } => self.sandbox_ended(sandbox, attempts),
                Timer::Destroy { sandbox, attempts } => {
                    if self.removing.contains(&sandbox) {
                        self.destroy(sandbox, attempts);
                    }
                }
                Timer::OutOfMemory { sandbox, attempts } => self.memory_ran_out(sandbox, attempts),
                Timer::Refill => self.refill(),
                Timer::Grow => self.grow(),
                Timer::Shrink => self.shrink(),
                Timer::StartSpawner(index) => self.start_spawner(index),
                Timer::Ending => {}
            }
        }
    }
}

/// The monotonic clock.
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// The wall clock.
pub(crate) fn wall() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
}
