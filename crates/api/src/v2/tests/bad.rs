use serde_json::{Value, json};

use super::{PARENT, created, hello};
use crate::testing::Bench;

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
            with("/scaling", json!({"scalingMode": 7})),
            "scaling.scalingMode",
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
