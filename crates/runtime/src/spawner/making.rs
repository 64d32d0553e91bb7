//! How the housekeeper makes sandboxes: born one by one, raised together.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec};

use super::housekeeper::{Housekeeper, Removal};
use super::protocol::{Channel, NetInfo, Reply, SpawnError};
use super::respond;
use crate::sandbox::cgroup::SandboxCgroup;
use crate::sandbox::inside::{self, FromSandbox, ToSandbox};
use crate::sandbox::process::write_file;
use crate::sandbox::sys::{self, Cloned};

/// A sandbox that isn't ready after this long never will be.
const MAKE_DEADLINE_S: i64 = 10;
/// Above the default 0, so that an app is chosen before the host's own services when the host runs out of memory. Written by
/// root of the host, the lowest the app itself can go back to.
const OOM_SCORE_ADJUSTMENT: &str = "500";

/// A sandbox's process that nobody has let into its waiting room yet.
#[derive(Debug)]
pub(super) struct Newborn {
    pub(super) request: u64,
    pub(super) sandbox: u32,
    pub(super) cgroup: SandboxCgroup,
    /// It must be moved to its cgroup: it could not be born there.
    pub(super) attach: bool,
    pub(super) pid: u32,
    pub(super) pidfd: OwnedFd,
    pub(super) control: Channel,
}

impl Newborn {
    pub(super) fn admit(&self) -> Result<(), SpawnError> {
        let score = format!("/proc/{}/oom_score_adj", self.pid);
        write_file(&score, OOM_SCORE_ADJUSTMENT).map_err(|e| SpawnError::sys("write", e, score))?;
        if self.attach {
            self.cgroup.attach(self.pid)?;
        }
        self.control
            .send(&ToSandbox::Attached, &[])
            .map_err(|e| SpawnError::sys("sendmsg", e, "control socket of a sandbox"))
    }
}

impl Housekeeper {
    /// Gives birth to a sandbox; [`Housekeeper::raise`] does the rest together with those that were asked for meanwhile.
    pub(super) fn make(&mut self, request: u64, sandbox: u32) -> Result<(), SpawnError> {
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
        let cloned =
            sys::clone_sandbox(self.ids.owner_of(sandbox), target.as_ref().map(AsFd::as_fd))
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
    pub(super) fn raise(&mut self, channel: &Channel) {
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
    pub(super) fn give_up(&mut self, sandbox: u32, cgroup: SandboxCgroup) {
        if let Some(gateway) = &mut self.gateway {
            let _ = gateway.detach(sandbox);
        }
        self.removals.push(Removal {
            request: None,
            cgroup,
            began: Instant::now(),
        });
    }
}

pub(super) fn wait_until_staged(control: &Channel) -> Result<(), SpawnError> {
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
