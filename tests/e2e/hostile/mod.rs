//! The hostile suite: a program that runs as root in an instance and tries to get out (`tests/hostile`), one attempt at a time.
//!
//! Owns: where it runs (a made-up host with a network of its own, a neighbour, things to attack), and the verdict.
//! Doesn't: know how an attempt is made; the program tells its table (`hostile list`).

mod attempts;
mod bombs;
mod controls;
mod gvisor;
mod images;
mod not_here;
mod page;
mod sidecar;
mod walls;
mod world;

use std::path::PathBuf;

use serde::Deserialize;

use crate::harness::{can_run, skip};

/// One line of the program's table.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Attempt {
    pub(crate) name: String,
    pub(crate) what: String,
    /// Published cases with this mechanism.
    pub(crate) cve: String,
    /// Every wall that stops it by itself.
    pub(crate) walls: Vec<String>,
}

/// How one went.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Verdict {
    pub(crate) outcome: String,
    pub(crate) detail: String,
}

/// What stands between the hostile program and the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum On {
    /// Our launcher's walls.
    Launcher,
    /// gVisor's kernel behind them.
    Gvisor,
}

impl On {
    /// How it is asked for.
    pub(crate) fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Launcher => &[],
            Self::Gvisor => &["--execution-environment", "gen1"],
        }
    }

    /// Whether this may get through; why that is no way out is said in [`gvisor::OF_ITS_OWN`].
    pub(crate) fn may_let_through(self, attempt: &str) -> bool {
        self == Self::Gvisor && gvisor::OF_ITS_OWN.iter().any(|(name, _)| *name == attempt)
    }
}

/// Whether runsc is here; otherwise the test is skipped by name.
pub(crate) fn gvisor_is_here(test: &str) -> bool {
    let there = utsuwa_runtime::sandbox::gvisor::installed();
    if let Err(why) = &there {
        skip(test, &format!("needs runsc: {why} (apt install runsc)"));
    }
    there.is_ok()
}

impl Attempt {
    /// It takes as much as it gets of something.
    pub(crate) fn is_bomb(&self) -> bool {
        self.name.ends_with("-bomb") && self.name != "cgroup-bomb"
    }
}

/// The folder of the test inputs with the program and its image; otherwise the test is skipped by name.
fn inputs(test: &str) -> Option<PathBuf> {
    if !can_run(test) {
        return None;
    }
    let folder = std::env::var_os("UTSUWA_TEST_HOSTILE").map(PathBuf::from);
    if folder.is_none() {
        skip(
            test,
            "needs the hostile image: scripts/test-inputs.sh makes it",
        );
    }
    folder
}
