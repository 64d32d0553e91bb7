//! What was meant: a server that `down` isn't told of, arguments with a comma, a field that isn't there, a domain that is taken.

use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use serde_json::json;

use crate::harness::{PARENT, Server, can_run, until};
use crate::skip::here;

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `utsuwa down` by who has `server` in mind, where a file names another directory.
fn down(server: &Server, file: &Path, more: &[&str]) -> (Option<i32>, String) {
    down_with(server, file, more, None)
}

/// The same, with a directory in `UTSUWA_DATA_DIR`.
fn down_with(
    server: &Server,
    file: &Path,
    more: &[&str],
    variable: Option<&String>,
) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .envs(variable.map(|dir| ("UTSUWA_DATA_DIR", dir)))
        .args(["down", "--config"])
        .arg(file)
        .args(more)
        .env("UTSUWA_API", format!("http://{}", server.api))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    (output.status.code(), said(&output))
}

#[test]
fn down_that_finds_nothing_names_what_runs() {
    if !can_run(here!()) {
        return;
    }
    let mut server = Server::start(&[]);
    let other = tempfile::tempdir_in("/var/tmp").unwrap();
    let data = other.path().join("data");
    let file = other.path().join("config.toml");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(
        &file,
        format!("data-dir = {:?}\n", data.display().to_string()),
    )
    .unwrap();
    let to_type = format!("utsuwa down --data-dir {}", server.data_dir().display());

    let (code, said) = down(&server, &file, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("is no data directory of a server") && said.contains(&to_type),
        "{said}"
    );
    std::fs::write(data.join("id"), "once\n").unwrap();
    let (code, said) = down(&server, &file, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(
        said.contains("nothing was ended") && said.contains(&to_type),
        "{said}"
    );
    // Who names a directory means it: to end it again is no mistake.
    let named = data.display().to_string();
    for (more, variable) in [(&["--data-dir", &named][..], None), (&[], Some(&named))] {
        let (code, said) = down_with(&server, &file, more, variable);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("Nothing runs over"), "{said}");
    }

    // Without the server its keeper still runs.
    server.kill_9();
    let (code, said) = down(&server, &file, &[]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&to_type), "{said}");
    server.up();
    server.finish();
}

#[test]
fn arguments_have_commas_and_hyphens() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.ok(&[
        "deploy",
        "web",
        "--image",
        "utsuwa.local/hello",
        "--no-allow-unauthenticated",
        "--args",
        "-c,a",
        "--args=^@^echo a,b@^c^",
        "--set-env-vars=^;^A=1,2;B=3",
        "--set-env-vars=C=4",
    ]);
    let (_, service) = server.api_get(&format!("{PARENT}/services/web"));
    let container = &service["template"]["containers"][0];
    assert_eq!(container["args"], json!(["-c", "a", "echo a,b", "^c^"]));
    let values: Vec<_> = container["env"].as_array().unwrap().iter().collect();
    assert_eq!(
        values,
        [
            &json!({"name": "A", "value": "1,2"}),
            &json!({"name": "B", "value": "3"}),
            &json!({"name": "C", "value": "4"})
        ]
    );
    server.ok(&["deploy", "web", "--args="]);
    let (_, service) = server.api_get(&format!("{PARENT}/services/web"));
    let args = &service["template"]["containers"][0]["args"];
    assert!(args.is_null() || args == &json!([]), "{args}");
    server.finish();
}

#[test]
fn what_is_not_there_is_told_with_what_is() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("hello", &[]);
    let list = server.utsuwa(&["services", "list", "--format", "value(metadata.name)"]);
    assert!(list.status.success());
    let told = said(&list);
    assert!(
        told.contains("nothing has metadata.name; there is: ") && told.contains("name, "),
        "{told}"
    );
    let there = server.utsuwa(&["services", "list", "--format", "value(uri)"]);
    assert_eq!(said(&there), "");

    server.ok(&["domains", "map", "www.example.test", "--service", "hello"]);
    let again = ["domains", "map", "www.example.test", "--service", "other"];
    let taken = server.utsuwa(&again);
    assert_eq!(taken.status.code(), Some(1));
    let told = said(&taken);
    assert!(
        told.contains("it leads to service [hello]") && told.contains("--force-override"),
        "{told}"
    );
    let same = server.utsuwa(&["domains", "map", "www.example.test", "--service", "hello"]);
    assert_eq!(same.status.code(), Some(1));
    let told = said(&same);
    assert!(
        told.contains("it leads to service [hello] already: nothing is to be done"),
        "{told}"
    );
    let mut by_force = again.to_vec();
    by_force.push("--force-override");
    server.ok(&by_force);
    let own = server.utsuwa(&["domains", "map", "hello.localhost", "--service", "other"]);
    let told = said(&own);
    assert!(
        told.contains("own address of service [hello] and can't be mapped"),
        "{told}"
    );
    assert!(!told.contains("--force-override"), "{told}");
    for what in ["describe", "unmap"] {
        let told = said(&server.utsuwa(&["domains", what, "nosuch.test"]));
        assert!(told.contains("`utsuwa domains list` shows"), "{told}");
    }
    let near = said(&server.utsuwa(&["domains", "describe", "ww.example.test"]));
    assert!(near.contains("did you mean www.example.test?"), "{near}");

    // Nobody is there to ask.
    let revision = server.ok(&["revisions", "list", "--format", "value(name)"]);
    let revision = revision.trim().rsplit('/').next().unwrap();
    let unasked = server.utsuwa(&["revisions", "delete", revision]);
    assert_eq!(unasked.status.code(), Some(2));
    assert!(said(&unasked).contains("--quiet"), "{}", said(&unasked));
    server.deploy("hello", &[]);
    server.ok(&["revisions", "delete", revision, "-q"]);
    server.finish();
}

/// A command that does not outlive its test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // Fails when it has ended, which is as well.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// As before `| head -1`.
#[test]
fn a_log_that_nobody_reads_is_not_followed() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("hello", &[]);
    assert_eq!(server.get("hello", "/").0, 200);
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let follow = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args(["logs", "hello", "--follow", "--api"])
        .arg(format!("http://{}", server.api))
        .stdin(Stdio::null())
        .stdout(writer)
        .stderr(Stdio::null())
        .spawn();
    let mut follow = Killed(follow.unwrap());
    let ended = until("the end of it", Duration::from_secs(20), || {
        follow.0.try_wait().unwrap()
    });
    assert!(ended.success(), "{ended}");
    server.finish();
}
