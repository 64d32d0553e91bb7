//! The ends of sandboxes: no longer needed, ended by themselves, or left by an instance; until nothing of them is left.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::core::{Keeper, Timer, now};
use super::exit::{self, Ending};
use super::protocol::Event;
use super::sandboxes::{SandboxRole, held_name};
use super::spawners::{HOUSEKEEPER, Pending, STARTER};
use crate::spawner::protocol::{Op, Reply, SpawnError};

/// How often to ask again for the removal of a sandbox; the kernel needs a moment for cgroups.
const DESTROY_ATTEMPTS: u32 = 40;
/// Each 10 ms: how long the end of a process that isn't our child may remain unknown.
const LEARN_ATTEMPTS: u32 = 100;

impl Keeper {
    /// Half of the sandboxes that are more than needed are let go of at each look: the next burst may be near.
    pub(crate) fn shrink(&mut self) {
        self.after(Duration::from_secs(10), Timer::Shrink);
        self.reap_strangers();
        let target = self.demand.calm_target(now());
        let surplus = self.ready.len().saturating_sub(target);
        for _ in 0..surplus.div_ceil(2) {
            if let Some(number) = self.ready.pop_back() {
                self.throw_away(number);
            }
        }
    }

    /// Children that were never handed to us: a sandbox that failed while it was being made.
    fn reap_strangers(&self) {
        use nix::sys::wait::{Id, WaitPidFlag, waitid};
        let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
        while let Ok(status) = waitid(Id::All, look) {
            let Some(pid) = status.pid() else { return };
            let raw = pid.as_raw().unsigned_abs();
            let ours = self
                .sandboxes
                .values()
                .any(|sandbox| sandbox.process.pid == raw)
                || self
                    .spawners
                    .iter()
                    .flat_map(|spawner| &spawner.process)
                    .any(|process| process.pid == raw);
            // One that is ours is reaped when its pidfd is served, and strangers behind it at the next look.
            if ours
                || !self.making.is_empty()
                || waitid(Id::Pid(pid), WaitPidFlag::WEXITED).is_err()
            {
                return;
            }
        }
    }

    /// Ends a sandbox that no instance uses.
    pub(crate) fn throw_away(&mut self, number: u32) {
        self.ready.retain(|ready| *ready != number);
        if let Some(sandbox) = self.sandboxes.get_mut(&number) {
            sandbox.role = SandboxRole::Ending;
            // Its end is reported by the pidfd.
            let _ = pidfd_send_signal(&sandbox.pidfd, Signal::KILL);
        }
    }

    /// The process of a sandbox has ended (or we look again how it ended).
    pub(crate) fn sandbox_ended(&mut self, number: u32, attempts: u32) {
        let Some(sandbox) = self.sandboxes.get(&number) else {
            return;
        };
        self.unwatch(&sandbox.pidfd);
        let ending = exit::learn(sandbox.pidfd.as_fd(), sandbox.process.pid);
        if ending.is_none() && attempts < LEARN_ATTEMPTS {
            self.after(
                Duration::from_millis(10),
                Timer::Learn {
                    sandbox: number,
                    attempts: attempts + 1,
                },
            );
            return;
        }
        match sandbox.role.clone() {
            SandboxRole::Instance(id) => {
                if !self.container_ended(&id, 0, ending) {
                    self.instance_ended(&id, ending);
                }
            }
            SandboxRole::Sidecar(id, container) => {
                self.container_ended(&id, container, ending);
            }
            SandboxRole::Ready => {
                tracing::warn!(number, ?ending, "a pooled sandbox ended by itself");
                self.ready.retain(|ready| *ready != number);
                self.make_failed(&format!(
                    "a pooled sandbox ended by itself ({})",
                    describe(ending)
                ));
                self.destroy(number, 0);
            }
            SandboxRole::Ending => self.destroy(number, 0),
        }
    }

    /// After the process was reaped: closes what we hold and has the rest removed.
    pub(crate) fn destroy(&mut self, number: u32, attempts: u32) {
        self.removing.insert(number);
        if let Some(sandbox) = self.sandboxes.get_mut(&number).filter(|_| attempts == 0) {
            sandbox.role = SandboxRole::Ending;
            sandbox.netns = None;
            sandbox.control = None;
            sandbox.internal.clear();
            sandbox.memory = None;
            sandbox.fifos = None;
            self.tell(
                STARTER,
                Op::Release {
                    name: held_name(number),
                },
                Vec::new(),
            );
            self.announce(Event::SandboxGone { sandbox: number }, Vec::new());
        }
        if self.spawner(HOUSEKEEPER).is_none() {
            // Asked again when there is one: `retry_destroys`.
            return;
        }
        let pending = Pending::Destroy {
            sandbox: number,
            attempts,
        };
        self.ask(
            HOUSEKEEPER,
            Op::DestroySandbox { sandbox: number },
            Vec::new(),
            pending,
        );
    }

    /// A new housekeeper knows nothing of what the one before it was asked.
    pub(crate) fn retry_destroys(&mut self) {
        let numbers: Vec<u32> = self.removing.iter().copied().collect();
        for number in numbers {
            self.destroy(number, 1);
        }
    }

    pub(crate) fn destroyed(
        &mut self,
        number: u32,
        attempts: u32,
        result: Result<Reply, SpawnError>,
    ) {
        // Asked more than once: a new housekeeper is asked for everything, also for what a timer asks it for again.
        if !self.removing.contains(&number) {
            return;
        }
        if let Err(error) = result {
            if self.spawner(HOUSEKEEPER).is_none() {
                return;
            }
            if attempts < DESTROY_ATTEMPTS {
                let delay = Duration::from_millis(5 << attempts.min(6));
                self.after(
                    delay,
                    Timer::Destroy {
                        sandbox: number,
                        attempts: attempts + 1,
                    },
                );
                return;
            }
            tracing::error!(number, %error, "a sandbox can't be removed; the next start tries again");
            if let Some(ending) = &mut self.ending {
                ending.problem(format!("sandbox {number}: {error}"));
            }
        } else {
            self.records.remove_sandbox(number);
            if let Some(ending) = &mut self.ending {
                ending.removed_sandbox();
            }
        }
        self.removing.remove(&number);
        self.sandboxes.remove(&number);
        let mut another = None;
        self.last_sandboxes.retain(|_, left| {
            if left.remove(&number) {
                another = left.first().copied();
            }
            !left.is_empty()
        });
        let waiting = self.stop_waiters.remove(&number).unwrap_or_default();
        if let Some(another) = another {
            // They wait until nothing of the instance is left.
            self.stop_waiters
                .entry(another)
                .or_default()
                .extend(waiting);
            self.refill();
            return;
        }
        for (session, request) in waiting {
            self.reply(
                session,
                request,
                Ok(super::protocol::Reply::Done),
                Vec::new(),
            );
        }
        self.refill();
    }
}

pub(crate) fn describe(ending: Option<Ending>) -> String {
    match ending {
        Some(Ending::Code(code)) => format!("status {code}"),
        Some(Ending::Signal(signal)) => format!("signal {signal}"),
        None => "how could not be learned".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::spawners::tests::Imagined;
    use super::*;

    #[test]
    fn a_sandbox_that_is_asked_for_twice_is_removed_once() {
        let mut world = Imagined::new();
        world.keeper.destroy(7, 0);
        let failed = SpawnError::SandboxGone {
            detail: "busy".to_owned(),
        };
        world.answer(Err(failed.clone()));
        // A new housekeeper is asked for everything, and a timer asks it again.
        world.keeper.retry_destroys();
        world.keeper.destroy(7, 1);
        world
            .keeper
            .begin_shutdown(1, 1, true, false, Duration::ZERO);
        world.answer(Ok(Reply::Done));
        world.answer(Ok(Reply::Done));
        assert!(world.keeper.removing.is_empty());
        // The same when it never can be.
        world.keeper.destroy(8, DESTROY_ATTEMPTS);
        world.keeper.destroy(8, DESTROY_ATTEMPTS);
        world.answer(Err(failed.clone()));
        world.answer(Err(failed));
        let report = world.keeper.ending.take().unwrap().into_report();
        assert_eq!((report.sandboxes_removed, report.problems.len()), (1, 1));
    }
}
