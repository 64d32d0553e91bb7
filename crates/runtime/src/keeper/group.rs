//! Instances of several containers: how the further ones are made, started, and how all of them end together.
//!
//! Owns: everything that has no counterpart in an instance of one. The first container is the pooled sandbox with the network,
//! as ever; the others are sandboxes that the housekeeper makes in it once they are needed. Doesn't: know what depends on what;
//! the server asks for each container that waits ([`Keeper::start_container`]).
//!
//! Invariants
//! 1. Containers are numbered; 0 is the first. Those that don't wait are started with the instance, in the order of their numbers.
//! 2. The end of one container is the end of the instance: the rest is killed, and the exit names the one that ended first. When a
//!    stop was asked for, each gets its grace time, and the exit is that of container 0.
//! 3. The exit is told once the processes of all containers are reaped.
//! 4. An instance that no server goes on starting ends ([`Keeper::end_unfinished`]).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, InstanceSpec, StartPhases};

use super::core::{Keeper, Token, Watch};
use super::exit::{self, Ending};
use super::instances::Phase;
use super::protocol::{KeeperError, Reply};
use super::record::{ProcessRecord, SidecarRecord};
use super::sandboxes::{Sandbox, SandboxRole, make_fifos, open_fifo};
use super::spawners::{HOUSEKEEPER, Pending, STARTER, to_keeper_error, to_pid};
use super::stopping::STOPPED_EARLY;
use crate::network::NetInfo;
use crate::spawner::protocol::{Member, Op, Reply as SpawnReply, SpawnError};

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
    /// Instead of the start of an instance of one: the others are made first. `parcel` is of the first container.
    pub(crate) fn begin_group(&mut self, id: InstanceId, parcel: Vec<OwnedFd>) {
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.group.parcels.insert(0, parcel);
        }
        self.next_sidecar(id);
    }

    /// Has the next sandbox made, or starts what doesn't wait when all are there.
    fn next_sidecar(&mut self, id: InstanceId) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let record = &instance.record;
        if record.sidecars.len() == record.spec.sidecars().len() {
            let first: Vec<usize> = (0..=record.sidecars.len())
                .filter(|number| !record.spec.waits(*number))
                .collect();
            for number in first {
                self.ask_container(&id, number);
            }
            return;
        }
        let (of, pid) = (record.sandbox, record.process.pid);
        let number = self.free_number();
        let made = self
            .records
            .make_sandbox(number)
            .and_then(|_| self.namespaces(of, pid));
        match made {
            Ok(namespaces) => {
                self.making.insert(number);
                let pending = Pending::Join {
                    sandbox: number,
                    id,
                };
                let op = Op::JoinSandbox { sandbox: number };
                self.ask(HOUSEKEEPER, op, namespaces, pending);
            }
            Err(error) => {
                let text = format!("prepare a further container: {error}");
                self.records.remove_sandbox(number);
                self.group_failed(&id, &KeeperError::Internal(text));
            }
        }
    }

    /// Network and user namespace of an instance. Its process isn't reaped yet, so the number is still its own.
    fn namespaces(&self, sandbox: u32, pid: u32) -> io::Result<Vec<OwnedFd>> {
        let netns = self
            .sandboxes
            .get(&sandbox)
            .and_then(|sandbox| sandbox.netns.as_ref())
            .ok_or(io::ErrorKind::NotFound)?;
        let userns = std::fs::File::open(format!("/proc/{pid}/ns/user"))?;
        Ok(vec![netns.try_clone()?, userns.into()])
    }

    /// The housekeeper has made a sandbox for a further container.
    pub(crate) fn joined(
        &mut self,
        number: u32,
        id: InstanceId,
        result: Result<SpawnReply, SpawnError>,
        descriptors: Vec<OwnedFd>,
    ) {
        self.making.remove(&number);
        self.refill_after_start();
        let joined = match result {
            Ok(SpawnReply::Joined { pid, helper }) => {
                reap(helper);
                self.adopt_joined(number, &id, pid, descriptors)
                    .map_err(|error| {
                        KeeperError::Internal(format!("take over a further container: {error}"))
                    })
            }
            Ok(other) => Err(KeeperError::Internal(format!(
                "the spawner answered {other:?} when asked for a further container"
            ))),
            Err(error) => Err(to_keeper_error(&error)),
        };
        if let Err(error) = joined {
            // What was begun is removed under its number.
            if self.sandboxes.contains_key(&number) {
                self.throw_away(number);
            } else {
                self.destroy(number, 0);
            }
            return self.group_failed(&id, &error);
        }
        if self.instances.get(&id).is_some_and(|one| one.stopping) {
            let early = KeeperError::Refused(STOPPED_EARLY.to_owned());
            return self.group_failed(&id, &early);
        }
        self.next_sidecar(id);
    }

    fn adopt_joined(
        &mut self,
        number: u32,
        id: &InstanceId,
        pid: u32,
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let [pidfd, control]: [OwnedFd; 2] = descriptors
            .try_into()
            .map_err(|_| io::Error::other("not all descriptors came along"))?;
        let process = ProcessRecord {
            pid,
            start_time: exit::start_time(pid).unwrap_or(0),
            boot: self.boot.clone(),
            executable: exit::executable(pid).unwrap_or((0, 0)),
        };
        self.watch(&pidfd, Token::SandboxEnded(number), Watch::Level)?;
        let first = self
            .instances
            .get(id)
            .and_then(|instance| self.sandboxes.get(&instance.record.sandbox));
        let net = first.map_or_else(super::adopt::no_network, |first| first.net.clone());
        let netns = first.and_then(|first| first.netns.as_ref()?.try_clone().ok());
        let sandbox = Sandbox {
            process: process.clone(),
            // The first has the sockets that stand for all of them.
            net: NetInfo {
                sockets: Vec::new(),
                ..net
            },
            pidfd,
            netns,
            control: None,
            internal: Vec::new(),
            memory: self.watch_memory(number),
            fifos: None,
            role: SandboxRole::Ending,
        };
        self.sandboxes.insert(number, sandbox);
        self.records.write_sandbox(number, &process)?;
        let directory = self.records.sandbox(number);
        let fifos = make_fifos(&directory)?;
        let parcel = vec![
            control,
            open_fifo(&directory.join("out"), false)?,
            open_fifo(&directory.join("err"), false)?,
        ];
        let gone = || io::Error::other("the instance ended meanwhile");
        let instance = self.instances.get_mut(id).ok_or_else(gone)?;
        instance.record.sidecars.push(SidecarRecord {
            sandbox: number,
            process,
        });
        let container = instance.record.sidecars.len();
        instance.group.parcels.insert(container, parcel);
        if let Some(sandbox) = self.sandboxes.get_mut(&number) {
            sandbox.role = SandboxRole::Sidecar(id.clone(), container);
        }
        let instance = self.instances.get(id).ok_or_else(gone)?;
        self.records.write_instance(&instance.record)?;
        let captures = self.captures(&instance.record, container, fifos, false)?;
        if let Some(instance) = self.instances.get_mut(id) {
            instance.captures.push(captures);
        }
        self.deposit(number);
        Ok(())
    }

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
        let Some(instance) = self.instances.get_mut(id).filter(|one| !one.stopping) else {
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
        let stopping = instance.stopping;
        match result {
            Ok(reply) => {
                let group = &mut instance.group;
                instance.record.begun.insert(container);
                // A keeper after this one must know how far the start was.
                if let Err(error) = self.records.write_instance(&instance.record) {
                    tracing::error!(%id, %error, "note that a container runs");
                }
                if let SpawnReply::Started { phases } = reply {
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
        let Some(instance) = self.instances.get_mut(id).filter(|one| !one.stopping) else {
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
                self.reply_started(session, request, id, phases);
            }
        }
    }

    /// A container can't be made or started: neither can the instance.
    fn group_failed(&mut self, id: &InstanceId, why: &KeeperError) {
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
        if let Some(instance) = self.instances.get_mut(id) {
            let (stopping, group) = (instance.stopping, &mut instance.group);
            group.gone.insert(container);
            match &group.cause {
                None => group.cause = Some((container, exit)),
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
    fn ended_together(&mut self, id: &InstanceId) {
        let Some(instance) = self.instances.get(id) else {
            return;
        };
        let numbers = instance.record.sandboxes();
        let group = &instance.group;
        if group.gone.len() < numbers.len() {
            if !instance.stopping {
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
        if matches!(instance.phase, Phase::Starting { .. }) && instance.stopping {
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
            self.reply_started(session, request, id, StartPhases::default());
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

/// A helper that has ended; the wait is over at once.
fn reap(helper: u32) {
    let helper: Option<Pid> = to_pid(helper).ok();
    if let Some(helper) = helper {
        let _ = waitpid(Some(helper), WaitOptions::NOHANG);
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
