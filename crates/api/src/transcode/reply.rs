//! What the service answered, as a message or an error, and the message as JSON.

use axum::response::{IntoResponse, Response};
use http::header;
use http_body_util::BodyExt;
use prost_reflect::DynamicMessage;
use utsuwa_wire::json::{self, Style};
use utsuwa_wire::rules::Rule;

use super::partial;
use super::system::System;
use crate::ApiError;

/// Reads a gRPC answer: its one message, or the error in its headers or trailers.
pub(super) async fn message(rule: &Rule, response: Response) -> Result<DynamicMessage, ApiError> {
    let (parts, body) = response.into_parts();
    if let Some(status) = tonic::Status::from_header_map(&parts.headers)
        && status.code() != tonic::Code::Ok
    {
        return Err(ApiError::from(status));
    }
    let collected = body
        .collect()
        .await
        .map_err(|e| ApiError::internal(format!("read the answer of {}: {e}", rule.rpc)))?;
    if let Some(status) = collected
        .trailers()
        .and_then(tonic::Status::from_header_map)
        && status.code() != tonic::Code::Ok
    {
        return Err(ApiError::from(status));
    }
    let bytes = collected.to_bytes();
    let malformed = |why: String| ApiError::internal(format!("the answer of {} {why}", rule.rpc));
    let [0, a, b, c, d, payload @ ..] = bytes.as_ref() else {
        return Err(malformed("is no uncompressed gRPC frame".to_owned()));
    };
    if usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])) != Ok(payload.len()) {
        return Err(malformed("has a wrong length".to_owned()));
    }
    DynamicMessage::decode(rule.output.clone(), payload)
        .map_err(|e| malformed(format!("can't be decoded: {e}")))
}

/// The message as a JSON answer, as the system parameters ask for.
pub(super) fn json(message: &DynamicMessage, system: &System) -> Response {
    let mut value = match json::render(
        message,
        Style {
            enum_numbers: system.enum_numbers,
        },
    ) {
        Ok(value) => value,
        Err(error) => {
            return ApiError::internal(format!("write the answer as JSON: {}", error.why))
                .into_response();
        }
    };
    if let Some(fields) = &system.fields {
        match partial::Selection::parse(fields) {
            Ok(selection) => selection.apply(&mut value),
            Err(why) => return ApiError::invalid("fields", why).into_response(),
        }
    }
    let text = if system.pretty {
        serde_json::to_vec_pretty(&value)
    } else {
        serde_json::to_vec(&value)
    };
    match text {
        Ok(mut text) => {
            text.push(b'\n');
            (
                [(header::CONTENT_TYPE, "application/json; charset=UTF-8")],
                text,
            )
                .into_response()
        }
        Err(error) => {
            ApiError::internal(format!("write the answer as JSON: {error}")).into_response()
        }
    }
}
