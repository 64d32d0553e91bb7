//! Instances of several containers: how the further ones are made, started, and how all of them end together.
//!
//! Owns: everything that has no counterpart in an instance of one; their sandboxes are made in `making`, their end is in `ending`. The first container is the pooled sandbox with the network,
//! as ever; the others are sandboxes that the housekeeper makes in it once they are needed. Doesn't: know what depends on what;
//! the server asks for each container that waits ([`Keeper::start_container`]).
//!
//! Invariants
//! 1. Containers are numbered; 0 is the first. Those that don't wait are started with the instance, in the order of their numbers.
//! 2. The end of one container is the end of the instance: the rest is killed, and the exit names the one that ended first. When a
//!    stop was asked for, each gets its grace time, and the exit is that of container 0.
//! 3. The exit is told once the processes of all containers are reaped.
//! 4. An instance that no server goes on starting ends ([`Keeper::end_unfinished`]).

mod ending;
mod making;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;

use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, InstanceSpec, StartPhases};

use super::core::Keeper;
use super::instances::Phase;
use super::protocol::{KeeperError, Reply};
use super::spawners::{HOUSEKEEPER, Pending, STARTER, to_keeper_error};
use super::stopping::STOPPED_EARLY;
use crate::spawner::protocol::{Member, Op, Reply as SpawnReply, SpawnError};

/// Cloud Run's limit.
const CONTAINERS: usize = 10;

/// What there is of an instance's containers besides their sandboxes.
#[derive(Debug, Default)]
pub(crate) struct Group {
    /// What a start needs of each container that was not asked for yet: control socket and both log FIFOs.
    pub(crate) parcels: BTreeMap<usize, Vec<OwnedFd>>,
    /// The starter works on them.
    asked: BTreeSet<usize>,
    /// Their layers were copied because the start found them missing.
    copied: BTreeSet<usize>,
    /// Their processes are reaped.
    pub(crate) gone: BTreeSet<usize>,
    /// Who waits for the start of a container that waited.
    waiters: Vec<(usize, u32, u64)>,
    /// What ended the instance.
    cause: Option<(usize, Exit)>,
    phases: StartPhases,
}

/// Whether an instance may be made of these containers. The server is believed as far as its requests go, and names of
/// containers become parts of file names.
pub(crate) fn check(spec: &InstanceSpec) -> Result<(), KeeperError> {
    let plain = |name: &str| {
        let fine = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        !name.is_empty() && name.len() <= 63 && name.bytes().all(fine)
    };
    let names: Vec<&str> = (0..=spec.sidecars().len())
        .map(|number| spec.container_name(number))
        .collect();
    let distinct: BTreeSet<&str> = names.iter().copied().collect();
    if spec.group.is_none() {
        return Ok(());
    }
    if names.len() > CONTAINERS {
        let text = format!("an instance has at most {CONTAINERS} containers");
        return Err(KeeperError::Refused(text));
    }
    if !names.iter().all(|name| plain(name)) || distinct.len() != names.len() {
        let text = format!(
            "containers need names of their own, of letters, digits and hyphens: {names:?}"
        );
        return Err(KeeperError::Refused(text));
    }
    if spec
        .rootfs_of_all()
        .any(|one| one.uid_base != spec.rootfs.uid_base)
    {
        let text = "containers of one instance have the same user ids".to_owned();
        return Err(KeeperError::Refused(text));
    }
    Ok(())
}

impl Keeper {
    /// Gives one container to the starter.
    fn ask_container(&mut self, id: &InstanceId, container: usize) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let record = &instance.record;
        let numbers = record.sandboxes();
        let (Some(parcel), Some(spec), Some(&sandbox)) = (
            instance.group.parcels.remove(&container),
            record.spec.only(container),
            numbers.get(container),
        ) else {
            return;
        };
        let all = 0..=record.spec.sidecars().len();
        let before = record.begun.union(&instance.group.asked);
        let seen = before
            .filter_map(|number| record.spec.only(*number))
            .flat_map(|spec| spec.volumes)
            .map(|volume| volume.shared)
            .filter(|name| !name.is_empty());
        let member = Member {
            of: record.sandbox,
            names: all
                .map(|number| record.spec.container_name(number).to_owned())
                .collect(),
            seen: seen.collect(),
        };
        let process = match container.checked_sub(1) {
            None => &record.process,
            Some(index) => &record.sidecars[index].process,
        };
        let op = Op::Start {
            sandbox,
            pid: process.pid,
            spec: Box::new(spec),
            net: record.net.clone(),
            member: Some(member),
            limited: false,
        };
        instance.group.asked.insert(container);
        let pending = Pending::Container {
            id: id.clone(),
            container,
        };
        self.ask(STARTER, op, parcel, pending);
    }

    /// The server wants a container that waited to start now.
    pub(crate) fn start_container(
        &mut self,
        session: u32,
        request: u64,
        id: &InstanceId,
        container: usize,
    ) {
        let Some(instance) = self.instances.get_mut(id).filter(|one| one.stop.is_none()) else {
            let error = KeeperError::NotFound(id.clone());
            return self.reply(session, request, Err(error), Vec::new());
        };
        let group = &mut instance.group;
        if instance.record.begun.contains(&container) {
            return self.reply(session, request, Ok(Reply::Done), Vec::new());
        }
        if !group.asked.contains(&container) && !group.parcels.contains_key(&container) {
            let text = format!("instance {id} has no container {container} to start");
            return self.reply(
                session,
                request,
                Err(KeeperError::Refused(text)),
                Vec::new(),
            );
        }
        group.waiters.push((container, session, request));
        if !group.asked.contains(&container) {
            self.ask_container(id, container);
        }
    }

    /// The starter has answered for a container.
    pub(crate) fn container_started(
        &mut self,
        id: &InstanceId,
        container: usize,
        result: Result<SpawnReply, SpawnError>,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        instance.group.asked.remove(&container);
        let stopping = instance.stop.is_some();
        match result {
            Ok(reply) => {
                let group = &mut instance.group;
                instance.record.begun.insert(container);
                // A keeper after this one must know how far the start was.
                if let Err(error) = self.records.write_instance(&instance.record) {
                    tracing::error!(%id, %error, "note that a container runs");
                }
                if let SpawnReply::Started { phases, .. } = reply {
                    group.phases.rootfs += phases.rootfs;
                    group.phases.exec += phases.exec;
                }
                let gone = group.gone.contains(&container);
                let told = group.waiters.extract_if(.., |(of, ..)| *of == container);
                for (_, session, request) in told.collect::<Vec<_>>() {
                    self.reply(session, request, Ok(Reply::Done), Vec::new());
                }
                if gone {
                    self.ended_together(id);
                }
                self.first_have_started(id);
            }
            Err(error) => {
                let why = if stopping {
                    KeeperError::Refused(STOPPED_EARLY.to_owned())
                } else {
                    let name = instance.record.spec.container_name(container);
                    named(to_keeper_error(&error), name)
                };
                self.group_failed(id, &why);
            }
        }
    }

    /// Has the layers of a container copied that its start found missing. `false`: that was done already, or is in vain.
    pub(crate) fn copy_first(
        &mut self,
        id: &InstanceId,
        container: usize,
        parcel: &mut Vec<OwnedFd>,
    ) -> bool {
        let Some(instance) = self.instances.get_mut(id).filter(|one| one.stop.is_none()) else {
            return false;
        };
        let Some(spec) = instance.record.spec.only(container) else {
            return false;
        };
        if !instance.group.copied.insert(container) {
            return false;
        }
        instance
            .group
            .parcels
            .insert(container, std::mem::take(parcel));
        let pending = Pending::ContainerCopies {
            id: id.clone(),
            container,
        };
        let op = Op::Prepare {
            rootfs: spec.rootfs,
        };
        self.ask(HOUSEKEEPER, op, Vec::new(), pending);
        true
    }

    /// The layers of a container were copied.
    pub(crate) fn copied(
        &mut self,
        id: &InstanceId,
        container: usize,
        result: Result<SpawnReply, SpawnError>,
    ) {
        let gone = self
            .instances
            .get(id)
            .is_none_or(|instance| instance.group.gone.contains(&container));
        match result {
            // Its process id may be another's by now.
            Ok(_) if gone => {
                let detail = "it ended while its layers were copied".to_owned();
                self.container_started(id, container, Err(SpawnError::SandboxGone { detail }));
            }
            Ok(_) => self.ask_container(id, container),
            Err(error) => self.container_started(id, container, Err(error)),
        }
    }

    /// Answers the start of the instance once everything runs that doesn't wait.
    fn first_have_started(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let spec = &instance.record.spec;
        let all = (0..=spec.sidecars().len())
            .all(|number| spec.waits(number) || instance.record.begun.contains(&number));
        if !all || !matches!(instance.phase, Phase::Starting { .. }) {
            return;
        }
        if let Phase::Starting {
            waiters, waited, ..
        } = std::mem::replace(&mut instance.phase, Phase::Running)
        {
            let mut phases = instance.group.phases;
            phases.sandbox += waited;
            for (session, request) in waiters {
                self.reply_started(session, request, id, phases, None);
            }
        }
    }
}

fn named(error: KeeperError, name: &str) -> KeeperError {
    let with = |text: String| format!("container {name:?}: {text}");
    match error {
        KeeperError::Refused(text) => KeeperError::Refused(with(text)),
        KeeperError::Exhausted(text) => KeeperError::Exhausted(with(text)),
        KeeperError::Internal(text) => KeeperError::Internal(with(text)),
        other => other,
    }
}

#[cfg(test)]
mod tests;
