//! Domain mappings of v1 (`domains.cloudrun.com/v1`; `gcloud-protocol.md` §6): there is no v2 of them.
//!
//! A mapping is made and deleted, never changed. Who may map which domain is nobody's business here but the operator's: whoever
//! reaches this API may map any, and an authority issues no certificate for a domain that doesn't lead to this server.

use std::cell::RefCell;

use serde_json::{Map, Value, json};
use utsuwa_model::domain::{CertificateMode, DomainMapping, DomainName, DomainSpec, DomainStatus};
use utsuwa_model::service::Meta;
use utsuwa_model::{ServiceId, ServiceKey, Violations};

use super::encode;
use super::path::Place;
use super::query::Query;
use super::read::Object;
use crate::error::Code;
use crate::intent::{self, ANONYMOUS};
use crate::{ApiError, ApiState};

const API_VERSION: &str = "domains.cloudrun.com/v1";
const COLLECTION: &str = "domainmappings";

/// GET of the domains that the caller may map. `gcloud` looks for one whose id is a part of the domain that it is told: a dot is
/// part of all.
pub(super) fn authorized() -> Value {
    json!({"domains": [{"id": "."}]})
}

/// GET of the collection.
pub(super) fn list(state: &ApiState, place: &Place, query: &Query) -> Result<Value, ApiError> {
    let all = state.store.domains(&place.project, place.region.as_ref())?;
    let items: Vec<Value> = all
        .iter()
        .filter(|mapping| {
            query.selector.is_empty() || {
                let mut labels = mapping.meta.labels.clone();
                labels.insert(encode::LOCATION.to_owned(), mapping.region.to_string());
                query.selector.matches(&labels)
            }
        })
        .map(shown)
        .collect();
    Ok(json!({
        "apiVersion": API_VERSION, "kind": "DomainMappingList", "metadata": {}, "items": items, "unreachable": [],
    }))
}

/// GET of one.
pub(super) fn get(state: &ApiState, place: &Place, name: &str) -> Result<Value, ApiError> {
    find(state, place, name).map(|mapping| shown(&mapping))
}

/// POST: a new mapping.
pub(super) async fn create(
    state: &ApiState,
    place: &Place,
    query: &Query,
    body: &[u8],
) -> Result<Value, ApiError> {
    let now = state.now();
    let mut mapping = decode(state, place, body)?;
    mapping.meta = Meta {
        uid: uuid::Uuid::new_v4().to_string(),
        generation: 1,
        version: now,
        create_time: now,
        update_time: now,
        creator: ANONYMOUS.to_owned(),
        last_modifier: ANONYMOUS.to_owned(),
        ..mapping.meta
    };
    if query.dry_run {
        return Ok(shown(&mapping));
    }
    let written = state.store.create_domain(mapping).await?;
    Ok(shown(&written))
}

/// DELETE.
pub(super) async fn delete(
    state: &ApiState,
    place: &Place,
    name: &str,
    query: &Query,
) -> Result<Value, ApiError> {
    let mapping = find(state, place, name)?;
    if !query.dry_run {
        let uid = &mapping.meta.uid;
        state.store.remove_domain(&mapping.name, uid).await?;
    }
    Ok(json!({"apiVersion": "v1", "kind": "Status", "status": "Success"}))
}

/// A name that can't exist doesn't exist; nor does one of another place.
fn find(state: &ApiState, place: &Place, name: &str) -> Result<DomainMapping, ApiError> {
    let region = place.one_region()?;
    let found = match name.parse::<DomainName>() {
        Ok(name) => state.store.domain(&name)?,
        Err(_) => None,
    };
    found
        .filter(|mapping| mapping.project == place.project && mapping.region == *region)
        .ok_or_else(|| {
            let (region, project) = (region.as_str(), place.project.as_str());
            ApiError::not_found("DOMAINMAPPING", name, region, project)
        })
}

fn decode(state: &ApiState, place: &Place, body: &[u8]) -> Result<DomainMapping, ApiError> {
    let value: Value = serde_json::from_slice(body).map_err(|e| {
        ApiError::new(
            Code::InvalidArgument,
            format!("The request's body is not JSON: {e}."),
        )
    })?;
    let region = place.one_region()?.clone();
    let found = RefCell::new(Violations::default());
    let read = Object::new(&value, String::new(), &found).and_then(|root| read(&root));
    let found = found.into_inner();
    match read {
        Some((name, spec, meta, namespace)) if found.0.is_empty() => {
            if !namespace.is_empty()
                && intent::project(state, &namespace).ok().as_ref() != Some(&place.project)
            {
                return Err(ApiError::invalid(
                    "metadata.namespace",
                    format!(
                        "is {namespace:?}, but the address names {:?}",
                        place.project.as_str()
                    ),
                ));
            }
            Ok(DomainMapping {
                name,
                project: place.project.clone(),
                region,
                meta,
                spec,
                status: DomainStatus::default(),
            })
        }
        _ => Err(found.into()),
    }
}

/// Name, spec, labels and annotations, namespace.
fn read(root: &Object<'_>) -> Option<(DomainName, DomainSpec, Meta, String)> {
    for (key, expected) in [("apiVersion", API_VERSION), ("kind", "DomainMapping")] {
        if let Some(given) = root.word(key)
            && given != expected
        {
            root.wrong(key, format!("must be {expected:?}, not {given:?}"));
        }
    }
    root.allow(&["status"]);
    let (mut name, mut namespace, mut meta) = (None, String::new(), Meta::default());
    match root.object("metadata") {
        Some(metadata) => {
            namespace = metadata.text("namespace").unwrap_or_default();
            meta.labels = metadata.map("labels");
            meta.labels.remove(encode::LOCATION);
            meta.annotations = metadata.map("annotations");
            let text = metadata.text("name").unwrap_or_default();
            match text.parse::<DomainName>() {
                Ok(parsed) => name = Some(parsed),
                Err(error) => metadata.wrong("name", format!("{:?} {}", error.value, error.rule)),
            }
            if metadata.word("generateName").is_some() {
                metadata.wrong("generateName", "is not supported: name the domain");
            }
        }
        None => root.wrong("metadata", "missing: a mapping is named by its domain"),
    }
    let mut spec = None;
    match root.object("spec") {
        Some(object) => {
            let route = object.text("routeName").unwrap_or_default();
            match route.parse::<ServiceId>() {
                Ok(route) => {
                    let mode = object.word("certificateMode").unwrap_or_default();
                    let certificate = match mode.as_str() {
                        "" | "AUTOMATIC" | "CERTIFICATE_MODE_UNSPECIFIED" => {
                            CertificateMode::Automatic
                        }
                        "NONE" => CertificateMode::None,
                        _ => {
                            object.wrong("certificateMode", "must be AUTOMATIC or NONE");
                            CertificateMode::Automatic
                        }
                    };
                    spec = Some(DomainSpec {
                        route,
                        certificate,
                        force_override: object.flag("forceOverride").unwrap_or(false),
                    });
                }
                Err(error) => object.wrong(
                    "routeName",
                    format!("must name a service: {:?} {}", error.value, error.rule),
                ),
            }
            object.forbid_rest();
        }
        None => root.wrong("spec", "missing: name the service in spec.routeName"),
    }
    root.forbid_rest();
    Some((name?, spec?, meta, namespace))
}

fn shown(mapping: &DomainMapping) -> Value {
    let (name, status) = (mapping.name.as_str(), &mapping.status);
    let key = ServiceKey {
        project: mapping.project.clone(),
        region: mapping.region.clone(),
        service: mapping.spec.route.clone(),
    };
    let mut annotations = mapping.meta.annotations.clone();
    encode::authors(&mut annotations, &mapping.meta);
    let mut metadata = encode::metadata(
        COLLECTION,
        name,
        &key,
        &mapping.meta,
        &mapping.meta.labels,
        annotations,
    );
    let namespace = metadata["namespace"].as_str().unwrap_or_default();
    metadata["selfLink"] = json!(format!(
        "/apis/{API_VERSION}/namespaces/{namespace}/{COLLECTION}/{name}"
    ));
    let kinds = ["Ready", "CertificateProvisioned", "DomainRoutable"];
    let mut out = Map::new();
    out.insert(
        "observedGeneration".to_owned(),
        json!(status.observed_generation),
    );
    let conditions = encode::conditions(&status.conditions, &kinds, mapping.meta.create_time);
    out.insert("conditions".to_owned(), json!(conditions));
    if !status.mapped_route.is_empty() {
        out.insert("mappedRouteName".to_owned(), json!(status.mapped_route));
        out.insert("url".to_owned(), json!(status.url));
    }
    if !status.records.is_empty() {
        // Relative to the domain itself, as Google shows the records of a whole domain.
        let label = name.split('.').next().unwrap_or_default();
        let records: Vec<Value> = status
            .records
            .iter()
            .map(|record| {
                let label = if record.kind == "CNAME" { label } else { name };
                json!({"name": label, "type": record.kind, "rrdata": record.data})
            })
            .collect();
        out.insert("resourceRecords".to_owned(), json!(records));
    }
    let mode = match mapping.spec.certificate {
        CertificateMode::Automatic => "AUTOMATIC",
        CertificateMode::None => "NONE",
    };
    json!({
        "apiVersion": API_VERSION,
        "kind": "DomainMapping",
        "metadata": metadata,
        "spec": {
            "routeName": mapping.spec.route.as_str(),
            "certificateMode": mode,
            "forceOverride": mapping.spec.force_override,
        },
        "status": out,
    })
}
