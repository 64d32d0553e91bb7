//! The few methods of sibling APIs that clients call before they use Cloud Run (`gcloud-protocol.md` §2): whether an API is
//! enabled, what a project is called.
//!
//! Deliberately not here: projects or API switches as resources. Every well-formed project exists (decision 14) and what this
//! server serves is always enabled; anything else of these APIs answers 400 `UNIMPLEMENTED`.

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::any;
use http::{Method, Request};
use serde_json::{Value, json};
use utsuwa_model::ProjectId;
use utsuwa_model::address::project_number;

use crate::error::Code;
use crate::{ApiError, ApiState, CallContext, intent, v1};

/// Short names of the APIs served here; requests carry a [`crate::CallContext`] that says which one is meant.
pub const APIS: &[&str] = &["serviceusage", "cloudresourcemanager"];

/// APIs that this server serves, so that they are enabled; every other one is not.
const SERVED: [&str; 3] = [
    "run.googleapis.com",
    "serviceusage.googleapis.com",
    "cloudresourcemanager.googleapis.com",
];

/// Largest body that is read.
const BODY: usize = 1 << 20;

/// Paths are Google's own; the same path may exist in two APIs, [`crate::CallContext::api`] tells them apart.
pub fn router(state: ApiState) -> axum::Router {
    axum::Router::new()
        .route("/{*path}", any(answer))
        .with_state(state)
}

async fn answer(State(state): State<ApiState>, request: Request<Body>) -> Response {
    let api = request
        .extensions()
        .get::<CallContext>()
        .map(|c| c.api.clone())
        .unwrap_or_default();
    let path = request.uri().path().to_owned();
    let method = request.method().clone();
    let Ok(body) = axum::body::to_bytes(request.into_body(), BODY).await else {
        return ApiError::new(
            Code::InvalidArgument,
            "The request's body could not be read, or is too large.",
        )
        .into_response();
    };
    let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
    let answered = match api.as_str() {
        "serviceusage" => service_usage(&state, &method, &parts, &body),
        _ => resource_manager(&state, &method, &parts),
    };
    match answered {
        Ok(Some(value)) => v1::json(&value),
        Ok(None) => ApiError::unimplemented(format!(
            "{method} {path} of {api}.googleapis.com is not built in this server: projects exist when they are well-formed, and the APIs it \
             serves are always enabled."
        ))
        .into_response(),
        Err(error) => error.into_response(),
    }
}

/// Enabling what is served is done already; what isn't can't be enabled.
fn check_served<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<(), ApiError> {
    let missing: Vec<&str> = names.into_iter().filter(|n| !SERVED.contains(n)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(ApiError::unimplemented(format!(
        "{} can't be enabled: not built in this server yet. Served, and always enabled: {}.",
        missing.join(", "),
        SERVED.join(", ")
    )))
}

fn service_usage(
    state: &ApiState,
    method: &Method,
    parts: &[&str],
    body: &[u8],
) -> Result<Option<Value>, ApiError> {
    let done = |response: Value| json!({"name": "operations/noop.DONE_OPERATION", "done": true, "response": response});
    Ok(match (method.as_str(), parts) {
        ("GET", ["v1", "projects", project, "services"]) => {
            let project = intent::project(state, project)?;
            Some(
                json!({"services": SERVED.iter().map(|s| service(&project, s)).collect::<Vec<_>>()}),
            )
        }
        ("GET", ["v1", "projects", project, "services", name]) => {
            Some(service(&intent::project(state, project)?, name))
        }
        ("POST", ["v1", "projects", project, "services:batchEnable"]) => {
            intent::project(state, project)?;
            let body: Value = serde_json::from_slice(body).map_err(|e| {
                ApiError::new(
                    Code::InvalidArgument,
                    format!("The request's body is not JSON: {e}."),
                )
            })?;
            let names = body
                .get("serviceIds")
                .and_then(Value::as_array)
                .map(Vec::as_slice)
                .unwrap_or_default();
            check_served(names.iter().filter_map(Value::as_str))?;
            Some(done(json!({})))
        }
        ("POST", ["v1", "projects", project, "services", call]) if call.ends_with(":enable") => {
            let name = call.trim_end_matches(":enable");
            check_served([name])?;
            Some(done(
                json!({"service": service(&intent::project(state, project)?, name)}),
            ))
        }
        ("GET", ["v1", "operations", _]) => Some(done(json!({}))),
        _ => None,
    })
}

fn service(project: &ProjectId, name: &str) -> Value {
    let number = project_number(project);
    json!({
        "name": format!("projects/{number}/services/{name}"),
        "parent": format!("projects/{number}"),
        "config": {"name": name},
        "state": if SERVED.contains(&name) { "ENABLED" } else { "DISABLED" },
    })
}

fn resource_manager(
    state: &ApiState,
    method: &Method,
    parts: &[&str],
) -> Result<Option<Value>, ApiError> {
    Ok(match (method.as_str(), parts) {
        ("GET", ["v1", "projects"]) => {
            let mut all = state.store.projects()?;
            all.push(state.settings.project.clone());
            all.sort();
            all.dedup();
            Some(json!({"projects": all.iter().map(project).collect::<Vec<_>>()}))
        }
        ("GET", ["v1", "projects", name]) => Some(project(&intent::project(state, name)?)),
        _ => None,
    })
}

fn project(id: &ProjectId) -> Value {
    json!({
        "projectId": id.as_str(),
        "projectNumber": project_number(id).to_string(),
        "name": id.as_str(),
        "lifecycleState": "ACTIVE",
    })
}
