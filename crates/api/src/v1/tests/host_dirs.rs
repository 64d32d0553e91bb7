//! Directories of the host: Kubernetes' `hostPath` in v1, Cloud Run's `nfs` with this host as its server in both.

use serde_json::{Value, json};

use super::*;

const V2: &str = "/run/v2/projects/demo/locations/asia-northeast1/services";

/// A service with `volumes`, each mounted as `/NAME` with `read_only` as its mount says it.
fn service(volumes: &Value, read_only: Option<bool>) -> Value {
    let mut body = hello("data");
    let spec = &mut body["spec"]["template"]["spec"];
    spec["volumes"] = volumes.clone();
    let mounts = volumes.as_array().unwrap().iter().map(|volume| {
        let mut mount = json!({"name": volume["name"], "mountPath": format!("/{}", volume["name"].as_str().unwrap())});
        if let Some(read_only) = read_only {
            mount["readOnly"] = json!(read_only);
        }
        mount
    });
    spec["containers"][0]["volumeMounts"] = mounts.collect();
    body
}

#[tokio::test]
async fn both_apis_read_back_what_they_wrote() {
    let bench = Bench::new();
    let volumes = json!([
        {"name": "a", "hostPath": {"path": "/srv/data/part"}},
        {"name": "b", "nfs": {"server": "host.utsuwa.internal", "path": "/srv/models", "readOnly": true}},
        {"name": "c", "nfs": {"server": "host.utsuwa.internal", "path": "/srv/data"}},
    ]);
    let (status, made) = bench.call("POST", SERVICES, service(&volumes, None)).await;
    assert_eq!(status, 200, "{made}");
    let shown = get(&bench, &format!("{SERVICES}/data")).await;
    assert_eq!(shown["spec"]["template"]["spec"]["volumes"], volumes);

    let shown = get(&bench, &format!("{V2}/data")).await;
    let nfs = |path: &str| json!({"server": "host.utsuwa.internal", "path": path});
    let mut of_models = nfs("/srv/models");
    of_models["readOnly"] = json!(true);
    assert_eq!(
        shown["template"]["volumes"],
        json!([
            {"name": "a", "nfs": nfs("/srv/data/part")}, {"name": "b", "nfs": of_models}, {"name": "c", "nfs": nfs("/srv/data")},
        ])
    );
    let change = json!({"template": {
        "containers": [{"image": "utsuwa.local/hello", "volumeMounts": [{"name": "b", "mountPath": "/b"}]}],
        "volumes": [{"name": "b", "nfs": of_models}],
    }});
    let (status, answer) = bench.call("PATCH", &format!("{V2}/data"), change).await;
    assert_eq!(status, 200, "{answer}");
}

#[tokio::test]
async fn what_is_not_allowed_is_refused_by_name() {
    let bench = Bench::new();
    let host = |path: &str| json!([{"name": "v", "hostPath": {"path": path}}]);
    let nfs =
        |server: &str, path: &str| json!([{"name": "v", "nfs": {"server": server, "path": path}}]);
    for (volumes, read_only, expected) in [
        (
            host("/etc"),
            None,
            "hostPath.path: the directory \"/etc\" of the host is not open to services; to allow it, start the server with --allow-host-dir /etc (to read)",
        ),
        (
            host("/srv/data/../../etc"),
            None,
            "hostPath.path: the directory \"/srv/data/../../etc\" of the host is not open",
        ),
        (
            host("/srv/database"),
            Some(true),
            "hostPath.path: the directory \"/srv/database\" of the host is not open",
        ),
        (
            host("srv/data"),
            None,
            "hostPath.path: the directory \"srv/data\" of the host is not open",
        ),
        (
            host(""),
            None,
            "hostPath.path: the directory \"\" of the host is not open",
        ),
        (
            host("/srv/models/x"),
            None,
            "hostPath.path: the directory \"/srv/models\" of the host may only be read by services: set readOnly to true",
        ),
        (
            host("/srv/models"),
            Some(false),
            "hostPath.path: the directory \"/srv/models\" of the host may only be read",
        ),
        (
            json!([{"name": "v", "hostPath": {"path": "/srv/data", "type": "DirectoryOrCreate"}}]),
            None,
            "hostPath.type: \"DirectoryOrCreate\" is not built",
        ),
        (
            nfs("10.0.0.1", "/srv/data"),
            None,
            "nfs.server: directories of other machines are not built",
        ),
        (
            nfs("host.utsuwa.internal", "/srv/models"),
            None,
            "nfs.path: the directory \"/srv/models\" of the host may only be read",
        ),
    ] {
        let answer = bench
            .call("POST", SERVICES, service(&volumes, read_only))
            .await;
        let (status, _, message) = error(&answer);
        assert_eq!(status, 400, "{volumes}: {answer:?}");
        assert!(
            message.contains(expected),
            "{volumes}: expected {expected:?}, said {message:?}"
        );
    }
    let (status, answer) = bench
        .call("POST", SERVICES, service(&host("/srv/models"), Some(true)))
        .await;
    assert_eq!(status, 200, "{answer}");
    // Nothing lies in it, and it lies in nothing.
    let mut both = service(
        &json!([{"name": "v", "hostPath": {"path": "/srv/data"}}, {"name": "w", "emptyDir": {}}]),
        None,
    );
    both["metadata"]["name"] = json!("both");
    for (at, other) in [("/v/./w", "/v"), ("/v", "/v/w")] {
        let mounts = &mut both["spec"]["template"]["spec"]["containers"][0]["volumeMounts"];
        mounts[0]["mountPath"] = json!(other);
        mounts[1]["mountPath"] = json!(at);
        let answer = bench.call("POST", SERVICES, both.clone()).await;
        let (status, _, message) = error(&answer);
        assert_eq!(status, 400, "{at}: {answer:?}");
        assert!(
            message.contains("a directory of the host lies in no other volume"),
            "{message}"
        );
    }
}

/// What was accepted once is not in the way of another change, though the operator has changed his mind.
#[tokio::test]
async fn a_rule_that_is_gone_refuses_new_volumes_only() {
    let mut bench = Bench::new();
    let volumes = json!([{"name": "v", "hostPath": {"path": "/srv/data"}}]);
    let (status, made) = bench.call("POST", SERVICES, service(&volumes, None)).await;
    assert_eq!(status, 200, "{made}");
    bench.without_host_dirs();
    let one = format!("{SERVICES}/data");
    let mut body = get(&bench, &one).await;
    body["spec"]["template"]["spec"]["timeoutSeconds"] = json!(7);
    let (status, answer) = bench.call("PUT", &one, body.clone()).await;
    assert_eq!(status, 200, "{answer}");
    let mut body = get(&bench, &one).await;
    body["spec"]["template"]["spec"]["volumes"][0]["hostPath"]["path"] = json!("/srv/data/part");
    let answer = bench.call("PUT", &one, body).await;
    assert_eq!(error(&answer).0, 400, "{answer:?}");
}
