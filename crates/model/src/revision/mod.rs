//! A revision: one immutable way to run a service, with its image pinned to a digest (§1.7).

mod defaults;

use serde::{Deserialize, Serialize};

use crate::service::{Meta, RevisionTemplate};
use crate::{Condition, RevisionKey};

/// One revision. `template` never changes after creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Revision {
    pub key: RevisionKey,
    pub meta: Meta,
    /// Generation of the service whose template made this revision.
    pub service_generation: u64,
    pub service_uid: String,
    pub template: RevisionTemplate,
    pub status: RevisionStatus,
}

/// What loops found out about a revision.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct RevisionStatus {
    pub observed_generation: u64,
    pub conditions: Vec<Condition>,
    pub outcome: Outcome,
    /// `REPOSITORY@sha256:…` per container, in the template's order; empty until resolved.
    pub image_digests: Vec<String>,
    /// How long the first instance took from its start until the ingress had reached it, in milliseconds. Written with the
    /// outcome; what a start usually takes until the ingress has seen some itself.
    #[serde(default)]
    pub proven_start_ms: Option<u64>,
}

/// What became of the attempt to make the revision serve. Leaves `Pending` once and never changes again, except that a
/// failed revision is tried anew when the user deploys it anew.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Outcome {
    #[default]
    Pending,
    Ready,
    Failed {
        /// A reason of §1.8: `ContainerMissing`, `HealthCheckContainerError`, `ProgressDeadlineExceeded`, …
        reason: String,
        message: String,
    },
}

impl Revision {
    /// Whether requests may be routed to it.
    #[must_use]
    pub fn can_serve(&self) -> bool {
        self.status.outcome == Outcome::Ready && self.meta.delete_time.is_none()
    }
}
