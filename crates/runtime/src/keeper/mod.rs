//! The keeper: the privileged process that outlives the server and holds what must not die with it.
//!
//! Owns: the parenthood of instances, their log FIFOs and files, pidfds, network namespaces, the pool of sandboxes, the
//! listening sockets, and the protocol by which a server (new, restarted, upgraded) gets at them.
//! Doesn't: clone, mount or unpack (the spawners do), decide what should run, or read what strangers send: it takes
//! typed requests that name things by id or pass descriptors (decision 1).
//!
//! Invariants
//! 1. One keeper per data directory (a lock in the runtime directory).
//! 2. An exit is told until it is acknowledged; a log byte is stored exactly once.
//! 3. A killed keeper loses nothing: the starter spawner holds copies of its descriptors (`held`) and takes its place.
//!
//! Failure: requests are answered with [`protocol::KeeperError`]; a keeper that can't go on ends, and is replaced.

mod adopt;
mod capture;
mod config;
mod core;
mod demand;
mod ending;
mod exit;
mod group;
pub mod held;
mod instances;
mod limits;
mod link;
mod listeners;
mod memory;
mod parked;
mod process;
pub mod protocol;
mod record;
mod removal;
mod requests;
mod running;
mod sandboxes;
mod sessions;
mod spawners;
mod starting;
mod stopping;
mod tiers;
mod up;
mod visitor;

pub use capture::LogLimits;
pub(crate) use config::runtime_base;
pub use config::{BUILD, KeeperConfig, PoolLimits, data_id, runtime_dir, socket_path};
pub(crate) use listeners::bind_here;
pub use process::{become_keeper, main};
pub(crate) use running::entries;
pub use running::running;
pub(crate) use sandboxes::{held_sandbox, unfinished_name};
pub use up::{UpError, down, end_server, ensure_keeper, held_listeners};
pub(crate) use visitor::connect_socket;
pub use visitor::{VisitError, Visitor};

/// Arguments with which the starter takes the place of a keeper that died.
pub(crate) fn successor_arguments(config: &KeeperConfig) -> Vec<String> {
    let file = config.file().display().to_string();
    ["internal", "keeper", "--config", &file]
        .map(str::to_owned)
        .to_vec()
}
