//! Every method of v1 against a store in memory.

use serde_json::{Value, json};
use utsuwa_model::RevisionKey;
use utsuwa_model::address::project_number;
use utsuwa_model::revision::{Outcome, Revision, RevisionStatus};
use utsuwa_model::service::Meta;

use crate::testing::{Bench, key};

mod views;

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
            "startupProbe": {"httpGet": {"path": "/up", "httpHeaders": [{"name": "X", "value": "y"}]}, "periodSeconds": 3}
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
async fn wrong_fields_are_named_in_v1s_words() {
    let bench = Bench::new();
    type Row = (&'static str, Value, &'static str);
    let rows: Vec<Row> = vec![
        (
            "/metadata/name",
            json!("Hello"),
            "metadata.name: not a DNS 1035 label",
        ),
        (
            "/metadata/name",
            json!("a".repeat(50)),
            "metadata.name: not a DNS 1035 label",
        ),
        ("/metadata/name", json!(""), "metadata.name: missing"),
        ("/kind", json!("Job"), "kind: must be \"Service\""),
        ("/spec", Value::Null, "spec: missing"),
        (
            "/spec/template/spec/containers",
            json!([]),
            "spec.template.spec.containers: missing",
        ),
        (
            "/spec/template/spec/containers",
            json!({}),
            "spec.template.spec.containers: must be a list",
        ),
        (
            "/spec/template/spec/containers/0/image",
            json!("A B"),
            "spec.template.spec.containers[0].image: Failed to parse",
        ),
        (
            "/spec/template/spec/containers/0/env",
            json!([{"name": "PORT", "value": "1"}]),
            "spec.template.spec.containers[0].env: The following reserved env names were provided: PORT.",
        ),
        (
            "/spec/template/spec/containers/0/ports",
            json!([{"containerPort": 70000}]),
            "spec.template.spec.containers[0].ports[0].containerPort: expected 1 <= 70000 <= 65535",
        ),
        (
            "/spec/template/spec/containers/0/ports",
            json!([{"containerPort": "x"}]),
            "spec.template.spec.containers[0].ports[0].containerPort: must be a whole number",
        ),
        (
            "/spec/template/spec/containers/0/resources/limits",
            json!({"cpu": "3"}),
            "spec.template.spec.containers[0].resources.limits.cpu: Invalid value",
        ),
        (
            "/spec/template/spec/containers/0/securityContext",
            json!({"runAsUser": 1}),
            "spec.template.spec.containers[0].securityContext: must not set the field(s): securityContext",
        ),
        (
            "/spec/template/spec/containers/0/startupProbe",
            json!({"exec": {"command": ["x"]}}),
            "spec.template.spec.containers[0].startupProbe.exec: must not set",
        ),
        (
            "/spec/template/spec/containers/0/env",
            json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "1"}}}]),
            "spec.template.spec.containers[0].env[0].valueFrom.secretKeyRef: secrets are not built",
        ),
        (
            "/spec/template/spec/volumes",
            json!([{"name": "b", "csi": {"driver": "gcsfuse.run.googleapis.com"}}]),
            "spec.template.spec.volumes[0].csi: volumes of kind csi are not built",
        ),
        (
            "/spec/template/spec/initContainers",
            json!([{}]),
            "spec.template.spec.initContainers: must not set",
        ),
        (
            "/spec/template/spec/timeoutSeconds",
            json!(3601),
            "spec.template.spec.timeoutSeconds: expected 0 <= 3601 <= 3600",
        ),
        (
            "/spec/template/spec/timeoutSeconds",
            json!(-1),
            "spec.template.spec.timeoutSeconds: expected 0 <= -1",
        ),
        (
            "/spec/template/spec/containerConcurrency",
            json!(1001),
            "spec.template.spec.containerConcurrency: expected 0 <= 1001 <= 1000",
        ),
        (
            "/spec/template/metadata/name",
            json!("other-1"),
            "spec.template.metadata.name: \"other-1\" must have prefix \"wrong-\"",
        ),
        (
            "/spec/template/metadata/annotations/autoscaling.knative.dev~1minScale",
            json!("many"),
            "spec.template.metadata.annotations[autoscaling.knative.dev/minScale]: invalid value",
        ),
        (
            "/metadata/annotations/autoscaling.knative.dev~1minScale",
            json!("1"),
            "metadata.annotations[autoscaling.knative.dev/minScale]: autoscaling annotations must be put under",
        ),
        (
            "/spec/traffic",
            json!([{"percent": 50, "latestRevision": true}]),
            "spec.traffic: Traffic targets sum to 50, want 100",
        ),
        (
            "/spec/traffic",
            json!([{"percent": 100, "revisionName": "wrong-x"}]),
            "spec.traffic[0].revisionName: Revision \"wrong-x\"",
        ),
        (
            "/spec/traffic",
            json!([{"percent": 100, "url": "http://x"}]),
            "spec.traffic[0].url: must not be set",
        ),
    ];
    for (pointer, value, expected) in rows {
        let mut body = hello("wrong");
        let (parent, last) = pointer.rsplit_once('/').unwrap();
        body.pointer_mut(parent).unwrap()[last.replace("~1", "/")] = value;
        let answer = bench.call("POST", SERVICES, body).await;
        let (status, name, message) = error(&answer);
        assert_eq!(
            (status, name),
            (400, "INVALID_ARGUMENT"),
            "{pointer}: {answer:?}"
        );
        assert!(
            message.starts_with(expected),
            "{pointer}: expected {expected:?}, said {message:?}"
        );
        let violation = &answer.1["error"]["details"][0];
        assert_eq!(
            violation["@type"],
            "type.googleapis.com/google.rpc.BadRequest"
        );
        assert!(expected.starts_with(violation["fieldViolations"][0]["field"].as_str().unwrap()));
    }
    assert_eq!(
        get(&bench, SERVICES).await["items"],
        json!([]),
        "nothing was written"
    );
    let answer = bench.call("POST", SERVICES, json!("text")).await;
    assert_eq!(error(&answer).0, 400);
}

/// Every part of a request replaced by every kind of JSON: an answer in Google's words each time, never an internal error.
#[tokio::test]
async fn nothing_that_is_sent_breaks_us() {
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(k, v)| {
                    pointers(v, &format!("{at}/{}", k.replace('/', "~1")), found)
                });
            }
            Value::Array(items) => items
                .iter()
                .enumerate()
                .for_each(|(i, v)| pointers(v, &format!("{at}/{i}"), found)),
            _ => {}
        }
    }
    let bench = Bench::new();
    let mut whole = hello("whole");
    whole["metadata"]["resourceVersion"] = json!("1");
    whole["spec"]["traffic"] =
        json!([{"percent": 100, "latestRevision": true, "tag": "a", "revisionName": ""}]);
    let container = &mut whole["spec"]["template"]["spec"]["containers"][0];
    container["env"] = json!([{"name": "A", "value": "1"}, {"name": "B", "valueFrom": {"secretKeyRef": {"name": "s", "key": "1"}}}]);
    container["ports"] = json!([{"name": "h2c", "containerPort": 1}]);
    container["volumeMounts"] = json!([{"name": "v", "mountPath": "/v", "readOnly": true}]);
    container["startupProbe"] = json!({"httpGet": {"path": "/", "port": 1, "httpHeaders": [{"name": "a", "value": "b"}]}, "periodSeconds": 1});
    container["livenessProbe"] = json!({"grpc": {"port": 1, "service": "s"}});
    whole["spec"]["template"]["spec"]["volumes"] = json!([{"name": "v", "secret": {"secretName": "s", "items": [{"key": "1", "path": "p", "mode": 1}]}}, {"name": "w", "emptyDir": {"medium": "Memory"}}]);
    let mut all = Vec::new();
    pointers(&whole, "", &mut all);
    assert!(all.len() > 60);
    let kinds = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1e300),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}\u{7f}é"),
        json!([]),
        json!([null]),
        json!({}),
        json!({"a": [1]}),
    ];
    for pointer in &all {
        for kind in &kinds {
            let mut body = whole.clone();
            *body.pointer_mut(pointer).unwrap() = kind.clone();
            let (status, answer) = bench
                .call("POST", &format!("{SERVICES}?dryRun=all"), body)
                .await;
            assert!(
                status == 200 || status == 400,
                "{pointer} = {kind}: {status} {answer}"
            );
        }
    }
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
async fn what_isnt_built_says_so_and_the_rest_isnt_there() {
    let bench = Bench::new();
    for (path, status, name) in [
        (
            "/run/apis/run.googleapis.com/v1/namespaces/demo/jobs",
            400,
            "UNIMPLEMENTED",
        ),
        (
            "/run/apis/domains.cloudrun.com/v1/namespaces/demo/domainmappings",
            400,
            "UNIMPLEMENTED",
        ),
        (
            "/run/v1/projects/demo/locations/asia-northeast1/jobs",
            400,
            "UNIMPLEMENTED",
        ),
        (
            "/run/v1/projects/demo/authorizeddomains",
            400,
            "UNIMPLEMENTED",
        ),
        (
            "/run/apis/serving.knative.dev/v1/namespaces/demo/nothing",
            404,
            "NOT_FOUND",
        ),
        (
            "/run/apis/serving.knative.dev/v1/namespaces/Demo/services",
            400,
            "INVALID_ARGUMENT",
        ),
        (
            "/run/v1/projects/demo/locations/Tokyo!/services",
            400,
            "INVALID_ARGUMENT",
        ),
        (
            "/run/v1/projects/demo/locations/r/services/%zz",
            400,
            "INVALID_ARGUMENT",
        ),
    ] {
        let answer = bench.call("GET", path, Value::Null).await;
        assert_eq!(
            (error(&answer).0, error(&answer).1),
            (status, name),
            "{path}: {answer:?}"
        );
    }
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
