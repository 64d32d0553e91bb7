//! How the containers of an instance end together, and what becomes of one that can't be started whole.

use rustix::process::{Signal, pidfd_send_signal};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, StartPhases};

use crate::keeper::core::Keeper;
use crate::keeper::exit::Ending;
use crate::keeper::instances::Phase;
use crate::keeper::protocol::KeeperError;
use crate::keeper::stopping::STOPPED_EARLY;

impl Keeper {
    /// A container can't be made or started: neither can the instance.
    pub(super) fn group_failed(&mut self, id: &InstanceId, why: &KeeperError) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let mut told: Vec<(u32, u64)> = Vec::new();
        let waiting = std::mem::take(&mut instance.group.waiters);
        told.extend(
            waiting
                .into_iter()
                .map(|(_, session, request)| (session, request)),
        );
        let starting = match &mut instance.phase {
            Phase::Starting { waiters, .. } => {
                told.append(waiters);
                true
            }
            Phase::Running => false,
        };
        if starting {
            // As if it had never been asked for.
            let numbers = instance.record.sandboxes();
            let gone = instance.group.gone.clone();
            self.forget(id);
            for (container, number) in numbers.into_iter().enumerate().rev() {
                if gone.contains(&container) {
                    self.destroy(number, 0);
                } else {
                    self.throw_away(number);
                }
            }
        } else {
            let why = why.to_string();
            instance
                .group
                .cause
                .get_or_insert((0, Exit::Unknown { why }));
            self.kill_instance(id);
            // Perhaps all had ended, and only this answer was waited for.
            self.ended_together(id);
        }
        for (session, request) in told {
            self.reply(session, request, Err(why.clone()), Vec::new());
        }
    }

    /// The process of a container is reaped. `false`: its instance has no other, and ends as ever.
    pub(crate) fn container_ended(
        &mut self,
        id: &InstanceId,
        container: usize,
        ending: Option<Ending>,
    ) -> bool {
        let group_of = |keeper: &Self| Some(keeper.instances.get(id)?.record.spec.group.is_some());
        if group_of(self) != Some(true) {
            return false;
        }
        let exit = self.exit_of(id, container, ending);
        let hungry = self.first_out_of_memory(id);
        if let Some(instance) = self.instances.get_mut(id) {
            let (stopping, group) = (instance.stop.is_some(), &mut instance.group);
            group.gone.insert(container);
            match &group.cause {
                // What ends because another one did is seldom told of after it.
                None => {
                    let hungry = hungry.filter(|_| !stopping);
                    group.cause = Some(hungry.unwrap_or((container, exit)));
                }
                Some(_) if stopping && container == 0 => group.cause = Some((container, exit)),
                Some(_) => {}
            }
            // Only the starter knows whether its program ever ran.
            if group.asked.contains(&container) {
                return true;
            }
        }
        self.ended_together(id);
        true
    }

    /// The first container that the kernel killed a part of for memory, and how it ends therefore.
    fn first_out_of_memory(&self, id: &InstanceId) -> Option<(usize, Exit)> {
        let record = &self.instances.get(id)?.record;
        let numbers = record.sandboxes();
        let (container, _) = numbers
            .iter()
            .enumerate()
            .find(|(_, number)| self.oom_kills(**number) > 0)?;
        let limit = record.spec.only(container)?.limits.memory;
        Some((container, Exit::OutOfMemory { limit }))
    }

    /// As [`Keeper::container_ended`], of a process that was reaped by nobody knows whom.
    pub(crate) fn found_dead(&mut self, id: &InstanceId, container: usize, exit: Exit) -> bool {
        let instance = self.instances.get_mut(id);
        let Some(instance) = instance.filter(|one| one.record.spec.group.is_some()) else {
            return false;
        };
        instance.group.gone.insert(container);
        instance.group.cause.get_or_insert((container, exit));
        self.ended_together(id);
        true
    }

    /// One container has ended: so do the others, and then the instance.
    pub(super) fn ended_together(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else {
            return;
        };
        let numbers = instance.record.sandboxes();
        let group = &instance.group;
        if group.gone.len() < numbers.len() {
            if instance.stop.is_none() {
                for (container, number) in numbers.iter().enumerate() {
                    if !group.gone.contains(&container)
                        && let Some(sandbox) = self.sandboxes.get(number)
                    {
                        let _ = pidfd_send_signal(&sandbox.pidfd, Signal::KILL);
                    }
                    self.thaw_sandbox(*number);
                }
            }
            return;
        }
        if !group.asked.is_empty() {
            return;
        }
        if matches!(instance.phase, Phase::Starting { .. }) && instance.stop.is_some() {
            let early = KeeperError::Refused(STOPPED_EARLY.to_owned());
            return self.group_failed(id, &early);
        }
        let unknown = || Exit::Unknown {
            why: "its keeper was gone when it ended".to_owned(),
        };
        let (container, exit) = group.cause.clone().unwrap_or_else(|| (0, unknown()));
        self.answer_waiters(id);
        self.finish(id, container, exit);
        // The network goes last.
        for number in numbers.into_iter().rev() {
            self.destroy(number, 0);
        }
    }

    /// Before the end is told: who waits for a start learns that it happened, or that nothing more will.
    fn answer_waiters(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let waiting = std::mem::take(&mut instance.group.waiters);
        let starting = match &mut instance.phase {
            Phase::Starting { waiters, .. } => std::mem::take(waiters),
            Phase::Running => Vec::new(),
        };
        for (session, request) in starting {
            self.reply_started(session, request, id, StartPhases::default(), None);
        }
        for (_, session, request) in waiting {
            let gone = KeeperError::NotFound(id.clone());
            self.reply(session, request, Err(gone), Vec::new());
        }
    }

    /// The server that started containers one by one is gone, and no other knows how far it was.
    pub(crate) fn end_unfinished(&mut self) {
        let unfinished: Vec<InstanceId> = self
            .instances
            .iter()
            .filter(|(_, instance)| !instance.record.is_whole())
            .map(|(id, _)| id.clone())
            .collect();
        for id in unfinished {
            tracing::info!(%id, "ended: its server went while its containers were started one after the other");
            self.stop_instance(&id, std::time::Duration::ZERO);
        }
    }
}
