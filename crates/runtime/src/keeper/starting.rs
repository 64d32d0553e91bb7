//! Starts: queued for a sandbox, given to the starter, answered.
//!
//! Invariants:
//! 1. The record is on disk before the program runs.
//! 2. A start that failed leaves no exit behind: it is answered by its error.
//! 3. Layers that have to be copied first are copied once, and other starts go on meanwhile.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use utsuwa_model::InstanceId;
use utsuwa_model::instance::{InstanceSpec, Kernel, StartPhases};

use super::core::{Keeper, Timer, now, wall};
use super::group::Group;
use super::instances::{Instance, Phase, QueuedStart};
use super::protocol::{Event, KeeperError, Reply, dial_address};
use super::record::{InstanceRecord, since_boot};
use super::sandboxes::{SandboxRole, open_fifo};
use super::spawners::{HOUSEKEEPER, Pending, STARTER, to_keeper_error};
use super::stopping::STOPPED_EARLY;
use crate::spawner::protocol::{Op, Reply as SpawnReply, SpawnError};

/// A start waits this long for a sandbox.
const QUEUE_WAIT: Duration = Duration::from_secs(10);
/// Starts that may wait for a sandbox.
const QUEUE_LIMIT: usize = 1_000;

impl Keeper {
    pub(crate) fn start(&mut self, session: u32, request: u64, spec: InstanceSpec) {
        if let Some(instance) = self.instances.get_mut(&spec.id) {
            match &mut instance.phase {
                Phase::Starting { waiters, .. } => waiters.push((session, request)),
                Phase::Running => {
                    self.reply_started(session, request, &spec.id, StartPhases::default(), None)
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
        self.grow_later();
        self.queue.push_back(QueuedStart {
            spec,
            waiters: vec![(session, request)],
            since,
        });
        self.pump();
        if !self.queue.is_empty() {
            if self.ready.is_empty() {
                self.demand.lacked(since);
            }
            self.at(since + QUEUE_WAIT, Timer::StartQueue);
        }
        self.refill_after_start();
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
            started_after_boot: Some(since_boot()),
            sidecars: Vec::new(),
            begun: BTreeSet::new(),
            exit: None,
        };
        self.records.write_first(number, &record)?;
        let id = record.spec.id.clone();
        sandbox.role = SandboxRole::Instance(id.clone());
        let limited = sandbox.limited == Some(record.spec.limits);
        let whole = record.spec.group.is_none();
        if whole && record.spec.kernel == Kernel::Host {
            self.usual_limits = Some(record.spec.limits);
        }
        let op = whole.then(|| start_op(&record, limited));
        let revision = record.spec.revision.clone();
        let captures = self
            .captures(&record, 0, fifos, false)
            .inspect_err(|_| self.records.remove_instance(&id))?;
        let asked = now();
        let phase = Phase::Starting {
            waiters: queued.waiters,
            asked,
            waited: asked - queued.since,
            ended: None,
            prepared: false,
        };
        self.instances.insert(
            id.clone(),
            Instance {
                record,
                phase,
                captures: vec![captures],
                dial: Vec::new(),
                group: Group::default(),
                stop: None,
                reclaimed: false,
                killed: false,
            },
        );
        let [out, err] = ends;
        let parcel = vec![control, out, err];
        match op {
            Some(op) => self.ask(STARTER, op, parcel, Pending::Start(id.clone())),
            None => self.begin_group(id.clone(), parcel),
        }
        self.announce(
            Event::SandboxAssigned {
                sandbox: number,
                instance: id.clone(),
                revision,
            },
            Vec::new(),
        );
        // Now that others work for it: the answer shall not wait for them.
        let dial = self.first_sockets(&id);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.dial = dial;
        }
        Ok(())
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
    pub(crate) fn started(
        &mut self,
        id: &InstanceId,
        result: Result<SpawnReply, SpawnError>,
        learning: Vec<OwnedFd>,
    ) {
        let Some(instance) = self.instances.get_mut(id) else {
            return;
        };
        let Phase::Starting {
            waiters,
            asked,
            waited,
            ended,
            prepared: _,
        } = std::mem::replace(&mut instance.phase, Phase::Running)
        else {
            return;
        };
        let number = instance.record.sandbox;
        let stopped = instance.stop.is_some();
        match result {
            Ok(reply) => {
                let (mut phases, zygote) = match reply {
                    SpawnReply::Started { phases, zygote } => (phases, zygote),
                    // Not said: all of it counts as the last phase.
                    _ => {
                        let exec = now() - asked;
                        let phases = StartPhases {
                            exec,
                            ..StartPhases::default()
                        };
                        (phases, false)
                    }
                };
                phases.sandbox += waited;
                let mut learning = Some(learning).filter(|_| zygote);
                for (session, request) in waiters {
                    self.reply_started(session, request, id, phases, learning.take());
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

    /// Whether a start that lacks copies of its layers is worth another attempt.
    pub(crate) fn may_prepare(&self, id: &InstanceId) -> bool {
        self.instances.get(id).is_some_and(|instance| {
            instance.stop.is_none()
                && matches!(
                    instance.phase,
                    Phase::Starting {
                        ended: None,
                        prepared: false,
                        ..
                    }
                )
        })
    }

    /// Has the layers of a start copied. Other starts go on meanwhile.
    pub(crate) fn prepare_first(&mut self, id: InstanceId, descriptors: Vec<OwnedFd>) {
        let Some(instance) = self.instances.get_mut(&id) else {
            return;
        };
        if let Phase::Starting { prepared, .. } = &mut instance.phase {
            *prepared = true;
        }
        let rootfs = instance.record.spec.rootfs.clone();
        tracing::info!(%id, "its layers are not copied for this service yet; they are now");
        let pending = Pending::Copies { id, descriptors };
        self.ask(HOUSEKEEPER, Op::Prepare { rootfs }, Vec::new(), pending);
    }

    /// The layers of a start were copied.
    pub(crate) fn prepared(
        &mut self,
        id: InstanceId,
        result: Result<SpawnReply, SpawnError>,
        descriptors: Vec<OwnedFd>,
    ) {
        let Some(instance) = self.instances.get(&id) else {
            return;
        };
        let gone = instance.stop.is_some()
            || matches!(&instance.phase, Phase::Starting { ended: Some(_), .. });
        match result {
            // Its process id may be another's by now.
            Ok(_) if gone => {
                let detail = "it ended while its layers were copied".to_owned();
                self.started(&id, Err(SpawnError::SandboxGone { detail }), Vec::new());
            }
            Ok(_) => {
                let op = start_op(&instance.record, false);
                self.ask(STARTER, op, descriptors, Pending::Start(id));
            }
            Err(error) => self.started(&id, Err(error), Vec::new()),
        }
    }

    /// `zygote`: it does what its spec asks for; with the descriptor of what is learnt.
    pub(super) fn reply_started(
        &mut self,
        session: u32,
        request: u64,
        id: &InstanceId,
        phases: StartPhases,
        zygote: Option<Vec<OwnedFd>>,
    ) {
        let mut sockets = match self.instances.get_mut(id) {
            Some(instance) => std::mem::take(&mut instance.dial),
            None => return,
        };
        if sockets.is_empty() {
            sockets = self.first_sockets(id);
        }
        let Some(instance) = self.instances.get(id) else {
            return;
        };
        let number = instance.record.sandbox;
        let address = dial_address(&instance.record.net, instance.record.spec.port);
        let pid = instance.record.process.pid;
        let parked = zygote.is_some();
        let learning = zygote.into_iter().flatten().next();
        let learns = learning.is_some();
        sockets.extend(learning);
        self.reply(
            session,
            request,
            Ok(Reply::Started {
                phases,
                sandbox: number,
                address,
                pid,
                zygote: parked,
                learns,
            }),
            sockets,
        );
    }
}

fn start_op(record: &InstanceRecord, limited: bool) -> Op {
    Op::Start {
        sandbox: record.sandbox,
        pid: record.process.pid,
        spec: Box::new(record.spec.clone()),
        net: record.net.clone(),
        member: None,
        limited,
    }
}
