//! Domain mappings, as `gcloud` and `utsuwa domains` ask for them.

use super::*;

const DOMAINS: &str = "/run/apis/domains.cloudrun.com/v1/namespaces/demo/domainmappings";

fn wish(name: &str) -> Value {
    json!({
        "apiVersion": "domains.cloudrun.com/v1", "kind": "DomainMapping",
        "metadata": {"name": name, "namespace": "demo"},
        "spec": {"routeName": "hello", "forceOverride": false},
    })
}

#[tokio::test]
async fn a_mapping_is_made_listed_and_deleted() {
    let bench = Bench::new();
    let authorized = get(&bench, "/run/v1/projects/demo/authorizeddomains").await;
    assert_eq!(authorized["domains"][0]["id"], ".");
    let (status, made) = bench.call("POST", DOMAINS, wish("www.example.com")).await;
    assert_eq!(status, 200, "{made}");
    assert_eq!(made["spec"]["certificateMode"], "AUTOMATIC");
    assert_eq!(
        made["metadata"]["selfLink"],
        "/apis/domains.cloudrun.com/v1/namespaces/810944374904/domainmappings/www.example.com"
    );
    // Before its loop has looked, its state is unknown; `gcloud` polls.
    assert_eq!(made["status"]["conditions"][0]["status"], "Unknown");
    assert!(made["status"].get("resourceRecords").is_none());
    let (status, again) = bench.call("POST", DOMAINS, wish("www.example.com")).await;
    assert_eq!(
        (status, again["error"]["status"].as_str()),
        (409, Some("ALREADY_EXISTS"))
    );
    let mut by_force = wish("www.example.com");
    by_force["spec"]["forceOverride"] = json!(true);
    by_force["spec"]["routeName"] = json!("other");
    assert_eq!(bench.call("POST", DOMAINS, by_force).await.0, 200);

    let one = format!("{DOMAINS}/www.example.com");
    assert_eq!(get(&bench, &one).await["spec"]["routeName"], "other");
    let all = get(&bench, DOMAINS).await;
    assert_eq!(all["kind"], "DomainMappingList");
    assert_eq!(all["items"].as_array().unwrap().len(), 1);
    // Google's own style of path leads to the same; another region has none.
    let elsewhere =
        |region: &str| format!("/run/v1/projects/demo/locations/{region}/domainmappings");
    let here = get(&bench, &elsewhere("asia-northeast1")).await;
    assert_eq!(here["items"], all["items"]);
    assert_eq!(
        get(&bench, &elsewhere("europe-west1")).await["items"],
        json!([])
    );

    assert_eq!(bench.call("DELETE", &one, Value::Null).await.0, 200);
    for method in ["GET", "DELETE"] {
        assert_eq!(
            bench.call(method, &one, Value::Null).await.0,
            404,
            "{method}"
        );
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_by_its_field() {
    let bench = Bench::new();
    for (field, value, says) in [
        ("/metadata/name", json!("localhost"), "metadata.name"),
        ("/metadata/name", json!("*.example.com"), "metadata.name"),
        ("/metadata/name", json!("Example.com"), "metadata.name"),
        ("/metadata/namespace", json!("other"), "metadata.namespace"),
        ("/spec/routeName", json!("No Service"), "spec.routeName"),
        (
            "/spec/certificateMode",
            json!("SOMETIMES"),
            "spec.certificateMode",
        ),
        ("/spec/unknown", json!(1), "spec.unknown"),
        ("/kind", json!("Service"), "kind"),
    ] {
        let mut wrong = wish("www.example.com");
        let (parent, last) = field.rsplit_once('/').unwrap();
        wrong.pointer_mut(parent).unwrap()[last] = value.clone();
        let (status, answer) = bench.call("POST", DOMAINS, wrong).await;
        assert_eq!(status, 400, "{field} = {value}: {answer}");
        assert!(answer.to_string().contains(says), "{field}: {answer}");
    }
    assert_eq!(get(&bench, DOMAINS).await["items"], json!([]));
}
