//! Revisions of v1: made by loops, read and deleted by users.

use serde_json::{Value, json};
use utsuwa_model::RevisionId;
use utsuwa_model::revision::Revision;
use utsuwa_store::{Listing, Page};

use super::encode;
use super::path::Place;
use super::query::Query;
use crate::error::Code;
use crate::{ApiError, ApiState};

const NONCE: &str = "client.knative.dev/nonce";
const SERVICE: &str = "serving.knative.dev/service";

/// GET of one.
pub(super) fn get(state: &ApiState, place: &Place, name: &str) -> Result<Value, ApiError> {
    Ok(encode::revision(&find(state, place, name)?))
}

/// GET of the collection, newest first. `gcloud` looks for the revision of its own template by a nonce, which is indexed.
pub(super) fn list(state: &ApiState, place: &Place, query: Query) -> Result<Value, ApiError> {
    let listing = if let (Some(nonce), Some(region)) = (query.selector.equals(NONCE), &place.region)
    {
        Listing {
            items: state
                .store
                .revisions_with_nonce(&place.project, region, nonce)?,
            next: None,
        }
    } else {
        match query.selector.equals(SERVICE).map(str::parse) {
            // A name that can't exist has no revisions.
            Some(Err(_)) => Listing {
                items: Vec::new(),
                next: None,
            },
            Some(Ok(service)) => page(state, place, Some(&service), query.page)?,
            None => page(state, place, None, query.page)?,
        }
    };
    let items = listing.items.iter().filter(|r| {
        query.selector.is_empty() || {
            let mut labels = r.template.labels.clone();
            for name in [
                SERVICE,
                "serving.knative.dev/configuration",
                "serving.knative.dev/route",
            ] {
                labels.insert(name.to_owned(), r.key.service.service.to_string());
            }
            labels.insert(
                "serving.knative.dev/configurationGeneration".to_owned(),
                r.service_generation.to_string(),
            );
            labels.insert(
                "serving.knative.dev/serviceUid".to_owned(),
                r.service_uid.clone(),
            );
            labels.insert(
                "cloud.googleapis.com/location".to_owned(),
                r.key.service.region.to_string(),
            );
            query.selector.matches(&labels)
        }
    });
    Ok(encode::list(
        "Revision",
        items.map(encode::revision).collect(),
        listing.next,
    ))
}

fn page(
    state: &ApiState,
    place: &Place,
    service: Option<&utsuwa_model::ServiceId>,
    page: Page,
) -> Result<Listing<Revision>, ApiError> {
    Ok(state
        .store
        .revisions(&place.project, place.region.as_ref(), service, page)?)
}

/// DELETE: only of revisions that nothing leads to. The loops stop what runs and remove the row.
pub(super) async fn delete(
    state: &ApiState,
    place: &Place,
    name: &str,
    query: &Query,
) -> Result<Value, ApiError> {
    let revision = find(state, place, name)?;
    check_unused(state, &revision)?;
    if !query.dry_run {
        let now = state.now();
        state
            .store
            .update_revision(&revision.key, move |r| {
                let first = r.meta.delete_time.is_none();
                r.meta.delete_time.get_or_insert(now);
                first
            })
            .await?;
    }
    Ok(json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
}

/// Why a revision can't be deleted, if so.
fn check_unused(state: &ApiState, revision: &Revision) -> Result<(), ApiError> {
    let id = &revision.key.revision;
    let Some(service) = state.store.service(&revision.key.service)? else {
        return Ok(());
    };
    let refused = |why: String| Err(ApiError::new(Code::FailedPrecondition, why));
    if service.status.latest_created.as_ref() == Some(id) {
        return refused(format!(
            "Revision '{id}' is the latest of service '{}' and can't be deleted. Deploy another one first, or delete the service.",
            service.key.service
        ));
    }
    let wanted = service
        .spec
        .traffic
        .iter()
        .any(|t| t.revision.as_ref() == Some(id));
    let routed = service.status.traffic.iter().any(|t| t.revision == *id);
    if wanted || routed {
        return refused(format!(
            "Revision '{id}' receives traffic or has a tag and can't be deleted. Move its traffic and remove its tags first."
        ));
    }
    Ok(())
}

fn find(state: &ApiState, place: &Place, name: &str) -> Result<Revision, ApiError> {
    let region = place.one_region()?;
    let missing = || ApiError::not_found("REVISION", name, region.as_str(), place.project.as_str());
    let id: RevisionId = name.parse().map_err(|_| missing())?;
    state
        .store
        .revision_by_id(&place.project, region, &id)?
        .ok_or_else(missing)
}
