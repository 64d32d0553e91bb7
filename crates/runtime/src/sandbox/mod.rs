//! One sandbox: namespaces, cgroup, root file system, privileges. Used by the spawner, partly by the keeper and `doctor`.
//!
//! Owns: how a process is confined. Doesn't: keep a list of sandboxes, talk to the keeper (`spawner`), or make networks
//! (`network`).

pub mod cgroup;
pub(crate) mod files;
pub mod gvisor;
pub mod host_dirs;
pub(crate) mod inside;
pub(crate) mod layers;
pub mod probe;
pub mod process;
pub(crate) mod program;
pub mod reclaim;
pub(crate) mod rootfs;
pub(crate) mod seccomp;
pub(crate) mod shift;
pub(crate) mod stage;
pub(crate) mod sys;
pub mod trail;
pub(crate) mod user;
pub mod walls;
pub(crate) mod zygote;

pub use process::has_sigterm_handler;
