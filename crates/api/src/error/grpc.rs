//! The same error as a gRPC status, and back: the transcoder reads what a handler wrote.

use prost::Message;
use tonic::Status;
use utsuwa_wire::google::rpc;

use super::{ApiError, Code, Detail};

impl ApiError {
    /// The error as gRPC says it; logs the internal text.
    #[must_use]
    pub fn into_status(self) -> Status {
        self.log();
        let details = rpc::Status {
            code: self.code.number(),
            message: self.public.clone(),
            details: self.details.iter().map(Detail::to_any).collect(),
        };
        if self.details.is_empty() {
            Status::new(self.code.grpc(), self.public)
        } else {
            Status::with_details(
                self.code.grpc(),
                self.public,
                details.encode_to_vec().into(),
            )
        }
    }
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        error.into_status()
    }
}

/// A status that a handler (or tonic itself) answered. Texts of statuses are public.
impl From<Status> for ApiError {
    fn from(status: Status) -> Self {
        let Some(code) = Code::from_grpc(status.code()) else {
            return Self::internal("a call that succeeded was answered as an error");
        };
        let mut error = Self::new(code, status.message());
        if let Ok(details) = rpc::Status::decode(status.details()) {
            error.details = details
                .details
                .iter()
                .filter_map(Detail::from_any)
                .collect();
        }
        error
    }
}
