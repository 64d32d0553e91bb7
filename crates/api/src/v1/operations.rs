//! Operations of v1: read, list, delete and wait. A finished one carries the service as it is, also when the deploy failed: `gcloud`
//! reads the reason from its conditions, as it does when it polls.

use std::time::Duration;

use serde_json::{Value, json};
use utsuwa_model::operation::{GenerationOutcome, Operation};

use super::encode;
use super::path::Place;
use super::query::Query;
use crate::error::Code;
use crate::{ApiError, ApiState};

/// How long `:wait` waits when nothing is said, and at most.
const WAIT: Duration = Duration::from_secs(30);
const LONGEST: Duration = Duration::from_secs(600);

/// GET of one.
pub(super) fn get(state: &ApiState, place: &Place, id: &str) -> Result<Value, ApiError> {
    let (operation, outcome) = find(state, place, id)?;
    view(state, &operation, outcome)
}

/// GET of the collection, newest first.
pub(super) fn list(state: &ApiState, place: &Place, query: Query) -> Result<Value, ApiError> {
    let listing = state
        .store
        .operations(&place.project, place.one_region()?, query.page)?;
    let operations = listing
        .items
        .into_iter()
        .map(|(operation, outcome)| view(state, &operation, outcome));
    let mut out = json!({"operations": operations.collect::<Result<Vec<_>, _>>()?});
    if let Some(next) = listing.next {
        out["nextPageToken"] = json!(next);
    }
    Ok(out)
}

/// DELETE says that nobody wants the result; an operation is a view, so there is nothing to free. It must exist, though.
pub(super) fn delete(state: &ApiState, place: &Place, id: &str) -> Result<Value, ApiError> {
    find(state, place, id)?;
    Ok(json!({}))
}

/// POST `:wait`: answers when it is done or the time is up.
pub(super) async fn wait(
    state: &ApiState,
    place: &Place,
    id: &str,
    body: &[u8],
) -> Result<Value, ApiError> {
    let deadline = tokio::time::Instant::now() + timeout(body)?;
    // Subscribed before the first look, so that no change falls between.
    let mut changes = state.store.changes();
    loop {
        changes.borrow_and_update();
        let (operation, outcome) = find(state, place, id)?;
        if outcome.is_some() {
            return view(state, &operation, outcome);
        }
        match tokio::time::timeout_at(deadline, changes.changed()).await {
            Ok(Ok(())) => {}
            // Time is up, or the store is closing: the operation as it stands is the answer.
            Ok(Err(_)) | Err(_) => return view(state, &operation, None),
        }
    }
}

fn timeout(body: &[u8]) -> Result<Duration, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(WAIT);
    }
    let value: Value = serde_json::from_slice(body).map_err(|e| {
        ApiError::new(
            Code::InvalidArgument,
            format!("The request's body is not JSON: {e}."),
        )
    })?;
    match value.get("timeout") {
        None | Some(Value::Null) => Ok(WAIT),
        Some(given) => given
            .as_str()
            .and_then(|t| t.strip_suffix('s'))
            .and_then(|t| t.parse::<f64>().ok())
            .and_then(|t| Duration::try_from_secs_f64(t).ok())
            .map(|t| t.min(LONGEST))
            .ok_or_else(|| {
                ApiError::invalid(
                    "timeout",
                    format!("{given} is not a duration: write \"30s\""),
                )
            }),
    }
}

fn find(
    state: &ApiState,
    place: &Place,
    id: &str,
) -> Result<(Operation, Option<GenerationOutcome>), ApiError> {
    let region = place.one_region()?;
    let found = state.store.operation(id)?;
    found
        .filter(|(o, _)| o.service.project == place.project && o.service.region == *region)
        .ok_or_else(|| {
            ApiError::not_found("OPERATION", id, region.as_str(), place.project.as_str())
        })
}

fn view(
    state: &ApiState,
    operation: &Operation,
    outcome: Option<GenerationOutcome>,
) -> Result<Value, ApiError> {
    let key = &operation.service;
    let mut out = json!({
        "name": format!("projects/{}/locations/{}/operations/{}", key.project, key.region, operation.id),
        "done": outcome.is_some(),
    });
    let service = state
        .store
        .service(key)?
        .filter(|s| s.meta.uid == operation.service_uid);
    match (outcome, service) {
        (None, _) => {}
        (Some(_), Some(service)) => {
            let mut response = encode::service(&service, None);
            response["@type"] = json!("type.googleapis.com/google.cloud.run.v1.Service");
            out["response"] = response;
        }
        (Some(GenerationOutcome::Succeeded), None) => {
            out["response"] = json!({"@type": "type.googleapis.com/google.protobuf.Empty"});
        }
        (Some(GenerationOutcome::Failed { message, .. }), None) => {
            out["error"] = json!({"code": Code::FailedPrecondition.number(), "message": message});
        }
    }
    Ok(out)
}
