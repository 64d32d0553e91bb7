//! Our own endpoints under `/utsuwa/v1`: what Google's APIs have no words for.
//!
//! | path | answer |
//! | --- | --- |
//! | `GET /utsuwa/v1/info` | version, project, region, domain, addresses, the certificate that the proxy's are signed with (its file, and as text) |
//! | `GET /utsuwa/v1/config` | every option of the server with its value and where it came from |
//! | `GET /utsuwa/v1/loops` | the table of loops (house.md §4.5) |
//! | `GET /utsuwa/v1/images` | images that are kept |
//! | `POST /utsuwa/v1/images:load?image=REF` | takes an archive (a tar), answers the reference to deploy it by; of several images, the one called `REF` (a reference or a tag) |
//! | `GET /utsuwa/v1/projects/P/locations/R/services/S:explain` | what runs and why |
//! | `GET /utsuwa/v1/projects/P/locations/R/services/S/logs?tail=N&follow=BOOL&from=TIME` | lines as JSON objects, one per line; followed, they end with the service or the server |
//!
//! Owns: their JSON. Not here: what they tell, which comes through [`crate::seam`].
//!
//! Fails with Google's error JSON, like everything else on this port.

mod json;
mod logs;
#[cfg(test)]
mod tests;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use futures_util::StreamExt;
use serde_json::{Value, json};
use utsuwa_model::{ServiceKey, Timestamp};

use crate::error::Code;
use crate::seam::{LoadError, NEW_FROM_HEADER, Wanted};
use crate::{ApiError, ApiState, intent, progress};

/// All of `/utsuwa/v1/…`.
pub fn router(state: ApiState) -> axum::Router {
    axum::Router::new()
        .route("/utsuwa/v1/info", get(info))
        .route("/utsuwa/v1/config", get(config))
        .route("/utsuwa/v1/loops", get(loops))
        .route("/utsuwa/v1/images", get(images))
        .route("/utsuwa/v1/images:load", post(load))
        // The verb is part of the last segment, which axum can't divide.
        .route(
            "/utsuwa/v1/projects/{project}/locations/{region}/services/{service}",
            get(explain),
        )
        .route(
            "/utsuwa/v1/projects/{project}/locations/{region}/services/{service}/logs",
            get(lines),
        )
        .with_state(state)
}

async fn info(State(state): State<ApiState>) -> Json<Value> {
    let ca = crate::proxy::ca_pem_path(&state.keys_dir);
    // Public by nature, but in a directory that is the server's alone: given as text, any client can keep a copy.
    let pem = tokio::fs::read_to_string(&ca).await.ok();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "project": state.settings.project,
        "projectNumber": utsuwa_model::address::project_number(&state.settings.project).to_string(),
        "region": state.settings.region,
        "domain": state.settings.domain,
        "ready": state.ready.get(),
        "addresses": {"api": state.addresses.api, "http": state.addresses.http, "https": state.addresses.https},
        "caFile": std::path::absolute(&ca).unwrap_or(ca),
        "caPem": pem,
    }))
}

async fn config(State(state): State<ApiState>) -> Json<Value> {
    Json(json!({"options": *state.configuration}))
}

async fn loops(State(state): State<ApiState>) -> Json<Value> {
    let loops: Vec<Value> = state.insight.loops().iter().map(json::of_loop).collect();
    Json(json!({ "loops": loops }))
}

async fn images(State(state): State<ApiState>) -> Json<Value> {
    let images: Vec<Value> = state
        .images
        .list()
        .await
        .iter()
        .map(json::of_image)
        .collect();
    Json(json!({ "images": images }))
}

#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
struct LoadQuery {
    image: Option<String>,
}

/// The archive is read as it comes; nothing of it is kept here.
async fn load(
    State(state): State<ApiState>,
    query: Result<Query<LoadQuery>, axum::extract::rejection::QueryRejection>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let Query(query) = query.map_err(|e| {
        ApiError::invalid(
            "query",
            format!("{}; write ?image=REFERENCE", e.body_text()),
        )
    })?;
    let archive = request
        .into_body()
        .into_data_stream()
        .map(|chunk| chunk.map_err(std::io::Error::other))
        .boxed();
    match state.images.load(archive, query.image).await {
        Ok(loaded) => Ok(Json(
            json!({"reference": loaded.reference, "digest": loaded.digest}),
        )),
        Err(error) => {
            let (code, why) = match error {
                LoadError::Wrong(why) => (Code::InvalidArgument, why),
                LoadError::NoRoom(why) => (Code::ResourceExhausted, why),
                LoadError::Unavailable(why) => (Code::Unavailable, why),
            };
            let message = format!("The archive can't be loaded: {why}");
            Err(ApiError::new(code, message))
        }
    }
}

async fn explain(
    State(state): State<ApiState>,
    Path((project, region, last)): Path<(String, String, String)>,
    request: Request,
) -> Result<Response, ApiError> {
    let Some(service) = last.strip_suffix(":explain") else {
        return Ok(crate::http::unknown_path(request).await);
    };
    let key = key(&state, &project, &region, service)?;
    let found = intent::get(&state, &key)?;
    let pull = progress::pull(&state, &found);
    let trouble = progress::trouble(&state, &found);
    let found = progress::of_service(&state, found);
    let revisions: Vec<Value> = state
        .insight
        .explain(&key)
        .iter()
        .map(json::of_revision)
        .collect();
    let conditions: Vec<Value> = found
        .status
        .conditions
        .iter()
        .map(json::of_condition)
        .collect();
    Ok(Json(json!({
        "service": key.service,
        "generation": found.meta.generation,
        "observedGeneration": found.status.observed_generation,
        "url": found.status.url,
        "conditions": conditions,
        "pull": pull.as_ref().map(json::of_pull),
        "trouble": trouble,
        "revisions": revisions,
    }))
    .into_response())
}

#[derive(Debug, serde::Deserialize)]
struct LogsQuery {
    tail: Option<usize>,
    #[serde(default)]
    follow: bool,
    /// Nothing older than this.
    from: Option<jiff::Timestamp>,
}

async fn lines(
    State(state): State<ApiState>,
    Path((project, region, service)): Path<(String, String, String)>,
    query: Result<Query<LogsQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|e| {
        ApiError::invalid(
            "query",
            format!(
                "{}; write ?tail=NUMBER&follow=true&from=TIME, the time as in RFC 3339",
                e.body_text()
            ),
        )
    })?;
    let key = key(&state, &project, &region, &service)?;
    let service = intent::get(&state, &key)?;
    let from = query.from.map(|from| Timestamp(from.as_microsecond()));
    let wanted = Wanted {
        tail: query.tail.unwrap_or(logs::TAIL).min(logs::LARGEST_TAIL),
        follow: query.follow,
        since: service.meta.create_time,
        from: from.unwrap_or_default(),
        new_from: state.now(),
    };
    let mut lines = state.logs.lines(&key, wanted);
    if query.follow {
        lines = logs::until_gone(&state, &service, lines);
    }
    Ok((
        [
            (
                http::header::CONTENT_TYPE,
                "application/x-ndjson".to_owned(),
            ),
            (
                http::HeaderName::from_static(NEW_FROM_HEADER),
                json::time(wanted.new_from),
            ),
        ],
        Body::from_stream(logs::stream(lines)),
    )
        .into_response())
}

fn key(
    state: &ApiState,
    project: &str,
    region: &str,
    service: &str,
) -> Result<ServiceKey, ApiError> {
    Ok(ServiceKey {
        project: intent::project(state, project)?,
        region: region.parse()?,
        service: service.parse()?,
    })
}
