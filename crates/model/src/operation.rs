//! A long-running operation: a view of a generation's outcome, not a process (house rule: nothing has to remember to finish it).

use serde::{Deserialize, Serialize};

use crate::{ServiceKey, Timestamp};

/// What was asked for. Reads as done once an outcome exists for `generation`, or a later one if it made no revision of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operation {
    /// UUID; the last part of the operation's name.
    pub id: String,
    pub service: ServiceKey,
    pub service_uid: String,
    pub generation: u64,
    pub kind: OperationKind,
    pub create_time: Timestamp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum OperationKind {
    Create,
    Update,
    Delete,
}

/// What became of one generation of a service. Recorded once, in the transaction that writes the status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum GenerationOutcome {
    Succeeded,
    Failed { reason: String, message: String },
}
