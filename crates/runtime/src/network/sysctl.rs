//! Switches of the kernel's network: set, remembered, put back.
//!
//! Owns: the record `/run/utsuwa/ID/network.json`. Doesn't: judge which switches are needed.
//! A switch of the host that we changed is put back by the last server that needs it ([`Record::restore`]).

use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::{NetError, namespace};

/// What one server changed on the host and which addresses it took.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) range: Option<Ipv4Addr>,
    pub(super) changed: Vec<Change>,
}

/// A switch of the host's network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    path: String,
    before: String,
    ours: String,
}

fn record_path(id: &str) -> PathBuf {
    namespace::runtime_dir(id).join("network.json")
}

/// The value, or `None` where this kernel has no such switch.
pub(super) fn read(path: &str) -> Option<String> {
    std::fs::read_to_string(Path::new("/proc/sys").join(path))
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Sets a switch of the thread's namespace; one that this kernel lacks is skipped.
pub(super) fn write(path: &str, value: &str) -> Result<(), NetError> {
    match std::fs::write(Path::new("/proc/sys").join(path), value) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetError::sys(
            format!("set /proc/sys/{path} to {value}"),
            error,
        )),
        _ => Ok(()),
    }
}

impl Record {
    pub(super) fn load(id: &str) -> Self {
        std::fs::read(record_path(id))
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .unwrap_or_default()
    }

    pub(super) fn save(&self, id: &str) -> Result<(), NetError> {
        let path = record_path(id);
        let write = || -> io::Result<()> {
            std::fs::create_dir_all(namespace::runtime_dir(id))?;
            std::fs::write(&path, serde_json::to_vec(self)?)
        };
        write().map_err(|error| NetError::sys(format!("write {}", path.display()), error))
    }

    /// Sets a switch of the host and remembers, on disk first, what it was. One that already has the value isn't ours to put
    /// back.
    pub(super) fn change(&mut self, id: &str, path: &str, value: &str) -> Result<(), NetError> {
        match read(path) {
            Some(before) if before != value => {
                if !self.changed.iter().any(|change| change.path == path) {
                    self.changed.push(Change {
                        path: path.to_owned(),
                        before: before.clone(),
                        ours: value.to_owned(),
                    });
                    self.save(id)?;
                }
                write(path, value)?;
                tracing::info!(
                    switch = path,
                    before,
                    now = value,
                    "changed a switch of the host's network; `utsuwa down` puts it back"
                );
            }
            _ => {}
        }
        Ok(())
    }

    /// Puts the host's switches back, last first, unless someone else changed them since. If another server lives here,
    /// its record takes them over; forwarding also stays on for `dependent`, a network device of other software that forwards.
    pub(super) fn restore(&mut self, id: &str, dependent: Option<&str>) -> Result<(), NetError> {
        if self.changed.is_empty() {
            return Ok(());
        }
        if let Some(other) = other_server(id) {
            let mut record = Self::load(&other);
            for change in self.changed.drain(..) {
                if !record.changed.iter().any(|known| known.path == change.path) {
                    record.changed.push(change);
                }
            }
            return record.save(&other);
        }
        let mut outcome = Ok(());
        for change in self.changed.drain(..).rev() {
            if let Some(device) = dependent {
                tracing::info!(
                    switch = change.path,
                    device,
                    "left a switch on because this device may need it"
                );
                continue;
            }
            if read(&change.path).as_deref() == Some(&change.ours) {
                let written = write(&change.path, &change.before);
                outcome = outcome.and(written);
            }
        }
        outcome
    }

    pub(super) fn remove(id: &str) -> Result<(), NetError> {
        let path = record_path(id);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(NetError::sys(format!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }
}

/// Another server whose uplink is in the thread's network namespace.
fn other_server(id: &str) -> Option<String> {
    std::fs::read_dir(crate::keeper::runtime_base())
        .ok()?
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .find(|other| {
            other != id
                && record_path(other).exists()
                && read(&format!("net/ipv4/conf/utsuwa-{other}/forwarding")).is_some()
        })
}
