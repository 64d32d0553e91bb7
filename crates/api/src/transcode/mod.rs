//! REST to gRPC and back.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::Request;

use crate::ApiError;

/// Serves the REST form of our gRPC services.
#[derive(Debug, Clone)]
pub struct Transcoder;

impl Transcoder {
    pub(crate) async fn answer(&self, request: Request<Body>) -> Response {
        ApiError::unimplemented(format!("{} is not built yet", request.uri().path()))
            .into_response()
    }
}
