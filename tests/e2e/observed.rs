//! What an operator sees of requests: metrics for Prometheus and the request log.

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::harness::{Server, can_run, skip, until};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn requests_are_counted_and_logged() {
    if !can_run("observed::requests_are_counted_and_logged") {
        return;
    }
    let server = Server::start(&[]);
    server.deploy("seen", &["--image", "utsuwa.local/hello"]);
    server.until_public("seen");
    let (status, _) = server.get("seen", "/echo?nothing");
    assert_eq!(status, 200);
    let raw = "GET /headers HTTP/1.1\r\nhost: seen.localhost\r\nuser-agent: observed/1\r\nreferer: http://before/\r\n\
               traceparent: 00-0af7651916cd43dd8448eb211c80319c-00000000000000ff-01\r\nconnection: close\r\n\r\n";
    let (status, _, body) = server.request("seen", raw);
    assert_eq!(status, 200);
    assert!(
        body.contains("0af7651916cd43dd8448eb211c80319c/255;o=1"),
        "{body}"
    );

    let text = server.metrics();
    let counted = text.lines().find(|line| {
        line.starts_with("utsuwa_requests_total{")
            && line.contains("service_name=\"seen\"")
            && line.contains("2xx")
    });
    let count: f64 = counted
        .and_then(|line| line.rsplit(' ').next()?.parse().ok())
        .unwrap();
    assert!(count >= 2.0, "{text}");
    for name in [
        "utsuwa_build_info{",
        "process_resident_memory_bytes ",
        "utsuwa_log_entries_lost_total 0",
    ] {
        assert!(text.contains(name), "{name}: {text}");
    }
    promtool(&text);

    let journal = server
        .data_dir()
        .join("journal/demo/asia-northeast1/seen/journal.jsonl");
    let entry = until("the request in the log", SOON, || {
        let text = std::fs::read_to_string(&journal).ok()?;
        text.lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find(|entry| entry["httpRequest"]["userAgent"] == "observed/1")
    });
    let request = &entry["httpRequest"];
    assert_eq!(
        request["requestUrl"], "http://seen.localhost/headers",
        "{entry}"
    );
    assert_eq!(
        (&request["status"], &request["protocol"]),
        (&200.into(), &"HTTP/1.1".into()),
        "{entry}"
    );
    assert_eq!(request["referer"], "http://before/", "{entry}");
    assert_eq!(
        entry["trace"],
        "projects/demo/traces/0af7651916cd43dd8448eb211c80319c"
    );
    assert_eq!(
        (&entry["spanId"], &entry["severity"]),
        (&"00000000000000ff".into(), &"INFO".into())
    );
    assert!(
        entry["phasesMs"]["firstByte"].as_f64() > Some(0.0),
        "{entry}"
    );
    let shown = server.ok(&["logs", "seen"]);
    assert!(
        shown.contains("GET http://seen.localhost/headers 200"),
        "{shown}"
    );
    server.finish();
}

fn promtool(text: &str) {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        skip(
            "observed::promtool",
            "promtool is not installed (Debian: prometheus)",
        );
        return;
    };
    child
        .stdin
        .take()
        .unwrap()
        .write_all(text.as_bytes())
        .unwrap();
    let checked = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&checked.stderr).into_owned();
    assert!(checked.status.success(), "{said}");
}
