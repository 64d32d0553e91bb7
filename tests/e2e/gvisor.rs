//! The execution environment gen1: the same services on gVisor's kernel.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::harness::{Registry, Server, can_run, skip, until};
use crate::skip::here;

/// Whether runsc is here; otherwise the test is skipped by name.
pub(crate) fn possible(test: &str) -> bool {
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

/// The program on a machine without runsc: as it sees it, there is nothing in /usr/bin.
fn without_runsc(folder: &Path) -> PathBuf {
    let script = folder.join("utsuwa");
    let program = env!("CARGO_BIN_EXE_utsuwa");
    // Bash is loaded when its file goes.
    let inside = format!("mount -t tmpfs none /usr/bin && exec {program} \"$@\"");
    let text = format!("#!/bin/bash\nexec unshare --mount bash -c '{inside}' utsuwa \"$@\"\n");
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).unwrap();
    script
}

#[test]
fn without_runsc_gen1_is_refused_and_says_what_to_install() {
    if !can_run(here!()) {
        return;
    }
    for elsewhere in [
        "/usr/local/bin/runsc",
        "/usr/local/sbin/runsc",
        "/usr/sbin/runsc",
    ] {
        if Path::new(elsewhere).exists() {
            return skip(here!(), &format!("{elsewhere} can't be hidden"));
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start_as(&without_runsc(folder.path()), &[]);
    let image = ["--image", "utsuwa.local/hello"];
    let refused = server.utsuwa(&[&["deploy", "one"][..], &image, &GEN1].concat());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success(), "{said}");
    for word in [
        "gen1",
        "gVisor",
        "not installed",
        "apt-get install runsc",
        "gen2",
    ] {
        assert!(said.contains(word), "{word:?} is missing in\n{said}");
    }
    let doctor = server.utsuwa(&["doctor"]);
    let told = String::from_utf8_lossy(&doctor.stdout).into_owned();
    let line = told.lines().find(|line| line.contains("gVisor")).unwrap();
    assert!(
        line.starts_with("note") && line.contains("apt-get install runsc"),
        "{line}"
    );
    // Everything else goes on.
    server.deploy("one", &["--execution-environment", "gen2"]);
    assert_eq!(server.get("one", "/").0, 200);
    server.finish();
}

#[test]
fn doctor_says_that_gvisor_works() {
    if !possible(here!()) {
        return;
    }
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .arg("doctor")
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = told.lines().find(|line| line.contains("gVisor")).unwrap();
    assert!(line.starts_with("ok") && line.contains("gen1"), "{line}");
}
