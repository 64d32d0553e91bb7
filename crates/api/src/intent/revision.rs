//! What a user's wish does to a revision: it can only end.

use utsuwa_model::revision::Revision;
use utsuwa_model::service::Meta;
use utsuwa_model::{RevisionKey, Timestamp};
use utsuwa_store::StoreError;

use crate::error::Code;
use crate::{ApiError, ApiState};

/// The revision, or 404 in Google's words.
///
/// # Errors
/// `NOT_FOUND`, or what the store says.
pub fn get_revision(state: &ApiState, key: &RevisionKey) -> Result<Revision, ApiError> {
    state
        .store
        .revision(key)?
        .ok_or_else(|| missing_revision(key))
}

fn missing_revision(key: &RevisionKey) -> ApiError {
    let service = &key.service;
    ApiError::not_found(
        "REVISION",
        key.revision.as_str(),
        service.region.as_str(),
        service.project.as_str(),
    )
}

/// Asks for a revision's end. Only a retired one may go: neither routed (by request or in fact) nor the latest.
///
/// # Errors
/// `NOT_FOUND`; `FAILED_PRECONDITION` while it is in use; `ABORTED` for a stale version.
pub async fn delete_revision(
    state: &ApiState,
    key: &RevisionKey,
    expected: Option<Timestamp>,
    validate_only: bool,
) -> Result<Revision, ApiError> {
    let revision = get_revision(state, key)?;
    if let Some(sent) = expected
        && sent != revision.meta.version
    {
        return Err(StoreError::Conflict {
            what: key.revision.to_string(),
            sent,
            now: revision.meta.version,
        }
        .into());
    }
    if let Some(service) = state.store.service(&key.service)? {
        let id = &key.revision;
        let use_of_it = if service
            .spec
            .traffic
            .iter()
            .any(|t| t.revision.as_ref() == Some(id))
        {
            Some("the service's traffic names it; send that traffic elsewhere first")
        } else if service.status.traffic.iter().any(|t| t.revision == *id) {
            Some("it receives requests; send them elsewhere first")
        } else if service.status.latest_created.as_ref() == Some(id) {
            Some(
                "it is the service's latest revision; deploy another one first, or delete the service",
            )
        } else if service.status.latest_ready.as_ref() == Some(id) {
            Some("it is the service's latest ready revision; wait until another one is ready")
        } else {
            None
        };
        if let Some(why) = use_of_it {
            return Err(ApiError::new(
                Code::FailedPrecondition,
                format!("Revision '{id}' can't be deleted: {why}."),
            ));
        }
    }
    if validate_only || revision.meta.delete_time.is_some() {
        return Ok(revision);
    }
    let now = state.now();
    state
        .store
        .update_revision(key, move |r| {
            let first = r.meta.delete_time.is_none();
            r.meta.delete_time = r.meta.delete_time.or(Some(now));
            first
        })
        .await?;
    // Loops may have removed it already.
    let gone = || {
        let meta = Meta {
            delete_time: Some(now),
            ..revision.meta.clone()
        };
        Revision {
            meta,
            ..revision.clone()
        }
    };
    Ok(state.store.revision(key)?.unwrap_or_else(gone))
}
