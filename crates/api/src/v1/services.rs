//! Services of v1, and the configurations and routes derived from them.

use serde_json::{Value, json};
use utsuwa_model::service::{RevisionTemplate, Service};
use utsuwa_model::{ServiceId, ServiceKey};

use super::decode::{self, Incoming};
use super::path::Place;
use super::query::Query;
use super::{defaults, encode, field};
use crate::error::Code;
use crate::intent::{self, Draft};
use crate::{ApiError, ApiState, progress};

/// How a service is shown: as itself, or as a part that Knative would derive from it.
pub(super) type Show = fn(&Service) -> Value;

pub(super) fn as_service(service: &Service) -> Value {
    encode::service(service, None)
}

/// GET of one.
pub(super) fn get(
    state: &ApiState,
    place: &Place,
    name: &str,
    kind: &str,
    show: Show,
) -> Result<Value, ApiError> {
    let missing = || {
        ApiError::not_found(
            kind,
            name,
            place.region.as_ref().map_or("-", |r| r.as_str()),
            place.project.as_str(),
        )
    };
    // A name that can't exist doesn't exist.
    let Ok(service) = name.parse::<ServiceId>() else {
        return Err(missing());
    };
    let key = ServiceKey {
        project: place.project.clone(),
        region: place.one_region()?.clone(),
        service,
    };
    state
        .store
        .service(&key)?
        .map(|s| show(&progress::of_service(state, s)))
        .ok_or_else(missing)
}

/// GET of the collection, newest first.
pub(super) fn list(
    state: &ApiState,
    place: &Place,
    query: Query,
    kind: &str,
    show: Show,
) -> Result<Value, ApiError> {
    let listing = intent::list(state, &place.project, place.region.as_ref(), query.page)?;
    let items = listing.items.iter().filter(|s| {
        query.selector.is_empty() || {
            let mut labels = s.meta.labels.clone();
            labels.insert(
                "cloud.googleapis.com/location".to_owned(),
                s.key.region.to_string(),
            );
            labels.insert(
                "serving.knative.dev/service".to_owned(),
                s.key.service.to_string(),
            );
            query.selector.matches(&labels)
        }
    });
    Ok(encode::list(kind, items.map(show).collect(), listing.next))
}

/// POST: a new service.
pub(super) async fn create(
    state: &ApiState,
    place: &Place,
    query: &Query,
    body: &[u8],
) -> Result<Value, ApiError> {
    let incoming = decode::service(body)?;
    let key = key_of(state, place, &incoming)?;
    let (service, operation) = intent::create(state, key, incoming.draft, query.dry_run)
        .await
        .map_err(|e| e.map_fields(field::v1))?;
    Ok(encode::service(
        &service,
        operation.as_ref().map(|o| o.id.as_str()),
    ))
}

/// PUT: the whole service anew, guarded by `metadata.resourceVersion` where it is given.
pub(super) async fn replace(
    state: &ApiState,
    place: &Place,
    name: &str,
    query: &Query,
    body: &[u8],
) -> Result<Value, ApiError> {
    let incoming = decode::service(body)?;
    let key = key_of(state, place, &incoming)?;
    if key.service.as_str() != name {
        return Err(ApiError::invalid(
            "metadata.name",
            format!(
                "is {:?}, but the address names {name:?}: a service can't be renamed",
                key.service.as_str()
            ),
        ));
    }
    let draft = incoming.draft;
    let edit = move |old: &Service| Ok(unchanged_parts(old, draft));
    let (service, operation) = intent::update(state, &key, incoming.version, query.dry_run, edit)
        .await
        .map_err(|e| e.map_fields(field::v1))?;
    Ok(encode::service(
        &service,
        operation.as_ref().map(|o| o.id.as_str()),
    ))
}

/// DELETE: the loops clear up; the service can be read until they have.
pub(super) async fn delete(
    state: &ApiState,
    place: &Place,
    name: &str,
    query: &Query,
) -> Result<Value, ApiError> {
    let region = place.one_region()?;
    let Ok(service) = name.parse::<ServiceId>() else {
        return Err(ApiError::not_found(
            "SERVICE",
            name,
            region.as_str(),
            place.project.as_str(),
        ));
    };
    let key = ServiceKey {
        project: place.project.clone(),
        region: region.clone(),
        service,
    };
    intent::delete(state, &key, None, query.dry_run).await?;
    Ok(json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
}

/// What we add to answers and clients echo counts as not written: it must not look like a change.
fn unchanged_parts(old: &Service, mut draft: Draft) -> Draft {
    let default_traffic = matches!(draft.spec.traffic.as_slice(), [t] if t.latest && t.revision.is_none() && t.percent == Some(100) && t.tag.is_none());
    if old.spec.traffic.is_empty() && default_traffic {
        draft.spec.traffic.clear();
    }
    let containers = draft
        .spec
        .template
        .containers
        .iter_mut()
        .zip(&old.spec.template.containers);
    for (index, (new, old_one)) in containers.enumerate() {
        if old_one.name.is_empty() && new.name == encode::container_name(&old.key.service, index) {
            new.name.clear();
        }
    }
    draft.spec.template = defaults::without_echoes(&old.spec.template, draft.spec.template);
    if full_probes(&draft.spec.template) == full_probes(&old.spec.template) {
        draft.spec.template = old.spec.template.clone();
    }
    draft
}

/// The template with the defaults of its probes, as answers show it.
fn full_probes(template: &RevisionTemplate) -> RevisionTemplate {
    let mut full = template.clone();
    let port = full.port();
    for container in &mut full.containers {
        for probe in [
            &mut container.startup_probe,
            &mut container.liveness_probe,
            &mut container.readiness_probe,
        ]
        .into_iter()
        .flatten()
        {
            *probe = probe.defaulted(port);
        }
    }
    full
}

fn key_of(state: &ApiState, place: &Place, incoming: &Incoming) -> Result<ServiceKey, ApiError> {
    if !incoming.namespace.is_empty()
        && intent::project(state, &incoming.namespace).ok().as_ref() != Some(&place.project)
    {
        return Err(ApiError::invalid(
            "metadata.namespace",
            format!(
                "is {:?}, but the address names {:?}: they must be the same project, by id or number",
                incoming.namespace,
                place.project.as_str()
            ),
        ));
    }
    if incoming.name.is_empty() {
        return Err(ApiError::invalid(
            "metadata.name",
            "missing: give the service a name",
        ));
    }
    let service = incoming.name.parse::<ServiceId>().map_err(|e| {
        ApiError::invalid(
            "metadata.name",
            format!("not a DNS 1035 label: {:?} {}", e.value, e.rule),
        )
    })?;
    Ok(ServiceKey {
        project: place.project.clone(),
        region: place.one_region()?.clone(),
        service,
    })
}

/// The service a policy or operation is about.
pub(super) fn existing_key(place: &Place, name: &str) -> Result<ServiceKey, ApiError> {
    let region = place.one_region()?;
    let service = name.parse::<ServiceId>().map_err(|e| {
        ApiError::new(
            Code::InvalidArgument,
            format!("{:?} is not the name of a service: it {}.", e.value, e.rule),
        )
    })?;
    Ok(ServiceKey {
        project: place.project.clone(),
        region: region.clone(),
        service,
    })
}
