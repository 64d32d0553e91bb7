//! How far a pull is, merged into what is read: the condition that says "pulling" says how much is here.
//!
//! Owns: the sentence. Doesn't write anything: progress is observed (law 2), and the stored condition stays as it is.

use utsuwa_model::revision::Revision;
use utsuwa_model::service::{RevisionTemplate, Service};
use utsuwa_model::{Condition, ConditionState};

use crate::ApiState;
use crate::seam::PullInsight;

/// The reason of a condition that waits for its image.
const PULLING: &str = "ResolvingDigests";

/// The service as it is to be read.
pub(crate) fn of_service(state: &ApiState, mut service: Service) -> Service {
    tell(
        state,
        &service.spec.template,
        &mut service.status.conditions,
    );
    service
}

/// The revision as it is to be read.
pub(crate) fn of_revision(state: &ApiState, mut revision: Revision) -> Revision {
    tell(state, &revision.template, &mut revision.status.conditions);
    revision
}

/// The pull that a service waits for.
pub(crate) fn pull(state: &ApiState, service: &Service) -> Option<PullInsight> {
    let waits = service.status.conditions.iter().any(waits);
    pull_of(state, &service.spec.template).filter(|_| waits)
}

/// Why the image that a service waits for could not be had yet, as the loop says that tries again.
pub(crate) fn trouble(state: &ApiState, service: &Service) -> Option<String> {
    if !service.status.conditions.iter().any(waits) {
        return None;
    }
    // Of an earlier revision it would be another image's trouble.
    let latest = service.status.latest_created.as_ref()?;
    let key = format!("{}/{latest}", service.key);
    let mut lines = state.insight.loops().into_iter();
    lines
        .find(|line| line.name == "revision" && line.key == key)
        .and_then(|line| line.last_error)
}

fn waits(condition: &Condition) -> bool {
    condition.state == ConditionState::Unknown && condition.reason == PULLING
}

fn pull_of(state: &ApiState, template: &RevisionTemplate) -> Option<PullInsight> {
    state.images.pulling(&template.ingress_container()?.image)
}

fn tell(state: &ApiState, template: &RevisionTemplate, conditions: &mut [Condition]) {
    if !conditions.iter().any(waits) {
        return;
    }
    let Some(pull) = pull_of(state, template) else {
        return;
    };
    let sentence = sentence(&pull);
    for condition in conditions.iter_mut().filter(|c| waits(c)) {
        condition.message.clone_from(&sentence);
    }
}

/// One sentence that changes as the pull goes on.
pub(crate) fn sentence(pull: &PullInsight) -> String {
    let PullInsight {
        layers,
        layers_ready,
        total_bytes,
        done_bytes,
    } = *pull;
    if layers == 0 {
        "Resolving the image: its registry is being asked.".to_owned()
    } else if done_bytes < total_bytes {
        format!(
            "Pulling the image: {} of {} MB, {layers_ready} of {layers} layers done.",
            megabytes(done_bytes),
            megabytes(total_bytes)
        )
    } else {
        format!("Unpacking the image: {layers_ready} of {layers} layers done.")
    }
}

/// With one decimal, rounded down: what is not here yet is not claimed.
fn megabytes(bytes: u64) -> String {
    format!("{}.{}", bytes / 1_000_000, bytes / 100_000 % 10)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use utsuwa_model::Severity;

    use super::*;
    use crate::testing::{Bench, key};

    #[tokio::test]
    async fn what_is_read_tells_the_pull_and_what_is_stored_does_not() {
        const V1: &str = "/run/apis/serving.knative.dev/v1/namespaces/demo/services/slow";
        const SERVICES: &str = "projects/demo/locations/asia-northeast1/services";
        let told = "Pulling the image: 12.4 of 80.1 MB, 1 of 3 layers done.";
        let bench = Bench::new();
        let create = format!("/run/v2/{SERVICES}?serviceId=slow");
        let body = json!({"template": {"containers": [{"image": "registry.test/slow:1"}]}});
        assert_eq!(bench.call("POST", &create, body).await.0, 200);
        let play = |service: &mut Service| {
            service.status.observed_generation = service.meta.generation;
            service.status.latest_created = Some("slow-00001-abc".parse().unwrap());
            let condition = |kind: &str, reason: &str, message: &str| Condition {
                kind: kind.to_owned(),
                state: ConditionState::Unknown,
                reason: reason.to_owned(),
                message: message.to_owned(),
                severity: Severity::Error,
                last_transition: service.meta.update_time,
            };
            service.status.conditions = vec![
                condition("Ready", PULLING, "Pulling the image."),
                condition("ConfigurationsReady", PULLING, "Pulling the image."),
                condition("RoutesReady", "TrafficNotMigrated", "Not yet."),
            ];
            true
        };
        let store = &bench.state.store;
        store
            .update_service_status(&key("slow"), None, play)
            .await
            .unwrap();

        let (_, v2) = bench
            .call("GET", &format!("/run/v2/{SERVICES}/slow"), Value::Null)
            .await;
        assert_eq!(v2["terminalCondition"]["message"], told);
        let (_, v1) = bench.call("GET", V1, Value::Null).await;
        let messages: Vec<&Value> = v1["status"]["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .map(|c| &c["message"])
            .collect();
        assert_eq!(messages, [told, told, "Not yet."]);
        let explain = format!("/utsuwa/v1/{SERVICES}/slow:explain");
        let (_, explained) = bench.call("GET", &explain, Value::Null).await;
        assert_eq!(explained["trouble"], "registry.test: nobody answers");
        // The trouble of a revision before the latest is not told.
        let next = |service: &mut Service| {
            service.status.latest_created = Some("slow-00002-abc".parse().unwrap());
            true
        };
        store
            .update_service_status(&key("slow"), None, next)
            .await
            .unwrap();
        let (_, explained) = bench.call("GET", &explain, Value::Null).await;
        assert_eq!(explained["trouble"], Value::Null);
        assert_eq!(
            explained["pull"],
            json!({"layers": 3, "layersReady": 1, "totalBytes": 80_100_000, "doneBytes": 12_400_000})
        );
        let stored = store.service(&key("slow")).unwrap().unwrap();
        assert_eq!(stored.status.conditions[0].message, "Pulling the image.");
    }

    #[test]
    fn the_sentence_follows_the_pull() {
        let mut pull = PullInsight::default();
        assert_eq!(
            sentence(&pull),
            "Resolving the image: its registry is being asked."
        );
        pull.layers = 3;
        pull.layers_ready = 1;
        pull.total_bytes = 80_100_000;
        pull.done_bytes = 12_490_000;
        assert_eq!(
            sentence(&pull),
            "Pulling the image: 12.4 of 80.1 MB, 1 of 3 layers done."
        );
        pull.done_bytes = pull.total_bytes;
        assert_eq!(sentence(&pull), "Unpacking the image: 1 of 3 layers done.");
    }
}
