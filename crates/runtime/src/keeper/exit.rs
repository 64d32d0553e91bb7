//! How a process ended, from wherever it can still be learned; and whether it is still the same process.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::process::{WaitId, WaitIdOptions, waitid};

/// Raw end of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    Code(i32),
    Signal(i32),
}

/// Reaps the process behind `pidfd` if it is our child, else asks the kernel about the one that was reaped by another.
/// `None`: not ended, or nobody can tell (yet).
pub(crate) fn learn(pidfd: BorrowedFd<'_>, pid: u32) -> Option<Ending> {
    match waitid(
        WaitId::PidFd(pidfd.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    ) {
        Ok(Some(status)) => {
            if let Some(signal) = status.terminating_signal() {
                return Some(Ending::Signal(signal));
            }
            status.exit_status().map(Ending::Code)
        }
        // Our child and still alive.
        Ok(None) => None,
        // Not our child: its keeper died. A zombie still shows its status; after it was reaped, pidfs remembers (Linux 6.15).
        Err(_) => from_zombie(pid).or_else(|| from_pidfs(pidfd)),
    }
}

fn from_wait_status(status: i32) -> Ending {
    match status & 0x7f {
        0 => Ending::Code((status >> 8) & 0xff),
        signal => Ending::Signal(signal),
    }
}

/// Field 52 of `/proc/PID/stat` of a zombie. The caller holds a pidfd, so while the pid exists it is the same process.
fn from_zombie(pid: u32) -> Option<Ending> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    // The first field here is field 3 (state).
    if fields.first() != Some(&"Z") {
        return None;
    }
    fields.get(49)?.parse().ok().map(from_wait_status)
}

/// `struct pidfd_info`, first published size.
#[repr(C)]
#[derive(Default)]
struct PidfdInfo {
    mask: u64,
    cgroup: u64,
    ids: [u32; 11],
    exit_code: i32,
}

/// `PIDFD_INFO_EXIT`.
const INFO_EXIT: u64 = 1 << 3;
/// `_IOWR(0xFF, 11, struct pidfd_info)` with 64 bytes.
const PIDFD_GET_INFO: libc::c_ulong = (3 << 30) | (64 << 16) | (0xFF << 8) | 11;

#[expect(unsafe_code, reason = "the ioctl has no safe wrapper yet")]
fn from_pidfs(pidfd: BorrowedFd<'_>) -> Option<Ending> {
    let mut info = PidfdInfo {
        mask: INFO_EXIT,
        ..PidfdInfo::default()
    };
    // SAFETY: the kernel reads and writes at most the 64 bytes whose size is encoded in the request; `info` has 64 bytes
    // and outlives the call.
    let result = unsafe { libc::ioctl(pidfd.as_raw_fd(), PIDFD_GET_INFO as _, &raw mut info) };
    (result == 0 && info.mask & INFO_EXIT != 0).then(|| from_wait_status(info.exit_code))
}

/// Field 22 of `/proc/PID/stat`: ticks after boot at which the process began. Tells a pid that was given again apart.
pub(crate) fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(") ")?
        .1
        .split_ascii_whitespace()
        .nth(19)?
        .parse()
        .ok()
}

/// Device and inode of the file a process executes.
pub(crate) fn executable(pid: u32) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(format!("/proc/{pid}/exe")).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// What a process calls itself.
pub(crate) fn name(pid: u32) -> Option<Vec<u8>> {
    let mut name = std::fs::read(format!("/proc/{pid}/comm")).ok()?;
    name.pop_if(|last| *last == b'\n');
    Some(name)
}

impl Ending {
    /// Of the program, from that of the process above it on gVisor, whose status is a shell's: 128 and the signal.
    pub(crate) fn below_gvisor(self) -> Self {
        match self {
            Self::Code(code @ 129..=192) => Self::Signal(code - 128),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::allow_attributes, reason = "tests")]

    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn a_zombie_tells_its_status_and_so_does_a_reaped_process_on_new_kernels() {
        let mut child = Command::new("/bin/sh")
            .args(["-c", "exit 7"])
            .spawn()
            .unwrap();
        let pid = child.id();
        let pidfd = pidfd_open(
            Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(),
            PidfdFlags::empty(),
        )
        .unwrap();
        let mut poll = [rustix::event::PollFd::new(
            &pidfd,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut poll, None).unwrap();
        assert_eq!(from_zombie(pid), Some(Ending::Code(7)));
        child.wait().unwrap();
        assert_eq!(from_zombie(pid), None);
        if let Some(ending) = from_pidfs(pidfd.as_fd()) {
            assert_eq!(ending, Ending::Code(7));
        }
    }

    #[test]
    fn the_start_time_is_this_process_own() {
        let pid = std::process::id();
        assert!(start_time(pid).unwrap() > 0);
        assert_eq!(start_time(pid), start_time(pid));
        assert!(executable(pid).is_some());
        assert!(start_time(u32::MAX).is_none());
    }
}
