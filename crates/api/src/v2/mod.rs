//! Cloud Run Admin API v2.

use crate::ApiState;
use crate::transcode::Transcoder;

pub(crate) fn grpc(_state: &ApiState) -> axum::Router {
    axum::Router::new()
}

pub(crate) fn transcoder(state: &ApiState) -> Transcoder {
    Transcoder::new(Vec::new(), Vec::new(), grpc(state))
}
