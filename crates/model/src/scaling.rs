//! Settings of the autoscaler for one revision, after annotations and defaults (`cloud-run-spec.md` §3.1, §3.6; decision 19).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Instances of a revision at most, unless its template says otherwise (§1.3).
pub const DEFAULT_MAX_INSTANCES: u32 = 100;

/// How many there may be at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ceiling {
    AtMost(u32),
    Unlimited,
}

/// What the autoscaler keeps level.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Metric {
    Concurrency,
    RequestsPerSecond,
}

/// Everything the instance count of one revision depends on, apart from demand. Percentages are 0…100(0), times are durations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ScalingSettings {
    pub metric: Metric,
    /// Requests one instance may have in flight; 0 means no limit (Knative); Cloud Run's default is 80.
    pub container_concurrency: u32,
    /// In flight (or per second) per instance that is aimed at: 0.6 × concurrency unless an annotation says otherwise.
    pub target: f64,
    pub min: u32,
    pub max: Ceiling,
    /// Instances a new revision needs before it is Ready; at least one.
    pub initial_scale: u32,
    /// If scaled from zero, go at least to this (0 = unset).
    pub activation_scale: u32,
    pub stable_window: Duration,
    /// Panic window as percent of the stable one.
    pub panic_window_percent: f64,
    /// In panic when this percentage of what is there is wanted.
    pub panic_threshold_percent: f64,
    pub max_scale_up_rate: f64,
    pub max_scale_down_rate: f64,
    pub scale_down_delay: Duration,
    /// Idle time before the last instance stops.
    pub retention: Duration,
    /// −1 = always buffered; kept for Knative clients, our ingress is always in the path (law 4).
    pub target_burst_capacity: f64,
    /// Manual scaling: exactly this many, whatever the demand.
    pub manual: Option<u32>,
}

impl ScalingSettings {
    /// Cloud Run's defaults for `concurrency`, with `idle` as the server's idle timeout (15 min unless set).
    #[must_use]
    pub fn for_concurrency(concurrency: u32, idle: Duration) -> Self {
        Self {
            metric: Metric::Concurrency,
            container_concurrency: concurrency,
            target: (0.6 * f64::from(if concurrency == 0 { 100 } else { concurrency })).max(0.01),
            min: 0,
            max: Ceiling::AtMost(DEFAULT_MAX_INSTANCES),
            initial_scale: 1,
            activation_scale: 0,
            stable_window: Duration::from_secs(60),
            panic_window_percent: 10.0,
            panic_threshold_percent: 200.0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            scale_down_delay: Duration::ZERO,
            retention: idle,
            target_burst_capacity: 211.0,
            manual: None,
        }
    }
}
