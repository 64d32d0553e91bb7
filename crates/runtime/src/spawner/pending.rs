//! A start under way: what its sandbox has said, and what is to be heard yet.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use utsuwa_model::instance::{Kernel, StartPhases};

use super::protocol::{Channel, SpawnError, Start};
use crate::sandbox::inside::FromSandbox;
use crate::sandbox::zygote::Ear;

/// Driven by the sandbox's socket: `Executing`, then end of file (exec happened) or `Failed`.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) request: u64,
    pub(super) sandbox: u32,
    pub(super) control: Channel,
    pub(super) began: Instant,
    pub(super) memory_limit: u64,
    pub(super) cgroup: crate::sandbox::cgroup::SandboxCgroup,
    pub(super) overlay: Duration,
    /// Time the sandbox took for its mounts, once it said that exec is next.
    pub(super) executing: Option<Duration>,
    /// How many volumes it shall have.
    pub(super) volumes: usize,
    pub(super) kernel: Kernel,
    pub(super) upper: String,
    /// Of a zygote.
    pub(super) ear: Option<Ear>,
    pub(super) alike: Start,
    /// Of its first process.
    pub(super) pid: u32,
    /// Its program runs; it is waited for until it is parked.
    pub(super) parking: bool,
}

impl Pending {
    /// The keeper is gone: whether the program runs, or ran already. Nothing of an app's own runs in one that is to be parked.
    pub(super) fn has_begun(&self) -> bool {
        let parks = self.ear.as_ref().and_then(Ear::parking).is_some();
        !parks && executes(&self.control, self.executing.is_some())
    }

    /// Where the time went, now that it is started.
    fn phases(&self) -> StartPhases {
        let rootfs = self.overlay + self.executing.unwrap_or_default();
        StartPhases {
            sandbox: Duration::ZERO,
            rootfs,
            exec: self.began.elapsed().saturating_sub(rootfs),
        }
    }

    /// The sandbox's socket has something: a message, or the end.
    pub(super) fn advance(&mut self) -> Option<Result<StartPhases, SpawnError>> {
        if self.parking {
            let said = self.ear.as_ref().map_or(Ok(()), Ear::listen);
            return Some(said.map(|()| self.phases()));
        }
        match self.control.receive::<FromSandbox>() {
            Ok(Some((
                FromSandbox::Executing {
                    mounts,
                    volumes,
                    kernel,
                    zygote,
                },
                _,
            ))) => {
                if self.ear.is_some() && !zygote {
                    return Some(Err(SpawnError::SandboxGone {
                        detail: "it was made by an older build, which parks nothing".to_owned(),
                    }));
                }
                if volumes != self.volumes || kernel != self.kernel {
                    // Pooled by a build that knew no volumes or no gVisor: an app must not write to its root what it believes
                    // to be elsewhere, nor run on a kernel that was not asked for.
                    return Some(Err(SpawnError::SandboxGone {
                        detail: "it was made by an older build, which can't start this".to_owned(),
                    }));
                }
                self.executing = Some(mounts);
                None
            }
            Ok(Some((FromSandbox::Failed(error), _))) => Some(Err(error)),
            Ok(Some((FromSandbox::Staged, _))) => None,
            Ok(None) => Some(match self.executing {
                Some(_) if self.ear.as_ref().and_then(Ear::parking).is_some() => {
                    self.parking = true;
                    return None;
                }
                Some(_) => Ok(self.phases()),
                None if self.cgroup.oom_kills().is_some_and(|kills| kills > 0) => {
                    Err(SpawnError::MemoryLimit {
                        limit: self.memory_limit,
                    })
                }
                None => Err(SpawnError::SandboxGone {
                    detail: "its control socket closed".to_owned(),
                }),
            }),
            Err(error) => Some(Err(SpawnError::sys(
                "recvmsg",
                error,
                "control socket of a sandbox",
            ))),
        }
    }
}

/// Whether a sandbox that says so with what it has said by now executes its program, or did; `said`: earlier. One that is about
/// to counts, too: it may be done before anybody looks again.
fn executes(control: &Channel, mut said: bool) -> bool {
    loop {
        let mut polled = [PollFd::new(control, PollFlags::IN)];
        // Without anything to read it would be waited for.
        if !rustix::event::poll(&mut polled, Some(&Timespec::default()))
            .is_ok_and(|ready| ready > 0)
        {
            return said;
        }
        match control.receive::<FromSandbox>() {
            Ok(Some((FromSandbox::Executing { .. }, _))) => said = true,
            Ok(Some((FromSandbox::Staged, _))) => {}
            Ok(Some((FromSandbox::Failed(_), _))) => return false,
            Ok(None) | Err(_) => return said,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn executing() -> FromSandbox {
        FromSandbox::Executing {
            mounts: Duration::ZERO,
            volumes: 0,
            kernel: Kernel::Host,
            zygote: false,
        }
    }

    #[test]
    fn a_program_has_begun_once_its_sandbox_said_so_unless_it_could_not() {
        let (ours, theirs) = Channel::pair().unwrap();
        assert!(!executes(&ours, false), "it has said nothing");
        theirs.send(&FromSandbox::Staged, &[]).unwrap();
        theirs.send(&executing(), &[]).unwrap();
        assert!(executes(&ours, false), "it is about to");
        drop(theirs);
        assert!(executes(&ours, true), "it did");
        assert!(!executes(&ours, false), "it ended before");

        let (ours, theirs) = Channel::pair().unwrap();
        theirs.send(&executing(), &[]).unwrap();
        let why = SpawnError::SandboxGone {
            detail: "no such program".to_owned(),
        };
        theirs.send(&FromSandbox::Failed(why), &[]).unwrap();
        drop(theirs);
        assert!(!executes(&ours, false));
    }
}
