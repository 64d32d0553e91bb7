//! Instances whose memory ran out end whole.
//!
//! On cgroup v2 the kernel sees to it. On v1 it kills one process of the instance; if that isn't its first one, the app would go
//! on without a worker, or hang, and nobody would know why. So the keeper ends what is left, and the end is told as out of memory.
//! At rest this costs nothing: the kernel makes a descriptor readable.

use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Signal, pidfd_send_signal};

use super::core::{Keeper, Timer, Token, Watch};

/// The event comes a moment before the kill, so we look for the kill this often, each time a little later.
pub(crate) const LOOKS: u32 = 8;

impl Keeper {
    /// Watches the memory of a sandbox from now on. Without it only the end of a first process is recognised as out of memory.
    pub(crate) fn watch_memory(&self, number: u32) -> Option<OwnedFd> {
        let events = self
            .cgroups
            .as_ref()?
            .sandbox(number)
            .oom_events()
            .and_then(|events| {
                if let Some(events) = &events {
                    self.watch(events, Token::OutOfMemory(number), Watch::Level)?;
                }
                Ok(events)
            });
        events
            .inspect_err(|error| tracing::warn!(number, %error, "watch the memory of a sandbox"))
            .ok()
            .flatten()
    }

    /// Ends the instance if the kernel killed a part of it.
    pub(crate) fn memory_ran_out(&mut self, number: u32, attempts: u32) {
        let kills = self.oom_kills(number);
        let Some(sandbox) = self.sandboxes.get(&number) else {
            return;
        };
        let mut count = [0_u8; 8];
        if let Some(events) = &sandbox.memory {
            // Empty after the first look at an event; what counts is the number of kills.
            let _ = rustix::io::read(events, &mut count);
        }
        let Some((id, _)) = sandbox.role.container() else {
            return;
        };
        if kills > 0 {
            tracing::info!(%id, number, kills, "the kernel ended a part of an instance for memory; the rest is ended too");
            // Not marked as killed by us: the cause is the kernel's.
            let _ = pidfd_send_signal(&sandbox.pidfd, Signal::KILL);
            self.thaw_sandbox(number);
        } else if attempts < LOOKS {
            self.after(
                Duration::from_millis(1 << attempts),
                Timer::OutOfMemory {
                    sandbox: number,
                    attempts: attempts + 1,
                },
            );
        }
    }
}
