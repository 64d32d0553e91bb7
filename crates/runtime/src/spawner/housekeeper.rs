//! The housekeeper: everything that takes longer than a wake may.
//!
//! Owns: making pooled sandboxes, their cgroups and networks, and taking them down; unpacking and deleting layers.
//! Doesn't: start programs in them.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::protocol::{Channel, NetInfo, Op, Reply, Request, SpawnError};
use super::unpacker::{self, Finished, Job};
use super::{Role, SpawnerConfig, Worker, respond, wrong_role};
use crate::keeper::held::Held;
use crate::network::Gateway;
use crate::sandbox::cgroup::{Cgroups, SandboxCgroup};
use crate::sandbox::inside::{self, FromSandbox, Plan, ToSandbox};
use crate::sandbox::probe::Features;
use crate::sandbox::sys::{self, Cloned, SANDBOX_NAMESPACES};
use crate::sandbox::{layers, seccomp, stage};

/// A sandbox that isn't ready after this long never will be.
const MAKE_DEADLINE_S: i64 = 10;
/// A cgroup can't be removed while a process is still ending in it; this is how long and how often we look again.
const REMOVE_DEADLINE: Duration = Duration::from_secs(5);
const REMOVE_INTERVAL: Duration = Duration::from_millis(5);
/// Sandboxes raised together at most: what the keeper asks for at once.
const TOGETHER: usize = 4;

#[derive(Debug)]
struct Removal {
    /// `None`: nobody waits for it.
    request: Option<u64>,
    cgroup: SandboxCgroup,
    began: Instant,
}

/// A sandbox's process that nobody has let into its waiting room yet.
#[derive(Debug)]
struct Newborn {
    request: u64,
    sandbox: u32,
    cgroup: SandboxCgroup,
    /// It must be moved to its cgroup: it could not be born there.
    attach: bool,
    pid: u32,
    pidfd: OwnedFd,
    control: Channel,
}

impl Newborn {
    fn admit(&self) -> Result<(), SpawnError> {
        if self.attach {
            self.cgroup.attach(self.pid)?;
        }
        self.control
            .send(&ToSandbox::Attached, &[])
            .map_err(|e| SpawnError::sys("sendmsg", e, "control socket of a sandbox"))
    }
}

/// State of the housekeeper.
#[derive(Debug)]
pub(super) struct Housekeeper {
    cgroups: Cgroups,
    gateway: Option<Gateway>,
    plan: Plan,
    images: PathBuf,
    /// Free bytes that unpacking leaves.
    disk_reserve: u64,
    newborns: Vec<Newborn>,
    removals: Vec<Removal>,
    jobs: Vec<Job>,
}

impl Housekeeper {
    pub(super) fn new(config: &SpawnerConfig, features: &Features) -> Result<Self, SpawnError> {
        let cgroups = Cgroups::open(&config.id)?;
        let v1_controllers = (!cgroups.is_v2()).then(|| {
            let mut shown = features.v1_controllers();
            if !cgroups.enter_cpuset() {
                shown.retain(|controllers| controllers != "cpuset");
            }
            shown
        });
        let stage = stage::build(
            &config.runtime_dir.join("stage"),
            v1_controllers.as_deref().unwrap_or_default(),
        )?;
        let gateway = match &config.network {
            Some(network) => Some(
                Gateway::set_up(network).map_err(|e| SpawnError::Network { why: e.to_string() })?,
            ),
            None => None,
        };
        unpacker::sweep(&config.images_dir);
        let plan = Plan {
            stage,
            v1_controllers,
            filter: seccomp::compile(),
        };
        Ok(Self {
            cgroups,
            gateway,
            plan,
            images: config.images_dir.clone(),
            disk_reserve: config.disk_reserve,
            newborns: Vec::new(),
            removals: Vec::new(),
            jobs: Vec::new(),
        })
    }

    /// Gives birth to a sandbox; [`Housekeeper::raise`] does the rest together with those that were asked for meanwhile.
    fn make(&mut self, request: u64, sandbox: u32) -> Result<(), SpawnError> {
        let cgroup = self.cgroups.sandbox(sandbox);
        cgroup.create()?;
        match self.bear(request, sandbox, cgroup.clone()) {
            Ok(newborn) => {
                self.newborns.push(newborn);
                Ok(())
            }
            Err(error) => {
                self.give_up(sandbox, cgroup);
                Err(error)
            }
        }
    }

    fn bear(
        &self,
        request: u64,
        sandbox: u32,
        cgroup: SandboxCgroup,
    ) -> Result<Newborn, SpawnError> {
        let (ours, theirs) =
            Channel::pair().map_err(|e| SpawnError::sys("socketpair", e, "control socket"))?;
        let target = cgroup.clone_target()?;
        let cloned = sys::clone_process(SANDBOX_NAMESPACES, true, target.as_ref().map(AsFd::as_fd))
            .map_err(|e| SpawnError::sys("clone3", e, "make a sandbox"))?;
        let (pid, pidfd) = match cloned {
            Cloned::Child => inside::run(&theirs, &self.plan),
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        Ok(Newborn {
            request,
            sandbox,
            cgroup,
            attach: target.is_none(),
            pid,
            pidfd,
            control: ours,
        })
    }

    /// Brings all newborns into their waiting rooms and answers for them.
    ///
    /// Together, since moving a process to a cgroup (v1) waits for an RCU grace period, and those that follow at once don't;
    /// and so that each prepares its mounts while the next one's network is made.
    fn raise(&mut self, channel: &Channel) {
        let newborns = std::mem::take(&mut self.newborns);
        let admitted: Vec<Result<(), SpawnError>> = newborns.iter().map(Newborn::admit).collect();
        for (newborn, admitted) in newborns.into_iter().zip(admitted) {
            let finished = admitted.and_then(|()| self.furnish(&newborn));
            match finished {
                Ok((net, netns, sockets)) => {
                    let mut descriptors = vec![
                        newborn.pidfd.as_fd(),
                        netns.as_fd(),
                        newborn.control.as_fd(),
                    ];
                    descriptors.extend(sockets.iter().map(AsFd::as_fd));
                    let made = Reply::Made {
                        pid: newborn.pid,
                        net,
                    };
                    respond(channel, newborn.request, Ok(made), &descriptors);
                }
                Err(error) => {
                    // The keeper, its parent, reaps it like any child.
                    let _ = rustix::process::pidfd_send_signal(
                        &newborn.pidfd,
                        rustix::process::Signal::KILL,
                    );
                    self.give_up(newborn.sandbox, newborn.cgroup);
                    respond(channel, newborn.request, Err(error), &[]);
                }
            }
        }
    }

    /// Its network, and that it has said to be ready.
    fn furnish(
        &mut self,
        newborn: &Newborn,
    ) -> Result<(NetInfo, OwnedFd, Vec<OwnedFd>), SpawnError> {
        let path = format!("/proc/{}/ns/net", newborn.pid);
        let netns: OwnedFd = std::fs::File::open(&path)
            .map_err(|e| SpawnError::sys("open", e, path))?
            .into();
        let (net, sockets) = match &mut self.gateway {
            Some(gateway) => gateway
                .attach(newborn.sandbox, netns.as_fd())
                .map_err(|e| SpawnError::Network { why: e.to_string() })?,
            None => (loopback_only(newborn.sandbox), Vec::new()),
        };
        wait_until_staged(&newborn.control)?;
        Ok((net, netns, sockets))
    }

    /// Nothing of a sandbox that could not be made may stay.
    fn give_up(&mut self, sandbox: u32, cgroup: SandboxCgroup) {
        if let Some(gateway) = &mut self.gateway {
            let _ = gateway.detach(sandbox);
        }
        self.removals.push(Removal {
            request: None,
            cgroup,
            began: Instant::now(),
        });
    }

    fn destroy(&mut self, channel: &Channel, request: u64, sandbox: u32) {
        if let Some(gateway) = &mut self.gateway
            && let Err(error) = gateway.detach(sandbox)
        {
            respond(
                channel,
                request,
                Err(SpawnError::Network {
                    why: error.to_string(),
                }),
                &[],
            );
            return;
        }
        self.removals.push(Removal {
            request: Some(request),
            cgroup: self.cgroups.sandbox(sandbox),
            began: Instant::now(),
        });
        self.remove_cgroups(channel);
    }

    fn remove_cgroups(&mut self, channel: &Channel) {
        self.removals.retain(|removal| {
            let result = match removal.cgroup.remove() {
                Err(SpawnError::Sys { errno: libc::EBUSY, .. }) if removal.began.elapsed() < REMOVE_DEADLINE => return true,
                other => other,
            };
            match (removal.request, result) {
                (Some(request), result) => respond(channel, request, result.map(|()| Reply::Done), &[]),
                (None, Err(error)) => tracing::warn!(%error, "the cgroup of a sandbox that could not be made stays behind"),
                (None, Ok(())) => {}
            }
            false
        });
    }

    fn remove_layer(&self, diff_id: &str) -> Result<(), SpawnError> {
        let hex = layers::digest_hex(diff_id)?;
        let mut directories = vec![self.images.join("layers").join(hex)];
        for base in std::fs::read_dir(self.images.join("shifted"))
            .into_iter()
            .flatten()
            .flatten()
        {
            directories.push(base.path().join(hex));
        }
        for directory in directories {
            match std::fs::remove_dir_all(&directory) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(SpawnError::sys(
                        "unlink",
                        error,
                        format!("delete layer {diff_id}"),
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Worker for Housekeeper {
    fn serve(&mut self, channel: &Channel, request: Request, mut descriptors: Vec<OwnedFd>) {
        let id = request.id;
        let result = match request.op {
            Op::MakeSandbox { sandbox } => match self.make(id, sandbox) {
                Ok(()) => {
                    if self.newborns.len() >= TOGETHER {
                        self.raise(channel);
                    }
                    return;
                }
                Err(error) => Err(error),
            },
            Op::DestroySandbox { sandbox } => {
                self.destroy(channel, id, sandbox);
                return;
            }
            Op::Unpack {
                diff_id,
                media_type,
            } => match Job::begin(
                id,
                &self.images,
                &diff_id,
                &media_type,
                descriptors.pop(),
                self.disk_reserve,
            ) {
                Ok(job) => {
                    self.jobs.push(job);
                    return;
                }
                Err(error) => Err(error),
            },
            Op::RemoveLayer { diff_id } => self.remove_layer(&diff_id).map(|()| Reply::Done),
            Op::RefusalSockets => {
                let sockets = match &self.gateway {
                    Some(gateway) => gateway
                        .refusal_sockets()
                        .map_err(|e| SpawnError::Network { why: e.to_string() }),
                    None => Ok(Vec::new()),
                };
                match sockets {
                    Ok(sockets) => {
                        let borrowed: Vec<BorrowedFd<'_>> =
                            sockets.iter().map(AsFd::as_fd).collect();
                        respond(channel, id, Ok(Reply::Done), &borrowed);
                        return;
                    }
                    Err(error) => Err(error),
                }
            }
            Op::Hold { .. } => Err(wrong_role("Hold", Role::Housekeeper)),
            Op::Release { .. } => Err(wrong_role("Release", Role::Housekeeper)),
            Op::Start { .. } => Err(wrong_role("Start", Role::Housekeeper)),
            Op::Prepare { .. } => Err(wrong_role("Prepare", Role::Housekeeper)),
        };
        respond(channel, id, result, &[]);
    }

    fn end(self: Box<Self>) -> Held {
        Held::default()
    }

    fn waiting(&self) -> Vec<BorrowedFd<'_>> {
        self.jobs.iter().map(Job::waits_for).collect()
    }

    fn wake(&mut self, channel: &Channel, index: usize) {
        let Some(finished) = self.jobs.get_mut(index).and_then(Job::advance) else {
            return;
        };
        let job = self.jobs.remove(index);
        let Finished { request, result } = job.finish(finished);
        respond(channel, request, result, &[]);
    }

    fn next_tick(&self) -> Option<Duration> {
        if !self.newborns.is_empty() {
            // As soon as no other request waits to be read.
            Some(Duration::ZERO)
        } else if self.removals.is_empty() {
            None
        } else {
            Some(REMOVE_INTERVAL)
        }
    }

    fn tick(&mut self, channel: &Channel) {
        self.raise(channel);
        self.remove_cgroups(channel);
    }
}

fn wait_until_staged(control: &Channel) -> Result<(), SpawnError> {
    let mut polled = [PollFd::from_borrowed_fd(control.as_fd(), PollFlags::IN)];
    let timeout = Timespec {
        tv_sec: MAKE_DEADLINE_S,
        tv_nsec: 0,
    };
    loop {
        match rustix::event::poll(&mut polled, Some(&timeout)) {
            Ok(0) => {
                return Err(SpawnError::Timeout {
                    seconds: MAKE_DEADLINE_S.unsigned_abs(),
                    at: "making a sandbox".to_owned(),
                });
            }
            Ok(_) => break,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(SpawnError::sys("poll", error, "wait for a sandbox")),
        }
    }
    match control.receive::<FromSandbox>() {
        Ok(Some((FromSandbox::Staged, _))) => Ok(()),
        Ok(Some((FromSandbox::Failed(error), _))) => Err(error),
        Ok(Some((FromSandbox::Executing { .. }, _))) | Ok(None) => Err(SpawnError::SandboxGone {
            detail: "it ended while it was made".to_owned(),
        }),
        Err(error) => Err(SpawnError::sys(
            "recvmsg",
            error,
            "control socket of a sandbox",
        )),
    }
}

/// The network of a sandbox without a gateway.
fn loopback_only(sandbox: u32) -> NetInfo {
    NetInfo {
        index: sandbox,
        host_veth: String::new(),
        address: Ipv4Addr::UNSPECIFIED,
        address6: None,
        sockets: Vec::new(),
    }
}
