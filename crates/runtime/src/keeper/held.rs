//! Descriptors that must not die with the process that uses them.
//!
//! Owns: a set of named descriptors and the way to carry it through `execve`. The starter spawner holds a copy of what the
//! keeper can't make again (log FIFOs, pidfds, sockets), so that they live on when the keeper is killed; a keeper that is
//! replaced by a newer executable carries its own set the same way.
//!
//! Invariants:
//! 1. Descriptors in a set are close-on-exec until [`Held::into_exec`].
//! 2. A name is held once; holding it again replaces it.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::io::FdFlags;

/// Named descriptors.
#[derive(Debug, Default)]
pub struct Held {
    entries: BTreeMap<String, Vec<OwnedFd>>,
}

impl Held {
    /// Keeps `descriptors` under `name`.
    pub fn hold(&mut self, name: impl Into<String>, descriptors: Vec<OwnedFd>) {
        self.entries.insert(name.into(), descriptors);
    }

    /// Closes what is held under `name`.
    pub fn release(&mut self, name: &str) {
        self.entries.remove(name);
    }

    /// Takes what is held under `name` out.
    pub fn take(&mut self, name: &str) -> Option<Vec<OwnedFd>> {
        self.entries.remove(name)
    }

    /// Names that begin with `prefix`.
    #[must_use]
    pub fn names(&self, prefix: &str) -> Vec<String> {
        self.entries
            .keys()
            .filter(|name| name.starts_with(prefix))
            .cloned()
            .collect()
    }

    /// Makes all of them survive `execve` and returns the number of a descriptor that lists them, for [`Held::from_exec`].
    ///
    /// # Errors
    /// No memory or descriptors left.
    pub fn into_exec(self) -> io::Result<RawFd> {
        let mut numbers: BTreeMap<String, Vec<RawFd>> = BTreeMap::new();
        for (name, descriptors) in self.entries {
            let mut list = Vec::new();
            for descriptor in descriptors {
                rustix::io::fcntl_setfd(&descriptor, FdFlags::empty())?;
                list.push(descriptor.into_raw_fd());
            }
            numbers.insert(name, list);
        }
        let mut file = std::fs::File::from(memfd_create("utsuwa-held", MemfdFlags::empty())?);
        file.write_all(&serde_json::to_vec(&numbers)?)?;
        Ok(file.into_raw_fd())
    }

    /// What the process before `execve` held. `list` is the number that [`Held::into_exec`] returned.
    ///
    /// # Errors
    /// The list can't be read.
    #[expect(
        unsafe_code,
        reason = "descriptors named by number are the only way through execve"
    )]
    pub fn from_exec(list: RawFd) -> io::Result<Self> {
        // SAFETY: the number was passed on by our own previous image for this purpose only; nobody else owns it here.
        let mut file = unsafe { std::fs::File::from_raw_fd(list) };
        file.seek(SeekFrom::Start(0))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        let numbers: BTreeMap<String, Vec<RawFd>> = serde_json::from_slice(&text)?;
        let mut held = Self::default();
        for (name, list) in numbers {
            let mut descriptors = Vec::new();
            for number in list {
                // SAFETY: as above; each number stands in the list once.
                let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
                // A number that isn't open (should not happen) must not be closed again later.
                if let Err(error) = rustix::io::fcntl_setfd(&descriptor, FdFlags::CLOEXEC) {
                    let _ = descriptor.into_raw_fd();
                    return Err(error.into());
                }
                descriptors.push(descriptor);
            }
            held.hold(name, descriptors);
        }
        Ok(held)
    }
}
