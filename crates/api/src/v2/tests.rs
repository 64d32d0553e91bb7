#![expect(clippy::unwrap_used, reason = "tests")]

use insta::assert_json_snapshot;
use serde_json::{Value, json};
use utsuwa_model::revision::{Outcome, Revision, RevisionStatus};
use utsuwa_model::service::Meta;
use utsuwa_model::{RevisionKey, Timestamp};

use super::*;
use crate::testing::{Bench, key};

const PARENT: &str = "/run/v2/projects/demo/locations/asia-northeast1";

fn hello() -> Value {
    json!({"template": {"containers": [{"image": "utsuwa.local/hello"}]}})
}

async fn created(bench: &Bench, name: &str) -> Value {
    let (status, operation) = bench
        .call(
            "POST",
            &format!("{PARENT}/services?serviceId={name}"),
            hello(),
        )
        .await;
    assert_eq!(status, 200, "{operation}");
    operation
}

/// Ids are random.
fn redacted(mut value: Value) -> Value {
    fn walk(value: &mut Value) {
        match value {
            Value::Object(object) => {
                for (name, inner) in object.iter_mut() {
                    if name == "uid" {
                        *inner = json!("UID");
                    }
                    walk(inner);
                }
            }
            Value::Array(items) => items.iter_mut().for_each(walk),
            Value::String(text) => {
                if let Some((front, _)) = text.split_once("/operations/") {
                    *text = format!("{front}/operations/ID");
                }
            }
            _ => {}
        }
    }
    walk(&mut value);
    value
}

#[test]
fn all_routes_can_be_read() {
    assert_eq!(rules().unwrap().len(), 17);
    assert!(not_built().len() > 40);
}

#[tokio::test]
async fn a_service_is_created_and_its_operation_follows_the_loops() {
    let bench = Bench::new();
    let operation = created(&bench, "hello").await;
    assert_json_snapshot!("create", redacted(operation.clone()));
    let name = operation["name"].as_str().unwrap();

    let (status, reading) = bench
        .call("GET", &format!("/run/v2/{name}"), Value::Null)
        .await;
    assert_eq!((status, reading.get("done")), (200, None));
    bench.settle(&key("hello"), None).await;
    let (_, done) = bench
        .call("GET", &format!("/run/v2/{name}"), Value::Null)
        .await;
    assert_json_snapshot!("operation_done", redacted(done));
    let (_, service) = bench
        .call("GET", &format!("{PARENT}/services/hello"), Value::Null)
        .await;
    assert_json_snapshot!("get", redacted(service));
}

#[tokio::test]
async fn a_failed_deploy_reads_as_an_error_and_keeps_what_serves() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    bench.settle(&key("hello"), None).await;
    let body = json!({"template": {"containers": [{"image": "nowhere.test/x"}]}});
    let (_, operation) = bench
        .call("PATCH", &format!("{PARENT}/services/hello"), body)
        .await;
    bench
        .settle(
            &key("hello"),
            Some(("ContainerMissing", "Image 'nowhere.test/x' not found.")),
        )
        .await;
    let name = operation["name"].as_str().unwrap();
    let (_, done) = bench
        .call("GET", &format!("/run/v2/{name}"), Value::Null)
        .await;
    assert_json_snapshot!("operation_failed", redacted(done));
}

#[tokio::test]
async fn while_the_loops_work_the_state_of_the_old_generation_is_not_shown_as_the_new_one() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    bench.settle(&key("hello"), None).await;
    let body = json!({"description": "two"});
    bench
        .call(
            "PATCH",
            &format!("{PARENT}/services/hello?updateMask=description"),
            body,
        )
        .await;
    let (_, service) = bench
        .call("GET", &format!("{PARENT}/services/hello"), Value::Null)
        .await;
    assert_eq!(service["reconciling"], json!(true));
    assert_eq!(
        (&service["generation"], &service["observedGeneration"]),
        (&json!("2"), &json!("1"))
    );
    assert_eq!(
        service["terminalCondition"]["state"],
        "CONDITION_RECONCILING"
    );
    assert_eq!(
        service["latestReadyRevision"],
        "projects/demo/locations/asia-northeast1/services/hello/revisions/hello-00001-abc"
    );
}

#[tokio::test]
async fn lists_are_newest_first_and_paged() {
    let bench = Bench::new();
    for name in ["a", "b", "c"] {
        created(&bench, name).await;
    }
    let names = |list: &Value| -> Vec<String> {
        let services = list["services"].as_array().cloned().unwrap_or_default();
        services
            .iter()
            .map(|s| {
                s["name"]
                    .as_str()
                    .unwrap()
                    .rsplit('/')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    let (_, first) = bench
        .call(
            "GET",
            &format!("{PARENT}/services?pageSize=2&fields=services/name,nextPageToken"),
            Value::Null,
        )
        .await;
    assert_eq!(names(&first), ["c", "b"]);
    assert_eq!(first["services"][0].as_object().unwrap().len(), 1);
    let token = first["nextPageToken"].as_str().unwrap();
    let (_, second) = bench
        .call(
            "GET",
            &format!("{PARENT}/services?pageSize=2&pageToken={token}"),
            Value::Null,
        )
        .await;
    assert_eq!(names(&second), ["a"]);
    assert_eq!(second.get("nextPageToken"), None);
    let (status, error) = bench
        .call(
            "GET",
            &format!("{PARENT}/services?pageToken=nonsense"),
            Value::Null,
        )
        .await;
    assert_eq!(
        (status, &error["error"]["status"]),
        (400, &json!("INVALID_ARGUMENT"))
    );

    bench
        .call("DELETE", &format!("{PARENT}/services/b"), Value::Null)
        .await;
    let (_, visible) = bench
        .call("GET", &format!("{PARENT}/services"), Value::Null)
        .await;
    assert_eq!(names(&visible), ["c", "a"]);
    let (_, all) = bench
        .call(
            "GET",
            &format!("{PARENT}/services?showDeleted=true"),
            Value::Null,
        )
        .await;
    assert_eq!(names(&all), ["c", "b", "a"]);
}

#[tokio::test]
async fn an_update_changes_what_the_mask_names_and_counts_only_changes() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    let path = format!("{PARENT}/services/hello");
    let get = || bench.call("GET", &path, Value::Null);

    let (status, _) = bench
        .call(
            "PATCH",
            &format!("{path}?updateMask=labels.team"),
            json!({"labels": {"team": "x"}}),
        )
        .await;
    assert_eq!(status, 200);
    let (_, service) = get().await;
    assert_eq!(
        (&service["labels"], &service["generation"]),
        (&json!({"team": "x"}), &json!("2"))
    );
    assert_eq!(
        service["template"]["containers"][0]["image"],
        "utsuwa.local/hello"
    );

    // What was read is written back unchanged: nothing has changed.
    let (status, _) = bench.call("PATCH", &path, service.clone()).await;
    assert_eq!(status, 200);
    assert_eq!(get().await.1["generation"], "2");

    // The etag has moved with the write.
    let mut stale = service;
    stale["description"] = json!("mine");
    let (status, error) = bench.call("PATCH", &path, stale).await;
    assert_eq!(
        (status, &error["error"]["status"]),
        (409, &json!("ABORTED"))
    );
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .starts_with("Conflict for resource 'hello': version '")
    );

    // Without a mask the whole service is replaced.
    let (status, _) = bench.call("PATCH", &path, hello()).await;
    assert_eq!(status, 200);
    assert_eq!(get().await.1.get("labels"), None);

    let (status, error) = bench
        .call("PATCH", &format!("{path}?updateMask=nonsense"), json!({}))
        .await;
    assert_eq!(
        (
            status,
            &error["error"]["details"][0]["fieldViolations"][0]["field"]
        ),
        (400, &json!("updateMask"))
    );
}

#[tokio::test]
async fn allow_missing_creates_and_validate_only_writes_nothing() {
    let bench = Bench::new();
    let path = format!("{PARENT}/services/hello");
    let (status, _) = bench.call("PATCH", &path, hello()).await;
    assert_eq!(status, 404);
    let (status, checked) = bench
        .call(
            "PATCH",
            &format!("{path}?allowMissing=true&validateOnly=true"),
            hello(),
        )
        .await;
    assert_eq!((status, &checked["done"]), (200, &json!(true)));
    assert_eq!(
        checked["response"]["@type"],
        "type.googleapis.com/google.cloud.run.v2.Service"
    );
    assert_eq!(bench.call("GET", &path, Value::Null).await.0, 404);
    assert_eq!(
        bench
            .call("PATCH", &format!("{path}?allow_missing=true"), hello())
            .await
            .0,
        200
    );

    for request in [
        (
            "POST",
            format!("{PARENT}/services?serviceId=other&validateOnly=true"),
            hello(),
        ),
        ("DELETE", format!("{path}?validateOnly=true"), Value::Null),
    ] {
        let (status, _) = bench.call(request.0, &request.1, request.2).await;
        assert_eq!(status, 200, "{}", request.1);
    }
    assert_eq!(
        bench
            .call("GET", &format!("{PARENT}/services/other"), Value::Null)
            .await
            .0,
        404
    );
    assert_eq!(
        bench
            .call("GET", &path, Value::Null)
            .await
            .1
            .get("deleteTime"),
        None
    );
}

#[tokio::test]
async fn deleting_marks_the_service_and_ends_when_it_is_gone() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    bench.settle(&key("hello"), None).await;
    let path = format!("{PARENT}/services/hello");
    let (status, _) = bench
        .call("DELETE", &format!("{path}?etag=%221%22"), Value::Null)
        .await;
    assert_eq!(status, 409);
    let (status, operation) = bench.call("DELETE", &path, Value::Null).await;
    assert_eq!(status, 200);
    assert_json_snapshot!("delete", redacted(operation.clone()));
    let (status, _) = bench.call("PATCH", &path, hello()).await;
    assert_eq!(status, 409);
    bench
        .state
        .store
        .remove_service(&key("hello"))
        .await
        .unwrap();
    let (_, done) = bench
        .call(
            "GET",
            &format!("/run/v2/{}", operation["name"].as_str().unwrap()),
            Value::Null,
        )
        .await;
    assert_json_snapshot!("delete_done", redacted(done));
    assert_eq!(bench.call("GET", &path, Value::Null).await.0, 404);
}

#[tokio::test(start_paused = true)]
async fn waiting_ends_with_the_outcome_or_with_the_time() {
    let bench = Bench::new();
    let operation = created(&bench, "hello").await;
    let path = format!("/run/v2/{}:wait", operation["name"].as_str().unwrap());
    let (status, waited) = bench.call("POST", &path, json!({"timeout": "5s"})).await;
    assert_eq!((status, waited.get("done")), (200, None));
    let hello = key("hello");
    let (waited, ()) = tokio::join!(
        bench.call("POST", &path, json!({"timeout": "300s"})),
        bench.settle(&hello, None)
    );
    assert_eq!(waited.1["done"], json!(true));
    let (status, _) = bench.call("POST", &path, json!({"timeout": "soon"})).await;
    assert_eq!(status, 400);
}

#[tokio::test]
async fn operations_are_listed_and_unknown_ones_are_not_found() {
    let bench = Bench::new();
    created(&bench, "a").await;
    created(&bench, "b").await;
    let (_, list) = bench
        .call("GET", &format!("{PARENT}/operations"), Value::Null)
        .await;
    assert_eq!(list["operations"].as_array().unwrap().len(), 2);
    let name = list["operations"][0]["name"].as_str().unwrap();
    assert_eq!(
        bench
            .call("DELETE", &format!("/run/v2/{name}"), Value::Null)
            .await,
        (200, json!({}))
    );
    let (status, error) = bench
        .call("GET", &format!("{PARENT}/operations/nonsense"), Value::Null)
        .await;
    assert_eq!(
        (status, &error["error"]["status"]),
        (404, &json!("NOT_FOUND"))
    );
    let other_region = name.replace("asia-northeast1", "us-central1");
    assert_eq!(
        bench
            .call("GET", &format!("/run/v2/{other_region}"), Value::Null)
            .await
            .0,
        404
    );
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

#[tokio::test]
async fn bad_requests_name_the_field() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    let services = format!("{PARENT}/services");
    let with = |pointer: &str, value: Value| {
        let mut body = json!({"template": {"containers": [{"image": "x"}]}});
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[name] = value;
        body
    };
    for (query, body, field) in [
        ("serviceId=Hello", hello(), "serviceId"),
        ("", hello(), "serviceId"),
        ("serviceId=x", json!({}), "template"),
        ("serviceId=x&nonsense=1", hello(), "nonsense"),
        ("serviceId=x&validateOnly=maybe", hello(), "validateOnly"),
        (
            "serviceId=x",
            with("/template/containers/0/image", json!(7)),
            "template.containers[0].image",
        ),
        (
            "serviceId=x",
            with("/template/timeout", json!("1.5s")),
            "template.timeout",
        ),
        (
            "serviceId=x",
            with("/template/vpcAccess", json!({"connector": "c"})),
            "template.vpcAccess",
        ),
        (
            "serviceId=x",
            with("/template/scaling", json!({"minInstanceCount": -1})),
            "template.scaling.minInstanceCount",
        ),
        (
            "serviceId=x",
            with("/labels", json!({"run.googleapis.com/x": "y"})),
            "labels[run.googleapis.com/x]",
        ),
        (
            "serviceId=x",
            with("/iapEnabled", json!(true)),
            "iapEnabled",
        ),
        (
            "serviceId=x",
            with("/ingress", json!("EVERYWHERE")),
            "ingress",
        ),
        (
            "serviceId=x",
            with(
                "/template/containers/0/ports",
                json!([{"containerPort": 70000}]),
            ),
            "template.containers[0].ports[0].containerPort",
        ),
        (
            "serviceId=x",
            with("/template/containers/0/startupProbe", json!({})),
            "template.containers[0].startupProbe",
        ),
        (
            "serviceId=x",
            with(
                "/traffic",
                json!([{"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION"}]),
            ),
            "traffic[0].revision",
        ),
    ] {
        let (status, error) = bench
            .call("POST", &format!("{services}?{query}"), body)
            .await;
        let detail = &error["error"]["details"][0];
        assert_eq!(
            (status, &error["error"]["status"]),
            (400, &json!("INVALID_ARGUMENT")),
            "{field}: {error}"
        );
        assert_eq!(
            detail["@type"], "type.googleapis.com/google.rpc.BadRequest",
            "{error}"
        );
        assert_eq!(detail["fieldViolations"][0]["field"], field, "{error}");
    }
    let (status, error) = bench
        .call("POST", &format!("{services}?serviceId=hello"), hello())
        .await;
    assert_eq!(
        (status, &error["error"]["status"]),
        (409, &json!("ALREADY_EXISTS"))
    );
    assert_eq!(
        error["error"]["message"],
        "Resource 'hello' already exists."
    );
}

#[tokio::test]
async fn what_is_not_built_is_400_and_what_does_not_exist_is_404() {
    let bench = Bench::new();
    for (method, path, status, code) in [
        ("GET", format!("{PARENT}/jobs"), 400, "UNIMPLEMENTED"),
        ("POST", format!("{PARENT}/jobs/j:run"), 400, "UNIMPLEMENTED"),
        (
            "POST",
            format!("{PARENT}/builds:submit"),
            400,
            "UNIMPLEMENTED",
        ),
        (
            "GET",
            format!("{PARENT}/workerPools/w"),
            400,
            "UNIMPLEMENTED",
        ),
        ("GET", format!("{PARENT}/nonsense"), 404, "NOT_FOUND"),
        ("PUT", format!("{PARENT}/services/hello"), 404, "NOT_FOUND"),
        (
            "POST",
            format!("{PARENT}/services/hello:nonsense"),
            404,
            "NOT_FOUND",
        ),
        ("GET", "/run/v9/projects".to_owned(), 404, "NOT_FOUND"),
        (
            "GET",
            "/pubsub/v1/projects/demo/topics".to_owned(),
            400,
            "UNIMPLEMENTED",
        ),
        ("GET", "/nonsense".to_owned(), 404, "NOT_FOUND"),
    ] {
        let (got, error) = bench.call(method, &path, Value::Null).await;
        assert_eq!(
            (got, &error["error"]["status"]),
            (status, &json!(code)),
            "{method} {path}"
        );
    }
}
