//! A service: what the user asked for (`spec`) and what became of it (`status`). Shape: v2's Service (§1.2), v1's extras kept.

pub mod autoscaling;
pub mod defaults;
mod group;
mod spec;
mod status;
pub mod validate;
mod volumes;

pub use spec::*;
pub use status::*;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{ServiceKey, Timestamp};

/// What every stored resource carries. `version` is the optimistic lock: v1's `resourceVersion`, v2's `etag`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
pub struct Meta {
    /// UUID, immutable.
    pub uid: String,
    /// +1 on every accepted change of what users set.
    pub generation: u64,
    /// Microseconds of the last write, strictly increasing per resource.
    pub version: Timestamp,
    pub labels: BTreeMap<String, String>,
    /// Annotations as the user wrote them, including those that v2 has no field for.
    pub annotations: BTreeMap<String, String>,
    pub create_time: Timestamp,
    pub update_time: Timestamp,
    /// Set while the resource is being deleted: loops clear children first, then the row.
    pub delete_time: Option<Timestamp>,
    pub creator: String,
    pub last_modifier: String,
    pub client: String,
    pub client_version: String,
}

/// One service.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Service {
    pub key: ServiceKey,
    pub meta: Meta,
    pub spec: ServiceSpec,
    pub status: ServiceStatus,
}
