use http::Method;
use proptest::prelude::*;
use serde_json::{Value, json};
use utsuwa_wire::json::{self as wire_json, Style};
use utsuwa_wire::rules::{self, Rule};

use super::bind;
use super::partial::Selection;
use super::system::System;
use crate::testing::Bench;

fn rule(name: &str) -> Rule {
    let all = rules::of_service("google.cloud.run.v2.Services").unwrap();
    all.into_iter()
        .find(|r| r.rpc.ends_with(&format!("/{name}")))
        .unwrap()
}

fn bound(method: &str, path: &str, query: &str, body: &str) -> Result<Value, String> {
    let rule = rule(method);
    let bindings = rule.template.matches(path).unwrap();
    let system = System::read(query).map_err(|e| e.public().to_owned())?;
    let message = bind::request(&rule, &bindings, &system.rest, body.as_bytes())
        .map_err(|e| e.public().to_owned())?;
    Ok(wire_json::render(&message, Style::default()).unwrap())
}

const PARENT: &str = "/v2/projects/p/locations/r";

#[test]
fn path_query_and_body_become_one_message() {
    let services = format!("{PARENT}/services");
    let one = format!("{PARENT}/services/s");
    for (method, path, query, body, expected) in [
        (
            "GetService",
            &one,
            "",
            "",
            json!({"name": "projects/p/locations/r/services/s"}),
        ),
        (
            "GetService",
            &one,
            "alt=json&$alt=json;enum-encoding=int&key=x&prettyPrint=false",
            "{}",
            json!({"name": "projects/p/locations/r/services/s"}),
        ),
        (
            "ListServices",
            &services,
            "pageSize=5&page_token=a%20b+c&showDeleted",
            "",
            json!({"parent": "projects/p/locations/r", "pageSize": 5, "pageToken": "a b c", "showDeleted": true}),
        ),
        (
            "CreateService",
            &services,
            "serviceId=s&validate_only=true",
            r#"{"description":"d"}"#,
            json!({"parent": "projects/p/locations/r", "service": {"description": "d"}, "serviceId": "s", "validateOnly": true}),
        ),
        // The path wins over the body.
        (
            "UpdateService",
            &one,
            "updateMask=template.max_instance_request_concurrency,labels",
            r#"{"name":"other"}"#,
            json!({"service": {"name": "projects/p/locations/r/services/s"}, "updateMask": "template.maxInstanceRequestConcurrency,labels"}),
        ),
        (
            "GetIamPolicy",
            &format!("{one}:getIamPolicy"),
            "options.requestedPolicyVersion=3",
            "",
            json!({"resource": "projects/p/locations/r/services/s", "options": {"requestedPolicyVersion": 3}}),
        ),
        (
            "SetIamPolicy",
            &format!("{one}:setIamPolicy"),
            "",
            r#"{"policy":{"version":1},"updateMask":"bindings"}"#,
            json!({"resource": "projects/p/locations/r/services/s", "policy": {"version": 1}, "updateMask": "bindings"}),
        ),
    ] {
        assert_eq!(
            bound(method, path, query, body).unwrap(),
            expected,
            "{method} {query}"
        );
    }
}

#[test]
fn what_cannot_be_bound_is_named() {
    let services = format!("{PARENT}/services");
    let one = format!("{PARENT}/services/s");
    for (method, path, query, body, text) in [
        ("GetService", &one, "nonsense=1", "", "nonsense"),
        ("GetService", &one, "alt=media", "", "alt"),
        ("GetService", &one, "alt=json;colour=red", "", "alt"),
        ("GetService", &one, "", r#"{"name":"x"}"#, "takes no body"),
        ("ListServices", &services, "pageSize=many", "", "pageSize"),
        (
            "ListServices",
            &services,
            "pageSize=1&pageSize=2",
            "",
            "given twice",
        ),
        ("ListServices", &services, "parent.x=1", "", "parent.x"),
        (
            "ListServices",
            &services,
            "showDeleted=maybe",
            "",
            "showDeleted",
        ),
        (
            "ListServices",
            &services,
            "pageToken=%zz",
            "",
            "percent-encoded",
        ),
        (
            "CreateService",
            &services,
            "service.description=d",
            "{}",
            "service.description",
        ),
        ("CreateService", &services, "", "[]", "must be an object"),
        ("CreateService", &services, "", "{", "Invalid JSON payload"),
        (
            "CreateService",
            &services,
            "",
            r#"{"template":{"timeout":7}}"#,
            "template.timeout",
        ),
        (
            "SetIamPolicy",
            &format!("{one}:setIamPolicy"),
            "policy.version=1",
            "{}",
            "policy.version",
        ),
    ] {
        let error = bound(method, path, query, body).unwrap_err();
        assert!(error.contains(text), "{method} {query} {body}: {error}");
    }
}

#[test]
fn partial_responses_keep_what_is_named() {
    let whole = json!({"services": [{"name": "a", "uri": "u", "template": {"timeout": "1s", "containers": [{"image": "x", "name": "n"}]}}], "nextPageToken": "t"});
    for (fields, expected) in [
        ("nextPageToken", json!({"nextPageToken": "t"})),
        ("services/name", json!({"services": [{"name": "a"}]})),
        (
            "services(name,uri),nextPageToken",
            json!({"services": [{"name": "a", "uri": "u"}], "nextPageToken": "t"}),
        ),
        (
            "services/template/containers/image",
            json!({"services": [{"template": {"containers": [{"image": "x"}]}}]}),
        ),
        (
            "services/template(timeout),services/name",
            json!({"services": [{"name": "a", "template": {"timeout": "1s"}}]}),
        ),
        (
            "*/name",
            json!({"services": [{"name": "a"}], "nextPageToken": "t"}),
        ),
        (
            "services,services/name",
            json!({"services": whole["services"]}),
        ),
    ] {
        let mut value = whole.clone();
        Selection::parse(fields).unwrap().apply(&mut value);
        assert_eq!(value, expected, "{fields}");
    }
    for bad in ["", "a,", "a(b", "a)", "/a", &"a(".repeat(1000)] {
        assert!(Selection::parse(bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn answers_are_written_as_asked() {
    let bench = Bench::new();
    let path = "/run/v2/projects/demo/locations/asia-northeast1/services";
    let body = json!({"template": {"containers": [{"image": "x"}]}});
    assert_eq!(
        bench
            .call("POST", &format!("{path}?serviceId=s"), body)
            .await
            .0,
        200
    );
    let (_, numbers) = bench
        .call(
            "GET",
            &format!("{path}/s?%24alt=json%3Benum-encoding%3Dint"),
            Value::Null,
        )
        .await;
    assert_eq!(numbers["ingress"], json!(1));
    let (status, error) = bench
        .call("GET", &format!("{path}/s?fields=a("), Value::Null)
        .await;
    assert_eq!(
        (status, &error["error"]["status"]),
        (400, &json!("INVALID_ARGUMENT"))
    );
    for (query, lines) in [("prettyPrint=false", 1), ("prettyPrint=true", 2)] {
        let request = http::Request::builder()
            .method(Method::GET)
            .uri(format!("{path}/s?{query}"))
            .header("host", "localhost")
            .body(axum::body::Body::empty())
            .unwrap();
        let response = bench.send(request).await;
        assert_eq!(
            response.headers()["content-type"],
            "application/json; charset=UTF-8"
        );
        let bytes = http_body_util::BodyExt::collect(response.into_body())
            .await
            .unwrap()
            .to_bytes();
        assert!(
            String::from_utf8(bytes.to_vec())
                .unwrap()
                .lines()
                .count()
                .min(2)
                == lines
        );
    }
    let large = json!({"description": "x".repeat(super::MAX_BODY)});
    let (status, error) = bench
        .call("POST", &format!("{path}?serviceId=t"), large)
        .await;
    assert_eq!(status, 400);
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("larger than 4 MiB")
    );
}

proptest! {
    #[test]
    fn no_query_makes_it_panic(query in "[a-zA-Z.=&%$+0-9_]{0,40}") {
        let _ = bound("ListServices", &format!("{PARENT}/services"), &query, "");
        let _ = bound("UpdateService", &format!("{PARENT}/services/s"), &query, "{}");
    }

    #[test]
    fn no_body_makes_it_panic(body in ".{0,60}") {
        let _ = bound("CreateService", &format!("{PARENT}/services"), "", &body);
    }

    #[test]
    fn no_field_list_makes_it_panic(text in "[a-c(),/*]{0,40}") {
        if let Ok(selection) = Selection::parse(&text) {
            let mut value = json!({"a": {"b": [{"c": 1}]}, "b": 2});
            selection.apply(&mut value);
        }
    }

    #[test]
    fn texts_survive_the_query(token in ".{0,30}") {
        let query = format!("pageToken={}", utsuwa_wire::path::percent_encode(&token));
        let read = bound("ListServices", &format!("{PARENT}/services"), &query, "").unwrap();
        prop_assert_eq!(read.get("pageToken").and_then(Value::as_str).unwrap_or_default(), token);
    }
}
