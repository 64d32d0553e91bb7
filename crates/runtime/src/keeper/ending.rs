//! How a keeper ends: `utsuwa down`, or making place for another executable.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::process::{Signal, pidfd_send_signal};

use super::core::{Keeper, Outcome, Timer, now};
use super::instances::Phase;
use super::protocol::{DownReport, KeeperError, Reply};
use super::spawners::{HOUSEKEEPER, STARTER};
use crate::network::Gateway;

/// Beyond the grace period: for removing sandboxes.
const REMOVAL: Duration = Duration::from_secs(20);
/// An upgrade waits this long for requests under way; the server repeats what was cut off.
const UPGRADE_WAIT: Duration = Duration::from_secs(2);

/// An end under way.
#[derive(Debug)]
pub(crate) struct Ending {
    session: u32,
    request: u64,
    kind: Kind,
    deadline: Instant,
    /// The spawners were killed.
    spawners_told: bool,
    report: DownReport,
}

#[derive(Debug)]
enum Kind {
    Shutdown {
        stop_instances: bool,
        tear_down: bool,
    },
    Upgrade {
        executable: Option<OwnedFd>,
    },
}

impl Ending {
    pub(crate) fn problem(&mut self, text: String) {
        self.report.problems.push(text);
    }

    pub(crate) fn removed_sandbox(&mut self) {
        self.report.sandboxes_removed += 1;
    }

    pub(crate) fn killed_instance(&mut self) {
        self.report.instances_killed += 1;
    }
}

impl Keeper {
    pub(crate) fn is_shutting_down(&self) -> bool {
        self.ending
            .as_ref()
            .is_some_and(|ending| matches!(ending.kind, Kind::Shutdown { .. }))
    }

    pub(crate) fn begin_shutdown(
        &mut self,
        session: u32,
        request: u64,
        stop_instances: bool,
        tear_down: bool,
        grace: Duration,
    ) {
        if self.ending.is_some() {
            let text = "the keeper is ending already".to_owned();
            return self.reply(
                session,
                request,
                Err(KeeperError::Refused(text)),
                Vec::new(),
            );
        }
        let wait = if stop_instances {
            grace + REMOVAL
        } else {
            UPGRADE_WAIT
        };
        let kind = Kind::Shutdown {
            stop_instances,
            tear_down,
        };
        self.begin(session, request, kind, wait);
        for queued in std::mem::take(&mut self.queue) {
            for (session, request) in queued.waiters {
                let text = "everything is being shut down".to_owned();
                self.reply(
                    session,
                    request,
                    Err(KeeperError::Exhausted(text)),
                    Vec::new(),
                );
            }
        }
        if stop_instances {
            let ids: Vec<_> = self.instances.keys().cloned().collect();
            if let Some(ending) = &mut self.ending {
                ending.report.instances_stopped = ids.len();
            }
            for id in ids {
                self.stop_instance(&id, grace);
            }
        }
    }

    pub(crate) fn begin_upgrade(&mut self, session: u32, request: u64, executable: OwnedFd) {
        if self.ending.is_some() {
            let text = "the keeper is ending already".to_owned();
            return self.reply(
                session,
                request,
                Err(KeeperError::Refused(text)),
                Vec::new(),
            );
        }
        self.begin(
            session,
            request,
            Kind::Upgrade {
                executable: Some(executable),
            },
            UPGRADE_WAIT,
        );
    }

    fn begin(&mut self, session: u32, request: u64, kind: Kind, wait: Duration) {
        let deadline = now() + wait;
        let report = DownReport::default();
        self.ending = Some(Ending {
            session,
            request,
            kind,
            deadline,
            spawners_told: false,
            report,
        });
        self.at(deadline, Timer::Ending);
    }

    /// One look at an end under way: what can be done next?
    pub(crate) fn ending_step(&mut self) -> Option<Outcome> {
        let ending = self.ending.as_ref()?;
        let late = now() >= ending.deadline;
        let quiet = match &ending.kind {
            Kind::Shutdown {
                stop_instances: true,
                ..
            } => {
                if self.instances.is_empty() {
                    for number in self.ready.clone() {
                        self.throw_away(number);
                    }
                }
                self.instances.is_empty() && self.making.is_empty() && self.sandboxes.is_empty()
            }
            Kind::Shutdown { .. } | Kind::Upgrade { .. } => {
                let starting = self
                    .instances
                    .values()
                    .any(|instance| matches!(instance.phase, Phase::Starting { .. }));
                !starting
                    && self
                        .spawners
                        .iter()
                        .flat_map(|s| &s.process)
                        .all(|process| process.pending.is_empty())
            }
        };
        if !quiet && !late {
            return None;
        }
        let ending = self.ending.as_mut()?;
        if !std::mem::replace(&mut ending.spawners_told, true) {
            // Killed before our end of the channel closes: the starter must not take our place.
            for index in [STARTER, HOUSEKEEPER] {
                if let Some(process) = self.spawner(index) {
                    let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
                }
            }
        }
        if self
            .spawners
            .iter()
            .any(|spawner| spawner.process.is_some())
        {
            return None;
        }
        let Ending {
            session,
            request,
            kind,
            mut report,
            ..
        } = self.ending.take()?;
        match kind {
            Kind::Upgrade { executable } => {
                self.reply(session, request, Ok(Reply::Done), Vec::new());
                Some(Outcome::Replace(executable?))
            }
            Kind::Shutdown {
                stop_instances,
                tear_down,
            } => {
                if stop_instances {
                    for (number, sandbox) in &self.sandboxes {
                        report.problems.push(format!(
                            "sandbox {number} (process {}) is still there",
                            sandbox.process.pid
                        ));
                    }
                }
                if tear_down {
                    self.tear_down(&mut report);
                }
                self.reply(session, request, Ok(Reply::ShutDown(report)), Vec::new());
                Some(Outcome::Finished)
            }
        }
    }

    fn tear_down(&mut self, report: &mut DownReport) {
        if self.config.net.is_some()
            && let Err(error) = Gateway::tear_down(&self.config.id)
        {
            report.problems.push(error.to_string());
        }
        if let Some(cgroups) = &self.cgroups
            && let Err(error) = cgroups.remove()
        {
            report.problems.push(error.to_string());
        }
        if report.problems.is_empty()
            && let Err(error) = std::fs::remove_dir_all(self.config.runtime_dir())
        {
            report.problems.push(format!(
                "remove {}: {error}",
                self.config.runtime_dir().display()
            ));
        }
    }
}
