//! One transcoder for all APIs: REST → gRPC request → the service in this process → JSON.
//!
//! Owns: the route table (from `google.api.http` rules and hand-declared mixins), the binding of path, query and body to the
//! request message, system parameters (`alt`, `prettyPrint`, `fields`), and Google's JSON for answers and errors.
//!
//! Deliberately not here: any method. A handler is a tonic service; the transcoder reaches it through the same router that
//! gRPC clients do, so REST and gRPC cannot differ.
//!
//! Invariants:
//! 1. A route that isn't in the table answers 404; one that Google has and we don't answers 400 `UNIMPLEMENTED`.
//! 2. Every answer is JSON of the method's output, or Google's error JSON.
//! 3. A body of more than [`MAX_BODY`] bytes is refused before it is read to its end.
//! 4. Unknown fields in the body are ignored, unknown query parameters are refused, and a value of the wrong type is refused
//!    with its field's name.

mod bind;
mod partial;
mod reply;
mod system;
#[cfg(test)]
mod tests;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, Request, header};
use http_body_util::{BodyExt, Limited};
use prost::Message;
use prost_reflect::DynamicMessage;
use utsuwa_wire::path::{Bindings, Template};
use utsuwa_wire::rules::Rule;

use crate::ApiError;
use crate::error::Code;
use system::System;

/// The largest request body: Google's limit for Cloud Run's API is not published; a service of 10 containers with 1000
/// variables of 32 KiB each is far beyond what gRPC takes (4 MiB), so that is the limit here too.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// A method that Google's API has and this server hasn't.
#[derive(Debug, Clone)]
pub struct NotBuilt {
    pub verb: Method,
    pub template: Template,
}

/// Serves the REST form of gRPC services.
#[derive(Debug, Clone)]
pub struct Transcoder {
    rules: Vec<Rule>,
    not_built: Vec<NotBuilt>,
    grpc: axum::Router,
}

impl Transcoder {
    /// A transcoder for `rules`, whose methods `grpc` serves.
    #[must_use]
    pub fn new(rules: Vec<Rule>, not_built: Vec<NotBuilt>, grpc: axum::Router) -> Self {
        Self {
            rules,
            not_built,
            grpc,
        }
    }

    /// Answers a REST request.
    pub async fn answer(&self, request: Request<Body>) -> Response {
        let system = match System::read(request.uri().query().unwrap_or_default()) {
            Ok(system) => system,
            Err(error) => return error.into_response(),
        };
        match self.call(request, &system).await {
            Ok(message) => reply::json(&message, &system),
            Err(error) => error.into_response(),
        }
    }

    async fn call(
        &self,
        request: Request<Body>,
        system: &System,
    ) -> Result<DynamicMessage, ApiError> {
        let (parts, body) = request.into_parts();
        let (rule, bindings) = self.route(&parts.method, parts.uri.path())?;
        let body = read_body(body).await?;
        let message = bind::request(rule, &bindings, &system.rest, &body)?;

        let mut forward = Request::builder()
            .method(Method::POST)
            .uri(&rule.rpc)
            .header(header::CONTENT_TYPE, "application/grpc")
            .header(header::TE, "trailers")
            .body(Body::from(frame(&message)))
            .map_err(|e| ApiError::internal(format!("build the call of {}: {e}", rule.rpc)))?;
        for name in [header::AUTHORIZATION, header::USER_AGENT] {
            if let Some(value) = parts.headers.get(&name) {
                forward.headers_mut().insert(name, value.clone());
            }
        }
        *forward.extensions_mut() = parts.extensions;
        let response = crate::http::call(&self.grpc, forward).await;
        reply::message(rule, response).await
    }

    fn route(&self, verb: &Method, path: &str) -> Result<(&Rule, Bindings), ApiError> {
        for rule in self.rules.iter().filter(|r| r.verb == *verb) {
            if let Some(bindings) = rule.template.matches(path) {
                return Ok((rule, bindings));
            }
        }
        if self
            .not_built
            .iter()
            .any(|n| n.verb == *verb && n.template.matches(path).is_some())
        {
            return Err(ApiError::unimplemented(format!(
                "{verb} {path}: this method of Cloud Run is not built in this server yet."
            )));
        }
        Err(ApiError::new(
            Code::NotFound,
            format!("There is no method at {verb} {path} on this server."),
        ))
    }
}

async fn read_body(body: Body) -> Result<Bytes, ApiError> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<http_body_util::LengthLimitError>() => Err(ApiError::new(
            Code::InvalidArgument,
            format!(
                "The request body is larger than {} MiB, the most this API takes.",
                MAX_BODY >> 20
            ),
        )),
        Err(error) => Err(ApiError::new(
            Code::Cancelled,
            "The request body ended before it was complete.",
        )
        .because(error.to_string())),
    }
}

/// One gRPC frame: not compressed, length, message.
fn frame(message: &DynamicMessage) -> Bytes {
    let length = message.encoded_len();
    let mut frame = BytesMut::with_capacity(5 + length);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    frame.put_slice(&message.encode_to_vec());
    frame.freeze()
}
