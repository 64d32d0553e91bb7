//! Services: made, read back, clashing, deleted.

use super::*;

#[tokio::test]
async fn a_new_service_has_all_that_gcloud_needs() {
    let bench = Bench::new();
    let service = created(&bench, "hello").await;
    let meta = &service["metadata"];
    assert_eq!(meta["generation"], 1);
    assert_eq!(
        meta["namespace"],
        project_number(&"demo".parse().unwrap()).to_string()
    );
    assert_eq!(
        meta["labels"]["cloud.googleapis.com/location"],
        "asia-northeast1"
    );
    assert!(meta["annotations"]["run.googleapis.com/operation-id"].is_string());
    assert!(
        meta["resourceVersion"]
            .as_str()
            .unwrap()
            .parse::<i64>()
            .unwrap()
            > 0
    );
    assert_eq!(
        service["spec"]["traffic"],
        json!([{"latestRevision": true, "percent": 100}])
    );
    assert_eq!(service["status"]["observedGeneration"], 0);
    let kinds: Vec<&str> = service["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["type"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["Ready", "ConfigurationsReady", "RoutesReady"]);

    bench.settle(&key("hello"), None).await;
    let service = get(&bench, &format!("{SERVICES}/hello")).await;
    assert_eq!(service["status"]["observedGeneration"], 1);
    assert_eq!(service["status"]["conditions"][0]["status"], "True");
    assert_eq!(
        service["metadata"]["annotations"]["run.googleapis.com/urls"],
        "[\"http://hello.localhost:8080\"]"
    );
    assert_eq!(
        service["status"]["address"]["url"],
        "http://hello.localhost:8080"
    );
    assert_eq!(service["status"]["traffic"][0]["latestRevision"], true);
    assert!(
        service["metadata"]["annotations"]
            .get("run.googleapis.com/operation-id")
            .is_none()
    );
    // Google's style of the same address, and the number instead of the id.
    assert_eq!(
        get(&bench, &format!("{PLACE}/services/hello")).await,
        service
    );
    let number = project_number(&"demo".parse().unwrap());
    assert_eq!(
        get(
            &bench,
            &format!("/run/apis/serving.knative.dev/v1/namespaces/{number}/services/hello")
        )
        .await,
        service
    );
}

#[tokio::test]
async fn conflicts_in_googles_words() {
    let bench = Bench::new();
    let service = created(&bench, "hello").await;
    let again = bench.call("POST", SERVICES, hello("hello")).await;
    assert_eq!(
        error(&again),
        (409, "ALREADY_EXISTS", "Resource 'hello' already exists.")
    );
    let missing = bench
        .call("GET", &format!("{SERVICES}/nobody"), Value::Null)
        .await;
    let text = "Resource 'nobody' of kind 'SERVICE' in region 'asia-northeast1' in project 'demo' does not exist.";
    assert_eq!(error(&missing), (404, "NOT_FOUND", text));
    let missing = bench
        .call("PUT", &format!("{SERVICES}/nobody"), hello("nobody"))
        .await;
    assert_eq!(error(&missing).0, 404);
    let mut stale = hello("hello");
    stale["metadata"]["resourceVersion"] = json!("1234");
    let now = service["metadata"]["resourceVersion"].as_str().unwrap();
    let answer = bench.call("PUT", &format!("{SERVICES}/hello"), stale).await;
    let text = format!(
        "Conflict for resource 'hello': version '1234' was specified but current version is '{now}'."
    );
    assert_eq!(error(&answer), (409, "ABORTED", text.as_str()));
    let renamed = bench
        .call("PUT", &format!("{SERVICES}/hello"), hello("other"))
        .await;
    assert!(
        error(&renamed).2.starts_with("metadata.name: is \"other\""),
        "{renamed:?}"
    );
    let mut elsewhere = hello("elsewhere");
    elsewhere["metadata"]["namespace"] = json!("another");
    let refused = bench.call("POST", SERVICES, elsewhere).await;
    assert!(
        error(&refused).2.starts_with("metadata.namespace:"),
        "{refused:?}"
    );
}

#[tokio::test]
async fn what_was_read_and_is_sent_back_is_no_change() {
    let bench = Bench::new();
    let mut rich = hello("rich");
    rich["metadata"]["annotations"]["run.googleapis.com/ingress"] = json!("internal");
    rich["metadata"]["annotations"]["run.googleapis.com/description"] = json!("a b");
    rich["metadata"]["labels"] = json!({"team": "a"});
    rich["spec"]["template"]["metadata"]["annotations"]["autoscaling.knative.dev/min-scale"] =
        json!("1");
    rich["spec"]["template"]["metadata"]["annotations"]["autoscaling.knative.dev/maxScale"] =
        json!("5");
    rich["spec"]["template"]["metadata"]["annotations"]["run.googleapis.com/execution-environment"] =
        json!("gen2");
    rich["spec"]["template"]["metadata"]["annotations"]["unknown.example.com/x"] = json!("kept");
    rich["spec"]["template"]["spec"] = json!({
        "containerConcurrency": 7, "timeoutSeconds": "90", "serviceAccountName": "me@example.com",
        "containers": [{
            "image": "gcr.io/cloudrun/hello", "command": ["a"], "args": ["b", "c"], "workingDir": "/srv",
            "env": [{"name": "A", "value": "1"}, {"name": "EMPTY"}],
            "resources": {"limits": {"cpu": "1000m", "memory": "1Gi"}},
            "ports": [{"name": "h2c", "containerPort": 9000}],
            "startupProbe": {"httpGet": {"path": "/up", "httpHeaders": [{"name": "X", "value": "y"}]}, "periodSeconds": 3},
            "livenessProbe": {"httpGet": {"path": "/live"}},
            "readinessProbe": {"grpc": {"port": 9001, "service": "s"}, "successThreshold": 3}
        }]
    });
    let (status, _) = bench.call("POST", SERVICES, rich.clone()).await;
    assert_eq!(status, 200);
    bench.settle(&key("rich"), None).await;
    let read = get(&bench, &format!("{SERVICES}/rich")).await;
    let spec = &read["spec"]["template"]["spec"];
    assert_eq!(spec["timeoutSeconds"], 90);
    assert_eq!(spec["containers"][0]["name"], "rich-1");
    assert_eq!(
        spec["containers"][0]["env"],
        json!([{"name": "A", "value": "1"}, {"name": "EMPTY", "value": ""}])
    );
    assert_eq!(
        spec["containers"][0]["resources"]["limits"]["cpu"], "1000m",
        "as written"
    );
    let probe = json!({
        "httpGet": {"path": "/up", "port": 9000, "httpHeaders": [{"name": "X", "value": "y"}]},
        "periodSeconds": 3, "timeoutSeconds": 1, "failureThreshold": 3
    });
    assert_eq!(spec["containers"][0]["startupProbe"], probe);
    assert_eq!(
        spec["containers"][0]["livenessProbe"],
        json!({"httpGet": {"path": "/live", "port": 9000}, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3})
    );
    assert_eq!(
        spec["containers"][0]["readinessProbe"],
        json!({"grpc": {"port": 9001, "service": "s"}, "periodSeconds": 10, "timeoutSeconds": 1, "failureThreshold": 3,
            "successThreshold": 3})
    );
    for (name, value) in rich["spec"]["template"]["metadata"]["annotations"]
        .as_object()
        .unwrap()
    {
        assert_eq!(
            &read["spec"]["template"]["metadata"]["annotations"][name], value,
            "{name}"
        );
    }
    let (status, written) = bench
        .call("PUT", &format!("{SERVICES}/rich"), read.clone())
        .await;
    assert_eq!(status, 200, "{written}");
    assert_eq!(written["metadata"]["generation"], 1, "nothing has changed");
    let after = bench.state.store.service(&key("rich")).unwrap().unwrap();
    assert_eq!(after.spec.template.concurrency, Some(7));
    assert_eq!(
        after.spec.template.containers[0].name, "",
        "a name that we made up isn't the user's"
    );

    let mut changed = get(&bench, &format!("{SERVICES}/rich")).await;
    changed["spec"]["template"]["spec"]["containerConcurrency"] = json!(8);
    let (status, written) = bench
        .call("PUT", &format!("{SERVICES}/rich"), changed)
        .await;
    assert_eq!(
        (status, &written["metadata"]["generation"]),
        (200, &json!(2)),
        "{written}"
    );
    assert_eq!(
        written["status"]["observedGeneration"], 1,
        "the status is still that of the old generation"
    );
}

#[tokio::test]
async fn dry_runs_check_and_write_nothing() {
    let bench = Bench::new();
    let (status, service) = bench
        .call("POST", &format!("{SERVICES}?dryRun=all"), hello("hello"))
        .await;
    assert_eq!(
        (status, &service["metadata"]["name"]),
        (200, &json!("hello"))
    );
    assert_eq!(bench.state.store.service(&key("hello")).unwrap(), None);
    created(&bench, "hello").await;
    let mut bad = hello("hello");
    bad["spec"]["template"]["spec"]["containerConcurrency"] = json!(5000);
    assert_eq!(
        bench
            .call("PUT", &format!("{SERVICES}/hello?dryRun=all"), bad)
            .await
            .0,
        400
    );
    let mut good = hello("hello");
    good["spec"]["template"]["spec"]["containerConcurrency"] = json!(5);
    let (status, shown) = bench
        .call("PUT", &format!("{SERVICES}/hello?dryRun=all"), good)
        .await;
    assert_eq!((status, &shown["metadata"]["generation"]), (200, &json!(2)));
    assert_eq!(
        bench
            .call(
                "DELETE",
                &format!("{SERVICES}/hello?dryRun=all"),
                Value::Null
            )
            .await
            .0,
        200
    );
    let stored = bench.state.store.service(&key("hello")).unwrap().unwrap();
    assert_eq!(
        (
            stored.meta.generation,
            stored.spec.template.concurrency,
            stored.meta.delete_time
        ),
        (1, None, None)
    );
}

#[tokio::test]
async fn a_deleted_service_stays_readable_until_it_is_cleared() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    let path = format!("{SERVICES}/hello");
    let (status, answer) = bench.call("DELETE", &path, Value::Null).await;
    assert_eq!(
        (status, &answer["kind"], &answer["status"]),
        (200, &json!("Status"), &json!("Success"))
    );
    assert!(get(&bench, &path).await["metadata"]["deletionTimestamp"].is_string());
    let again = bench.call("PUT", &path, hello("hello")).await;
    assert_eq!(error(&again).1, "ABORTED");
    bench
        .state
        .store
        .remove_service(&key("hello"))
        .await
        .unwrap();
    assert_eq!(bench.call("GET", &path, Value::Null).await.0, 404);
    assert_eq!(bench.call("DELETE", &path, Value::Null).await.0, 404);
}
