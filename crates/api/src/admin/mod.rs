//! Our own endpoints under `/utsuwa/v1`.

use crate::ApiState;

/// All of `/utsuwa/v1/…`.
pub fn router(state: ApiState) -> axum::Router {
    axum::Router::new().with_state(state)
}
