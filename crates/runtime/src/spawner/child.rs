//! A child of a spawner that does one slow thing and says how it went.
//!
//! Owns: the process, the pipe it answers through. Doesn't: know what it does.
//!
//! Invariants
//! 1. It ends with its [`Child`], and with the spawner.
//! 2. It holds nothing of the spawner's: the keeper sees the spawner's end at once, whatever its children do.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Signal, pidfd_send_signal, set_parent_process_death_signal};
use serde::Serialize;

use super::protocol::SpawnError;
use crate::sandbox::process::reap;
use crate::sandbox::sys::{self, Cloned};

/// No answer is longer: the list of a layer's opaque directories is the longest.
const ANSWER_LIMIT: usize = 64 << 20;
/// Where a forked child answers; everything above is closed there.
const ANSWER_FD: i32 = 3;

/// A child and what it has said so far.
#[derive(Debug)]
pub(super) struct Child {
    pidfd: Option<OwnedFd>,
    answer_pipe: File,
    answer: Vec<u8>,
    /// It has said all; it is about to end.
    silent: bool,
}

impl Child {
    /// `answer_pipe` is the reading end of what the process behind `pidfd` writes to.
    pub(super) fn new(pidfd: OwnedFd, answer_pipe: File) -> Self {
        Self {
            pidfd: Some(pidfd),
            answer_pipe,
            answer: Vec::new(),
            silent: false,
        }
    }

    /// Has a copy of this (single-threaded) process do `work`; `turn` says whose turn it is on the processors. It is the only one
    /// the child takes: without root none gets back what it has given away.
    ///
    /// # Errors
    /// [`SpawnError`]; nothing was begun then.
    pub(super) fn fork<T: Serialize>(
        what: &str,
        turn: fn(),
        work: impl FnOnce() -> Result<T, SpawnError>,
    ) -> Result<Self, SpawnError> {
        let (reader, writer) =
            pipe_with(PipeFlags::CLOEXEC).map_err(|e| SpawnError::sys("pipe", e, what))?;
        let parent = rustix::process::getpid();
        let cloned =
            sys::clone_process(0, false, None).map_err(|e| SpawnError::sys("clone3", e, what))?;
        match cloned {
            Cloned::Parent { pidfd, .. } => Ok(Self::new(pidfd, File::from(reader))),
            Cloned::Child => {
                match let_go_of_parent(&writer, parent) {
                    Ok(mut pipe) => {
                        turn();
                        let text = serde_json::to_vec(&work()).unwrap_or_default();
                        let _ = pipe.write_all(&text);
                    }
                    // Without an answer it counts as failed.
                    Err(error) => tracing::warn!(%error, "a child of a spawner ends"),
                }
                sys::leave(0)
            }
        }
    }

    pub(super) fn waits_for(&self) -> BorrowedFd<'_> {
        match &self.pidfd {
            // Until it is gone: who reaped it before would wait for it, while it may wait for a processor.
            Some(pidfd) if self.silent => pidfd.as_fd(),
            _ => self.answer_pipe.as_fd(),
        }
    }

    /// Reads what is there; whether it has ended. To be called when [`Self::waits_for`] is readable.
    pub(super) fn advance(&mut self) -> bool {
        if self.silent {
            return true;
        }
        let mut chunk = [0u8; 64 * 1024];
        match self.answer_pipe.read(&mut chunk) {
            Ok(0) => {
                self.silent = true;
                self.pidfd.is_none()
            }
            Ok(_) if self.answer.len() > ANSWER_LIMIT => true,
            Ok(length) => {
                self.answer.extend_from_slice(&chunk[..length]);
                false
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => false,
            Err(_) => true,
        }
    }

    /// All it said. It does nothing more after this.
    pub(super) fn finish(&mut self) -> &[u8] {
        self.end();
        &self.answer
    }

    fn end(&mut self) {
        if let Some(pidfd) = self.pidfd.take() {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
            reap(&pidfd);
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// Answers with the only descriptor that is left.
fn let_go_of_parent(answer: &OwnedFd, parent: rustix::process::Pid) -> Result<File, SpawnError> {
    let step = |call: &'static str| {
        move |e: rustix::io::Errno| SpawnError::sys(call, e, "begin the work of a child")
    };
    set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("prctl"))?;
    if rustix::process::getppid() != Some(parent) {
        // It died before we asked to be told.
        sys::leave(1);
    }
    sys::place(answer.as_fd(), ANSWER_FD)
        .and_then(|()| sys::close_from(ANSWER_FD + 1))
        .and_then(|()| sys::adopt(ANSWER_FD))
        .map(File::from)
        .map_err(|e| SpawnError::sys("close_range", e, "begin the work of a child"))
}
