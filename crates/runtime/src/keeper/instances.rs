//! Instances: what the keeper knows of each, their logs, and sockets in their networks.
//!
//! Owns: the records in memory. How they start is in `starting`, how they end in `stopping`.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use utsuwa_model::InstanceId;
use utsuwa_model::instance::{InstanceObservation, InstanceSpec};

use super::capture::Capture;
use super::core::{Keeper, Token, Watch, wall};
use super::exit::Ending;
use super::record::InstanceRecord;
use super::sandboxes::{Sandbox, SandboxRole};
use crate::logs::layout::{Stream, StreamKey};

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
    /// Standard output, standard error.
    pub(crate) captures: [Capture; 2],
    /// A stop was asked for.
    pub(crate) stopping: bool,
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
    /// Begins to store what comes out of both FIFOs.
    pub(crate) fn captures(
        &self,
        record: &InstanceRecord,
        fifos: [OwnedFd; 2],
        resume: bool,
    ) -> io::Result<[Capture; 2]> {
        let [out, err] = fifos;
        self.watch(&out, Token::Stdout(record.sandbox), Watch::Level)?;
        self.watch(&err, Token::Stderr(record.sandbox), Watch::Level)?;
        let service = &record.spec.revision.service;
        let capture = |stream, fifo| {
            let key = StreamKey {
                instance: record.spec.id.clone(),
                stream,
            };
            self.logs.capture(service, key, fifo, resume)
        };
        Ok([capture(Stream::Stdout, out), capture(Stream::Stderr, err)])
    }

    /// Unconnected sockets in the network of a sandbox.
    pub(crate) fn dial_sockets(&self, number: u32, count: u32) -> io::Result<Vec<OwnedFd>> {
        use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        use std::os::fd::AsFd;

        let netns = self
            .sandboxes
            .get(&number)
            .and_then(|sandbox: &Sandbox| sandbox.netns.as_ref());
        let netns = netns.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let sockets: Result<Vec<OwnedFd>, _> = (0..count)
            .map(|_| socket_with(AddressFamily::INET, SocketType::STREAM, flags, None))
            .collect();
        if let Err(error) =
            move_into_link_name_space(self.host_netns.as_fd(), Some(LinkNameSpaceType::Network))
        {
            // In the wrong network nothing this process does would be right; a successor adopts everything.
            tracing::error!(%error, "return to the host's network namespace; the keeper is replaced");
            std::process::abort();
        }
        Ok(sockets?)
    }

    pub(crate) fn drain(&mut self, number: u32, stream: usize) {
        let Some(SandboxRole::Instance(id)) = self
            .sandboxes
            .get(&number)
            .map(|sandbox| sandbox.role.clone())
        else {
            return;
        };
        let Some(capture) = self
            .instances
            .get_mut(&id)
            .and_then(|instance| instance.captures.get_mut(stream))
        else {
            return;
        };
        self.logs.drain(capture, wall());
        if self.logs.over_budget(capture) {
            self.keep_budget(&id, stream);
        }
    }

    fn keep_budget(&mut self, id: &InstanceId, stream: usize) {
        let live: BTreeSet<InstanceId> = self.instances.keys().cloned().collect();
        let Some(service) = self
            .instances
            .get(id)
            .map(|instance| instance.record.spec.revision.service.clone())
        else {
            return;
        };
        let Some(capture) = self
            .instances
            .get(id)
            .and_then(|instance| instance.captures.get(stream))
        else {
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
            for capture in &mut instance.captures {
                capture.roll_if_large(&self.logs);
            }
        }
        if let Some(capture) = self
            .instances
            .get(id)
            .and_then(|instance| instance.captures.get(stream))
        {
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
                started: instance.record.started,
                limits: instance.record.spec.limits,
                tier: self.tier(instance),
                parked: instance.record.spec.parks(),
            })
            .collect();
        (instances, running.next().is_some())
    }
}
