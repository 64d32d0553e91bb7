//! The loops: read intent and observation, decide, act through the runtime, write status.
//!
//! Owns: when something is looked at ([`Control`] and its passes), the picture of the world in memory, the status of services
//! and revisions. Decisions are made in `utsuwa_decide`; containers are made by `utsuwa_runtime`; requests are the ingress's.
//!
//! Deliberately not here: HTTP, wire formats, clocks and chance (both come through [`seam::Environment`]).
//!
//! Invariants:
//! 1. A pass takes a key, never an event: it reads what is true now, and repeating it at rest does nothing.
//! 2. One pass per key at a time; user-facing work before housekeeping.
//! 3. No durable write stands between a waiting request and a start.
//! 4. Status and observed generation are one write; routes are published before the status says so.
//!
//! Fails: a failed pass is repeated with back-off and shown in the table of loops; nothing is given up silently.

mod core;
mod domain;
mod explain;
mod handle;
mod image;
mod instance;
mod logs;
mod publish;
pub mod revision;
mod rounds;
pub mod seam;
mod service;
pub mod settings;
mod traffic;
mod world;

pub use core::Seams;
pub use explain::{InstanceExplained, RevisionExplained};
pub use handle::{Control, ControlError, ControlHandle};
pub use rounds::LoopLine;
pub use settings::ControlSettings;
