//! Volumes in memory on real instances, asked for as Google's clients do.

use std::time::Duration;

use serde_json::json;

use crate::harness::{PARENT, Server, can_run, until};

#[test]
fn a_volume_in_memory_is_mounted_and_limited() {
    if !can_run("volumes::a_volume_in_memory_is_mounted_and_limited") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("app", &[]);
    let template = json!({
        "containers": [{
            "image": "utsuwa.local/hello",
            "volumeMounts": [{"name": "cache", "mountPath": "/var/cache/app"}, {"name": "rest", "mountPath": "/rest"}],
        }],
        "volumes": [
            {"name": "cache", "emptyDir": {"medium": "MEMORY", "sizeLimit": "1Mi"}},
            {"name": "rest", "emptyDir": {}},
        ],
    });
    let (status, operation) = server.api_call(
        "PATCH",
        &format!("{PARENT}/services/app"),
        &json!({ "template": template }),
    );
    assert_eq!(status, 200, "{operation}");
    let name = operation["name"].as_str().unwrap().to_owned();
    until("the deploy to be done", Duration::from_secs(60), || {
        let (_, answer) = server.api_get(&format!("/run/v2/{name}"));
        assert!(answer["error"].is_null(), "{answer}");
        (answer["done"] == json!(true)).then_some(())
    });
    let (_, shown) = server.api_get(&format!("{PARENT}/services/app"));
    assert_eq!(shown["template"]["volumes"][0], template["volumes"][0]);
    assert_eq!(
        shown["template"]["containers"][0]["volumeMounts"],
        template["containers"][0]["volumeMounts"]
    );

    let mounts = server.get("app", "/mounts").1;
    let line = |path: &str| {
        let found = mounts
            .lines()
            .find(|line| line.contains(&format!(" {path} ")));
        found.unwrap_or_else(|| panic!("{path} in {mounts}"))
    };
    let cache = line("/var/cache/app");
    for option in ["nosuid", "nodev", "tmpfs", "size=1024k"] {
        assert!(cache.contains(option), "{option} in {cache}");
    }
    // Without a limit: as large as the memory.
    assert!(line("/rest").contains("size=524288k"), "{}", line("/rest"));
    let write = |kb: u32| {
        server
            .get("app", &format!("/write?path=/var/cache/app/file&kb={kb}"))
            .1
    };
    assert_eq!(write(512), "ok: 524288 bytes\n");
    assert!(write(2048).starts_with("error: No space left on device"));
    assert_eq!(server.get("app", "/").0, 200, "nobody died of it");
    let refused = server.api_call(
        "PATCH",
        &format!("{PARENT}/services/app"),
        &json!({"template": {
            "containers": [{"image": "utsuwa.local/hello", "volumeMounts": [{"name": "v", "mountPath": "/proc/sys"}]}],
            "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "1Mi"}}],
        }}),
    );
    assert_eq!(refused.0, 400);
    assert!(
        refused
            .1
            .to_string()
            .contains("template.containers[0].volumeMounts[0].mountPath"),
        "{refused:?}"
    );
    server.finish();
}
