//! The vocabulary of Utsuwa: ids, specs, statuses, conditions, defaulting, validation, state predicates.
//!
//! Owns: every noun that two crates must agree on. The shape follows Cloud Run's v2 resources (decision 18), with v1's
//! extra fields kept so that both APIs read back what they wrote.
//!
//! Deliberately not here: I/O, async, clocks, chance, wire formats, unordered maps (law 1).
//!
//! Invariants:
//! 1. A value of an id type is always well-formed: the only way in is its parser.
//! 2. Time is an argument ([`Timestamp`]), never read.
//! 3. `observed_generation <= generation` for every resource.

pub mod address;
pub mod because;
pub mod condition;
pub mod demand;
pub mod domain;
pub mod host_dir;
pub mod iam;
pub mod image;
pub mod instance;
pub mod name;
pub mod nearest;
pub mod operation;
pub mod quantity;
pub mod revision;
pub mod route;
pub mod scaling;
pub mod service;
pub mod time;
pub mod violation;

pub use because::Because;
pub use condition::{Condition, ConditionState, Severity};
pub use name::{InstanceId, ProjectId, Region, RevisionId, RevisionKey, ServiceId, ServiceKey};
pub use time::Timestamp;
pub use violation::{FieldViolation, Violations};
