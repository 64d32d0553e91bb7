//! Results that can't be written: a file made of them is not what it seems, so the command fails.

use std::fs::OpenOptions;
use std::process::{Command, Stdio};

use crate::harness::{Server, can_run};
use crate::skip::here;

#[test]
fn a_result_that_can_not_be_written_is_no_success() {
    if !can_run(here!()) {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("hello", &[]);
    assert_eq!(server.get("hello", "/").0, 200);
    let api = format!("http://{}", server.api);
    for args in [
        &["unit"][..],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
        &["services", "list", "--format", "json"],
        &["services", "list"],
        // It ends, too.
        &["logs", "hello", "--follow"],
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
            .args(args)
            .env("UTSUWA_API", &api)
            .stdin(Stdio::null())
            .stdout(full)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
        assert!(
            said.contains("error: write to standard output: No space left on device"),
            "{args:?}: {said}"
        );
    }
    server.finish();
}
