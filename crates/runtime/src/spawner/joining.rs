//! How the housekeeper makes the sandbox of a further container: born into the network and the user namespace of its instance.
//!
//! Owns: the way there. Doesn't: confine it; from its birth on it goes the way of every sandbox (`sandbox::inside`).
//!
//! Why a helper process: nobody comes back from a user namespace. The helper enters both and gives birth there; its child has
//! mount, process, IPC and host name namespaces of its own, owned by the instance's user namespace exactly like those of the
//! first container. Network and user namespace go together: one that owned neither could not even mount its own sysfs.
//!
//! Invariants
//! 1. The keeper is the parent of both: of the child for its exit, of the helper because only a sibling's child is a sibling.
//! 2. The helper has ended before the answer goes out, so that reaping it never waits.

use std::os::fd::{AsFd, OwnedFd};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde::{Deserialize, Serialize};

use super::housekeeper::Housekeeper;
use super::making::{Newborn, wait_until_staged};
use super::protocol::{Channel, Reply, SpawnError};
use super::respond;
use crate::sandbox::cgroup::SandboxCgroup;
use crate::sandbox::inside::{self, Plan};
use crate::sandbox::sys::{self, Cloned};
use crate::sandbox::walls::Wall;

const WHAT: &str = "make a sandbox for a further container";

/// From the helper; its child's pidfd comes along.
#[derive(Debug, Serialize, Deserialize)]
struct Born {
    pid: u32,
}

impl Housekeeper {
    pub(super) fn join(
        &mut self,
        channel: &Channel,
        request: u64,
        sandbox: u32,
        descriptors: Vec<OwnedFd>,
    ) {
        let cgroup = self.cgroups.sandbox(sandbox);
        let joined = cgroup
            .create()
            .and_then(|()| self.bear_member(request, sandbox, &cgroup, descriptors));
        match joined {
            Ok((newborn, helper)) => {
                let made = Reply::Joined {
                    pid: newborn.pid,
                    helper,
                };
                let descriptors = [newborn.pidfd.as_fd(), newborn.control.as_fd()];
                respond(channel, request, Ok(made), &descriptors);
            }
            Err(error) => {
                self.give_up(sandbox, cgroup);
                respond(channel, request, Err(error), &[]);
            }
        }
    }

    fn bear_member(
        &self,
        request: u64,
        sandbox: u32,
        cgroup: &SandboxCgroup,
        descriptors: Vec<OwnedFd>,
    ) -> Result<(Newborn, u32), SpawnError> {
        let [netns, userns]: [OwnedFd; 2] = descriptors.try_into().map_err(|_| {
            let why = "network and user namespace must come along".to_owned();
            SpawnError::Invalid {
                field: "descriptors".to_owned(),
                why,
            }
        })?;
        let pair = || Channel::pair().map_err(|e| SpawnError::sys("socketpair", e, WHAT));
        let (ours, theirs) = pair()?;
        let (from_helper, to_us) = pair()?;
        let cloned =
            sys::clone_process(0, true, None).map_err(|e| SpawnError::sys("clone3", e, WHAT))?;
        let (helper, helper_pidfd) = match cloned {
            Cloned::Child => help(&netns, &userns, &theirs, &to_us, &self.plan),
            Cloned::Parent { pid, pidfd } => (pid, pidfd),
        };
        drop((theirs, to_us));
        let born = from_helper.receive::<Result<Born, SpawnError>>();
        wait_for_end(&helper_pidfd);
        let gone = || SpawnError::SandboxGone {
            detail: "the process that was to make it ended".to_owned(),
        };
        let (born, mut descriptors) = born
            .map_err(|e| SpawnError::sys("recvmsg", e, WHAT))?
            .ok_or_else(gone)?;
        let newborn = Newborn {
            request,
            sandbox,
            cgroup: cgroup.clone(),
            attach: true,
            pid: born?.pid,
            pidfd: descriptors.pop().ok_or_else(gone)?,
            control: ours,
        };
        let ready = newborn
            .admit()
            .and_then(|()| wait_until_staged(&newborn.control));
        if let Err(error) = ready {
            // The keeper, its parent, reaps it like any child.
            let kill = rustix::process::Signal::KILL;
            let _ = rustix::process::pidfd_send_signal(&newborn.pidfd, kill);
            return Err(error);
        }
        Ok((newborn, helper))
    }
}

/// The helper's whole life.
fn help(netns: &OwnedFd, userns: &OwnedFd, theirs: &Channel, to_us: &Channel, plan: &Plan) -> ! {
    let enter = |namespace: &OwnedFd, kind| {
        move_into_link_name_space(namespace.as_fd(), Some(kind))
            .map_err(|e| SpawnError::sys("setns", e, WHAT))
    };
    let entered = enter(netns, LinkNameSpaceType::Network).and_then(|()| {
        if Wall::UserNamespace.stands() {
            enter(userns, LinkNameSpaceType::User)
        } else {
            Ok(())
        }
    });
    let cloned = entered.and_then(|()| {
        sys::clone_process(sys::OWN_NAMESPACES, true, None)
            .map_err(|e| SpawnError::sys("clone3", e, WHAT))
    });
    let _ = match cloned {
        Ok(Cloned::Child) => inside::run(theirs, plan),
        Ok(Cloned::Parent { pid, pidfd }) => {
            to_us.send(&Ok::<_, SpawnError>(Born { pid }), &[pidfd.as_fd()])
        }
        Err(error) => to_us.send(&Err::<Born, _>(error), &[]),
    };
    sys::leave(0)
}

/// Its parent reaps it.
fn wait_for_end(pidfd: &OwnedFd) {
    use rustix::event::{PollFd, PollFlags, poll};
    let mut polled = [PollFd::from_borrowed_fd(pidfd.as_fd(), PollFlags::IN)];
    while let Err(rustix::io::Errno::INTR) = poll(&mut polled, None) {}
}
