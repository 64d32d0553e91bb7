//! Cloud Run Admin API v1: Knative's JSON. Requests carry a [`crate::CallContext`] in their extensions.

use crate::ApiState;

/// Everything under `/apis/…` and `/v1/…` of `run.googleapis.com` (paths are Google's own; the short name is stripped).
pub fn router(state: ApiState) -> axum::Router {
    axum::Router::new().with_state(state)
}
