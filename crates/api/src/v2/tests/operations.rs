use serde_json::{Value, json};

use super::{PARENT, created};
use crate::testing::{Bench, key};

#[tokio::test]
async fn waiting_ends_with_the_outcome_or_with_the_time() {
    let bench = Bench::new();
    let operation = created(&bench, "hello").await;
    let path = format!("/run/v2/{}:wait", operation["name"].as_str().unwrap());
    let (status, waited) = bench.call("POST", &path, json!({"timeout": "0.02s"})).await;
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

/// The store keeps what it is told; the words are Google's. What stands there under another name is shown as it is.
#[tokio::test]
async fn the_audit_log_names_the_methods_of_v2() {
    let bench = Bench::new();
    let old = utsuwa_store::AuditEntry {
        at: utsuwa_model::Timestamp(1),
        actor: "anonymous".to_owned(),
        method: "of an earlier version".to_owned(),
        resource: "r".to_owned(),
        result: "OK".to_owned(),
    };
    bench.state.store.audit(old).await.unwrap();
    created(&bench, "hello").await;
    let path = format!("{PARENT}/services/hello");
    let body = json!({"description": "two"});
    let patch = format!("{path}?updateMask=description");
    let (status, _) = bench.call("PATCH", &patch, body).await;
    assert_eq!(status, 200);
    let (status, _) = bench.call("DELETE", &path, Value::Null).await;
    assert_eq!(status, 200);
    let log = bench.state.store.audit_log(10).unwrap();
    let methods: Vec<&str> = log.iter().map(|entry| entry.method.as_str()).collect();
    assert_eq!(
        methods,
        [
            "google.cloud.run.v2.Services.DeleteService",
            "google.cloud.run.v2.Services.UpdateService",
            "google.cloud.run.v2.Services.CreateService",
            "of an earlier version",
        ]
    );
}
