//! Looking at and preparing processes through `/proc`.

use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use super::sys::{self, Cloned};
use crate::spawner::SpawnError;

/// How many ids every service has inside and outside.
pub const ID_COUNT: u32 = 65_536;
/// First uid and gid of unpacked layers on disk (0x1000_0000): above what distributions hand out, nobody's login.
pub const IMAGE_BASE: u32 = 268_435_456;

/// Name of a process that waits to become an instance.
pub(crate) const POOLED_NAME: &CStr = c"utsuwa-pooled";
/// Name of the first process of an instance on gVisor: it executes nothing, so this tells that it has begun.
pub(crate) const GVISOR_NAME: &CStr = c"utsuwa-gvisor";

const SIGTERM_BIT: u64 = 1 << (libc::SIGTERM - 1);

/// Whether a `SIGTERM` would mean anything to `pid`.
///
/// The kernel drops a signal with default action that is sent to PID 1 of a pid namespace, so an instance without a handler
/// would just sit there. A program that blocks the signal waits for it with `sigwait` or a signalfd; one that ignores it
/// has decided to use its grace time.
///
/// # Errors
/// What reading `/proc/PID/status` says; `NotFound` when it has ended.
pub fn has_sigterm_handler(pid: u32) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mask = |name: &str| {
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap_or("0");
        u64::from_str_radix(line.trim(), 16).unwrap_or(0)
    };
    Ok((mask("SigCgt:") | mask("SigBlk:") | mask("SigIgn:")) & SIGTERM_BIT != 0)
}

/// Maps ids `inside..inside+count` of the user namespace of `pid` to `outside…`, users and groups.
pub(crate) fn map_ids(pid: u32, inside: u32, outside: u32, count: u32) -> Result<(), SpawnError> {
    let line = format!("{inside} {outside} {count}");
    write_maps(pid, &line, &line)
}

fn write_maps(pid: u32, users: &str, groups: &str) -> Result<(), SpawnError> {
    for (map, line) in [("uid_map", users), ("gid_map", groups)] {
        let path = format!("/proc/{pid}/{map}");
        write_file(&path, line).map_err(|error| match error.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => SpawnError::SandboxGone {
                detail: format!("{path} is not there"),
            },
            _ => SpawnError::sys("write", error, format!("map ids: write {line:?} to {path}")),
        })?;
    }
    Ok(())
}

/// Writes an existing file of `/proc` or a cgroup in one call.
pub(crate) fn write_file(path: impl AsRef<std::path::Path>, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)?
        .write_all(text.as_bytes())
}

/// A user namespace in which `inside…` are `outside…`, held by its descriptor only: for idmapped mounts.
pub(crate) fn user_namespace(inside: u32, outside: u32) -> Result<OwnedFd, SpawnError> {
    let line = format!("{inside} {outside} {ID_COUNT}");
    user_namespace_of(&line, &line)
}

/// The same with the kernel's own lines for users and groups.
pub(crate) fn user_namespace_of(users: &str, groups: &str) -> Result<OwnedFd, SpawnError> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
        .map_err(|e| SpawnError::sys("pipe", e, "make a user namespace"))?;
    let cloned = sys::clone_process(libc::CLONE_NEWUSER as u64, false, None)
        .map_err(|e| SpawnError::sys("clone3", e, "make a user namespace"))?;
    match cloned {
        Cloned::Child => {
            // Exists only to hold the namespace until the parent has it; end of file says it has, or is dead.
            drop(writer);
            let mut byte = [0];
            let _ = File::from(reader).read(&mut byte);
            sys::leave(0)
        }
        Cloned::Parent { pid, pidfd } => {
            drop(reader);
            let result = write_maps(pid, users, groups).and_then(|()| {
                let path = format!("/proc/{pid}/ns/user");
                File::open(&path)
                    .map(OwnedFd::from)
                    .map_err(|e| SpawnError::sys("open", e, path))
            });
            drop(writer);
            reap(&pidfd);
            result
        }
    }
}

/// Waits for a child and forgets how it ended.
pub(crate) fn reap(pidfd: &OwnedFd) {
    use std::os::fd::AsFd;
    let id = rustix::process::WaitId::PidFd(pidfd.as_fd());
    while let Err(rustix::io::Errno::INTR) =
        rustix::process::waitid(id.clone(), rustix::process::WaitIdOptions::EXITED)
    {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_without_handler_is_told_from_one_with() {
        // nextest and cargo install none for SIGTERM in the test process; sleep has none either.
        let mut child = std::process::Command::new("sleep")
            .arg("30")
            .spawn()
            .unwrap();
        let without = has_sigterm_handler(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!without);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "trap 'exit 0' TERM; echo set; read line"])
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut set = [0; 4];
        child.stdout.as_mut().unwrap().read_exact(&mut set).unwrap();
        let with = has_sigterm_handler(child.id()).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(with);
        assert_eq!(
            has_sigterm_handler(child.id()).unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
    }
}
