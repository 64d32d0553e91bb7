//! The one mapping from what went wrong to what a caller is told.
//!
//! Owns: [`Code`] (Google's canonical codes with their HTTP statuses), [`ApiError`] (code, public text, details, and — apart
//! from them — internal text), its rendering as JSON, and the conversions from every error a handler can meet.
//!
//! Invariants:
//! 1. `ApiError` has no `Display`: the only ways out are [`ApiError::to_json`], [`ApiError::into_response`] and
//!    [`ApiError::into_status`], and none of them contains the internal text.
//! 2. Unknown internals become `INTERNAL` with a request id; the internal text is logged once, under that id.
//! 3. `UNIMPLEMENTED` is HTTP 400 (decision 17), since `gcloud` retries 5xx for half a minute.

mod code;
mod detail;
mod from;
mod grpc;
#[cfg(test)]
mod tests;

use axum::response::{IntoResponse, Response};
pub use code::Code;
pub use detail::Detail;
use http::header;
use serde_json::{Value, json};
use utsuwa_model::FieldViolation;

/// What a caller is told, and what only the log is told.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiError {
    code: Code,
    public: String,
    details: Vec<Detail>,
    internal: Option<String>,
}

impl ApiError {
    /// An error with a text for the caller: what happened, where, why, what to do next.
    #[must_use]
    pub fn new(code: Code, public: impl Into<String>) -> Self {
        Self {
            code,
            public: public.into(),
            details: Vec::new(),
            internal: None,
        }
    }

    /// 400: one field is wrong.
    #[must_use]
    pub fn invalid(field: impl Into<String>, description: impl Into<String>) -> Self {
        Self::violations(vec![FieldViolation {
            field: field.into(),
            description: description.into(),
        }])
    }

    /// 400: these fields are wrong. The message repeats the first, since many clients show nothing else.
    #[must_use]
    pub fn violations(violations: Vec<FieldViolation>) -> Self {
        let public = match violations.as_slice() {
            [] => "the request is not valid".to_owned(),
            [one] => format!("{}: {}", one.field, one.description),
            [first, rest @ ..] => format!(
                "{}: {} (and {} more)",
                first.field,
                first.description,
                rest.len()
            ),
        };
        Self::new(Code::InvalidArgument, public).with(Detail::BadRequest(violations))
    }

    /// 404 in Google's words: `Resource 'NAME' of kind 'KIND' in region 'R' in project 'P' does not exist.`
    #[must_use]
    pub fn not_found(kind: &str, name: &str, region: &str, project: &str) -> Self {
        let text = format!(
            "Resource '{name}' of kind '{kind}' in region '{region}' in project '{project}' does not exist."
        );
        Self::new(Code::NotFound, text)
    }

    /// 409: the name is taken.
    #[must_use]
    pub fn already_exists(name: &str) -> Self {
        Self::new(
            Code::AlreadyExists,
            format!("Resource '{name}' already exists."),
        )
    }

    /// 400 `UNIMPLEMENTED`: a method or field of Google's that isn't built yet.
    #[must_use]
    pub fn unimplemented(what: impl Into<String>) -> Self {
        Self::new(Code::Unimplemented, what)
    }

    /// 500: our fault. `internal` goes to the log under a fresh request id, the caller gets the id.
    #[must_use]
    pub fn internal(internal: impl Into<String>) -> Self {
        let id = uuid::Uuid::new_v4().to_string();
        let mut error = Self::new(
            Code::Internal,
            format!("Internal error. Search the server's log for request id {id}."),
        );
        error.details.push(Detail::RequestInfo { request_id: id });
        error.internal = Some(internal.into());
        error
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, detail: Detail) -> Self {
        self.details.push(detail);
        self
    }

    /// Adds text for the log alone.
    #[must_use]
    pub fn because(mut self, internal: impl Into<String>) -> Self {
        self.internal = Some(internal.into());
        self
    }

    /// The canonical code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.code
    }

    /// The text for the caller.
    #[must_use]
    pub fn public(&self) -> &str {
        &self.public
    }

    /// The field violations, if that is what it is about.
    pub fn field_violations(&self) -> impl Iterator<Item = &FieldViolation> {
        self.details.iter().flat_map(|d| match d {
            Detail::BadRequest(violations) => violations.as_slice(),
            _ => &[],
        })
    }

    /// Rewrites the fields' paths (v2's spelling to v1's) in message and details.
    #[must_use]
    pub fn map_fields(self, rewrite: impl Fn(&str) -> String) -> Self {
        let Some(violations) = self.details.iter().find_map(|d| match d {
            Detail::BadRequest(violations) => Some(violations.clone()),
            _ => None,
        }) else {
            return self;
        };
        let violations = violations
            .into_iter()
            .map(|v| FieldViolation {
                field: rewrite(&v.field),
                description: v.description,
            })
            .collect();
        let rest = self
            .details
            .into_iter()
            .filter(|d| !matches!(d, Detail::BadRequest(_)));
        let mut mapped = Self::violations(violations);
        mapped.details.extend(rest);
        mapped.internal = self.internal;
        mapped
    }

    /// `{"error":{"code","message","status","details"}}`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut error = json!({"code": self.code.http().as_u16(), "message": self.public, "status": self.code.name()});
        if !self.details.is_empty()
            && let Some(map) = error.as_object_mut()
        {
            map.insert(
                "details".to_owned(),
                self.details.iter().map(Detail::to_json).collect(),
            );
        }
        json!({ "error": error })
    }

    /// Logs the internal text, once, where the error leaves us.
    pub(crate) fn log(&self) {
        let Some(internal) = &self.internal else {
            return;
        };
        let request_id = self.details.iter().find_map(|d| match d {
            Detail::RequestInfo { request_id } => Some(request_id.as_str()),
            _ => None,
        });
        if self.code == Code::Internal {
            tracing::error!(
                request_id,
                code = self.code.name(),
                "request failed inside: {internal}"
            );
        } else {
            tracing::debug!(
                request_id,
                code = self.code.name(),
                "request refused: {internal}"
            );
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        self.log();
        let mut body = serde_json::to_vec_pretty(&self.to_json()).unwrap_or_default();
        body.push(b'\n');
        (
            self.code.http(),
            [(header::CONTENT_TYPE, "application/json; charset=UTF-8")],
            body,
        )
            .into_response()
    }
}
