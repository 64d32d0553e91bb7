use insta::assert_json_snapshot;
use serde_json::{Value, json};
use utsuwa_model::revision::{Outcome, Revision, RevisionStatus};
use utsuwa_model::service::Meta;
use utsuwa_model::{RevisionKey, Timestamp};

use super::{PARENT, created, hello, redacted};
use crate::testing::{Bench, key};

async fn with_revision(bench: &Bench, id: &str) -> RevisionKey {
    let revision_key = RevisionKey {
        service: key("hello"),
        revision: id.parse().unwrap(),
    };
    let service = bench.state.store.service(&key("hello")).unwrap().unwrap();
    let now = Timestamp(1_700_000_100_000_000);
    let revision = Revision {
        key: revision_key.clone(),
        meta: Meta {
            uid: "u".to_owned(),
            generation: 1,
            version: now,
            create_time: now,
            update_time: now,
            ..Meta::default()
        },
        service_generation: 1,
        service_uid: service.meta.uid.clone(),
        template: service.spec.template,
        status: RevisionStatus {
            observed_generation: 1,
            outcome: Outcome::Ready,
            image_digests: vec!["utsuwa.local/hello@sha256:11".to_owned()],
            ..RevisionStatus::default()
        },
    };
    bench.state.store.create_revision(revision).await.unwrap();
    revision_key
}

#[tokio::test]
async fn policies_are_kept_and_guarded_by_their_etag() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    let path = format!("{PARENT}/services/hello");
    let (_, empty) = bench
        .call(
            "GET",
            &format!("{path}:getIamPolicy?options.requestedPolicyVersion=3"),
            Value::Null,
        )
        .await;
    assert_eq!(empty.get("bindings"), None);
    let etag = empty["etag"].as_str().unwrap();
    let policy =
        json!({"bindings": [{"role": "roles/run.invoker", "members": ["allUsers"]}], "etag": etag});
    let (status, written) = bench
        .call(
            "POST",
            &format!("{path}:setIamPolicy"),
            json!({"policy": policy}),
        )
        .await;
    assert_eq!(status, 200, "{written}");
    assert_eq!(written["bindings"], policy["bindings"]);
    assert!(bench.state.store.policy(&key("hello")).unwrap().is_public());
    let (status, error) = bench
        .call(
            "POST",
            &format!("{path}:setIamPolicy"),
            json!({"policy": policy}),
        )
        .await;
    assert_eq!(
        (status, &error["error"]["status"]),
        (409, &json!("ABORTED"))
    );
    let bad = json!({"policy": {"bindings": [{"role": "invoker", "members": ["everybody"]}]}});
    let (status, error) = bench
        .call("POST", &format!("{path}:setIamPolicy"), bad)
        .await;
    assert_eq!(
        (
            status,
            error["error"]["details"][0]["fieldViolations"]
                .as_array()
                .unwrap()
                .len()
        ),
        (400, 2)
    );
    let asked = json!({"permissions": ["run.services.setIamPolicy"]});
    assert_eq!(
        bench
            .call("POST", &format!("{path}:testIamPermissions"), asked.clone())
            .await,
        (200, asked)
    );
    assert_eq!(
        bench
            .call(
                "GET",
                &format!("{PARENT}/services/none:getIamPolicy"),
                Value::Null
            )
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn revisions_show_defaults_and_pinned_images() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    with_revision(&bench, "hello-00001-abc").await;
    let (_, revision) = bench
        .call(
            "GET",
            &format!("{PARENT}/services/hello/revisions/hello-00001-abc"),
            Value::Null,
        )
        .await;
    assert_json_snapshot!("revision", redacted(revision));
    for parent in ["hello", "-"] {
        let (_, list) = bench
            .call(
                "GET",
                &format!("{PARENT}/services/{parent}/revisions"),
                Value::Null,
            )
            .await;
        assert_eq!(list["revisions"].as_array().unwrap().len(), 1, "{parent}");
    }
    let (status, error) = bench
        .call(
            "GET",
            &format!("{PARENT}/services/hello/revisions/none"),
            Value::Null,
        )
        .await;
    assert_eq!(
        (status, &error["error"]["message"]),
        (
            404,
            &json!(
                "Resource 'none' of kind 'REVISION' in region 'asia-northeast1' in project 'demo' does not exist."
            )
        )
    );
}

#[tokio::test]
async fn only_retired_revisions_can_be_deleted() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    with_revision(&bench, "hello-00001-abc").await;
    bench.settle(&key("hello"), None).await;
    let old = with_revision(&bench, "hello-00000-old").await;
    let path = format!("{PARENT}/services/hello/revisions");
    let (status, error) = bench
        .call("DELETE", &format!("{path}/hello-00001-abc"), Value::Null)
        .await;
    assert_eq!(
        (status, &error["error"]["status"]),
        (400, &json!("FAILED_PRECONDITION"))
    );
    let (status, operation) = bench
        .call("DELETE", &format!("{path}/hello-00000-old"), Value::Null)
        .await;
    assert_eq!((status, &operation["done"]), (200, &json!(true)));
    assert!(
        bench
            .state
            .store
            .revision(&old)
            .unwrap()
            .unwrap()
            .meta
            .delete_time
            .is_some()
    );
}

#[tokio::test]
async fn locations_begin_with_the_default_region() {
    let bench = Bench::new();
    bench
        .call(
            "POST",
            "/run/v2/projects/demo/locations/us-central1/services?serviceId=a",
            hello(),
        )
        .await;
    let (_, list) = bench
        .call("GET", "/run/v2/projects/demo/locations", Value::Null)
        .await;
    assert_json_snapshot!("locations", list);
    assert_eq!(
        bench.call("GET", PARENT, Value::Null).await.1["locationId"],
        "asia-northeast1"
    );
}

#[tokio::test]
async fn a_project_may_be_named_by_its_number() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    let number = utsuwa_model::address::project_number(&"demo".parse().unwrap());
    let (status, service) = bench
        .call(
            "GET",
            &format!("/run/v2/projects/{number}/locations/asia-northeast1/services/hello"),
            Value::Null,
        )
        .await;
    assert_eq!(
        (status, &service["name"]),
        (
            200,
            &json!("projects/demo/locations/asia-northeast1/services/hello")
        )
    );
    assert_eq!(
        bench
            .call(
                "GET",
                "/run/v2/projects/7/locations/asia-northeast1/services/hello",
                Value::Null
            )
            .await
            .0,
        400
    );
}
