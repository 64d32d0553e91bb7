//! What the ingress tells the loops: levels, never events (law 3).

use serde::{Deserialize, Serialize};

use crate::{InstanceId, Timestamp};

/// Demand for one revision at one moment. Counters only grow, so that two samples give exact averages between them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RevisionDemand {
    /// Requests inside instances now.
    pub in_flight: u32,
    /// Requests held because no slot is free.
    pub queued: u32,
    /// Integral of (in flight + queued) over time, in request-microseconds since the ingress started.
    pub concurrency_us: u64,
    /// Requests accepted since the ingress started.
    pub arrivals: u64,
    /// When a request last arrived or ended.
    pub last_active: Option<Timestamp>,
    /// Somebody waits and no instance is there or starting.
    pub wake: bool,
    pub instances: Vec<InstanceLoad>,
}

/// One instance as the ingress sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InstanceLoad {
    pub id: InstanceId,
    pub reach: Reach,
    pub in_flight: u32,
    /// When its last request ended, or when it became ready.
    pub idle_since: Option<Timestamp>,
    /// Its probes whose last answers were not what they want.
    pub failing: Vec<FailingProbe>,
}

/// A probe that fails now, whether or not often enough to have consequences.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailingProbe {
    /// `startup`, `liveness` or `readiness`.
    pub probe: String,
    /// What it asks, in the user's words.
    pub asks: String,
    /// When the first of the failures in a row was seen.
    pub since: Timestamp,
    /// What came back the last time.
    pub last_answer: String,
    /// Failures in a row. Zero: it succeeds again, but not often enough yet to count as well.
    pub failures: u32,
    /// So many in a row have consequences.
    pub failure_threshold: u32,
    /// What its owner can do about it, in whole sentences; empty: nothing is known.
    pub advice: String,
}

/// Whether the ingress itself has reached the instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reach {
    /// Startup probe under way.
    Starting,
    /// Reached; takes requests.
    Ready,
    /// Taken out of choice, waiting for its last requests.
    Retiring,
    /// Reached once, but its readiness probe fails now: it is kept and gets no new requests.
    Unready { message: String },
    /// The startup probe gave up; the text says what was tried.
    Failed { message: String },
    /// The liveness probe failed too often: to be ended.
    Unhealthy { message: String },
}

impl Reach {
    /// Takes requests now or may later.
    #[must_use]
    pub const fn is_live(&self) -> bool {
        matches!(self, Self::Starting | Self::Ready | Self::Unready { .. })
    }

    /// Started: the ingress has reached it, whatever its readiness probe says now.
    #[must_use]
    pub const fn is_up(&self) -> bool {
        matches!(self, Self::Ready | Self::Unready { .. })
    }

    /// A probe gave it up: the ingress will never send it a request again.
    #[must_use]
    pub const fn is_given_up(&self) -> bool {
        matches!(self, Self::Failed { .. } | Self::Unhealthy { .. })
    }
}
