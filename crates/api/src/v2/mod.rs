//! Cloud Run Admin API v2.

use crate::ApiState;
use crate::transcode::Transcoder;

pub(crate) fn grpc(_state: &ApiState) -> axum::Router {
    axum::Router::new()
}

pub(crate) fn transcoder(_state: &ApiState) -> Transcoder {
    Transcoder
}
