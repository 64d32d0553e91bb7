//! What is asked on a connection. Answered at once, or passed on to a spawner that answers later.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use utsuwa_model::instance::InstanceSpec;
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};

use super::core::Keeper;
use super::listeners;
use super::protocol::{KeeperError, LIST_PAGE, Op, Reply, Status};
use super::spawners::{HOUSEKEEPER, Pending, STARTER};
use crate::spawner::protocol::Op as SpawnOp;

/// Dial sockets in one answer.
const SOCKET_LIMIT: u32 = 64;

/// What is answered at once; `None`: the answer follows later.
type Answer = Option<Result<Reply, KeeperError>>;

/// Of what is passed on: the answer follows later.
fn later((): ()) -> Answer {
    None
}

/// Of what can't fail.
fn done((): ()) -> Answer {
    Some(Ok(Reply::Done))
}

impl Keeper {
    #[expect(
        clippy::unit_arg,
        reason = "who is answered later shall be seen at its arm"
    )]
    pub(crate) fn serve(&mut self, session: u32, request: u64, op: Op, descriptors: Vec<OwnedFd>) {
        let root = self.sessions.get(&session).is_some_and(|s| s.uid == 0);
        let answer = match op {
            Op::Start { spec } | Op::StartWhole { spec } => {
                self.start_checked(session, request, *spec)
            }
            Op::StartContainer { id, container } => {
                later(self.start_container(session, request, &id, container))
            }
            Op::Stop { id, grace_ms } => {
                later(self.stop(session, request, &id, Duration::from_millis(grace_ms)))
            }
            Op::Prepare { rootfs } => {
                let op = SpawnOp::Prepare { rootfs };
                later(self.ask_both([HOUSEKEEPER, STARTER], op, session, request))
            }
            Op::Unpack {
                diff_id,
                media_type,
            } => {
                let op = SpawnOp::Unpack {
                    diff_id,
                    media_type,
                };
                let pending = Pending::Session { session, request };
                later(self.ask(HOUSEKEEPER, op, descriptors, pending))
            }
            Op::RemoveLayer { diff_id } => {
                let op = SpawnOp::RemoveLayer { diff_id };
                later(self.ask_both([STARTER, HOUSEKEEPER], op, session, request))
            }
            Op::ReleaseIds { uid_base } => self.release_ids(session, request, uid_base),
            Op::RemoveLogs { service, before } => {
                self.remove_logs(session, request, &service, before)
            }
            Op::Sockets { id, count } => later(self.serve_sockets(session, request, &id, count)),
            Op::TakeListener {
                name,
                address,
                bind,
            } => later(self.serve_listener(session, request, (name, address), bind)),
            Op::List { after } => {
                let (instances, more) = self.list(after.as_ref(), LIST_PAGE);
                Some(Ok(Reply::List { instances, more }))
            }
            Op::Usage { id } => Some(self.usage(&id)),
            Op::SetCpu { id, cpu } => Some(self.set_cpu(&id, cpu)),
            Op::Freeze { id } => Some(self.freeze(&id)),
            Op::GoOn { id } => later(self.go_on(session, request, &id)),
            Op::Thaw { id } => Some(self.thaw(&id)),
            Op::Reclaim { id } => self.reclaim(session, request, &id).err().map(Err),
            Op::GiveListener { name, address } => {
                Some(self.keep_listener((name, address), descriptors))
            }
            Op::RetainListeners { keep } => done(self.retain_listeners(&keep)),
            Op::GiveSandboxSockets { sandbox } => {
                done(self.keep_sandbox_sockets(sandbox, descriptors))
            }
            Op::AckExit { id } => done(self.acknowledge(&id)),
            Op::Status => Some(Ok(Reply::Status(self.status()))),
            Op::EndServer { .. } | Op::Upgrade { .. } | Op::Shutdown { .. } if !root => {
                Some(Err(KeeperError::NotPermitted))
            }
            Op::EndServer { by } => {
                tracing::info!(by, "asking the server to make place for another one");
                Some(self.end_server(by).map(|()| Reply::Done))
            }
            Op::Upgrade { build } => self.upgrade(session, request, &build, descriptors),
            Op::Shutdown {
                stop_instances,
                tear_down,
                grace_ms,
            } => {
                let grace = Duration::from_millis(grace_ms);
                later(self.begin_shutdown(session, request, stop_instances, tear_down, grace))
            }
        };
        if let Some(result) = answer {
            self.reply(session, request, result, Vec::new());
        }
    }

    fn start_checked(&mut self, session: u32, request: u64, spec: InstanceSpec) -> Answer {
        match super::group::check(&spec) {
            Ok(()) => {
                self.start(session, request, spec);
                None
            }
            Err(error) => Some(Err(error)),
        }
    }

    fn release_ids(&mut self, session: u32, request: u64, uid_base: u32) -> Answer {
        if let Some(id) = self.one_with(|spec| spec.rootfs.uid_base == uid_base) {
            let text = format!("instance {id} still has ids from {uid_base} on");
            return Some(Err(KeeperError::Exhausted(text)));
        }
        let op = SpawnOp::ReleaseIds { uid_base };
        self.ask_both([STARTER, HOUSEKEEPER], op, session, request);
        None
    }

    fn remove_logs(
        &mut self,
        session: u32,
        request: u64,
        service: &ServiceKey,
        before: Option<Timestamp>,
    ) -> Answer {
        if let Err(error) = self.put_logs_aside(service, before) {
            return Some(Err(error));
        }
        let pending = Pending::Session { session, request };
        self.ask(HOUSEKEEPER, SpawnOp::RemoveOldLogs, Vec::new(), pending);
        None
    }

    fn upgrade(
        &mut self,
        session: u32,
        request: u64,
        build: &str,
        mut descriptors: Vec<OwnedFd>,
    ) -> Answer {
        let Some(executable) = descriptors.pop() else {
            let text = "no executable came along".to_owned();
            return Some(Err(KeeperError::Refused(text)));
        };
        tracing::info!(%build, "making place for another executable");
        self.begin_upgrade(session, request, executable);
        None
    }

    fn keep_listener(
        &mut self,
        key: (String, String),
        mut descriptors: Vec<OwnedFd>,
    ) -> Result<Reply, KeeperError> {
        let Some(socket) = descriptors.pop() else {
            let text = format!("no socket came along for {} {}", key.0, key.1);
            return Err(KeeperError::Refused(text));
        };
        self.listeners.insert(key.clone(), socket);
        self.deposit_listener(&key);
        Ok(Reply::Done)
    }

    /// Kept once, and only when they are as many as its network has.
    fn keep_sandbox_sockets(&mut self, sandbox: u32, sockets: Vec<OwnedFd>) {
        if let Some(held) = self.sandboxes.get_mut(&sandbox)
            && held.internal.is_empty()
            && sockets.len() == held.net.sockets.len()
        {
            held.internal = sockets;
            self.deposit(sandbox);
        }
    }

    /// Asks one spawner, then the other one.
    fn ask_both(&mut self, [first, second]: [u32; 2], op: SpawnOp, session: u32, request: u64) {
        let pending = Pending::Then {
            session,
            request,
            index: second,
            op: op.clone(),
        };
        self.ask(first, op, Vec::new(), pending);
    }

    /// An instance that runs or is about to, of which `what` holds.
    fn one_with(&self, what: impl Fn(&InstanceSpec) -> bool) -> Option<&InstanceId> {
        let running = self
            .instances
            .values()
            .map(|instance| &instance.record.spec);
        running
            .chain(self.queue.iter().map(|queued| &queued.spec))
            .find(|spec| what(spec))
            .map(|spec| &spec.id)
    }

    fn put_logs_aside(
        &mut self,
        service: &ServiceKey,
        before: Option<Timestamp>,
    ) -> Result<(), KeeperError> {
        if let Some(id) = self.one_with(|spec| spec.revision.service == *service) {
            let text = format!("instance {id} of {service} still writes to its log");
            return Err(KeeperError::Exhausted(text));
        }
        self.logs.put_aside(service, before).map_err(|error| {
            KeeperError::Exhausted(format!("delete the logs of {service}: {error}"))
        })
    }

    fn serve_sockets(&mut self, session: u32, request: u64, id: &InstanceId, count: u32) {
        let Some(instance) = self.instances.get(id) else {
            return self.reply(
                session,
                request,
                Err(KeeperError::NotFound(id.clone())),
                Vec::new(),
            );
        };
        let address =
            super::protocol::dial_address(&instance.record.net, instance.record.spec.port);
        match self.dial_sockets(instance.record.sandbox, count.clamp(1, SOCKET_LIMIT)) {
            Ok(sockets) => self.reply(session, request, Ok(Reply::Sockets { address }), sockets),
            Err(error) => {
                let text = format!("make a socket in the network of instance {id}: {error}");
                self.reply(
                    session,
                    request,
                    Err(KeeperError::Internal(text)),
                    Vec::new(),
                );
            }
        }
    }

    fn usage(&self, id: &InstanceId) -> Result<Reply, KeeperError> {
        let instance = self
            .instances
            .get(id)
            .ok_or_else(|| KeeperError::NotFound(id.clone()))?;
        let cgroups = self
            .cgroups
            .as_ref()
            .ok_or_else(|| KeeperError::Internal("this host has no cgroups".to_owned()))?;
        let (mut memory_bytes, mut cpu_us, mut pids) = (0, 0, 0);
        for number in instance.record.sandboxes() {
            let usage = cgroups
                .sandbox(number)
                .usage()
                .map_err(|error| KeeperError::Internal(error.to_string()))?;
            memory_bytes += usage.memory_bytes;
            cpu_us += usage.cpu_us;
            pids += usage.pids;
        }
        Ok(Reply::Usage {
            memory_bytes,
            cpu_us,
            pids,
        })
    }

    fn serve_listener(&mut self, session: u32, request: u64, key: (String, String), bind: bool) {
        if bind
            && !self.listeners.contains_key(&key)
            && let Err(error) = self.bind_listener(&key)
        {
            return self.reply(session, request, Err(error), Vec::new());
        }
        match self
            .listeners
            .get(&key)
            .map(|socket| socket.as_fd().try_clone_to_owned())
        {
            Some(Ok(copy)) => self.reply(
                session,
                request,
                Ok(Reply::Listener { found: true }),
                vec![copy],
            ),
            Some(Err(error)) => {
                let text = format!("pass the socket of {} {} on: {error}", key.0, key.1);
                self.reply(
                    session,
                    request,
                    Err(KeeperError::Exhausted(text)),
                    Vec::new(),
                );
            }
            None => self.reply(
                session,
                request,
                Ok(Reply::Listener { found: false }),
                Vec::new(),
            ),
        }
    }

    fn bind_listener(&mut self, key: &(String, String)) -> Result<(), KeeperError> {
        let socket = listeners::bind(&key.1, &self.config.privileged_ports)?;
        self.listeners.insert(key.clone(), socket);
        self.deposit_listener(key);
        Ok(())
    }

    fn status(&mut self) -> Status {
        Status {
            pid: rustix::process::getpid()
                .as_raw_nonzero()
                .get()
                .unsigned_abs(),
            build: self.config.build.clone(),
            instances: self.instances.len(),
            exits_unacknowledged: self.exits.len(),
            pool_ready: self.ready.len(),
            pool_making: self.making.len(),
            pool_target: self.demand.target(super::core::now()),
            sandboxes: self.sandboxes.len(),
            spawner_pids: self
                .spawners
                .iter()
                .filter_map(|s| s.process.as_ref().map(|p| p.pid))
                .collect(),
            listeners: self.listeners.keys().cloned().collect(),
            pool_error: self.pool_error.clone(),
        }
    }
}
