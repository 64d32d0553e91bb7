//! Revisions of v1: made by loops, read and deleted by users.

use serde_json::{Value, json};
use utsuwa_model::RevisionId;
use utsuwa_model::revision::Revision;
use utsuwa_store::{Listing, Page};

use super::encode;
use super::path::Place;
use super::query::Query;
use crate::{ApiError, ApiState, intent, progress};

const NONCE: &str = "client.knative.dev/nonce";
const SERVICE: &str = "serving.knative.dev/service";

/// GET of one.
pub(super) fn get(state: &ApiState, place: &Place, name: &str) -> Result<Value, ApiError> {
    let revision = progress::of_revision(state, find(state, place, name)?);
    Ok(encode::revision(&revision))
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
    intent::delete_revision(state, &revision.key, None, query.dry_run).await?;
    Ok(json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
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
