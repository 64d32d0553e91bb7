//! From the model to v1's JSON: metadata, services, revisions, and the two views Knative derives from a service.
//!
//! Invariants:
//! 1. `metadata.generation`, `status.observedGeneration` and `status.conditions` are always there (without them `gcloud` polls
//!    for half an hour).
//! 2. `spec.traffic` is always there (without it `update-traffic` crashes after its PUT).

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use utsuwa_model::address::project_number;
use utsuwa_model::condition::{self, Condition, ConditionState, Severity};
use utsuwa_model::revision::Revision;
use utsuwa_model::service::{Meta, RevisionTemplate, Service, TrafficStatus, TrafficTarget};
use utsuwa_model::{ProjectId, RevisionId, ServiceId, ServiceKey, Timestamp};

use super::encode_template::{revision_spec, template};
use super::{annotation, defaults};

const API_VERSION: &str = "serving.knative.dev/v1";
/// Label that only we write.
pub(super) const LOCATION: &str = "cloud.googleapis.com/location";
/// Why a configuration isn't ready, whatever ails its revision.
const REVISION_FAILED: &str = "RevisionFailed";

/// A service. `operation` lets `gcloud` wait for it instead of polling.
pub(super) fn service(service: &Service, operation: Option<&str>) -> Value {
    let mut annotations = annotation::write_service(&service.meta.annotations, &service.spec);
    authors(&mut annotations, &service.meta);
    annotations.insert(
        "run.googleapis.com/ingress-status".to_owned(),
        annotation::ingress_name(service.spec.ingress).to_owned(),
    );
    let urls = service.status.urls();
    if !urls.is_empty() {
        let urls = Value::from(urls).to_string();
        annotations.insert("run.googleapis.com/urls".to_owned(), urls);
    }
    if let Some(id) = operation {
        annotations.insert("run.googleapis.com/operation-id".to_owned(), id.to_owned());
    }
    let mut traffic: Vec<Value> = service.spec.traffic.iter().map(target).collect();
    if traffic.is_empty() {
        traffic.push(json!({"latestRevision": true, "percent": 100}));
    }
    let status = &service.status;
    let mut out = json!({
        "observedGeneration": status.observed_generation,
        "conditions": conditions(&status.conditions, &["Ready", "ConfigurationsReady", "RoutesReady"], service.meta.create_time),
    });
    latest(&mut out, service);
    routed(&mut out, service);
    json!({
        "apiVersion": API_VERSION,
        "kind": "Service",
        "metadata": metadata("services", service.key.service.as_str(), &service.key, &service.meta, &service.meta.labels, annotations),
        "spec": {"template": shown_template(service), "traffic": traffic},
        "status": out,
    })
}

/// A revision, with every default written out.
pub(super) fn revision(revision: &Revision) -> Value {
    let key = &revision.key;
    let full = named(&key.service.service, revision.template.defaulted());
    let mut labels = revision.template.labels.clone();
    let service = key.service.service.as_str();
    for (name, value) in [
        ("serving.knative.dev/service", service.to_owned()),
        ("serving.knative.dev/configuration", service.to_owned()),
        ("serving.knative.dev/route", service.to_owned()),
        (
            "serving.knative.dev/configurationGeneration",
            revision.service_generation.to_string(),
        ),
        (
            "serving.knative.dev/serviceUid",
            revision.service_uid.clone(),
        ),
    ] {
        labels.insert(name.to_owned(), value);
    }
    let mut annotations = annotation::write_template(&revision.template);
    authors(&mut annotations, &revision.meta);
    let mut meta = metadata(
        "revisions",
        key.revision.as_str(),
        &key.service,
        &revision.meta,
        &labels,
        annotations,
    );
    meta["ownerReferences"] = json!([{
        "apiVersion": API_VERSION, "kind": "Configuration", "name": service, "uid": revision.service_uid,
        "controller": true, "blockOwnerDeletion": true,
    }]);
    let mut status = json!({
        "observedGeneration": revision.status.observed_generation,
        "conditions": conditions(&revision.status.conditions, &["Ready"], revision.meta.create_time),
        "serviceName": service,
    });
    if let Some(digest) = revision.status.image_digests.first() {
        status["imageDigest"] = json!(digest);
        let names = full.containers.iter().map(|c| c.name.as_str());
        let all: Vec<Value> = names
            .zip(&revision.status.image_digests)
            .map(|(name, digest)| json!({"name": name, "imageDigest": digest}))
            .collect();
        status["containerStatuses"] = json!(all);
    }
    json!({
        "apiVersion": API_VERSION,
        "kind": "Revision",
        "metadata": meta,
        "spec": revision_spec(&full),
        "status": status,
    })
}

/// The name that a container without one is shown with, as Google does; `gcloud` prints it.
pub(super) fn container_name(service: &ServiceId, index: usize) -> String {
    format!("{service}-{}", index + 1)
}

fn named(service: &ServiceId, mut template: RevisionTemplate) -> RevisionTemplate {
    for (index, container) in template.containers.iter_mut().enumerate() {
        if container.name.is_empty() {
            container.name = container_name(service, index);
        }
    }
    template
}

/// `spec.template` of a service.
fn shown_template(service: &Service) -> Value {
    template(&named(
        &service.key.service,
        defaults::shown(&service.spec.template),
    ))
}

/// The configuration that Knative would derive from the service.
pub(super) fn configuration(service: &Service) -> Value {
    let mut out = json!({
        "observedGeneration": service.status.observed_generation,
        "conditions": [configuration_ready(service)],
    });
    latest(&mut out, service);
    json!({
        "apiVersion": API_VERSION,
        "kind": "Configuration",
        "metadata": derived_metadata("configurations", service),
        "spec": {"template": shown_template(service)},
        "status": out,
    })
}

/// As the service says it, in Knative's words for a configuration (§1.8).
fn configuration_ready(service: &Service) -> Value {
    let mut ready = derived(service, "ConfigurationsReady");
    if ready["status"] == "False" {
        let message = ready["message"].as_str().unwrap_or_default();
        let message = message.trim_end_matches('.');
        let sentence = match &service.status.latest_created {
            Some(revision) if ready["reason"] == REVISION_FAILED => {
                format!("Revision \"{revision}\" failed with message: {message}.")
            }
            _ => format!("Revision creation failed with message: {message}."),
        };
        ready["reason"] = json!(REVISION_FAILED);
        ready["message"] = json!(sentence);
    }
    ready
}

/// The route that Knative would derive from the service.
pub(super) fn route(service: &Service) -> Value {
    let mut traffic: Vec<Value> = service.spec.traffic.iter().map(target).collect();
    if traffic.is_empty() {
        traffic.push(json!({"latestRevision": true, "percent": 100}));
    }
    for target in &mut traffic {
        if target.get("latestRevision").is_some() {
            target["configurationName"] = json!(service.key.service.as_str());
        }
    }
    let mut out = json!({
        "observedGeneration": service.status.observed_generation,
        "conditions": [derived(service, "RoutesReady")],
    });
    routed(&mut out, service);
    json!({
        "apiVersion": API_VERSION,
        "kind": "Route",
        "metadata": derived_metadata("routes", service),
        "spec": {"traffic": traffic},
        "status": out,
    })
}

/// A list of `kind`s.
pub(super) fn list(kind: &str, items: Vec<Value>, next: Option<String>) -> Value {
    let mut metadata = Map::new();
    if let Some(next) = next {
        metadata.insert("continue".to_owned(), next.into());
    }
    json!({"apiVersion": API_VERSION, "kind": format!("{kind}List"), "metadata": metadata, "items": items, "unreachable": []})
}

/// RFC 3339 in UTC with microseconds.
pub(super) fn time(at: Timestamp) -> String {
    jiff::Timestamp::from_microsecond(at.0)
        .unwrap_or_default()
        .to_string()
}

pub(super) fn metadata(
    collection: &str,
    name: &str,
    key: &ServiceKey,
    meta: &Meta,
    labels: &BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
) -> Value {
    let namespace = namespace(&key.project);
    let mut labels = labels.clone();
    labels.insert(LOCATION.to_owned(), key.region.to_string());
    let mut out = json!({
        "name": name,
        "namespace": namespace,
        "selfLink": format!("/apis/{API_VERSION}/namespaces/{namespace}/{collection}/{name}"),
        "uid": meta.uid,
        "resourceVersion": meta.version.0.to_string(),
        "generation": meta.generation,
        "creationTimestamp": time(meta.create_time),
        "labels": labels,
        "annotations": annotations,
    });
    if let Some(deleted) = meta.delete_time {
        out["deletionTimestamp"] = json!(time(deleted));
    }
    out
}

fn derived_metadata(collection: &str, service: &Service) -> Value {
    let mut labels = service.meta.labels.clone();
    labels.insert(
        "serving.knative.dev/service".to_owned(),
        service.key.service.to_string(),
    );
    labels.insert(
        "serving.knative.dev/serviceUid".to_owned(),
        service.meta.uid.clone(),
    );
    let mut annotations = annotation::write_service(&service.meta.annotations, &service.spec);
    authors(&mut annotations, &service.meta);
    let mut out = metadata(
        collection,
        service.key.service.as_str(),
        &service.key,
        &service.meta,
        &labels,
        annotations,
    );
    out["ownerReferences"] = json!([{
        "apiVersion": API_VERSION, "kind": "Service", "name": service.key.service.as_str(), "uid": service.meta.uid,
        "controller": true, "blockOwnerDeletion": true,
    }]);
    out
}

/// v1 shows the project's number as namespace.
pub(super) fn namespace(project: &ProjectId) -> String {
    project_number(project).to_string()
}

pub(super) fn authors(annotations: &mut BTreeMap<String, String>, meta: &Meta) {
    for (name, value) in [
        ("serving.knative.dev/creator", &meta.creator),
        ("serving.knative.dev/lastModifier", &meta.last_modifier),
    ] {
        if !value.is_empty() {
            annotations.insert(name.to_owned(), value.clone());
        }
    }
}

fn latest(out: &mut Value, service: &Service) {
    let name = |id: &Option<RevisionId>| id.as_ref().map(|r| Value::from(r.as_str()));
    if let Some(created) = name(&service.status.latest_created) {
        out["latestCreatedRevisionName"] = created;
    }
    if let Some(ready) = name(&service.status.latest_ready) {
        out["latestReadyRevisionName"] = ready;
    }
}

fn routed(out: &mut Value, service: &Service) {
    if !service.status.traffic.is_empty() {
        out["traffic"] = service.status.traffic.iter().map(routed_target).collect();
    }
    if !service.status.url.is_empty() {
        out["url"] = json!(service.status.url);
        out["address"] = json!({"url": service.status.url});
    }
}

fn target(target: &TrafficTarget) -> Value {
    let mut out = Map::new();
    if let Some(revision) = &target.revision {
        out.insert("revisionName".to_owned(), revision.as_str().into());
    }
    if target.latest {
        out.insert("latestRevision".to_owned(), true.into());
    }
    share(&mut out, target.percent, target.tag.as_deref());
    Value::Object(out)
}

fn routed_target(target: &TrafficStatus) -> Value {
    let mut out = Map::new();
    out.insert("revisionName".to_owned(), target.revision.as_str().into());
    if target.latest {
        out.insert("latestRevision".to_owned(), true.into());
    }
    share(&mut out, target.percent, target.tag.as_deref());
    if !target.url.is_empty() {
        out.insert("url".to_owned(), target.url.as_str().into());
    }
    Value::Object(out)
}

fn share(out: &mut Map<String, Value>, percent: Option<u32>, tag: Option<&str>) {
    if let Some(percent) = percent {
        out.insert("percent".to_owned(), percent.into());
    }
    if let Some(tag) = tag {
        out.insert("tag".to_owned(), tag.into());
    }
}

/// The conditions; until loops have written any, those in `kinds` are unknown since `created`.
pub(super) fn conditions(written: &[Condition], kinds: &[&str], created: Timestamp) -> Vec<Value> {
    if written.is_empty() {
        return kinds
            .iter()
            .map(|kind| json!({"type": kind, "status": "Unknown", "lastTransitionTime": time(created)}))
            .collect();
    }
    written.iter().map(condition).collect()
}

fn condition(condition: &Condition) -> Value {
    let mut out = Map::new();
    out.insert("type".to_owned(), condition.kind.as_str().into());
    let status = match condition.state {
        ConditionState::True => "True",
        ConditionState::False => "False",
        ConditionState::Unknown => "Unknown",
    };
    out.insert("status".to_owned(), status.into());
    for (name, text) in [
        ("reason", &condition.reason),
        ("message", &condition.message),
    ] {
        if !text.is_empty() {
            out.insert(name.to_owned(), text.as_str().into());
        }
    }
    match condition.severity {
        Severity::Error => {}
        Severity::Warning => drop(out.insert("severity".to_owned(), "Warning".into())),
        Severity::Info => drop(out.insert("severity".to_owned(), "Info".into())),
    }
    out.insert(
        "lastTransitionTime".to_owned(),
        time(condition.last_transition).into(),
    );
    Value::Object(out)
}

/// A service's condition as the `Ready` of what it summarises.
fn derived(service: &Service, kind: &str) -> Value {
    match condition::find(&service.status.conditions, kind) {
        Some(found) => condition(&Condition {
            kind: "Ready".to_owned(),
            ..found.clone()
        }),
        None => {
            json!({"type": "Ready", "status": "Unknown", "lastTransitionTime": time(service.meta.create_time)})
        }
    }
}
