//! No CPU for an idle sandbox: freezing it, and thawing it again.
//!
//! v1 and v2 differ in what they do with the frozen. On v2 a frozen process can be killed; on v1 a signal waits until it is
//! thawed, whatever the signal. Both freeze a little later than they are told to: a process in the middle of a disk read
//! ends it first. Nothing here waits for that.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::{Cgroups, SandboxCgroup, Tree, hierarchies};
use crate::sandbox::process::write_file;
use crate::spawner::SpawnError;

/// Why a sandbox was not frozen.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    /// It will not become possible for this sandbox.
    #[error("{0}")]
    Impossible(String),
    #[error(transparent)]
    Sys(#[from] SpawnError),
}

/// Whether this host can freeze instances.
///
/// # Errors
/// What it lacks, and what to do about it.
pub fn freezer() -> Result<(), String> {
    let found = hierarchies().unwrap_or_default();
    let v1 = |controller: &str| {
        found
            .iter()
            .any(|h| h.controllers.iter().any(|c| c == controller))
    };
    // As in `Cgroups::open`: where v1 has the controllers we use, its freezer is needed too.
    if v1("freezer") || !v1("memory") {
        Ok(())
    } else {
        Err(NO_FREEZER.to_owned())
    }
}

const NO_FREEZER: &str = "this host has no cgroup freezer beside its other v1 controllers: \
    mkdir /sys/fs/cgroup/freezer && mount -t cgroup -o freezer none /sys/fs/cgroup/freezer";

const NO_CGROUP: &str =
    "instances have no cgroup, because none was delegated to the user whose server this is";

/// What `tree` lacks to freeze anything.
fn lack(tree: &Tree) -> Option<&'static str> {
    match tree {
        Tree::V2 { .. } => None,
        Tree::V1 { freezer, .. } => freezer.is_none().then_some(NO_FREEZER),
        Tree::None => Some(NO_CGROUP),
    }
}

impl Cgroups {
    /// Why none of its sandboxes can be frozen.
    #[must_use]
    pub fn never_freezes(&self) -> Option<&'static str> {
        lack(&self.tree)
    }
}

impl SandboxCgroup {
    /// Takes the CPU away from everything in it. Freezing the frozen changes nothing.
    ///
    /// # Errors
    /// [`FreezeError::Impossible`] on a host without a freezer, and for a sandbox that was made before there was one.
    pub fn freeze(&self) -> Result<(), FreezeError> {
        let Some((file, words)) = self.freezer() else {
            let why = lack(&self.tree).unwrap_or(NO_FREEZER);
            return Err(FreezeError::Impossible(why.to_owned()));
        };
        write_file(&file, words.frozen).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                let text = "it was started by a build that could not freeze instances";
                return FreezeError::Impossible(text.to_owned());
            }
            SpawnError::sys("write", error, file.display().to_string()).into()
        })
    }

    /// Gives the CPU back. What was never frozen, can't be, or is gone needs nothing.
    ///
    /// # Errors
    /// [`SpawnError::Sys`] naming the file.
    pub fn thaw(&self) -> Result<(), SpawnError> {
        let Some((file, words)) = self.freezer() else {
            return Ok(());
        };
        match write_file(&file, words.thawed) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(SpawnError::sys("write", error, file.display().to_string()))
            }
            _ => Ok(()),
        }
    }

    /// Whether it was told to freeze and not to thaw since. It may take a moment to come to rest.
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.freezer().is_some_and(|(file, words)| {
            fs::read_to_string(file).is_ok_and(|state| state.trim() != words.thawed)
        })
    }

    fn freezer(&self) -> Option<(PathBuf, Words)> {
        match &self.tree {
            Tree::V2 { root } => Some((root.join("cgroup.freeze"), V2)),
            Tree::V1 { freezer, .. } => Some((freezer.as_ref()?.join("freezer.state"), V1)),
            Tree::None => None,
        }
    }
}

/// What is written for which state. v1 reads as `FREEZING` in between, which is not thawed.
struct Words {
    frozen: &'static str,
    thawed: &'static str,
}

const V1: Words = Words {
    frozen: "FROZEN",
    thawed: "THAWED",
};
const V2: Words = Words {
    frozen: "1",
    thawed: "0",
};
