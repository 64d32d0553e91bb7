//! The few methods of sibling APIs that clients call before they use Cloud Run (`gcloud-protocol.md` §2).

use crate::ApiState;

/// Short names of the APIs served here; requests carry a [`crate::CallContext`] that says which one is meant.
pub const APIS: &[&str] = &["serviceusage", "cloudresourcemanager", "iam"];

/// Paths are Google's own; the same path may exist in two APIs, [`crate::CallContext::api`] tells them apart.
pub fn router(state: ApiState) -> axum::Router {
    axum::Router::new().with_state(state)
}
