//! The turn of a housekeeper: of those that one server has had, one works at a time.
//!
//! A housekeeper whose keeper was killed sees that when it next looks for a request; until then it goes on making what it was
//! making, while the next keeper's housekeeper begins with the same names.
//!
//! Owns: the lock. It belongs to the process: what a housekeeper forks doesn't keep it, and it goes with its holder, however that
//! ends. Doesn't: know what is made under it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::protocol::Channel;

const FILE: &str = "housekeeper.lock";
/// One whose keeper is gone is through with what it does within this, as a rule.
const LAST_STEP: Duration = Duration::from_millis(250);
/// One that takes longer is stuck in the kernel, and nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(2);

/// Held as long as this lives.
#[derive(Debug)]
pub(crate) struct Turn {
    /// Whoever closes any descriptor of the file lets go of the lock.
    _file: File,
}

impl Turn {
    /// The turn, unless somebody has it.
    ///
    /// # Errors
    /// The lock's file can't be made in `runtime_dir`, or not be locked.
    pub(crate) fn take(runtime_dir: &Path) -> io::Result<Option<Self>> {
        let file = open(runtime_dir)?;
        match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Some(Self { _file: file })),
            Err(Errno::AGAIN | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for the turn of a housekeeper with the keeper behind `channel`. `None`: that one is gone, and there is nothing to do.
    ///
    /// # Errors
    /// As [`Turn::take`]; [`io::ErrorKind::TimedOut`]: who has it doesn't end.
    pub(super) fn wait(runtime_dir: &Path, channel: &Channel) -> io::Result<Option<Self>> {
        let began = Instant::now();
        loop {
            let turn = Self::take(runtime_dir)?;
            // A look at whoever is there only after it is one's turn: from now on nobody else begins.
            let patience = if turn.is_some() { Duration::ZERO } else { LOOK };
            if is_gone(channel, patience)? {
                return Ok(None);
            }
            if turn.is_some() {
                return Ok(turn);
            }
            if began.elapsed() > PATIENCE {
                let text = "an earlier housekeeper of this server doesn't end; end it, or restart the machine";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
        }
    }
}

/// Waits until no housekeeper works; ends the one that does if it takes longer than one that sees that its keeper is gone. What it
/// was making is swept away like all that a killed one leaves.
///
/// # Errors
/// The lock's file can't be made in `runtime_dir`; [`io::ErrorKind::TimedOut`]: one that was killed is still there.
pub(crate) fn end_earlier(runtime_dir: &Path) -> io::Result<()> {
    let began = Instant::now();
    let mut killed = false;
    while Turn::take(runtime_dir)?.is_none() {
        if !killed && began.elapsed() > LAST_STEP {
            killed = kill_holder(runtime_dir)?;
        }
        if began.elapsed() > PATIENCE {
            let text = "an earlier housekeeper of this server doesn't end, though it was killed";
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        }
        std::thread::sleep(LOOK);
    }
    Ok(())
}

/// Kills who has the turn. Answers whether somebody had it.
fn kill_holder(runtime_dir: &Path) -> io::Result<bool> {
    let Some(pid) = holder(runtime_dir)? else {
        return Ok(false);
    };
    let opened = pidfd_open(pid, PidfdFlags::empty());
    // Asked again: between the two its number may have become somebody else's.
    match opened {
        Ok(pidfd) if holder(runtime_dir)? == Some(pid) => {
            tracing::info!(
                pid = pid.as_raw_nonzero(),
                "an earlier housekeeper is ended"
            );
            match pidfd_send_signal(&pidfd, Signal::KILL) {
                Ok(()) => Ok(true),
                Err(Errno::SRCH) => Ok(false),
                Err(errno) => Err(errno.into()),
            }
        }
        Ok(_) | Err(Errno::SRCH) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn holder(runtime_dir: &Path) -> io::Result<Option<Pid>> {
    let file = open(runtime_dir)?;
    let mut asked = libc::flock {
        l_type: short(libc::F_WRLCK),
        l_whence: short(libc::SEEK_SET),
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GETLK(&mut asked))?;
    let is_held = asked.l_type != short(libc::F_UNLCK);
    Ok(Pid::from_raw(asked.l_pid).filter(|_| is_held))
}

/// The constants are `int`s, the fields `short`s.
fn short(constant: i32) -> libc::c_short {
    libc::c_short::try_from(constant).unwrap_or_default()
}

fn open(runtime_dir: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(runtime_dir.join(FILE))
}

fn is_gone(channel: &Channel, patience: Duration) -> io::Result<bool> {
    use std::os::fd::AsFd;
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: patience.subsec_nanos().into(),
    };
    // Asked for nothing: a request that waits doesn't end the wait, a hang-up does.
    let mut polled = [PollFd::from_borrowed_fd(
        channel.as_fd(),
        PollFlags::empty(),
    )];
    match rustix::event::poll(&mut polled, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whose_keeper_is_gone_has_no_turn() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, keepers) = Channel::pair().unwrap();
        let turn = Turn::wait(folder.path(), &ours).unwrap();
        assert!(turn.is_some());
        // A request that waits is no reason to think so.
        keepers.send(&"a request", &[]).unwrap();
        assert!(Turn::wait(folder.path(), &ours).unwrap().is_some());
        drop(keepers);
        assert!(Turn::wait(folder.path(), &ours).unwrap().is_none());
    }

    #[test]
    fn nobody_is_ended_where_nobody_is() {
        let folder = tempfile::tempdir().unwrap();
        assert!(!kill_holder(folder.path()).unwrap());
        end_earlier(folder.path()).unwrap();
        let missing = folder.path().join("missing");
        let error = end_earlier(&missing).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
