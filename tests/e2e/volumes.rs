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

/// Deploys the sample with one volume in v1's form; answers what the API says once it serves, or why not.
fn with_host_dir(server: &Server, path: &str, read_only: bool) -> Result<(), String> {
    let v1 = "/run/apis/serving.knative.dev/v1/namespaces/demo/services";
    let (_, mut service) = server.api_get(&format!("{v1}/app"));
    let spec = &mut service["spec"]["template"]["spec"];
    spec["volumes"] = json!([{"name": "data", "hostPath": {"path": path}}]);
    spec["containers"][0]["volumeMounts"] =
        json!([{"name": "data", "mountPath": "/data", "readOnly": read_only}]);
    let metadata = &mut service["spec"]["template"]["metadata"];
    metadata.as_object_mut().unwrap().remove("name");
    let (status, answer) = server.api_call("PUT", &format!("{v1}/app"), &service);
    if status != 200 {
        return Err(answer["error"]["message"].as_str().unwrap().to_owned());
    }
    let generation = answer["metadata"]["generation"].clone();
    let mounted = |body: &str| body.contains(" /data ");
    until("the new revision to serve", Duration::from_secs(60), || {
        let (_, now) = server.api_get(&format!("{v1}/app"));
        let status = &now["status"];
        let seen = status["observedGeneration"] == generation;
        (seen && mounted(&server.get("app", "/mounts").1)).then_some(())
    });
    Ok(())
}

#[test]
fn a_directory_of_the_host_is_mounted_where_the_operator_allows_it() {
    if !can_run("volumes::a_directory_of_the_host_is_mounted_where_the_operator_allows_it") {
        return;
    }
    let ground = tempfile::Builder::new()
        .prefix("utsuwa-host-")
        .tempdir_in("/var/tmp")
        .unwrap();
    let at = |name: &str| ground.path().join(name).to_str().unwrap().to_owned();
    for name in ["mine", "shown", "closed"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    std::fs::write(at("shown/file"), "shown").unwrap();
    std::os::unix::fs::chown(at("mine"), Some(4321), Some(4321)).unwrap();
    let writable = format!("{}:rw", at("mine"));
    let mut server = Server::start(&[
        "--allow-host-dir",
        &writable,
        "--allow-host-dir",
        &at("shown"),
    ]);
    server.deploy("app", &[]);

    let refused = with_host_dir(&server, &at("closed"), true).unwrap_err();
    let advice = format!("--allow-host-dir {}", at("closed"));
    assert!(
        refused.contains("spec.template.spec.volumes[0].hostPath.path")
            && refused.contains(&advice),
        "{refused}"
    );
    let refused = with_host_dir(&server, &at("shown"), false).unwrap_err();
    assert!(refused.contains("set readOnly to true"), "{refused}");

    with_host_dir(&server, &at("mine"), false).unwrap();
    let written = server.get("app", "/write?path=/data/file&kb=3").1;
    assert_eq!(written, "ok: 3072 bytes\n");
    let file = std::fs::metadata(at("mine/file")).unwrap();
    let owner = std::os::unix::fs::MetadataExt::uid(&file);
    assert_eq!((file.len(), owner), (3072, 4321));

    // The operator changes his mind: what runs goes on, and what starts anew says what is missing.
    server.expect_warning("not open to services");
    server.kill_9();
    server.forget_flags();
    server.up();
    assert_eq!(server.get("app", "/").0, 200);
    let pid = server.instance_pids("app")[0];
    crate::harness::kill_9(u32::try_from(pid).unwrap());
    let said = until("a refusal", Duration::from_secs(20), || {
        let (status, _) = server.get("app", "/");
        let log = server.ok(&["logs", "app"]);
        let found = log.lines().find(|l| l.contains("not open to services"))?;
        (status == 503).then(|| found.to_owned())
    });
    assert!(
        said.contains(&format!("--allow-host-dir {}", at("mine"))),
        "{said}"
    );
    server.finish();

    // What can't be meant is told at the start.
    let data = ground.path().join("data");
    let up = |rule: &str| {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_utsuwa"))
            .args(["up", "--allow-host-dir", rule, "--data-dir"])
            .arg(&data)
            .output()
            .unwrap();
        assert!(!output.status.success(), "{rule}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    for (rule, words) in [
        (format!("{}:rw", at("shown")), "belongs to root"),
        (at("missing"), "No such file"),
        (at("shown/file"), "Not a directory"),
        ("/".to_owned(), "all of the host"),
        (at(""), "the data directory"),
    ] {
        let said = up(&rule);
        assert!(said.contains(words), "{rule}: {said}");
    }
    assert!(!data.exists(), "nothing was made");
}
