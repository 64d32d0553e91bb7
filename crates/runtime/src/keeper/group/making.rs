//! The sandboxes of further containers, made one after the other once their instance is to start.

use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, WaitOptions, waitpid};
use utsuwa_model::InstanceId;

use crate::keeper::adopt::no_network;
use crate::keeper::core::{Keeper, Token, Watch};
use crate::keeper::exit;
use crate::keeper::protocol::KeeperError;
use crate::keeper::record::{ProcessRecord, SidecarRecord};
use crate::keeper::sandboxes::{Sandbox, SandboxRole, make_fifos, open_fifo};
use crate::keeper::spawners::{HOUSEKEEPER, Pending, to_keeper_error, to_pid};
use crate::keeper::stopping::STOPPED_EARLY;
use crate::network::NetInfo;
use crate::spawner::protocol::{Op, Reply as SpawnReply, SpawnError};

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
        if self
            .instances
            .get(&id)
            .is_some_and(|one| one.stop.is_some())
        {
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
        let net = first.map_or_else(no_network, |first| first.net.clone());
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
            limited: None,
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
}

/// A helper that has ended; the wait is over at once.
fn reap(helper: u32) {
    let helper: Option<Pid> = to_pid(helper).ok();
    if let Some(helper) = helper {
        let _ = waitpid(Some(helper), WaitOptions::NOHANG);
    }
}
