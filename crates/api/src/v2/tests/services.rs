use insta::assert_json_snapshot;
use serde_json::{Value, json};

use super::{PARENT, created, hello, redacted};
use crate::testing::{Bench, key};

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

/// A service from Knative YAML: v2 can't write all of it the same way.
#[tokio::test]
async fn what_a_mask_leaves_out_and_what_is_written_back_make_no_revision() {
    let bench = Bench::new();
    let body = json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "hello", "namespace": "demo"},
        "spec": {"template": {
            "metadata": {"annotations": {"autoscaling.knative.dev/minScale": "0"}},
            "spec": {"containers": [{"image": "utsuwa.local/hello", "resources": {"limits": {"memory": "256Mi"}}}]},
        }},
    });
    let path = "/run/apis/serving.knative.dev/v1/namespaces/demo/services";
    assert_eq!(bench.call("POST", path, body).await.0, 200);
    bench.settle(&key("hello"), None).await;
    let template = || {
        let service = bench.state.store.service(&key("hello")).unwrap().unwrap();
        service.spec.template
    };
    let written = template();
    assert_eq!(written.min_instances, Some(0));
    let path = format!("{PARENT}/services/hello");
    let traffic =
        json!({"traffic": [{"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 100}]});
    let (status, _) = bench
        .call("PATCH", &format!("{path}?updateMask=traffic"), traffic)
        .await;
    assert_eq!((status, template()), (200, written.clone()));
    let (_, read) = bench.call("GET", &path, Value::Null).await;
    let body = json!({"template": read["template"]});
    let (status, _) = bench
        .call("PATCH", &format!("{path}?updateMask=template"), body)
        .await;
    assert_eq!(status, 200);
    assert!(written.same_as(&template()), "{:#?}", template());
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
