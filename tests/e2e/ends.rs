//! What is told of ends of instances and of services, also of those that nobody watched.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::harness::{Server, can_run, kill_9, try_exchange, until};

#[test]
fn an_end_that_nobody_watched_is_still_told() {
    if !can_run("ends::an_end_that_nobody_watched_is_still_told") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("mortal", &["--min-instances", "1"]);
    server.until_instances("mortal", 1);
    let pid = u32::try_from(server.instance_pids("mortal")[0]).unwrap();
    server.kill_9();
    kill_9(pid);
    server.up();
    until("the end to be told", Duration::from_secs(10), || {
        server
            .ok(&["logs", "mortal"])
            .contains("signal 9")
            .then_some(())
    });
    until("a new instance", Duration::from_secs(20), || {
        (server.instance_pids("mortal").len() == 1
            && server.instance_pids("mortal")[0] != u64::from(pid))
        .then_some(())
    });
    server.finish();
}

#[test]
fn a_silent_end_that_nobody_watched_is_still_told() {
    if !can_run("ends::a_silent_end_that_nobody_watched_is_still_told") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("silent", &["--command", "/hello", "--min-instances", "1"]);
    server.until_instances("silent", 1);
    let pid = u32::try_from(server.instance_pids("silent")[0]).unwrap();
    server.kill_9();
    // What it wrote is taken away: the end must be told by the keeper's own record.
    std::fs::remove_dir_all(server.data_dir().join("logs/demo")).unwrap();
    kill_9(pid);
    server.up();
    until("the end to be told", Duration::from_secs(10), || {
        server
            .ok(&["logs", "silent"])
            .contains("signal 9")
            .then_some(())
    });
    server.finish();
}

/// It leaves because another revision takes its place: what is said of it must not read like a crash.
#[test]
fn an_app_that_does_not_stop_when_asked_is_told_of_as_such() {
    if !can_run("ends::an_app_that_does_not_stop_when_asked_is_told_of_as_such") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("deaf", &["--set-env-vars", "HELLO_STOP=ignore"]);
    assert_eq!(server.get("deaf", "/").0, 200);
    server.deploy("deaf", &["--set-env-vars", "HELLO_STOP=exit"]);
    let said = until("the end to be told", Duration::from_secs(30), || {
        let log = server.ok(&["logs", "deaf"]);
        log.contains("SIGKILL").then_some(log)
    });
    assert!(
        said.contains("was asked to stop (SIGTERM), did not end within 10 s, and was killed"),
        "{said}"
    );
    assert!(!said.contains("was ended by signal"), "{said}");
    server.finish();
}

/// The numbers of the lines of a stream, as a follower printed them.
fn numbers(printed: &Path, stream: &str) -> Vec<u64> {
    let text = std::fs::read_to_string(printed).unwrap();
    // The last may be half a line still.
    let whole = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
    whole
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .filter(|line| line["stream"] == stream)
        .map(|line| line["sequence"].as_u64().unwrap())
        .collect()
}

#[test]
fn a_followed_log_goes_on_over_other_servers_until_the_service_is_deleted() {
    if !can_run("ends::a_followed_log_goes_on_over_other_servers_until_the_service_is_deleted") {
        return;
    }
    let mut server = Server::start(&[]);
    server.deploy("told", &["--max-instances", "1"]);
    let home = server.data_dir().parent().unwrap().to_owned();
    let (printed, said) = (home.join("printed"), home.join("said"));
    let mut follower = Command::new(env!("CARGO_BIN_EXE_utsuwa"))
        .args(["logs", "told", "--follow", "--format", "json"])
        .args(["--api", &format!("http://{}", server.api)])
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&printed).unwrap())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let stop = AtomicBool::new(false);
    let address = server.http;
    std::thread::scope(|scope| {
        // Written also while no server is there to follow it.
        scope.spawn(|| {
            let path = "/log?severity=INFO&message=line&lines=5";
            let raw =
                format!("GET {path} HTTP/1.1\r\nhost: told.localhost\r\nconnection: close\r\n\r\n");
            while !stop.load(Ordering::Relaxed) {
                drop(try_exchange(address, &raw));
            }
        });
        let more = || {
            let before = numbers(&printed, "stdout").len();
            until("more lines", Duration::from_secs(20), || {
                (numbers(&printed, "stdout").len() > before + 100).then_some(())
            });
        };
        more();
        assert!(server.replace().success());
        more();
        server.kill_9();
        server.up();
        more();
        stop.store(true, Ordering::Relaxed);
    });
    let written = || {
        let all = server.ok(&["logs", "told", "--format", "json", "--tail", "1000000"]);
        all.matches("\"stdout\"").count()
    };
    until("all lines", Duration::from_secs(20), || {
        (numbers(&printed, "stdout").len() >= written()).then_some(())
    });
    server.ok(&["services", "delete", "told", "--quiet"]);
    let status = until("the follower to end", Duration::from_secs(20), || {
        follower.try_wait().unwrap()
    });
    let said = std::fs::read_to_string(said).unwrap();
    assert!(status.success(), "{said}");
    assert!(said.contains("Service [told] was deleted"), "{said}");
    let lines = numbers(&printed, "stdout");
    let want: Vec<u64> = (1..).take(lines.len()).collect();
    assert_eq!(lines, want, "each once and in order");
    let mut ours = numbers(&printed, "utsuwa");
    ours.sort_unstable();
    assert!(ours.is_sorted_by(|a, b| a < b), "twice: {ours:?}");
    server.finish();
}
