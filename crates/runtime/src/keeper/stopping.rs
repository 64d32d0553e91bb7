//! The ends of instances: asked for or by themselves, told once.
//!
//! Invariants:
//! 1. The record stays on disk until the exit was acknowledged.
//! 2. An exit is reported after all its log lines are in the files.

use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, Kernel};

use super::core::{Keeper, Timer, wall};
use super::exit::Ending;
use super::instances::Phase;
use super::protocol::{Event, ExitReport, KeeperError, Reply, Stop};
use super::sandboxes::{Sandbox, SandboxRole};
use crate::sandbox::has_sigterm_handler;

pub(crate) const STOPPED_EARLY: &str = "it was stopped before it had started";
/// Lines kept with an exit.
const LAST_LINES: usize = 20;

impl Keeper {
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
        let mut left = self.last_sandboxes.get(id)?.iter();
        left.find(|number| self.sandboxes.contains_key(number))
            .copied()
    }

    /// SIGTERM if it means anything to the program, SIGKILL otherwise (decision 5).
    pub(crate) fn stop_instance(&mut self, id: &InstanceId, grace: Duration) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let starting = matches!(instance.phase, Phase::Starting { .. });
        let numbers = instance.record.sandboxes();
        let left: Vec<u32> = numbers
            .iter()
            .enumerate()
            .filter(|(container, _)| !instance.group.gone.contains(container))
            .map(|(_, number)| *number)
            .collect();
        let minds = |one: &Sandbox| has_sigterm_handler(one.process.pid).unwrap_or(true);
        let somebody_minds = || {
            let mut all = left.iter().filter_map(|number| self.sandboxes.get(number));
            all.any(minds)
        };
        let at_once = if starting || grace.is_zero() {
            Some(Stop::AtOnce)
        } else {
            (!somebody_minds()).then_some(Stop::Unhandled)
        };
        let first = instance
            .stop
            .replace(at_once.unwrap_or(Stop::Asked { grace }))
            .is_none();
        if at_once.is_some() {
            self.kill_instance(id);
            return;
        }
        if first {
            // Before the signal: some programs end within milliseconds of it.
            self.learn_from(id, true);
            for sandbox in left.iter().filter_map(|number| self.sandboxes.get(number)) {
                let signal = if minds(sandbox) {
                    Signal::TERM
                } else {
                    Signal::KILL
                };
                let _ = pidfd_send_signal(&sandbox.pidfd, signal);
            }
        }
        self.thaw_instance(id);
        self.after(grace, Timer::Kill(id.clone()));
    }

    pub(crate) fn grace_ended(&mut self, id: &InstanceId) {
        if let Some(instance) = self.instances.get_mut(id) {
            if let Some(Stop::Asked { grace }) = instance.stop {
                instance.stop = Some(Stop::Overdue { grace });
            }
            tracing::info!(%id, "still running after its grace period; killed");
            if let Some(ending) = &mut self.ending {
                ending.killed_instance();
            }
            self.kill_instance(id);
        }
    }

    pub(super) fn kill_instance(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        instance.killed = true;
        for number in instance.record.sandboxes() {
            if let Some(sandbox) = self.sandboxes.get(&number) {
                // The whole pid namespace goes with its PID 1.
                let _ = pidfd_send_signal(&sandbox.pidfd, Signal::KILL);
            }
        }
        self.thaw_instance(id);
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
        let exit = self.exit_of(id, 0, ending);
        self.finish(id, 0, exit);
        self.destroy(number, 0);
    }

    pub(super) fn exit_of(
        &self,
        id: &InstanceId,
        container: usize,
        ending: Option<Ending>,
    ) -> Exit {
        let unknown = || Exit::Unknown {
            why: "its keeper was gone when it ended".to_owned(),
        };
        let Some(instance) = self.instances.get(id) else {
            return unknown();
        };
        let spec = &instance.record.spec;
        let ending = match spec.kernel {
            Kernel::Host => ending,
            Kernel::Gvisor => ending.map(Ending::below_gvisor),
        };
        let number = instance.record.sandboxes().get(container).copied();
        let sidecar = container
            .checked_sub(1)
            .and_then(|index| spec.sidecars().get(index));
        let limit = sidecar.map_or(spec.limits, |one| one.limits).memory;
        let out_of_memory = !instance.killed
            && !matches!(ending, Some(Ending::Code(0)))
            && number.is_some_and(|number| self.oom_kills(number) > 0);
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

    /// Stores the rest of the log, writes the exit down and tells it, with the last lines of the container that ended first.
    pub(crate) fn finish(&mut self, id: &InstanceId, container: usize, exit: Exit) {
        let Some(mut instance) = self.instances.remove(id) else {
            return;
        };
        let at = wall();
        for capture in instance.captures.iter_mut().flatten() {
            self.unwatch(capture.fifo());
            capture.finish(&mut self.logs, at);
        }
        let [out, err] = instance.captures.get(container).map_or_else(
            || [Vec::new(), Vec::new()],
            |both| both.each_ref().map(|one| one.last_lines(LAST_LINES)),
        );
        let name = instance.record.spec.container_name(container).to_owned();
        let revision = Some(instance.record.spec.revision.clone());
        let report = ExitReport {
            id: id.clone(),
            revision,
            container: name,
            exit,
            at,
            last_lines: last_of(out, err),
            stop: instance.stop,
            parked: instance.record.spec.parks(),
        };
        tracing::info!(%id, container = report.container, exit = %report.exit.describe(), "instance ended");
        instance.record.exit = Some(report.clone());
        if let Err(error) = self.records.write_instance(&instance.record) {
            tracing::error!(%id, %error, "write the exit of an instance down");
        }
        let left = instance.record.sandboxes().into_iter().collect();
        self.last_sandboxes.insert(id.clone(), left);
        self.exits.insert(id.clone(), report.clone());
        self.announce(Event::Exited(report), Vec::new());
    }

    /// A start that failed: as if it had never been asked for.
    pub(crate) fn forget(&mut self, id: &InstanceId) {
        if let Some(mut instance) = self.instances.remove(id) {
            let at = wall();
            for capture in instance.captures.iter_mut().flatten() {
                self.unwatch(capture.fifo());
                capture.finish(&mut self.logs, at);
            }
            for number in instance.record.sandboxes() {
                if let Some(sandbox) = self.sandboxes.get_mut(&number) {
                    sandbox.role = SandboxRole::Ending;
                }
            }
        }
        self.records.remove_instance(id);
    }

    pub(crate) fn acknowledge(&mut self, id: &InstanceId) {
        if self.exits.remove(id).is_some() {
            self.records.remove_instance(id);
        }
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
