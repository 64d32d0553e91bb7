use http_body_util::BodyExt;
use insta::assert_json_snapshot;
use serde_json::{Value, json};

use super::*;
use crate::testing::Bench;

const SERVICE: &str = "/utsuwa/v1/projects/demo/locations/asia-northeast1/services/hello";

async fn with_hello() -> Bench {
    let bench = Bench::new();
    let body = json!({"template": {"containers": [{"image": "utsuwa.local/hello"}]}});
    let path = "/run/v2/projects/demo/locations/asia-northeast1/services?serviceId=hello";
    assert_eq!(bench.call("POST", path, body).await.0, 200);
    bench
}

#[tokio::test]
async fn info_says_where_and_what() {
    let bench = Bench::new();
    let (status, mut info) = bench.call("GET", "/utsuwa/v1/info", Value::Null).await;
    assert_eq!(status, 200);
    let ca = info["caFile"].take();
    let pem = info["caPem"].take();
    assert_eq!(
        std::fs::read_to_string(ca.as_str().unwrap()).unwrap(),
        pem.as_str().unwrap()
    );
    assert!(pem.as_str().unwrap().contains("BEGIN CERTIFICATE"));
    assert_json_snapshot!(info);
}

#[tokio::test]
async fn a_service_is_explained() {
    let bench = with_hello().await;
    let (status, explained) = bench
        .call("GET", &format!("{SERVICE}:explain"), Value::Null)
        .await;
    assert_eq!(status, 200);
    assert_json_snapshot!(explained);
    let (status, _) = bench
        .call(
            "GET",
            &SERVICE.replace("hello", "none:explain"),
            Value::Null,
        )
        .await;
    assert_eq!(status, 404);
    assert_eq!(bench.call("GET", SERVICE, Value::Null).await.0, 404);
}

#[tokio::test]
async fn logs_are_lines_of_json() {
    let bench = with_hello().await;
    for (query, texts) in [
        ("", vec!["line 1", "line 2", "line 3"]),
        ("?tail=1", vec!["line 3"]),
        ("?tail=2&follow=true", vec!["line 2", "line 3", "line 4"]),
    ] {
        let request = http::Request::get(format!("{SERVICE}/logs{query}"))
            .header("host", "localhost")
            .body(Body::empty())
            .unwrap();
        let body = bench
            .send(request)
            .await
            .into_body()
            .collect()
            .await
            .unwrap()
            .to_bytes();
        let lines: Vec<Value> = String::from_utf8(body.to_vec())
            .unwrap()
            .lines()
            .map(|l| serde_json::from_str(l).unwrap())
            .collect();
        assert_eq!(
            lines
                .iter()
                .map(|l| l["text"].as_str().unwrap())
                .collect::<Vec<_>>(),
            texts,
            "{query}"
        );
        assert_eq!(lines[0]["at"], "2023-11-14T22:13:20.000000Z");
    }
    let (status, error) = bench
        .call("GET", &format!("{SERVICE}/logs?tail=many"), Value::Null)
        .await;
    assert_eq!(
        (status, &error["error"]["status"]),
        (400, &json!("INVALID_ARGUMENT"))
    );
}

#[tokio::test]
async fn archives_are_taken_as_a_stream() {
    let bench = Bench::new();
    let send_to = |path: &str, body: Vec<u8>| {
        let request = http::Request::post(path)
            .header("host", "localhost")
            .body(Body::from(body))
            .unwrap();
        bench.send(request)
    };
    let send = |body| send_to("/utsuwa/v1/images:load", body);
    // More than the limit of other bodies: archives are large.
    let response = send(vec![7; 6 << 20]).await;
    assert_eq!(response.status(), 200);
    let loaded: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(loaded["reference"], "utsuwa.local/loaded:6291456");
    assert_eq!(send(Vec::new()).await.status(), 400);
    // Which image of it is wanted goes with it.
    let response = send_to("/utsuwa/v1/images:load?image=team%2Fapi:v1", vec![7]).await;
    let loaded: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(loaded["reference"], "utsuwa.local/loaded/team/api:v1:1");
    let response = send_to("/utsuwa/v1/images:load?tag=v1", vec![7]).await;
    assert_eq!(response.status(), 400);
    let (_, list) = bench.call("GET", "/utsuwa/v1/images", Value::Null).await;
    assert_eq!(
        list["images"][0],
        json!({"reference": "utsuwa.local/hello", "digest": "sha256:00", "sizeBytes": 7, "inUse": true, "leftOut": []})
    );
}

#[tokio::test]
async fn the_table_of_loops_is_shown() {
    let (_, loops) = Bench::new()
        .call("GET", "/utsuwa/v1/loops", Value::Null)
        .await;
    assert_json_snapshot!(loops);
}

#[tokio::test]
async fn health_follows_readiness() {
    let bench = Bench::new();
    assert_eq!(bench.call("GET", "/healthz", Value::Null).await.0, 503);
    bench.state.ready.set(true);
    assert_eq!(
        bench.call("GET", "/healthz", Value::Null).await,
        (200, json!("ok\n"))
    );
}
