//! The task that owns the connection: passes requests on, sorts answers. Deliberately not here: what happens when the
//! connection is lost (`reconnect`).

mod reconnect;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use self::reconnect::Pace;
use super::internal::InternalEvent;
use super::link::KeeperLink;
use super::shared::{Call, Shared, superseded, to_driver_error};
use crate::driver::{DriverError, InstanceEvent};
use crate::keeper::protocol::{Event, ExitReport, FromKeeper, KeeperError, Op, Reply, ToKeeper};

/// State of the task.
pub(super) struct Connection {
    shared: Arc<Shared>,
    calls: mpsc::Receiver<Call>,
    internal: Option<mpsc::Sender<InternalEvent>>,
    /// Ends are acknowledged by whoever writes them down, and never here.
    written_elsewhere: bool,
    link: Option<KeeperLink>,
    pace: Pace,
    pending: HashMap<u64, Call>,
    /// Not sent, in order.
    waiting: VecDeque<(Instant, Call)>,
    next_id: u64,
    /// Exits nobody has received yet.
    exits: VecDeque<ExitReport>,
    /// Exits that receivers got and the keeper may not know so.
    told: HashSet<utsuwa_model::InstanceId>,
    /// Exits that were passed on to whoever acknowledges them himself.
    passed: HashSet<utsuwa_model::InstanceId>,
    /// Internal sockets of sandboxes, to give back to a keeper that lost them.
    internal_sockets: HashMap<u32, Vec<OwnedFd>>,
}

enum Step {
    Call(Option<Call>),
    Packet(io::Result<(FromKeeper, Vec<OwnedFd>)>),
    Listening,
}

impl Connection {
    pub(super) fn new(
        shared: Arc<Shared>,
        calls: mpsc::Receiver<Call>,
        internal: Option<mpsc::Sender<InternalEvent>>,
        link: KeeperLink,
    ) -> Self {
        Self {
            shared,
            calls,
            written_elsewhere: internal.is_some(),
            internal,
            link: Some(link),
            pace: Pace::connected(Instant::now()),
            pending: HashMap::new(),
            waiting: VecDeque::new(),
            next_id: 1,
            exits: VecDeque::new(),
            told: HashSet::new(),
            passed: HashSet::new(),
            internal_sockets: HashMap::new(),
        }
    }

    /// Until the last handle of the driver is gone, or another server took over.
    pub(super) async fn run(mut self) {
        loop {
            let Some(link) = &self.link else {
                if !self.reconnect().await {
                    self.refuse_everything().await;
                    return;
                }
                continue;
            };
            let step = tokio::select! {
                call = self.calls.recv() => Step::Call(call),
                packet = link.receive() => Step::Packet(packet),
                () = self.shared.listening.notified() => Step::Listening,
            };
            match step {
                Step::Call(None) => return,
                Step::Call(Some(call)) => self.send(call).await,
                Step::Packet(Ok((packet, descriptors))) => self.receive(packet, descriptors).await,
                Step::Packet(Err(error)) => self.lost(&error),
                Step::Listening => self.pass_exits().await,
            }
            if self.shared.superseded.load(Ordering::Acquire) {
                self.refuse_everything().await;
                return;
            }
        }
    }

    async fn send(&mut self, call: Call) {
        let id = self.next_id;
        self.next_id += 1;
        let Some(link) = &self.link else {
            self.waiting.push_back((Instant::now(), call));
            return;
        };
        let borrowed: Vec<_> = call.descriptors.iter().map(AsFd::as_fd).collect();
        let sent = link
            .send(
                &ToKeeper::Request {
                    id,
                    op: call.op.clone(),
                },
                &borrowed,
            )
            .await;
        match sent {
            Ok(()) => {
                self.pending.insert(id, call);
            }
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let _ = call.answer.send(Err(DriverError::Refused(format!(
                    "the request is too large: {error}"
                ))));
            }
            Err(error) => {
                self.lost(&error);
                self.waiting.push_back((self.pace.outage(), call));
            }
        }
    }

    async fn send_unanswered(&mut self, op: Op, descriptors: Vec<OwnedFd>) {
        let (answer, _) = oneshot::channel();
        self.send(Call {
            op,
            descriptors,
            answer,
        })
        .await;
    }

    async fn receive(&mut self, packet: FromKeeper, descriptors: Vec<OwnedFd>) {
        match packet {
            FromKeeper::Reply { id, result } => {
                let Some(call) = self.pending.remove(&id) else {
                    return;
                };
                if let Op::AckExit { id } = &call.op {
                    self.told.remove(id);
                    self.passed.remove(id);
                }
                self.learn_of_instance(&call.op, &result);
                let _ = call.answer.send(
                    result
                        .map(|reply| (reply, descriptors))
                        .map_err(to_driver_error),
                );
            }
            FromKeeper::Event(event) => self.event(event, descriptors).await,
            FromKeeper::Superseded { by } => {
                if self.shared.leave.load(Ordering::Acquire) {
                    tracing::info!(by, "the next server has the place");
                } else {
                    tracing::warn!(by, "another server took over; this one gets nothing more");
                }
                self.shared.superseded.store(true, Ordering::Release);
                self.shared.superseded_wake.notify_waiters();
            }
            FromKeeper::Leave { by } => {
                if !self.shared.leave.swap(true, Ordering::AcqRel) {
                    tracing::info!(by, "another server waits for this one's place");
                }
                self.shared.superseded_wake.notify_waiters();
            }
            FromKeeper::Welcome { .. } | FromKeeper::Refused { .. } => {}
        }
    }

    /// What an answer says of an instance is taken in here, where ends are too: one task, one order.
    fn learn_of_instance(&self, op: &Op, result: &Result<Reply, KeeperError>) {
        match (op, result) {
            (
                Op::Start { spec } | Op::StartWhole { spec },
                Ok(Reply::Started { address, pid, .. }),
            ) => {
                self.shared.sockets.lives(&spec.id, *address);
                self.shared.sockets.learn_pid(&spec.id, *pid);
            }
            (Op::Sockets { id, .. }, Ok(Reply::Sockets { address })) => {
                self.shared.sockets.lives(id, *address);
            }
            _ => {}
        }
    }

    async fn event(&mut self, event: Event, descriptors: Vec<OwnedFd>) {
        let internal = match event {
            Event::Exited(report) => {
                self.shared.sockets.forget(&report.id);
                let known = self.told.contains(&report.id)
                    || self.passed.contains(&report.id)
                    || self.exits.iter().any(|exit| exit.id == report.id);
                if self.told.contains(&report.id) {
                    self.send_unanswered(
                        Op::AckExit {
                            id: report.id.clone(),
                        },
                        Vec::new(),
                    )
                    .await;
                }
                if !known {
                    self.exits.push_back(report);
                }
                self.pass_exits().await;
                return;
            }
            Event::SandboxSockets { sandbox, net } => {
                let sockets = match self.keep_internal(sandbox, descriptors) {
                    Ok(copies) => net.sockets.iter().copied().zip(copies).collect(),
                    Err(error) => {
                        // No free descriptors. The next connection brings them again.
                        self.lost(&error);
                        return;
                    }
                };
                InternalEvent::Attached {
                    sandbox,
                    net,
                    sockets,
                }
            }
            Event::SandboxAssigned {
                sandbox,
                instance,
                revision,
            } => InternalEvent::Assigned {
                sandbox,
                instance,
                revision,
            },
            Event::SandboxGone { sandbox } => {
                self.internal_sockets.remove(&sandbox);
                InternalEvent::Gone { sandbox }
            }
            Event::RefusalSockets => InternalEvent::Refusals {
                sockets: descriptors,
            },
        };
        if let Some(sender) = &self.internal
            && sender.send(internal).await.is_err()
        {
            self.internal = None;
        }
    }

    /// Without anybody who serves them, internal sockets are not kept.
    fn keep_internal(&mut self, sandbox: u32, sockets: Vec<OwnedFd>) -> io::Result<Vec<OwnedFd>> {
        if self.internal.is_none() {
            return Ok(Vec::new());
        }
        let copies = sockets
            .iter()
            .map(OwnedFd::try_clone)
            .collect::<io::Result<Vec<_>>>()?;
        self.internal_sockets.insert(sandbox, sockets);
        Ok(copies)
    }

    async fn pass_exits(&mut self) {
        while self.shared.events.receiver_count() > 0 {
            let Some(report) = self.exits.pop_front() else {
                return;
            };
            let kept = report.clone();
            let ExitReport {
                id,
                container,
                exit,
                at,
                last_lines,
                ..
            } = report;
            let _ = self.shared.events.send(InstanceEvent::Exited {
                id: id.clone(),
                container,
                exit,
                at,
                last_lines,
            });
            if self.written_elsewhere {
                // Whoever writes it down acknowledges it then: see `SandboxDriver::acknowledge`. Nobody does any more once this
                // server makes place: the keeper tells the next one.
                if let Some(sender) = &self.internal {
                    let _ = sender.send(InternalEvent::Exited(kept)).await;
                }
                self.passed.insert(id);
                continue;
            }
            self.told.insert(id.clone());
            self.send_unanswered(Op::AckExit { id }, Vec::new()).await;
        }
    }

    async fn refuse_everything(&mut self) {
        self.calls.close();
        let refuse = |call: Call| {
            let _ = call.answer.send(Err(superseded()));
        };
        self.pending.drain().for_each(|(_, call)| refuse(call));
        self.waiting.drain(..).for_each(|(_, call)| refuse(call));
        while let Some(call) = self.calls.recv().await {
            refuse(call);
        }
    }
}
