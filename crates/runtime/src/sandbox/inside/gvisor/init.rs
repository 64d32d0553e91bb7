//! The first process of an instance on gVisor: above `runsc`, whose status becomes its own.
//!
//! Owns: reaping, and passing SIGTERM on to the first process inside. It is what the keeper knows as the instance, so that
//! everything the keeper does with a process (signals, its end, its cgroup) means the instance.
//! Doesn't: read anything that comes from inside.
//!
//! Invariants
//! 1. It has no capability, and nothing of the image or of `runsc`'s state open.
//! 2. SIGTERM is blocked, which the keeper reads as "has a use for it".

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::Timespec;
use rustix::process::{Pid, WaitOptions, WaitStatus};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::sandbox::inside::FromSandbox;
use crate::sandbox::process::GVISOR_NAME;
use crate::sandbox::sys::{self, Cloned};
use crate::sandbox::{gvisor, program};
use crate::spawner::SpawnError;
use crate::spawner::protocol::Channel;

/// While the instance comes up `runsc` can't pass a signal on yet: so often, and after such pauses, it is tried again. Longer
/// than the grace period of every stop.
const TRIES: u32 = 100;
const PAUSE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 100_000_000,
};
/// A shell's word for an end by a signal.
const BY_SIGNAL: i32 = 128;
const TERM: u32 = libc::SIGTERM.unsigned_abs();
/// The number of the one descriptor that stays open beside the standard streams.
const KEPT: i32 = 3;

/// The first process, with `runsc` started.
#[derive(Debug)]
pub(super) struct Init {
    runsc: OwnedFd,
    run: Pid,
    wanted: SigSet,
}

impl Init {
    /// Starts `runsc`; its failure to be executed is told on `control`.
    pub(super) fn start(
        runsc: OwnedFd,
        streams: [OwnedFd; 2],
        control: &Channel,
    ) -> Result<Self, SpawnError> {
        let mut wanted = SigSet::empty();
        wanted.add(Signal::SIGTERM);
        wanted.add(Signal::SIGCHLD);
        // Before there is a child whose end could be missed.
        wanted
            .thread_block()
            .map_err(|e| SpawnError::sys("sigprocmask", e, "the first process"))?;
        rustix::thread::set_name(GVISOR_NAME)
            .map_err(|e| SpawnError::sys("prctl", e, "the first process"))?;
        let run = child(|| {
            let [stdout, stderr] = &streams;
            let placed = sys::place(stdout.as_fd(), 1).and_then(|()| sys::place(stderr.as_fd(), 2));
            let error = match placed {
                Ok(()) => execute(&runsc, &gvisor::run_arguments()),
                Err(error) => error,
            };
            let failed = SpawnError::sys("execveat", error, "run runsc");
            let _ = control.send(&FromSandbox::Failed(failed), &[]);
        })?;
        Ok(Self { runsc, run, wanted })
    }

    /// Its life: returns only with a failure.
    pub(super) fn live(self) -> Result<(), SpawnError> {
        let none = CapabilitySets {
            effective: CapabilitySet::empty(),
            permitted: CapabilitySet::empty(),
            inheritable: CapabilitySet::empty(),
        };
        rustix::thread::set_capabilities(None, none)
            .map_err(|e| SpawnError::sys("capset", e, "the first process"))?;
        let runsc = keep_only(self.runsc)
            .map_err(|e| SpawnError::sys("close_range", e, "the first process"))?;
        // Not `sigwait`, which unblocks what it waits for: the keeper would read that SIGTERM means nothing here.
        let signals = SignalFd::with_flags(&self.wanted, SfdFlags::SFD_CLOEXEC)
            .map_err(|e| SpawnError::sys("signalfd", e, "the first process"))?;
        loop {
            match signals.read_signal() {
                Ok(Some(signal)) if signal.ssi_signo == TERM => {
                    // One that can't be started is as good as one that fails: SIGKILL follows.
                    let _ = child(|| terminate(&runsc));
                }
                // An end, or an interruption: look.
                _ => reap(self.run),
            }
        }
    }
}

/// The control socket with all others: its end tells the starter that the instance runs.
fn keep_only(runsc: OwnedFd) -> std::io::Result<OwnedFd> {
    sys::place(runsc.as_fd(), KEPT)?;
    sys::close_from(KEPT + 1)?;
    sys::cloexec_from(KEPT)?;
    // Its number is closed already.
    std::mem::forget(runsc);
    sys::adopt(KEPT)
}

/// Ends with the status of `run` when that has ended. Everything else in the namespace ends with us.
fn reap(run: Pid) {
    while let Ok(Some((pid, status))) = rustix::process::wait(WaitOptions::NOHANG) {
        if pid == run {
            sys::leave(as_code(status));
        }
    }
}

fn as_code(status: WaitStatus) -> i32 {
    let by_signal = status.terminating_signal().map(|signal| BY_SIGNAL + signal);
    status.exit_status().or(by_signal).unwrap_or(1)
}

fn terminate(runsc: &OwnedFd) {
    for _ in 0..TRIES {
        let kill = child(|| {
            let _ = execute(runsc, &gvisor::terminate_arguments());
        });
        let ended = kill.map(|kill| rustix::process::waitpid(Some(kill), WaitOptions::empty()));
        if let Ok(Ok(Some((_, status)))) = ended
            && status.exit_status() == Some(0)
        {
            sys::leave(0);
        }
        nap();
    }
}

fn nap() {
    let mut nothing = [];
    let _ = rustix::event::poll(&mut nothing, Some(&PAUSE));
}

/// A copy of this process that does `work` and ends.
fn child(work: impl FnOnce()) -> Result<Pid, SpawnError> {
    let context = "start a process beside the first";
    let cloned =
        sys::clone_process(0, false, None).map_err(|e| SpawnError::sys("clone3", e, context))?;
    match cloned {
        Cloned::Child => {
            sys::reset_signals();
            work();
            sys::leave(1)
        }
        Cloned::Parent { pid, .. } => {
            i32::try_from(pid)
                .ok()
                .and_then(Pid::from_raw)
                .ok_or_else(|| SpawnError::SandboxGone {
                    detail: format!("a process of it has the number {pid}"),
                })
        }
    }
}

/// Returns only when it failed.
fn execute(runsc: &OwnedFd, arguments: &[CString]) -> std::io::Error {
    let path = format!("PATH={}", program::DEFAULT_PATH);
    let environment = CString::new(path).into_iter().collect::<Vec<_>>();
    sys::exec_descriptor(runsc, arguments, &environment)
}
