//! What the kernel did when the memory limit was reached.
//!
//! On v2 it kills the whole cgroup at once (`memory.oom.group`). On v1 it kills one process, which may be a worker whose parent
//! lives on without it; nobody would be told, so there is a descriptor that becomes readable when memory runs out.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use super::usage::keyed;
use super::{SandboxCgroup, Tree};
use crate::sandbox::process::write_file;

impl SandboxCgroup {
    /// How many processes the kernel killed here because of the memory limit; `None` when the cgroup is gone.
    #[must_use]
    pub fn oom_kills(&self) -> Option<u64> {
        let file = match &self.tree {
            Tree::V2 { root } => root.join("memory.events"),
            Tree::V1 { memory, .. } => memory.join("memory.oom_control"),
            Tree::None => return None,
        };
        keyed(&fs::read_to_string(file).ok()?, "oom_kill")
    }

    /// v1: becomes readable when memory runs out, a moment before the kernel kills, and when the cgroup is removed. `None` on
    /// v2, where nothing is left to be done then.
    pub(crate) fn oom_events(&self) -> io::Result<Option<OwnedFd>> {
        let Tree::V1 { memory, .. } = &self.tree else {
            return Ok(None);
        };
        let events = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let control = fs::File::open(memory.join("memory.oom_control"))?;
        let registration = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
        write_file(memory.join("cgroup.event_control"), &registration)?;
        Ok(Some(events))
    }
}
