//! Instances: started in sandboxes, stopped, their ends told once.
//!
//! Invariants:
//! 1. The record is on disk before the program runs, and until its exit was acknowledged.
//! 2. An exit is reported after all its log lines are in the files.
//! 3. A start that failed leaves no exit behind: it is answered by its error.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, InstanceObservation, InstanceSpec, StartPhases};

use super::capture::Capture;
use super::core::{Keeper, Timer, Token, Watch, now, wall};
use super::exit::Ending;
use super::protocol::{Event, ExitReport, KeeperError, Reply, dial_address};
use super::record::InstanceRecord;
use super::sandboxes::{Sandbox, SandboxRole, open_fifo};
use super::spawners::{Pending, STARTER, to_keeper_error};
use crate::logs::layout::{Stream, StreamKey};
use crate::sandbox::has_sigterm_handler;
use crate::spawner::protocol::{Op, Reply as SpawnReply, SpawnError};

/// A start waits this long for a sandbox.
const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Starts that may wait for a sandbox.
const QUEUE_LIMIT: usize = 1_000;
const STOPPED_EARLY: &str = "it was stopped before it had started";
/// Lines kept with an exit.
const LAST_LINES: usize = 20;
/// Dial sockets that come with the answer to a start.
pub(crate) const FIRST_SOCKETS: u32 = 2;

/// A start that waits for a sandbox.
#[derive(Debug)]
pub(crate) struct QueuedStart {
    pub(crate) spec: InstanceSpec,
    pub(crate) waiters: Vec<(u32, u64)>,
    pub(crate) since: Instant,
}

/// One instance that runs or is about to.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) record: InstanceRecord,
    pub(crate) phase: Phase,
    /// Standard output, standard error.
    pub(crate) captures: [Capture; 2],
    /// A stop was asked for.
    pub(crate) stopping: bool,
    /// We sent SIGKILL, so a SIGKILL is not the kernel's.
    pub(crate) killed: bool,
}

/// How far it is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// The starter works on it. `ended`: the process is gone already, the starter hasn't said so yet.
    Starting {
        waiters: Vec<(u32, u64)>,
        asked: Instant,
        waited: Duration,
        ended: Option<Option<Ending>>,
    },
    Running,
}

impl Keeper {
    pub(crate) fn start(&mut self, session: u32, request: u64, spec: InstanceSpec) {
        if let Some(instance) = self.instances.get_mut(&spec.id) {
            match &mut instance.phase {
                Phase::Starting { waiters, .. } => waiters.push((session, request)),
                Phase::Running => {
                    self.reply_started(session, request, &spec.id, StartPhases::default())
                }
            }
            return;
        }
        if let Some(queued) = self
            .queue
            .iter_mut()
            .find(|queued| queued.spec.id == spec.id)
        {
            queued.waiters.push((session, request));
            return;
        }
        let refusal = if let Some(exit) = self.exits.get(&spec.id) {
            Some(KeeperError::Refused(format!(
                "instance {} has been started already and {}",
                spec.id,
                exit.exit.describe()
            )))
        } else if self.is_shutting_down() {
            Some(KeeperError::Exhausted(
                "the keeper is shutting down: start nothing more".to_owned(),
            ))
        } else if self.queue.len() >= QUEUE_LIMIT {
            Some(KeeperError::Exhausted(format!(
                "{QUEUE_LIMIT} instances are waiting to start already"
            )))
        } else {
            None
        };
        if let Some(refusal) = refusal {
            self.reply(session, request, Err(refusal), Vec::new());
            return;
        }
        let since = now();
        self.demand.taken(since);
        self.queue.push_back(QueuedStart {
            spec,
            waiters: vec![(session, request)],
            since,
        });
        self.pump();
        if !self.queue.is_empty() {
            self.at(since + QUEUE_WAIT, Timer::StartQueue);
        }
        self.refill();
    }

    /// Gives ready sandboxes to waiting starts, oldest first.
    pub(crate) fn pump(&mut self) {
        while !self.queue.is_empty() && self.ending.is_none() && self.spawner(STARTER).is_some() {
            let Some(number) = self.ready.pop_front() else {
                return;
            };
            let Some(queued) = self.queue.pop_front() else {
                return;
            };
            let waiters = queued.waiters.clone();
            if let Err(error) = self.begin_start(number, queued) {
                let text = format!("prepare the start of an instance: {error}");
                for (session, request) in waiters {
                    self.reply(
                        session,
                        request,
                        Err(KeeperError::Internal(text.clone())),
                        Vec::new(),
                    );
                }
                self.throw_away(number);
            }
        }
    }

    fn begin_start(&mut self, number: u32, queued: QueuedStart) -> io::Result<()> {
        let missing = || io::Error::other("the sandbox is incomplete");
        let directory = self.records.sandbox(number);
        let sandbox = self.sandboxes.get_mut(&number).ok_or_else(missing)?;
        let control = sandbox.control.take().ok_or_else(missing)?;
        let fifos = sandbox.fifos.take().ok_or_else(missing)?;
        let ends = [
            open_fifo(&directory.join("out"), false)?,
            open_fifo(&directory.join("err"), false)?,
        ];
        let record = InstanceRecord {
            spec: queued.spec,
            sandbox: number,
            process: sandbox.process.clone(),
            net: sandbox.net.clone(),
            started: wall(),
            exit: None,
        };
        self.records.write_instance(&record)?;
        let id = record.spec.id.clone();
        sandbox.role = SandboxRole::Instance(id.clone());
        let op = Op::Start {
            sandbox: number,
            pid: record.process.pid,
            spec: Box::new(record.spec.clone()),
            net: record.net.clone(),
        };
        let revision = record.spec.revision.clone();
        let captures = self.captures(&record, fifos, false)?;
        let asked = now();
        let phase = Phase::Starting {
            waiters: queued.waiters,
            asked,
            waited: asked - queued.since,
            ended: None,
        };
        self.instances.insert(
            id.clone(),
            Instance {
                record,
                phase,
                captures,
                stopping: false,
                killed: false,
            },
        );
        let [out, err] = ends;
        self.ask(
            STARTER,
            op,
            vec![control, out, err],
            Pending::Start(id.clone()),
        );
        self.announce(
            Event::SandboxAssigned {
                sandbox: number,
                instance: id,
                revision,
            },
            Vec::new(),
        );
        Ok(())
    }

    /// Begins to store what comes out of both FIFOs.
    pub(crate) fn captures(
        &self,
        record: &InstanceRecord,
        fifos: [OwnedFd; 2],
        resume: bool,
    ) -> io::Result<[Capture; 2]> {
        let [out, err] = fifos;
        self.watch(&out, Token::Stdout(record.sandbox), Watch::Level)?;
        self.watch(&err, Token::Stderr(record.sandbox), Watch::Level)?;
        let service = &record.spec.revision.service;
        let capture = |stream, fifo| {
            let key = StreamKey {
                instance: record.spec.id.clone(),
                stream,
            };
            self.logs.capture(service, key, fifo, resume)
        };
        Ok([capture(Stream::Stdout, out), capture(Stream::Stderr, err)])
    }

    pub(crate) fn expire_queue(&mut self) {
        let now = now();
        let mut kept = VecDeque::new();
        for queued in std::mem::take(&mut self.queue) {
            if now.duration_since(queued.since) < QUEUE_WAIT {
                kept.push_back(queued);
                continue;
            }
            let why = if self.pool_error.is_empty() {
                "too many starts at once"
            } else {
                &self.pool_error
            };
            let text = format!(
                "no sandbox became free within {} s: {why}",
                QUEUE_WAIT.as_secs()
            );
            // Where sandboxes can't be made at all, waiting for room helps nobody.
            let error = if self.pool_error.is_empty() || self.pool_exhausted {
                KeeperError::Exhausted(text)
            } else {
                KeeperError::Internal(text)
            };
            for (session, request) in queued.waiters {
                self.reply(session, request, Err(error.clone()), Vec::new());
            }
        }
        self.queue = kept;
        if let Some(queued) = self.queue.front() {
            self.at(queued.since + QUEUE_WAIT, Timer::StartQueue);
        }
    }

    /// The starter has answered.
    pub(crate) fn started(&mut self, id: &InstanceId, result: Result<SpawnReply, SpawnError>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let Phase::Starting {
            waiters,
            asked,
            waited,
            ended,
        } = std::mem::replace(&mut instance.phase, Phase::Running)
        else {
            return;
        };
        let number = instance.record.sandbox;
        let stopped = instance.stopping;
        match result {
            Ok(reply) => {
                let mut phases = match reply {
                    SpawnReply::Started { phases } => phases,
                    // Not said: all of it counts as the last phase.
                    _ => StartPhases {
                        exec: now() - asked,
                        ..StartPhases::default()
                    },
                };
                phases.sandbox += waited;
                for (session, request) in waiters {
                    self.reply_started(session, request, id, phases);
                }
                if let Some(ending) = ended {
                    self.instance_ended(id, ending);
                }
            }
            Err(error) => {
                // What we ended ourselves has not failed.
                let why = if stopped {
                    KeeperError::Refused(STOPPED_EARLY.to_owned())
                } else {
                    to_keeper_error(&error)
                };
                for (session, request) in waiters {
                    self.reply(session, request, Err(why.clone()), Vec::new());
                }
                self.forget(id);
                if ended.is_some() {
                    self.destroy(number, 0);
                } else {
                    self.throw_away(number);
                }
            }
        }
    }

    fn reply_started(&mut self, session: u32, request: u64, id: &InstanceId, phases: StartPhases) {
        let Some(instance) = self.instances.get(id) else {
            return;
        };
        let number = instance.record.sandbox;
        let address = dial_address(&instance.record.net, instance.record.spec.port);
        let pid = instance.record.process.pid;
        let sockets = self.dial_sockets(number, FIRST_SOCKETS).unwrap_or_default();
        self.reply(
            session,
            request,
            Ok(Reply::Started {
                phases,
                sandbox: number,
                address,
                pid,
            }),
            sockets,
        );
    }

    /// Unconnected sockets in the network of a sandbox.
    pub(crate) fn dial_sockets(&self, number: u32, count: u32) -> io::Result<Vec<OwnedFd>> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        use std::os::fd::AsFd;

        let netns = self
            .sandboxes
            .get(&number)
            .and_then(|sandbox: &Sandbox| sandbox.netns.as_ref());
        let netns = netns.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let sockets: Result<Vec<OwnedFd>, _> = (0..count)
            .map(|_| socket_with(AddressFamily::INET, SocketType::STREAM, flags, None))
            .collect();
        if let Err(error) =
            move_into_link_name_space(self.host_netns.as_fd(), Some(LinkNameSpaceType::Network))
        {
            // In the wrong network nothing this process does would be right; a successor adopts everything.
            tracing::error!(%error, "return to the host's network namespace; the keeper is replaced");
            std::process::abort();
        }
        Ok(sockets?)
    }

    pub(crate) fn drain(&mut self, number: u32, stream: usize) {
        let Some(SandboxRole::Instance(id)) = self
            .sandboxes
            .get(&number)
            .map(|sandbox| sandbox.role.clone())
        else {
            return;
        };
        let Some(capture) = self
            .instances
            .get_mut(&id)
            .and_then(|instance| instance.captures.get_mut(stream))
        else {
            return;
        };
        self.logs.drain(capture, wall());
        if self.logs.over_budget(capture) {
            self.keep_budget(&id, stream);
        }
    }

    fn keep_budget(&mut self, id: &InstanceId, stream: usize) {
        let live: BTreeSet<InstanceId> = self.instances.keys().cloned().collect();
        let Some(service) = self
            .instances
            .get(id)
            .map(|instance| instance.record.spec.revision.service.clone())
        else {
            return;
        };
        let Some(capture) = self
            .instances
            .get(id)
            .and_then(|instance| instance.captures.get(stream))
        else {
            return;
        };
        if !self.logs.keep_budget(capture, &live) {
            return;
        }
        // What is left are segments that are being written: close them, then they can go.
        for instance in self
            .instances
            .values_mut()
            .filter(|instance| instance.record.spec.revision.service == service)
        {
            for capture in &mut instance.captures {
                capture.roll_if_large(&self.logs);
            }
        }
        if let Some(capture) = self
            .instances
            .get(id)
            .and_then(|instance| instance.captures.get(stream))
        {
            self.logs.keep_budget(capture, &live);
        }
    }

    pub(crate) fn stop(&mut self, session: u32, request: u64, id: &InstanceId, grace: Duration) {
        if let Some(position) = self.queue.iter().position(|queued| queued.spec.id == *id) {
            if let Some(queued) = self.queue.remove(position) {
                for (waiter, start) in queued.waiters {
                    self.reply(
                        waiter,
                        start,
                        Err(KeeperError::Refused(STOPPED_EARLY.to_owned())),
                        Vec::new(),
                    );
                }
            }
            self.reply(session, request, Ok(Reply::Done), Vec::new());
            return;
        }
        let Some(number) = self
            .instances
            .get(id)
            .map(|instance| instance.record.sandbox)
        else {
            // Ended, but perhaps still being removed.
            let number = self.ending_sandbox_of(id);
            match number {
                Some(number) => self
                    .stop_waiters
                    .entry(number)
                    .or_default()
                    .push((session, request)),
                None => self.reply(session, request, Ok(Reply::Done), Vec::new()),
            }
            return;
        };
        self.stop_waiters
            .entry(number)
            .or_default()
            .push((session, request));
        self.stop_instance(id, grace);
    }

    /// An instance whose exit is known and whose sandbox isn't removed yet.
    fn ending_sandbox_of(&self, id: &InstanceId) -> Option<u32> {
        let last = self.last_sandbox.get(id).copied()?;
        self.sandboxes.contains_key(&last).then_some(last)
    }

    /// SIGTERM if it means anything to the program, SIGKILL otherwise (decision 5).
    pub(crate) fn stop_instance(&mut self, id: &InstanceId, grace: Duration) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let starting = matches!(instance.phase, Phase::Starting { .. });
        let first = !std::mem::replace(&mut instance.stopping, true);
        let pid = instance.record.process.pid;
        if starting || grace.is_zero() || !has_sigterm_handler(pid).unwrap_or(true) {
            self.kill_instance(id);
            return;
        }
        if first && let Some(sandbox) = self.sandboxes.get(&instance.record.sandbox) {
            let _ = pidfd_send_signal(&sandbox.pidfd, Signal::TERM);
        }
        self.after(grace, Timer::Kill(id.clone()));
    }

    pub(crate) fn grace_ended(&mut self, id: &InstanceId) {
        if self.instances.contains_key(id) {
            tracing::info!(%id, "still running after its grace period; killed");
            if let Some(ending) = &mut self.ending {
                ending.killed_instance();
            }
            self.kill_instance(id);
        }
    }

    fn kill_instance(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        instance.killed = true;
        if let Some(sandbox) = self.sandboxes.get(&instance.record.sandbox) {
            // The whole pid namespace goes with its PID 1.
            let _ = pidfd_send_signal(&sandbox.pidfd, Signal::KILL);
        }
    }

    /// Its process is reaped.
    pub(crate) fn instance_ended(&mut self, id: &InstanceId, ending: Option<Ending>) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        if let Phase::Starting { ended, .. } = &mut instance.phase {
            // starting → (stays), because only the starter knows whether the program ever ran.
            *ended = Some(ending);
            return;
        }
        let number = instance.record.sandbox;
        let exit = self.exit_of(id, ending);
        self.finish(id, exit);
        self.destroy(number, 0);
    }

    fn exit_of(&self, id: &InstanceId, ending: Option<Ending>) -> Exit {
        let unknown = || Exit::Unknown {
            why: "its keeper was gone when it ended".to_owned(),
        };
        let Some(instance) = self.instances.get(id) else {
            return unknown();
        };
        let limit = instance.record.spec.limits.memory;
        let out_of_memory = !instance.killed
            && !matches!(ending, Some(Ending::Code(0)))
            && self.oom_kills(instance.record.sandbox) > 0;
        match ending {
            // 137: a shell's word for a child that got SIGKILL.
            Some(Ending::Signal(9) | Ending::Code(137)) | None if out_of_memory => {
                Exit::OutOfMemory { limit }
            }
            Some(Ending::Code(code)) => Exit::Code(code),
            Some(Ending::Signal(signal)) => Exit::Signal(signal),
            None => unknown(),
        }
    }

    pub(crate) fn oom_kills(&self, number: u32) -> u64 {
        self.cgroups
            .as_ref()
            .and_then(|cgroups| cgroups.sandbox(number).oom_kills())
            .unwrap_or(0)
    }

    /// Stores the rest of the log, writes the exit down and tells it.
    pub(crate) fn finish(&mut self, id: &InstanceId, exit: Exit) {
        let Some(mut instance) = self.instances.remove(id) else {
            return;
        };
        let at = wall();
        for capture in &mut instance.captures {
            self.unwatch(capture.fifo());
            capture.finish(&mut self.logs, at);
        }
        let [out, err] = instance
            .captures
            .each_ref()
            .map(|capture| capture.last_lines(LAST_LINES));
        let revision = Some(instance.record.spec.revision.clone());
        let report = ExitReport {
            id: id.clone(),
            revision,
            exit,
            at,
            last_lines: last_of(out, err),
        };
        tracing::info!(%id, exit = %report.exit.describe(), "instance ended");
        instance.record.exit = Some(report.clone());
        if let Err(error) = self.records.write_instance(&instance.record) {
            tracing::error!(%id, %error, "write the exit of an instance down");
        }
        self.last_sandbox
            .insert(id.clone(), instance.record.sandbox);
        self.exits.insert(id.clone(), report.clone());
        self.announce(Event::Exited(report), Vec::new());
    }

    /// A start that failed: as if it had never been asked for.
    fn forget(&mut self, id: &InstanceId) {
        if let Some(mut instance) = self.instances.remove(id) {
            let at = wall();
            for capture in &mut instance.captures {
                self.unwatch(capture.fifo());
                capture.finish(&mut self.logs, at);
            }
            if let Some(sandbox) = self.sandboxes.get_mut(&instance.record.sandbox) {
                sandbox.role = SandboxRole::Ending;
            }
        }
        self.records.remove_instance(id);
    }

    pub(crate) fn acknowledge(&mut self, id: &InstanceId) {
        if self.exits.remove(id).is_some() {
            self.records.remove_instance(id);
        }
    }

    /// One page of what runs.
    pub(crate) fn list(
        &self,
        after: Option<&InstanceId>,
        page: usize,
    ) -> (Vec<InstanceObservation>, bool) {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut running = self
            .instances
            .range::<InstanceId, _>((from, Bound::Unbounded))
            .filter(|(_, instance)| matches!(instance.phase, Phase::Running));
        let instances = running
            .by_ref()
            .take(page)
            .map(|(id, instance)| InstanceObservation {
                id: id.clone(),
                revision: instance.record.spec.revision.clone(),
                port: instance.record.spec.port,
                pid: instance.record.process.pid,
                started: instance.record.started,
                limits: instance.record.spec.limits,
            })
            .collect();
        (instances, running.next().is_some())
    }
}

/// Up to [`LAST_LINES`] of both, standard error at the end; half each where both wrote more.
fn last_of(mut out: Vec<String>, mut err: Vec<String>) -> Vec<String> {
    let half = LAST_LINES / 2;
    let for_err = err.len().min(LAST_LINES - out.len().min(half));
    let for_out = out.len().min(LAST_LINES - for_err);
    let mut lines = out.split_off(out.len() - for_out);
    lines.append(&mut err.split_off(err.len() - for_err));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_lines_are_shared_between_both_streams() {
        let lines = |prefix: &str, count: usize| {
            (0..count)
                .map(|n| format!("{prefix}{n}"))
                .collect::<Vec<_>>()
        };
        assert_eq!(
            last_of(lines("o", 3), lines("e", 2)),
            ["o0", "o1", "o2", "e0", "e1"]
        );
        let both = last_of(lines("o", 20), lines("e", 20));
        assert_eq!(
            (both.len(), both[0].as_str(), both[19].as_str()),
            (20, "o10", "e19")
        );
        assert_eq!(last_of(lines("o", 2), lines("e", 20)).len(), 20);
        assert_eq!(last_of(lines("o", 20), Vec::new()).len(), 20);
    }
}
