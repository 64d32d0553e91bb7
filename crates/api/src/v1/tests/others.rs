//! Lists, revisions, views, operations, policies, preflights.

use super::*;

#[tokio::test]
async fn lists_have_pages_selectors_and_all_regions() {
    let bench = Bench::new();
    for name in ["a", "b", "c"] {
        created(&bench, name).await;
    }
    let mut labelled = hello("d");
    labelled["metadata"]["labels"]["team"] = json!("x");
    let elsewhere = "/run/v1/projects/demo/locations/europe-west1/services";
    assert_eq!(bench.call("POST", elsewhere, labelled).await.0, 200);
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let first = get(&bench, &format!("{SERVICES}?limit=2")).await;
    assert_eq!(
        (first["kind"].as_str(), names(&first)),
        (Some("ServiceList"), vec!["c".to_owned(), "b".to_owned()])
    );
    let next = first["metadata"]["continue"].as_str().unwrap();
    let second = get(&bench, &format!("{SERVICES}?limit=2&continue={next}")).await;
    assert_eq!(
        (names(&second), second["metadata"].get("continue")),
        (vec!["a".to_owned()], None)
    );
    let all = get(&bench, "/run/v1/projects/demo/locations/-/services").await;
    assert_eq!(names(&all), ["d", "c", "b", "a"]);
    assert_eq!(
        all["items"][0]["metadata"]["labels"]["cloud.googleapis.com/location"],
        "europe-west1"
    );
    let one = get(
        &bench,
        "/run/v1/projects/demo/locations/-/services?labelSelector=team%20%3D%20x",
    )
    .await;
    assert_eq!(names(&one), ["d"]);
    let locations = get(&bench, "/run/v1/projects/demo/locations?pageSize=100").await;
    let ids: Vec<&str> = locations["locations"]
        .as_array()
        .unwrap()
        .iter()
        .map(|l| l["locationId"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["asia-northeast1", "europe-west1"]);
    for (path, status) in [
        ("?continue=zz", 400),
        ("?limit=x", 400),
        ("?labelSelector=%3Da", 400),
        ("?watch=true", 400),
    ] {
        assert_eq!(
            bench
                .call("GET", &format!("{SERVICES}{path}"), Value::Null)
                .await
                .0,
            status,
            "{path}"
        );
    }
    assert_eq!(
        bench
            .call(
                "POST",
                "/run/v1/projects/demo/locations/-/services",
                hello("x")
            )
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn revisions_are_found_and_deleted_when_unused() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    created(&bench, "other").await;
    with_revision(&bench, "hello", "hello-00001-abc", "first").await;
    with_revision(&bench, "hello", "hello-00002-abc", "second").await;
    with_revision(&bench, "other", "other-00001-abc", "third").await;
    let names = |list: &Value| -> Vec<String> {
        list["items"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["metadata"]["name"].as_str().unwrap().to_owned())
            .collect()
    };
    let revisions = format!("{NAMESPACE}/revisions");
    assert_eq!(names(&get(&bench, &revisions).await).len(), 3);
    let nonce = get(
        &bench,
        &format!("{revisions}?labelSelector=client.knative.dev%2Fnonce+%3D+second"),
    )
    .await;
    assert_eq!(names(&nonce), ["hello-00002-abc"]);
    let of = get(
        &bench,
        &format!("{revisions}?labelSelector=serving.knative.dev%2Fservice+%3D+hello"),
    )
    .await;
    assert_eq!(names(&of), ["hello-00002-abc", "hello-00001-abc"]);
    let one = get(&bench, &format!("{revisions}/hello-00001-abc")).await;
    assert_eq!(
        one["status"]["imageDigest"],
        "gcr.io/cloudrun/hello@sha256:00"
    );
    assert_eq!(
        one["metadata"]["labels"]["serving.knative.dev/service"],
        "hello"
    );
    assert_eq!(
        (
            &one["spec"]["containerConcurrency"],
            &one["spec"]["timeoutSeconds"]
        ),
        (&json!(80), &json!(300))
    );
    assert_eq!(
        one["spec"]["containers"][0]["resources"]["limits"],
        json!({"cpu": "1", "memory": "512Mi"})
    );
    assert_eq!(
        one["spec"]["containers"][0]["startupProbe"]["tcpSocket"]["port"],
        8080
    );
    assert_eq!(
        bench
            .call("GET", &format!("{revisions}/hello-9"), Value::Null)
            .await
            .0,
        404
    );

    // The loops settle on hello-00001-abc (see `Bench::settle`).
    bench.settle(&key("hello"), None).await;
    let refused = bench
        .call(
            "DELETE",
            &format!("{revisions}/hello-00001-abc"),
            Value::Null,
        )
        .await;
    assert_eq!(error(&refused).1, "FAILED_PRECONDITION");
    let (status, answer) = bench
        .call(
            "DELETE",
            &format!("{revisions}/hello-00002-abc"),
            Value::Null,
        )
        .await;
    assert_eq!((status, &answer["status"]), (200, &json!("Success")));
    let gone = get(&bench, &format!("{revisions}/hello-00002-abc")).await;
    assert!(
        gone["metadata"]["deletionTimestamp"].is_string(),
        "the loops remove the row"
    );
}

#[tokio::test]
async fn waiting_ends_with_the_outcome_or_the_time() {
    let bench = Bench::new();
    let service = created(&bench, "hello").await;
    let id = service["metadata"]["annotations"]["run.googleapis.com/operation-id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("{PLACE}/operations/{id}");
    let (status, early) = bench
        .call("POST", &format!("{path}:wait"), json!({"timeout": "0s"}))
        .await;
    assert_eq!((status, &early["done"]), (200, &json!(false)));
    let wait = format!("{path}:wait");
    let waiting = bench.call("POST", &wait, json!({"timeout": "30s"}));
    let target = key("hello");
    let settling = bench.settle(&target, Some(("ContainerMissing", "Image 'x' not found.")));
    let ((status, done), ()) = tokio::join!(waiting, settling);
    assert_eq!((status, &done["done"]), (200, &json!(true)));
    assert_eq!(
        done["response"]["status"]["conditions"][0]["message"],
        "Image 'x' not found."
    );
    assert_eq!(get(&bench, &path).await, done);
    let list = get(&bench, &format!("{PLACE}/operations")).await;
    assert_eq!(list["operations"].as_array().unwrap().len(), 1);
    assert_eq!(
        bench
            .call("GET", &format!("{PLACE}/operations/none"), Value::Null)
            .await
            .0,
        404
    );
    assert_eq!(
        bench
            .call("POST", &wait, json!({"timeout": "soon"}))
            .await
            .0,
        400
    );
}

#[tokio::test]
async fn policies_are_read_set_and_guarded() {
    let bench = Bench::new();
    created(&bench, "hello").await;
    let of = |verb: &str| format!("{PLACE}/services/hello:{verb}");
    let empty = get(
        &bench,
        &format!("{}?options.requestedPolicyVersion=3", of("getIamPolicy")),
    )
    .await;
    assert!(empty.get("bindings").is_none() && empty["etag"].is_string());
    let public = json!([{"role": "roles/run.invoker", "members": ["allUsers"]}]);
    let body = json!({"policy": {"bindings": public, "etag": empty["etag"], "version": 3}, "updateMask": "bindings"});
    let (status, set) = bench.call("POST", &of("setIamPolicy"), body.clone()).await;
    assert_eq!((status, &set["bindings"]), (200, &public));
    assert!(bench.state.store.policy(&key("hello")).unwrap().is_public());
    let stale = bench.call("POST", &of("setIamPolicy"), body).await;
    assert_eq!((error(&stale).0, error(&stale).1), (409, "ABORTED"));
    let kept = json!({"policy": {"version": 3}, "updateMask": "version"});
    let (_, kept) = bench.call("POST", &of("setIamPolicy"), kept).await;
    assert_eq!(
        (&kept["bindings"], &kept["version"]),
        (&public, &json!(3)),
        "what the mask doesn't name stays"
    );
    for (policy, field) in [
        (
            json!({"bindings": [{"role": "invoker", "members": []}]}),
            "policy.bindings[0].role",
        ),
        (
            json!({"bindings": [{"role": "roles/run.invoker", "members": ["me"]}]}),
            "policy.bindings[0].members",
        ),
        (json!({"version": 2}), "policy.version"),
        (
            json!({"version": 1, "bindings": [{"role": "roles/a", "members": [], "condition": {"expression": "true"}}]}),
            "policy.bindings[0].condition",
        ),
        (json!("x"), "policy"),
    ] {
        let answer = bench
            .call("POST", &of("setIamPolicy"), json!({"policy": policy}))
            .await;
        assert!(
            answer.0 == 400 && error(&answer).2.starts_with(field),
            "{field}: {answer:?}"
        );
    }
    let asked = json!({"permissions": ["run.services.setIamPolicy", "storage.buckets.get"]});
    let (_, held) = bench
        .call(
            "POST",
            &format!("{PLACE}/services/new:testIamPermissions"),
            asked,
        )
        .await;
    assert_eq!(
        held,
        json!({"permissions": ["run.services.setIamPolicy"]}),
        "also before the service exists"
    );
    assert_eq!(
        bench
            .call(
                "GET",
                &format!("{PLACE}/services/nobody:getIamPolicy"),
                Value::Null
            )
            .await
            .0,
        404
    );
}

#[tokio::test]
async fn preflights() {
    let bench = Bench::new();
    let run = get(
        &bench,
        "/serviceusage/v1/projects/demo/services/run.googleapis.com",
    )
    .await;
    assert_eq!(run["state"], "ENABLED");
    let other = get(
        &bench,
        "/serviceusage/v1/projects/demo/services/cloudbuild.googleapis.com",
    )
    .await;
    assert_eq!(other["state"], "DISABLED");
    let enable = "/serviceusage/v1/projects/demo/services:batchEnable";
    let (status, done) = bench
        .call(
            "POST",
            enable,
            json!({"serviceIds": ["run.googleapis.com"]}),
        )
        .await;
    assert_eq!((status, &done["done"]), (200, &json!(true)));
    let refused = bench
        .call(
            "POST",
            enable,
            json!({"serviceIds": ["sqladmin.googleapis.com"]}),
        )
        .await;
    assert_eq!(error(&refused).1, "UNIMPLEMENTED");
    let project = get(&bench, "/cloudresourcemanager/v1/projects/demo").await;
    assert_eq!(
        (&project["projectId"], &project["lifecycleState"]),
        (&json!("demo"), &json!("ACTIVE"))
    );
    assert_eq!(
        project["projectNumber"],
        project_number(&"demo".parse().unwrap()).to_string()
    );
}
