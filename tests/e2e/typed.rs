//! What is typed, as far as no server is needed to answer it.

use std::process::{Command, Output, Stdio};

fn utsuwa(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_utsuwa"));
    command.args(args).stdin(Stdio::null());
    for name in ["UTSUWA_API", "UTSUWA_PROJECT", "UTSUWA_REGION"] {
        command.env_remove(name);
    }
    command
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// As before `| head`, once that has read enough.
#[test]
fn a_reader_that_is_gone_is_no_failure() {
    for args in [
        &["completions", "bash"][..],
        &["config", "show", "--config", "/dev/null"],
        &["unit", "--config", "/dev/null"],
        &["deploy", "--help"],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = utsuwa(args).stdout(writer).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", output.status);
        assert_eq!(said(&output), "", "{args:?}");
    }
}

#[test]
fn a_value_is_blamed_on_where_it_was_said() {
    let check = |region: Option<&str>, flags: &[&str]| {
        let mut command = utsuwa(&["config", "check", "/dev/null"]);
        command.args(flags);
        if let Some(region) = region {
            command.env("UTSUWA_REGION", region);
        }
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        said(&output)
    };
    let variable = check(Some("X"), &[]);
    assert!(
        variable.contains("region = \"X\" (variable UTSUWA_REGION)"),
        "{variable}"
    );
    for in_the_shell in [None, Some("europe-west1")] {
        let flag = check(in_the_shell, &["--region", "X"]);
        assert!(flag.contains("region = \"X\" (flag --region)"), "{flag}");
    }
}

#[test]
fn what_is_not_built_says_so() {
    for (args, words) in [
        (
            &["jobs", "list"][..],
            &["utsuwa jobs: not built in this server yet", "utsuwa deploy"][..],
        ),
        (
            &["secrets", "list"],
            &[
                "utsuwa secrets: not built in this server yet",
                "--set-env-vars",
            ],
        ),
        (
            &["services", "update", "web", "--memory", "1Gi"],
            &[
                "there is no command utsuwa services update",
                "utsuwa deploy NAME",
            ],
        ),
        (
            &["deploy", "web", "--args", "--no-traffic"],
            &["--args has no value", "--args=--no-traffic"],
        ),
    ] {
        let output = utsuwa(args).output().unwrap();
        let said = said(&output);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
        for word in words {
            assert!(
                said.contains(word),
                "{args:?}: {word:?} is missing in: {said}"
            );
        }
    }
}
