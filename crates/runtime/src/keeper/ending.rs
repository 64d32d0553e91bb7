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

    #[cfg(test)]
    pub(crate) fn into_report(self) -> DownReport {
        self.report
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
        self.thaw_all();
        self.end_parked();
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
                self.instances.is_empty()
                    && self.making.is_empty()
                    && self.sandboxes.is_empty()
                    // Also what failed while it was made. Nobody removes it without a housekeeper, and none is started any more.
                    && (self.removing.is_empty() || self.spawner(HOUSEKEEPER).is_none())
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
                    report.problems.extend(self.left());
                }
                if tear_down {
                    self.tear_down(&mut report);
                }
                self.reply(session, request, Ok(Reply::ShutDown(report)), Vec::new());
                Some(Outcome::Finished)
            }
        }
    }

    /// Sandboxes that an end could not wait for.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .sandboxes
            .iter()
            .map(|(number, sandbox)| {
                let pid = sandbox.process.pid;
                format!("sandbox {number} (process {pid}) is still there")
            })
            .collect();
        let unfinished = self.removing.iter();
        left.extend(
            unfinished
                .filter(|number| !self.sandboxes.contains_key(number))
                .map(|number| {
                    format!("sandbox {number}, which could not be made, is not removed yet")
                }),
        );
        left
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

#[cfg(test)]
mod tests {
    use super::super::spawners::tests::Imagined;
    use super::*;
    use crate::spawner::protocol::{Reply as SpawnReply, SpawnError};

    /// Being shut down, with sandbox 7 half made: what there is of it is to be removed.
    fn half_made() -> Imagined {
        let mut world = Imagined::new();
        world.keeper.making.insert(7);
        world
            .keeper
            .begin_shutdown(1, 1, true, false, Duration::ZERO);
        let failed = SpawnError::SandboxGone {
            detail: "no memory".to_owned(),
        };
        world.keeper.made(7, Err(failed), Vec::new());
        assert!(world.keeper.making.is_empty() && world.keeper.sandboxes.is_empty());
        world
    }

    fn told_to_end(world: &mut Imagined) -> bool {
        assert!(world.keeper.ending_step().is_none(), "a spawner is there");
        world.keeper.ending.as_ref().unwrap().spawners_told
    }

    #[test]
    fn an_end_waits_for_what_failed_while_it_was_made() {
        let mut world = half_made();
        assert!(!told_to_end(&mut world));
        world.answer(Ok(SpawnReply::Done));
        assert_eq!(world.keeper.left(), Vec::<String>::new());
        assert!(told_to_end(&mut world));
        world.housekeeper_ends();
        assert!(matches!(
            world.keeper.ending_step(),
            Some(Outcome::Finished)
        ));
    }

    #[test]
    fn an_end_does_not_wait_for_ever_and_says_what_is_left() {
        let mut world = half_made();
        assert!(!told_to_end(&mut world));
        world.keeper.ending.as_mut().unwrap().deadline = now();
        assert!(told_to_end(&mut world));
        let left = world.keeper.left();
        assert_eq!(
            left,
            ["sandbox 7, which could not be made, is not removed yet"]
        );
    }
}
