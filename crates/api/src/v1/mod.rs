//! Cloud Run Admin API v1: Knative's JSON. Requests carry a [`crate::CallContext`] in their extensions.
//!
//! Owns: v1's paths, its JSON both ways, its field paths in errors. Deliberately not here: what a wish does ([`crate::intent`]),
//! what is valid (the model), policies ([`crate::iam`]).
//!
//! Invariants:
//! 1. What a client read and sends back unchanged is no change (`encode` and `decode` are inverse; what we add is dropped).
//! 2. A field that we don't know, or can't do yet, is refused by name, never dropped.
//! 3. A part of v1 that isn't built answers 400 `UNIMPLEMENTED`, an unknown path 404.

mod annotation;
mod decode;
mod decode_container;
mod defaults;
mod domains;
mod encode;
mod encode_template;
mod field;
mod locations;
mod operations;
mod path;
mod policy;
mod query;
mod read;
mod revisions;
mod selector;
mod services;
#[cfg(test)]
mod tests;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{Method, Request, StatusCode, header};
use serde_json::Value;

use self::path::{Collection, Path};
use self::query::Query;
use crate::error::Code;
use crate::{ApiError, ApiState, CallContext};

/// Largest body: annotations (256 KiB), environment and arguments fit in easily.
const BODY: usize = 4 << 20;

/// Everything under `/apis/…` and `/v1/…` of `run.googleapis.com` (paths are Google's own; the short name is stripped).
pub fn router(state: ApiState) -> axum::Router {
    axum::Router::new()
        .route("/{*path}", any(answer))
        .with_state(state)
}

async fn answer(State(state): State<ApiState>, request: Request<Body>) -> Response {
    match handle(&state, request).await {
        Ok(Answer::Json(value)) => json(&value),
        Ok(Answer::Unknown(request)) => crate::http::unknown_path(*request).await,
        Err(error) => error.into_response(),
    }
}

enum Answer {
    Json(Value),
    Unknown(Box<Request<Body>>),
}

async fn handle(state: &ApiState, request: Request<Body>) -> Result<Answer, ApiError> {
    let context = match request.extensions().get::<CallContext>() {
        Some(context) => context.clone(),
        None => CallContext {
            api: "run".to_owned(),
            region: None,
        },
    };
    let (place, collection, name, verb) = match path::parse(state, &context, request.uri().path())?
    {
        Path::In {
            place,
            collection,
            name,
            verb,
        } => (place, collection, name, verb),
        Path::Locations { project } if request.method() == Method::GET => {
            return Ok(Answer::Json(locations::list(state, &project)?));
        }
        Path::Location { project, region } if request.method() == Method::GET => {
            return Ok(Answer::Json(locations::one(&project, &region)));
        }
        Path::AuthorizedDomains if request.method() == Method::GET => {
            return Ok(Answer::Json(domains::authorized()));
        }
        Path::NotBuilt(what) => {
            return Err(ApiError::unimplemented(format!(
                "{what} are not built in this server yet."
            )));
        }
        Path::Locations { .. }
        | Path::Location { .. }
        | Path::AuthorizedDomains
        | Path::Unknown => {
            return Ok(Answer::Unknown(Box::new(request)));
        }
    };
    let query = Query::parse(request.uri().query())?;
    let method = request.method().clone();
    let (parts, body) = request.into_parts();
    let body = read(body).await?;
    let call = (
        method.as_str(),
        collection,
        name.as_deref(),
        verb.as_deref(),
    );
    let value = match call {
        ("GET", Collection::Services, None, None) => {
            services::list(state, &place, query, "Service", services::as_service)?
        }
        ("POST", Collection::Services, None, None) => {
            services::create(state, &place, &query, &body).await?
        }
        ("GET", Collection::Services, Some(name), None) => {
            services::get(state, &place, name, "SERVICE", services::as_service)?
        }
        ("PUT", Collection::Services, Some(name), None) => {
            services::replace(state, &place, name, &query, &body).await?
        }
        ("DELETE", Collection::Services, Some(name), None) => {
            services::delete(state, &place, name, &query).await?
        }
        ("GET", Collection::Services, Some(name), Some("getIamPolicy")) => {
            policy::get(state, &place, name)?
        }
        ("POST", Collection::Services, Some(name), Some("setIamPolicy")) => {
            policy::set(state, &place, name, &body).await?
        }
        ("POST", Collection::Services, Some(name), Some("testIamPermissions")) => {
            policy::test(&place, name, &body)?
        }
        ("GET", Collection::Configurations, None, None) => {
            services::list(state, &place, query, "Configuration", encode::configuration)?
        }
        ("GET", Collection::Configurations, Some(name), None) => {
            services::get(state, &place, name, "CONFIGURATION", encode::configuration)?
        }
        ("GET", Collection::Routes, None, None) => {
            services::list(state, &place, query, "Route", encode::route)?
        }
        ("GET", Collection::Routes, Some(name), None) => {
            services::get(state, &place, name, "ROUTE", encode::route)?
        }
        ("GET", Collection::Revisions, None, None) => revisions::list(state, &place, query)?,
        ("GET", Collection::Revisions, Some(name), None) => revisions::get(state, &place, name)?,
        ("DELETE", Collection::Revisions, Some(name), None) => {
            revisions::delete(state, &place, name, &query).await?
        }
        ("GET", Collection::DomainMappings, None, None) => domains::list(state, &place, &query)?,
        ("POST", Collection::DomainMappings, None, None) => {
            domains::create(state, &place, &query, &body).await?
        }
        ("GET", Collection::DomainMappings, Some(name), None) => domains::get(state, &place, name)?,
        ("DELETE", Collection::DomainMappings, Some(name), None) => {
            domains::delete(state, &place, name, &query).await?
        }
        ("GET", Collection::Operations, None, None) => operations::list(state, &place, query)?,
        ("GET", Collection::Operations, Some(id), None) => operations::get(state, &place, id)?,
        ("DELETE", Collection::Operations, Some(id), None) => {
            operations::delete(state, &place, id)?
        }
        ("POST", Collection::Operations, Some(id), Some("wait")) => {
            operations::wait(state, &place, id, &body).await?
        }
        _ => {
            return Ok(Answer::Unknown(Box::new(Request::from_parts(
                parts,
                Body::empty(),
            ))));
        }
    };
    Ok(Answer::Json(value))
}

async fn read(body: Body) -> Result<Bytes, ApiError> {
    axum::body::to_bytes(body, BODY).await.map_err(|e| {
        ApiError::new(
            Code::InvalidArgument,
            format!("The request's body could not be read, or is larger than {BODY} bytes."),
        )
        .because(e.to_string())
    })
}

/// 200 with Google's content type.
pub(crate) fn json(value: &Value) -> Response {
    (
        StatusCode::OK,
        [(header::CONTENT_TYPE, "application/json; charset=UTF-8")],
        value.to_string(),
    )
        .into_response()
}
