//! The execution environment gen1: the same services on gVisor's kernel.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::harness::{Registry, Server, can_run, skip, until};
use crate::skip::here;

/// Whether runsc is here; otherwise the test is skipped by name.
fn possible(test: &str) -> bool {
    if !can_run(test) {
        return false;
    }
    let there = utsuwa_runtime::sandbox::gvisor::installed();
    if let Err(why) = &there {
        skip(test, &format!("needs runsc: {why} (apt install runsc)"));
    }
    there.is_ok()
}

const GEN1: [&str; 2] = ["--execution-environment", "gen1"];

#[test]
fn gen1_is_deployed_called_frozen_woken_and_outlives_a_killed_server() {
    if !possible(here!()) {
        return;
    }
    let mut server = Server::start(&["--idle-timeout", "6s"]);
    // A boost would be used first.
    server.deploy("one", &[&GEN1[..], &["--no-cpu-boost"]].concat());
    server.deploy("two", &["--execution-environment", "gen2"]);
    // /proc/version is what the kernel says that the app runs on.
    let kernel = |server: &Server, name: &str| {
        let (status, text) = server.get(name, "/kernel");
        assert_eq!(status, 200, "{text}");
        text
    };
    let host = std::fs::read_to_string("/proc/version").unwrap();
    assert_eq!(kernel(&server, "two").trim(), host.trim());
    assert!(kernel(&server, "one").starts_with("Linux version 4.4.0 "));

    until("it to be frozen", Duration::from_secs(20), || {
        (server.instance_states("one") == ["frozen"]).then_some(())
    });
    assert_eq!(server.get("one", "/").0, 200);
    server.until_instances("one", 0);
    let started = Instant::now();
    assert_eq!(server.get("one", "/").0, 200);
    println!("hello on gVisor woken from zero in {:?}", started.elapsed());

    let before = server.instance_pids("one");
    server.kill_9();
    server.up();
    assert_eq!(server.get("one", "/").0, 200);
    assert_eq!(server.instance_pids("one"), before);
    server.finish();
}

#[test]
fn the_flask_app_runs_on_gen1() {
    if !possible(here!()) {
        return;
    }
    let Some(archive) = std::env::var_os("UTSUWA_TEST_FLASK_IMAGE").map(PathBuf::from) else {
        return skip(
            here!(),
            "its image is not built; `make test` builds it (UTSUWA_TEST_FLASK_IMAGE)",
        );
    };
    let registry = Registry::start();
    let reference = registry.push(&archive, "demo/ai-backend:latest");
    let insecure = registry.address.to_string();
    let server = Server::start(&["--idle-timeout", "6s", "--insecure-registry", &insecure]);
    let image = ["--image", &reference, "--memory", "1Gi"];
    let key = ["--set-env-vars", "OPENAI_API_KEY=sk-test"];
    server.deploy("flask", &[&image[..], &key, &GEN1].concat());
    let (status, body) = server.get("flask", "/health");
    assert_eq!((status, body.trim()), (200, "{\"status\":\"ok\"}"));
    server.until_instances("flask", 0);
    let started = Instant::now();
    assert_eq!(server.get("flask", "/health").0, 200);
    println!("flask on gVisor woken from zero in {:?}", started.elapsed());
    server.finish();
}
