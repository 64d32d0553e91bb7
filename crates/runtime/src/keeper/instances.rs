//! Instances: what the keeper knows of each, their logs, and sockets in their networks.
//!
//! Owns: the records in memory. How they start is in `starting`, how they end in `stopping`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use utsuwa_model::InstanceId;
use utsuwa_model::instance::{InstanceObservation, InstanceSpec, Kernel};

use super::capture::Capture;
use super::core::{Keeper, Token, Watch, wall};
use super::exit::Ending;
use super::group::Group;
use super::protocol::Stop;
use super::record::InstanceRecord;
use super::sandboxes::SandboxRole;
use crate::logs::layout::{Stream, StreamKey};
use crate::network;

/// Dial sockets that come with the answer to a start.
const FIRST_SOCKETS: u32 = 2;

/// A start that waits for a sandbox.
#[derive(Debug)]
pub(crate) struct QueuedStart {
    pub(crate) spec: InstanceSpec,
    pub(crate) waiters: Vec<(u32, u64)>,
    pub(crate) since: Instant,
}

/// One instance that runs or is about to.
#[derive(Debug)]
pub(crate) struct Instance {
    pub(crate) record: InstanceRecord,
    pub(crate) phase: Phase,
    /// Standard output and standard error of each container.
    pub(crate) captures: Vec<[Capture; 2]>,
    /// Made while the starter worked, for the answer.
    pub(crate) dial: Vec<OwnedFd>,
    /// Of an instance of several containers.
    pub(crate) group: Group,
    /// A stop was asked for.
    pub(crate) stop: Option<Stop>,
    /// Its memory was given back since it was last frozen.
    pub(crate) reclaimed: bool,
    /// We sent SIGKILL, so a SIGKILL is not the kernel's.
    pub(crate) killed: bool,
}

/// How far it is.
#[derive(Debug)]
pub(crate) enum Phase {
    /// The starter works on it. `ended`: the process is gone already, the starter hasn't said so yet.
    Starting {
        waiters: Vec<(u32, u64)>,
        asked: Instant,
        waited: Duration,
        ended: Option<Option<Ending>>,
        /// Its layers were copied because the start found them missing.
        prepared: bool,
    },
    Running,
}

impl Keeper {
    /// Begins to store what comes out of both FIFOs of a container.
    pub(crate) fn captures(
        &self,
        record: &InstanceRecord,
        container: usize,
        fifos: [OwnedFd; 2],
        resume: bool,
    ) -> io::Result<[Capture; 2]> {
        let [out, err] = fifos;
        let sandbox = match container.checked_sub(1) {
            None => Some(record.sandbox),
            Some(index) => record.sidecars.get(index).map(|one| one.sandbox),
        };
        let sandbox = sandbox.ok_or(io::ErrorKind::NotFound)?;
        self.watch(&out, Token::Stdout(sandbox), Watch::Level)?;
        self.watch(&err, Token::Stderr(sandbox), Watch::Level)?;
        let service = &record.spec.revision.service;
        let capture = |stream, fifo| {
            let key = StreamKey {
                instance: record.spec.id.clone(),
                container: record.spec.container_name(container).to_owned(),
                stream,
            };
            self.logs.capture(service, key, fifo, resume)
        };
        Ok([capture(Stream::Stdout, out), capture(Stream::Stderr, err)])
    }

    /// The dial sockets that come with the answer to a start.
    pub(super) fn first_sockets(&self, id: &InstanceId) -> Vec<OwnedFd> {
        let Some(instance) = self.instances.get(id) else {
            return Vec::new();
        };
        // One that is parked is dialled later.
        if instance.record.spec.parks() {
            return Vec::new();
        }
        let made = self.dial_sockets(instance.record.sandbox, FIRST_SOCKETS);
        made.unwrap_or_default()
    }

    /// Unconnected sockets that reach a sandbox and nothing else.
    ///
    /// They live in its network namespace. On gVisor its addresses are gVisor's, not the kernel's there: then they live at the
    /// other end of its cable, and can use no other.
    ///
    /// # Errors
    /// There is no such sandbox, its network can't be entered, or no socket is left.
    pub(crate) fn dial_sockets(&self, number: u32, count: u32) -> io::Result<Vec<OwnedFd>> {
        let missing = || io::Error::from(io::ErrorKind::NotFound);
        let sandbox = self.sandboxes.get(&number).ok_or_else(missing)?;
        let on_gvisor =
            matches!(&sandbox.role, SandboxRole::Instance(id) if self.runs_on(id, Kernel::Gvisor));
        if on_gvisor {
            let gateway = network::gateway_namespace(&self.config.id).ok_or_else(missing)?;
            let cable = sandbox.net.host_veth.as_bytes();
            return self.sockets_in(gateway.as_fd(), count, |socket| {
                socket2::SockRef::from(socket).bind_device(Some(cable))
            });
        }
        let netns = sandbox.netns.as_ref().ok_or_else(missing)?;
        self.sockets_in(netns.as_fd(), count, |_| Ok(()))
    }

    fn sockets_in(
        &self,
        netns: BorrowedFd<'_>,
        count: u32,
        bind: impl Fn(&OwnedFd) -> io::Result<()>,
    ) -> io::Result<Vec<OwnedFd>> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let sockets: io::Result<Vec<OwnedFd>> = (0..count)
            .map(|_| {
                let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
                bind(&socket).map(|()| socket)
            })
            .collect();
        if let Err(error) =
            move_into_link_name_space(self.host_netns.as_fd(), Some(LinkNameSpaceType::Network))
        {
            // In the wrong network nothing this process does would be right; a successor adopts everything.
            tracing::error!(%error, "return to the host's network namespace; the keeper is replaced");
            std::process::abort();
        }
        sockets
    }

    pub(crate) fn drain(&mut self, number: u32, stream: usize) {
        let role = self.sandboxes.get(&number).map(|sandbox| &sandbox.role);
        let Some((id, container)) = role.and_then(|role| role.container()) else {
            return;
        };
        let id = id.clone();
        let Some(capture) = self.instances.get_mut(&id).and_then(|instance| {
            let captures = instance.captures.get_mut(container)?;
            captures.get_mut(stream)
        }) else {
            return;
        };
        self.logs.drain(capture, wall());
        if self.logs.over_budget(capture) {
            self.keep_budget(&id, container, stream);
        }
    }

    fn keep_budget(&mut self, id: &InstanceId, container: usize, stream: usize) {
        let live: BTreeSet<InstanceId> = self.instances.keys().cloned().collect();
        let Some(service) = self
            .instances
            .get(id)
            .map(|instance| instance.record.spec.revision.service.clone())
        else {
            return;
        };
        let Some(capture) = capture_of(&self.instances, id, container, stream) else {
            return;
        };
        if !self.logs.keep_budget(capture, &live) {
            return;
        }
        // What is left are segments that are being written: close them, then they can go.
        for instance in self
            .instances
            .values_mut()
            .filter(|instance| instance.record.spec.revision.service == service)
        {
            for capture in instance.captures.iter_mut().flatten() {
                capture.roll_if_large(&self.logs);
            }
        }
        if let Some(capture) = capture_of(&self.instances, id, container, stream) {
            self.logs.keep_budget(capture, &live);
        }
    }

    /// One page of what runs.
    pub(crate) fn list(
        &self,
        after: Option<&InstanceId>,
        page: usize,
    ) -> (Vec<InstanceObservation>, bool) {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let mut running = self
            .instances
            .range::<InstanceId, _>((from, Bound::Unbounded))
            .filter(|(_, instance)| matches!(instance.phase, Phase::Running));
        let instances = running
            .by_ref()
            .take(page)
            .map(|(id, instance)| InstanceObservation {
                id: id.clone(),
                revision: instance.record.spec.revision.clone(),
                port: instance.record.spec.port,
                pid: instance.record.process.pid,
                started: instance.record.started_at(),
                limits: instance.record.spec.limits,
                tier: self.tier(instance),
                parked: instance.record.spec.parks(),
            })
            .collect();
        (instances, running.next().is_some())
    }
}

fn capture_of<'a>(
    instances: &'a BTreeMap<InstanceId, Instance>,
    id: &InstanceId,
    container: usize,
    stream: usize,
) -> Option<&'a Capture> {
    instances.get(id)?.captures.get(container)?.get(stream)
}
