//! Takes over what an earlier keeper left: instances that run or ended meanwhile, and leftovers to sweep away.
//!
//! Invariant: only what carries our own id is touched: our runtime directory's records, our cgroups.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;

use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::{Exit, Kernel};

use super::core::{Keeper, Token, Watch, wall};
use super::exit;
use super::group::Group;
use super::held::Held;
use super::instances::{Instance, Phase};
use super::listeners;
use super::memory::LOOKS as MEMORY_LOOKED;
use super::record::{InstanceRecord, ProcessRecord};
use super::sandboxes::{Sandbox, SandboxRole, held_name, open_fifo, unfinished};
use super::spawners::to_pid;
use crate::network::NetInfo;
use crate::sandbox::process::POOLED_NAME;

/// What a sandbox was found to have.
struct Recovered {
    pidfd: Option<OwnedFd>,
    netns: Option<OwnedFd>,
    internal: Vec<OwnedFd>,
}

/// What was deposited of a sandbox.
struct Deposit {
    pidfd: OwnedFd,
    netns: OwnedFd,
    fifos: [OwnedFd; 2],
    internal: Vec<OwnedFd>,
}

impl Keeper {
    /// Adopts instances. Returns numbers of sandboxes to remove once there is a housekeeper.
    pub(crate) fn adopt(&mut self, mut held: Held) -> io::Result<BTreeSet<u32>> {
        for name in held.names("listener:") {
            if let (Some(key), Some(Some(socket))) = (
                listeners::from_held_name(&name),
                held.take(&name).map(|mut all| all.pop()),
            ) {
                self.listeners.insert(key, socket);
            }
        }
        let unfinished = unfinished(&held);
        for record in self.records.instances()? {
            if let Some(report) = record.exit.clone() {
                self.exits.insert(record.spec.id.clone(), report);
                continue;
            }
            let id = record.spec.id.clone();
            let number = record.sandbox;
            if record.spec.group.is_none() && self.never_began(&record, &unfinished) {
                // Nobody was told that it had: whoever asks again gets another sandbox, and what is left of this one goes.
                tracing::info!(%id, number, "its keeper ended before it had started");
                self.records.remove_instance(&id);
                continue;
            }
            if let Err(error) = self.adopt_instance(record, &mut held) {
                tracing::error!(%id, number, %error, "adopt an instance");
            }
        }
        let mut leftovers: BTreeSet<u32> = self.records.sandboxes()?.into_iter().collect();
        leftovers.extend(
            self.cgroups
                .iter()
                .flat_map(crate::sandbox::cgroup::Cgroups::list),
        );
        leftovers.retain(|number| !self.sandboxes.contains_key(number));
        leftovers.retain(|number| !self.kill_leftover(*number));
        self.next_sandbox = self
            .sandboxes
            .keys()
            .chain(&leftovers)
            .max()
            .map_or(1, |last| last + 1);
        Ok(leftovers)
    }

    fn adopt_instance(&mut self, record: InstanceRecord, held: &mut Held) -> io::Result<()> {
        let id = record.spec.id.clone();
        let others = record.sidecars.iter().map(|one| &one.process);
        let processes: Vec<ProcessRecord> = std::iter::once(&record.process)
            .chain(others)
            .cloned()
            .collect();
        let whole = record.is_whole();
        let numbers = record.sandboxes();
        let mut found = Vec::new();
        let mut captures = Vec::new();
        for (container, (number, process)) in numbers.iter().zip(&processes).enumerate() {
            let deposit = held.take(&held_name(*number)).and_then(Deposit::sort);
            let (one, fifos) = self.recover(*number, process, deposit)?;
            captures.push(self.captures(&record, container, fifos, true)?);
            found.push(one);
        }
        let before = record.process.boot != self.boot;
        let net = record.net.clone();
        tracing::info!(%id, ?numbers, pid = record.process.pid, whole, "adopted an instance");
        self.instances.insert(id.clone(), adopted(record, captures));
        if !whole {
            // Its processes are leftovers now.
            let why = "its keeper ended before all of its containers had started".to_owned();
            self.finish(&id, 0, Exit::Unknown { why });
            return Ok(());
        }
        let mut dead = Vec::new();
        for (container, ((number, process), one)) in
            numbers.iter().zip(processes).zip(found).enumerate()
        {
            match one.pidfd {
                Some(pidfd) => {
                    self.watch(&pidfd, Token::SandboxEnded(*number), Watch::Level)?;
                    let mut net = net.clone();
                    let role = match container {
                        0 => SandboxRole::Instance(id.clone()),
                        _ => {
                            net.sockets.clear();
                            SandboxRole::Sidecar(id.clone(), container)
                        }
                    };
                    let sandbox = Sandbox {
                        process,
                        net,
                        pidfd,
                        netns: one.netns,
                        control: None,
                        internal: one.internal,
                        memory: self.watch_memory(*number),
                        limited: None,
                        fifos: None,
                        role,
                    };
                    self.sandboxes.insert(*number, sandbox);
                }
                None => dead.push(container),
            }
        }
        // The keeper before may have died while it gave memory back.
        if dead.is_empty()
            && let Err(error) = self.allow_swap(&id, false)
        {
            tracing::warn!(%id, %error, "an instance may go on using swap");
        }
        for number in &numbers {
            // Perhaps while nobody watched.
            self.memory_ran_out(*number, MEMORY_LOOKED);
        }
        for container in dead {
            let exit = self.exit_of_the_dead(&id, container, before);
            if !self.found_dead(&id, container, exit.clone()) {
                self.finish(&id, container, exit);
            }
        }
        Ok(())
    }

    /// What is left of a sandbox, and both its FIFOs.
    fn recover(
        &self,
        number: u32,
        process: &ProcessRecord,
        deposit: Option<Deposit>,
    ) -> io::Result<(Recovered, [OwnedFd; 2])> {
        let alive = self.same_process(process);
        let (pidfd, netns, fifos, internal) = match deposit {
            Some(deposit) => (
                Some(deposit.pidfd),
                Some(deposit.netns),
                Some(deposit.fifos),
                deposit.internal,
            ),
            None => (None, None, None, Vec::new()),
        };
        let pidfd = match pidfd {
            Some(pidfd) => Some(pidfd),
            // Opened by number, it is only right if the process is the same before and after.
            None if alive => pidfd_open(to_pid(process.pid)?, PidfdFlags::empty())
                .ok()
                .filter(|_| self.same_process(process)),
            None => None,
        };
        let directory = self.records.make_sandbox(number)?;
        let fifos = match fifos {
            Some(fifos) => fifos,
            None => match (
                open_fifo(&directory.join("out"), true),
                open_fifo(&directory.join("err"), true),
            ) {
                (Ok(out), Ok(err)) => [out, err],
                // Gone with the boot; an empty pipe in their place.
                _ => [empty_pipe()?, empty_pipe()?],
            },
        };
        let netns = match netns {
            Some(netns) => Some(netns),
            None => std::fs::File::open(format!("/proc/{}/ns/net", process.pid))
                .ok()
                .filter(|_| alive)
                .map(OwnedFd::from),
        };
        let recovered = Recovered {
            pidfd,
            netns,
            internal,
        };
        Ok((recovered, fifos))
    }

    /// How a container ended whose process is gone. Out of memory is known from its cgroup even now.
    fn exit_of_the_dead(&self, id: &InstanceId, container: usize, before: bool) -> Exit {
        let why = if before {
            "the host was restarted"
        } else {
            "no keeper was running when it ended"
        };
        let unknown = Exit::Unknown {
            why: why.to_owned(),
        };
        match self.exit_of(id, container, None) {
            exit @ Exit::OutOfMemory { .. } if !before => exit,
            _ => unknown,
        }
    }

    /// Whether the program of an instance never ran, as far as that can still be seen.
    fn never_began(&self, record: &InstanceRecord, unfinished: &BTreeSet<u32>) -> bool {
        let unfinished = unfinished.contains(&record.sandbox);
        // A zombie executes nothing.
        let lives =
            self.same_process(&record.process) && exit::executable(record.process.pid).is_some();
        match lives {
            // Its sandbox ended with the starter that it was to answer, or before.
            false => unfinished,
            // One that was to be parked is asked for anew: no successor hears it say that it is.
            true => in_the_pool(record) || unfinished && record.spec.parks(),
        }
    }

    /// Whether the process still runs (or is a zombie) that the record means.
    fn same_process(&self, process: &ProcessRecord) -> bool {
        process.boot == self.boot && exit::start_time(process.pid) == Some(process.start_time)
    }

    /// Kills the process of a sandbox that nobody needs; it is removed when its end is seen. `false`: it has none.
    fn kill_leftover(&mut self, number: u32) -> bool {
        let Some(process) = self
            .records
            .sandbox_process(number)
            .filter(|process| self.same_process(process))
        else {
            return false;
        };
        let Some(pidfd) = to_pid(process.pid)
            .ok()
            .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            return false;
        };
        if !self.same_process(&process)
            || self
                .watch(&pidfd, Token::SandboxEnded(number), Watch::Level)
                .is_err()
        {
            return false;
        }
        let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        self.thaw_sandbox(number);
        let role = SandboxRole::Ending;
        let sandbox = Sandbox {
            process,
            net: no_network(),
            pidfd,
            netns: None,
            control: None,
            internal: Vec::new(),
            memory: None,
            limited: None,
            fifos: None,
            role,
        };
        self.sandboxes.insert(number, sandbox);
        true
    }

    /// Everything that shall live on in this process's next executable.
    pub(crate) fn hold_all(&self) -> io::Result<Held> {
        let mut held = Held::default();
        held.hold("lock", vec![self.lock.try_clone()?]);
        held.hold("listen", vec![self.listen.try_clone()?]);
        for (key, socket) in &self.listeners {
            held.hold(listeners::held_name(key), vec![socket.try_clone()?]);
        }
        for (number, sandbox) in &self.sandboxes {
            let (Some((id, container)), Some(netns)) = (sandbox.role.container(), &sandbox.netns)
            else {
                continue;
            };
            let instance = self.instances.get(id);
            let Some(captures) = instance.and_then(|one| one.captures.get(container)) else {
                continue;
            };
            let mut all = vec![sandbox.pidfd.try_clone()?, netns.try_clone()?];
            for capture in captures {
                all.push(capture.fifo().try_clone()?);
            }
            for socket in &sandbox.internal {
                all.push(socket.try_clone()?);
            }
            held.hold(held_name(*number), all);
        }
        Ok(held)
    }
}

/// Whether its process still is what it was in the pool.
fn in_the_pool(record: &InstanceRecord) -> bool {
    let process = &record.process;
    match record.spec.kernel {
        Kernel::Host => exit::executable(process.pid) == Some(process.executable),
        // Its first process executes nothing else, and takes another name.
        Kernel::Gvisor => {
            exit::name(process.pid).is_some_and(|name| name == POOLED_NAME.to_bytes())
        }
    }
}

impl Deposit {
    fn sort(descriptors: Vec<OwnedFd>) -> Option<Self> {
        let mut all = descriptors.into_iter();
        let (pidfd, netns, out, err) = (all.next()?, all.next()?, all.next()?, all.next()?);
        Some(Self {
            pidfd,
            netns,
            fifos: [out, err],
            internal: all.collect(),
        })
    }
}

fn adopted(mut record: InstanceRecord, captures: Vec<[super::capture::Capture; 2]>) -> Instance {
    if record.started.0 == 0 {
        record.started = wall();
    }
    Instance {
        phase: Phase::Running,
        captures,
        stop: None,
        group: Group::default(),
        record,
        dial: Vec::new(),
        reclaimed: false,
        killed: false,
    }
}

/// Of a process that nobody will ask.
pub(crate) fn no_network() -> NetInfo {
    NetInfo {
        index: 0,
        host_veth: String::new(),
        address: std::net::Ipv4Addr::UNSPECIFIED,
        address6: None,
        sockets: Vec::new(),
    }
}

/// Reads as ended at once.
fn empty_pipe() -> io::Result<OwnedFd> {
    let flags = rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK;
    Ok(rustix::pipe::pipe_with(flags)?.0)
}
