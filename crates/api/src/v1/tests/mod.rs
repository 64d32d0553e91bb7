//! Every method of v1 against a store in memory.

mod domains;
mod host_dirs;
mod others;
mod services;
mod views;
mod wrong;

use serde_json::{Value, json};
use utsuwa_model::RevisionKey;
use utsuwa_model::address::project_number;
use utsuwa_model::revision::{Outcome, Revision, RevisionStatus};
use utsuwa_model::service::Meta;

use crate::testing::{Bench, key};

const SERVICES: &str = "/run/apis/serving.knative.dev/v1/namespaces/demo/services";
const NAMESPACE: &str = "/run/apis/serving.knative.dev/v1/namespaces/demo";
const PLACE: &str = "/run/v1/projects/demo/locations/asia-northeast1";

/// As `gcloud` sends it: an empty container name, an empty node selector, a status.
fn hello(name: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": name, "namespace": "demo", "labels": {}, "annotations": {
            "run.googleapis.com/client-name": "gcloud", "run.googleapis.com/client-version": "528.0.0"}},
        "spec": {"template": {
            "metadata": {"labels": {"client.knative.dev/nonce": "abcdefghij"}, "annotations": {"run.googleapis.com/startup-cpu-boost": "True"}},
            "spec": {"containers": [{"name": "", "image": "gcr.io/cloudrun/hello", "resources": {"requests": {}}}], "nodeSelector": {}}}},
        "status": {"address": {}}
    })
}

async fn created(bench: &Bench, name: &str) -> Value {
    let (status, service) = bench.call("POST", SERVICES, hello(name)).await;
    assert_eq!(status, 200, "{service}");
    service
}

async fn get(bench: &Bench, path: &str) -> Value {
    let (status, value) = bench.call("GET", path, Value::Null).await;
    assert_eq!(status, 200, "{path}: {value}");
    value
}

/// What a loop would have made of the service's template.
async fn with_revision(bench: &Bench, name: &str, revision: &str, nonce: &str) {
    let service = bench.state.store.service(&key(name)).unwrap().unwrap();
    let mut template = service.spec.template.clone();
    template
        .labels
        .insert("client.knative.dev/nonce".to_owned(), nonce.to_owned());
    let made = Revision {
        key: RevisionKey {
            service: service.key.clone(),
            revision: revision.parse().unwrap(),
        },
        meta: Meta {
            uid: revision.to_owned(),
            create_time: bench.state.now(),
            ..Meta::default()
        },
        service_generation: service.meta.generation,
        service_uid: service.meta.uid,
        template,
        status: RevisionStatus {
            outcome: Outcome::Ready,
            image_digests: vec!["gcr.io/cloudrun/hello@sha256:00".to_owned()],
            ..RevisionStatus::default()
        },
    };
    bench.state.store.create_revision(made).await.unwrap();
}

fn error(answer: &(u16, Value)) -> (u16, &str, &str) {
    let error = &answer.1["error"];
    (
        answer.0,
        error["status"].as_str().unwrap_or_default(),
        error["message"].as_str().unwrap_or_default(),
    )
}
