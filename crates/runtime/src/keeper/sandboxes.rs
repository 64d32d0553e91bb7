//! The pool of sandboxes: made ahead, taken by starts. How they go is in `removal`.

use std::collections::BTreeSet;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode};
use rustix::process::{Signal, pidfd_send_signal};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::Limits;

use super::core::{Keeper, Timer, Token, Watch, now};
use super::exit;
use super::held::Held;
use super::record::ProcessRecord;
use super::spawners::{HOUSEKEEPER, Pending, STARTER};
use crate::driver::DriverError;
use crate::network::NetInfo;
use crate::sandbox::walls::Wall;
use crate::spawner::protocol::{Op, Reply, SpawnError};

const UNFINISHED: &str = "unfinished:";
/// Sandbox numbers go round below this; names of kernel objects have room for five digits.
const NUMBERS: u32 = 99_999;
/// Made at the same time.
const MAKING: usize = 4;
/// The same while starts wait for them: what is made together waits once for the kernel's RCU, not once each.
const MAKING_IN_NEED: usize = 16;
/// Nothing was taken for so long: the pool may grow.
const CALM: Duration = Duration::from_secs(1);
/// One takes some 10 ms of a CPU to make: so growing takes a twentieth of one.
const GROW_EVERY: Duration = Duration::from_millis(200);
/// With so many ready, making more can wait for a start under way.
const ENOUGH: usize = 4;
/// How long a start may have the processors for itself: a small program serves within a third of it.
const START_TIME: Duration = Duration::from_millis(10);

/// A process with its namespaces, and what the keeper holds of it.
#[derive(Debug)]
pub(crate) struct Sandbox {
    pub(crate) process: ProcessRecord,
    pub(crate) net: NetInfo,
    pub(crate) pidfd: OwnedFd,
    pub(crate) netns: Option<OwnedFd>,
    /// Until it was started.
    pub(crate) control: Option<OwnedFd>,
    /// The gateway's side, in the order of `net.sockets`; empty if they were lost with an earlier keeper.
    pub(crate) internal: Vec<OwnedFd>,
    /// Readable when its memory ran out; `None` where the kernel ends the whole instance by itself (cgroup v2).
    pub(crate) memory: Option<OwnedFd>,
    /// What is written in its cgroup already.
    pub(crate) limited: Option<Limits>,
    /// Our ends of the log FIFOs, until captures take them.
    pub(crate) fifos: Option<[OwnedFd; 2]>,
    pub(crate) role: SandboxRole,
}

/// What a sandbox is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SandboxRole {
    Ready,
    Instance(InstanceId),
    /// A further container of an instance, by its number.
    Sidecar(InstanceId, usize),
    /// Ended or to be thrown away; stays until nothing of it is left.
    Ending,
}

impl SandboxRole {
    /// Whose container it is, and which.
    pub(crate) fn container(&self) -> Option<(&InstanceId, usize)> {
        match self {
            Self::Instance(id) => Some((id, 0)),
            Self::Sidecar(id, number) => Some((id, *number)),
            Self::Ready | Self::Ending => None,
        }
    }
}

impl Keeper {
    /// A sandbox was taken. Another one is made when the start has had the processors for itself; at once where the next starts
    /// might have to wait for it.
    pub(crate) fn refill_after_start(&mut self) {
        if self.ready.len() < ENOUGH {
            self.refill();
        } else {
            self.after(START_TIME, Timer::Refill);
        }
    }

    /// Asks for as many sandboxes as the pool lacks.
    pub(crate) fn refill(&mut self) {
        if self.ending.is_some() || self.spawner(HOUSEKEEPER).is_none() {
            return;
        }
        let now = now();
        if self.refill_not_before.is_some_and(|at| at > now) {
            return;
        }
        let target = self
            .demand
            .target(now)
            .max(self.queue.len().min(self.config.pool.max));
        let at_once = self.queue.len().clamp(MAKING, MAKING_IN_NEED);
        while self.ready.len() + self.making.len() < target && self.making.len() < at_once {
            if !self.make_one() {
                return;
            }
        }
    }

    fn make_one(&mut self) -> bool {
        let number = self.free_number();
        if let Err(error) = self.records.make_sandbox(number) {
            let path = self.records.sandbox(number);
            self.make_failed(&format!("{}: {error}", path.display()));
            return false;
        }
        self.making.insert(number);
        self.ask(
            HOUSEKEEPER,
            Op::MakeSandbox { sandbox: number },
            Vec::new(),
            Pending::Make(number),
        );
        true
    }

    /// Something was taken: the pool grows when that is over.
    pub(crate) fn grow_later(&mut self) {
        if !std::mem::replace(&mut self.growing, true) {
            self.after(CALM, Timer::Grow);
        }
    }

    /// Makes one more, if nothing else is to be done, up to what it may grow to.
    pub(crate) fn grow(&mut self) {
        self.growing = false;
        let now = now();
        let full = self.ready.len() >= self.demand.calm_target(now);
        // What can't be made is tried again with the next start.
        if full || self.pool_failures > 0 || self.ending.is_some() {
            return;
        }
        let calm = self.demand.calm_for(now).is_some_and(|calm| calm >= CALM);
        let idle = calm && self.queue.is_empty() && self.making.is_empty();
        let begun = idle && self.spawner(HOUSEKEEPER).is_some() && self.make_one();
        self.growing = true;
        self.after(if begun { GROW_EVERY } else { CALM }, Timer::Grow);
    }

    pub(crate) fn free_number(&mut self) -> u32 {
        loop {
            let number = self.next_sandbox;
            self.next_sandbox = number % NUMBERS + 1;
            let taken = self.sandboxes.contains_key(&number)
                || self.making.contains(&number)
                || self.removing.contains(&number);
            if !taken {
                return number;
            }
        }
    }

    /// One that was begun beside another that failed has mostly the same cause: together they are one failure.
    fn made_in_vain(&mut self, number: u32, why: &str) {
        if !self.failing_with.remove(&number) {
            self.failing_with.clone_from(&self.making);
            self.make_failed(why);
        }
    }

    pub(crate) fn make_failed(&mut self, why: &str) {
        self.pool_failures += 1;
        if self.pool_error != why {
            tracing::error!(why, "a sandbox could not be made");
            why.clone_into(&mut self.pool_error);
        }
        let delay = Duration::from_millis(50 << self.pool_failures.min(7));
        self.refill_not_before = Some(now() + delay);
        self.after(delay, Timer::Refill);
    }

    pub(crate) fn made(
        &mut self,
        number: u32,
        result: Result<Reply, SpawnError>,
        descriptors: Vec<OwnedFd>,
    ) {
        self.making.remove(&number);
        self.pool_exhausted = result
            .as_ref()
            .is_err_and(|error| matches!(error.to_driver(), DriverError::Exhausted(_)));
        let outcome = match result {
            Ok(Reply::Made { pid, net }) => self
                .adopt_made(number, pid, net, descriptors)
                .map_err(|error| format!("take over sandbox {number}: {error}")),
            Ok(other) => Err(format!(
                "the spawner answered {other:?} when asked for a sandbox"
            )),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(()) => {
                self.pool_error.clear();
                self.pool_failures = 0;
                self.failing_with.remove(&number);
                self.refill_not_before = None;
                self.pump();
            }
            Err(why) => {
                self.made_in_vain(number, &why);
                // What was begun is removed under its number.
                if !self.sandboxes.contains_key(&number) {
                    self.destroy(number, 0);
                }
            }
        }
        self.refill();
    }

    fn adopt_made(
        &mut self,
        number: u32,
        pid: u32,
        net: NetInfo,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let mut descriptors = descriptors.into_iter();
        let mut next = |what: &str| {
            descriptors.next().ok_or_else(|| {
                io::Error::new(io::ErrorKind::InvalidData, format!("no {what} came along"))
            })
        };
        let (pidfd, netns, control) = (
            next("pidfd")?,
            next("network namespace")?,
            next("control socket")?,
        );
        let internal: Vec<OwnedFd> = descriptors.collect();
        let process = ProcessRecord {
            pid,
            start_time: exit::start_time(pid).unwrap_or(0),
            boot: self.boot.clone(),
            executable: exit::executable(pid).unwrap_or((0, 0)),
        };
        let fifos = self
            .records
            .write_sandbox(number, &process)
            .and_then(|()| self.records.prepare_first(number))
            .and_then(|()| make_fifos(&self.records.sandbox(number)));
        let fifos = fifos.inspect_err(|_| {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        })?;
        let sandbox = Sandbox {
            process,
            net,
            pidfd,
            netns: Some(netns),
            control: Some(control),
            internal,
            memory: self.watch_memory(number),
            limited: self.limit_ahead(number),
            fifos: Some(fifos),
            role: SandboxRole::Ready,
        };
        self.watch(&sandbox.pidfd, Token::SandboxEnded(number), Watch::Level)?;
        self.sandboxes.insert(number, sandbox);
        self.deposit(number);
        self.announce_sockets(number);
        self.ready.push_back(number);
        Ok(())
    }

    /// Gives a pooled sandbox the limits that the last start had: the next one mostly has the same, and finds them there.
    fn limit_ahead(&self, number: u32) -> Option<Limits> {
        let (limits, cgroups) = (self.usual_limits?, self.cgroups.as_ref()?);
        if !Wall::Cgroup.stands() {
            return None;
        }
        // Whatever is refused now is tried again by the start, which tells why.
        let applied = cgroups.sandbox(number).apply(&limits);
        applied.is_ok().then_some(limits)
    }

    /// Gives the starter copies of what can't be made again, so that they outlive this process.
    pub(crate) fn deposit(&mut self, number: u32) {
        let Some(sandbox) = self.sandboxes.get(&number) else {
            return;
        };
        let mut borrowed = vec![sandbox.pidfd.as_fd()];
        let Some(netns) = &sandbox.netns else { return };
        borrowed.push(netns.as_fd());
        match (&sandbox.fifos, sandbox.role.container()) {
            (Some([out, err]), _) => borrowed.extend([out.as_fd(), err.as_fd()]),
            (None, Some((id, container))) => {
                let instance = self.instances.get(id);
                let Some(captures) = instance.and_then(|one| one.captures.get(container)) else {
                    return;
                };
                borrowed.extend(captures.iter().map(|capture| capture.fifo().as_fd()));
            }
            (None, None) => return,
        }
        borrowed.extend(sandbox.internal.iter().map(AsFd::as_fd));
        let copies: io::Result<Vec<OwnedFd>> = borrowed
            .into_iter()
            .map(|fd| fd.try_clone_to_owned())
            .collect();
        match copies {
            Ok(copies) => self.tell(
                STARTER,
                Op::Hold {
                    name: held_name(number),
                },
                copies,
            ),
            Err(error) => tracing::warn!(number, %error, "deposit a sandbox"),
        }
    }

    /// Everything that shall outlive this process, to a starter that is new.
    pub(crate) fn deposit_all(&mut self) {
        let numbers: Vec<u32> = self.sandboxes.keys().copied().collect();
        for number in numbers {
            self.deposit(number);
        }
        for (name, fd) in [("lock", &self.lock), ("listen", &self.listen)]
            .map(|(name, fd)| (name, fd.try_clone()))
        {
            if let Ok(fd) = fd {
                self.tell(
                    STARTER,
                    Op::Hold {
                        name: name.to_owned(),
                    },
                    vec![fd],
                );
            }
        }
        let listeners: Vec<_> = self.listeners.keys().cloned().collect();
        for key in listeners {
            self.deposit_listener(&key);
        }
    }
}

/// Under this name the starter holds the descriptors of a sandbox: pidfd, network namespace, stdout, stderr, internal sockets.
pub(crate) fn held_name(number: u32) -> String {
    format!("sandbox:{number}")
}

/// The number in a name of [`held_name`].
pub(crate) fn held_sandbox(name: &str) -> Option<u32> {
    name.strip_prefix("sandbox:")?.parse().ok()
}

/// Under this name, and without descriptors, the starter tells its successor that it had not finished the start of a sandbox.
pub(crate) fn unfinished_name(number: u32) -> String {
    format!("{UNFINISHED}{number}")
}

/// The numbers in the names of [`unfinished_name`].
pub(super) fn unfinished(held: &Held) -> BTreeSet<u32> {
    let names = held.names(UNFINISHED);
    let numbers = names.iter().map(|name| name.strip_prefix(UNFINISHED));
    numbers.filter_map(|number| number?.parse().ok()).collect()
}

/// Makes both FIFOs and opens them for us.
pub(crate) fn make_fifos(directory: &Path) -> io::Result<[OwnedFd; 2]> {
    // Writable by all: the path is root's alone, and an app that opens /dev/stdout gets here with its own uid.
    let mode = Mode::from_raw_mode(0o622);
    let make = |name: &str| {
        let path = directory.join(name);
        match rustix::fs::mknodat(CWD, &path, FileType::Fifo, mode, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => rustix::fs::chmod(&path, mode)?,
            Err(errno) => return Err(errno.into()),
        }
        open_fifo(&path, true)
    };
    Ok([make("out")?, make("err")?])
}

/// Opened for both directions, so that neither side ever sees the other one gone.
pub(crate) fn open_fifo(path: &Path, ours: bool) -> io::Result<OwnedFd> {
    let flags = libc::O_CLOEXEC | libc::O_NOFOLLOW | if ours { libc::O_NONBLOCK } else { 0 };
    Ok(OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)?
        .into())
}

#[cfg(test)]
mod tests;
