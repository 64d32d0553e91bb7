//! What is counted, and that Prometheus can read it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use http::Request;
use utsuwa_model::route::{RouteChange, RouteTable};

use super::app::*;
use super::scene::*;
use crate::skip::{here, skip};

const OURS: &str = "project_id=\"demo\",location=\"here\",service_name=\"hello\"";

/// Name and labels → value. Anything that isn't the format, or a sample whose metric was not declared before it, fails.
fn parse(text: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut declared: BTreeMap<String, String> = BTreeMap::new();
    let mut closed = BTreeSet::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(closed.insert(name.to_owned()), "{name} is declared twice");
            name.clone_into(&mut current);
            declared.insert(name.to_owned(), kind.to_owned());
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("{line}"));
        let (name, labels) = series.split_once('{').unwrap_or_else(|| panic!("{line}"));
        let suffix = name
            .strip_prefix(&current)
            .unwrap_or_else(|| panic!("{line}: in {current}"));
        let histogram = declared[&current] == "histogram";
        assert!(
            suffix.is_empty() != histogram
                && (suffix.is_empty() || ["_bucket", "_sum", "_count"].contains(&suffix)),
            "{line}"
        );
        for label in labels.strip_suffix('}').unwrap().split("\",") {
            let (label, value) = label.split_once("=\"").unwrap_or_else(|| panic!("{line}"));
            assert!(
                label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'),
                "{line}"
            );
            assert!(
                !value.trim_end_matches('"').contains(['"', '\\', '\n']),
                "{line}"
            );
        }
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("{line}"));
        assert!(
            samples.insert(series.to_owned(), value).is_none(),
            "twice: {line}"
        );
    }
    samples
}

fn of(samples: &BTreeMap<String, f64>, name: &str, more: &str) -> Option<f64> {
    let revision = key().revision;
    samples
        .get(&format!(
            "{name}{{{OURS},revision_name=\"{revision}\"{more}}}"
        ))
        .copied()
}

#[tokio::test]
async fn requests_are_counted_by_revision_and_outcome() {
    let scene = Scene::new(route()).await;
    let before = parse(&scene.ingress.metrics());
    assert_eq!(
        of(
            &before,
            "utsuwa_requests_total",
            ",response_code_class=\"2xx\""
        ),
        None
    );
    assert_eq!(of(&before, "utsuwa_requests_in_flight", ""), None);
    let app = App::new().await;
    scene.ready(&app).await;
    for _ in 0..3 {
        assert_eq!(scene.get("/hello").await.status, 200);
    }
    let nobody = scene
        .send(Request::get("/").header("host", "nobody.localhost"))
        .await;
    assert_eq!(nobody.status, 404);
    let refused = scene
        .raw("TRACE / HTTP/1.1\r\nhost: hello.localhost\r\nconnection: close\r\n\r\n")
        .await;
    assert!(refused.contains(" 405 "), "{refused}");
    scene.records(5).await;
    let text = scene.ingress.metrics();
    let samples = parse(&text);
    let class = |class: &str| {
        of(
            &samples,
            "utsuwa_requests_total",
            &format!(",response_code_class=\"{class}\""),
        )
    };
    assert_eq!(
        (class("2xx"), class("5xx"), class("4xx")),
        (Some(3.0), Some(0.0), None)
    );
    assert_eq!(
        of(&samples, "utsuwa_request_duration_seconds_count", ""),
        Some(3.0)
    );
    assert_eq!(
        of(
            &samples,
            "utsuwa_request_duration_seconds_bucket",
            ",le=\"+Inf\""
        ),
        Some(3.0)
    );
    assert!(of(&samples, "utsuwa_request_duration_seconds_sum", "") > Some(0.0));
    assert_eq!(of(&samples, "utsuwa_response_bytes_total", ""), Some(15.0));
    assert_eq!(of(&samples, "utsuwa_wakes_total", ""), Some(0.0));
    assert_eq!(of(&samples, "utsuwa_instance_starts_total", ""), Some(1.0));
    assert_eq!(
        of(&samples, "utsuwa_instances", ",state=\"idle\""),
        Some(1.0)
    );
    // What no revision saw, by service, and without one.
    let of_service = format!(
        "utsuwa_refused_requests_total{{{OURS},revision_name=\"\",reason=\"method_not_supported\"}}"
    );
    assert_eq!(samples.get(&of_service), Some(&1.0));
    let of_nobody = "utsuwa_refused_requests_total{project_id=\"\",location=\"\",service_name=\"\",revision_name=\"\",reason=\"unknown_host\"}";
    assert_eq!(samples.get(of_nobody), Some(&1.0));
    promtool(&text);
}

#[tokio::test]
async fn a_wake_is_counted_with_its_steps_and_a_removed_service_is_forgotten() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let waiting = async {
        scene.until(|demand| demand.queued == 1).await;
        scene.listen(&scene.admit(), app.address);
    };
    let (reply, ()) = tokio::join!(scene.get("/hello"), waiting);
    assert_eq!(reply.status, 200);
    let record = &scene.records(1).await[0];
    assert!(
        !record.queued.is_zero() && record.queued <= record.first_byte,
        "{record:?}"
    );
    assert!(record.first_byte <= record.latency, "{record:?}");
    let samples = parse(&scene.ingress.metrics());
    for name in [
        "utsuwa_queue_duration_seconds_count",
        "utsuwa_wake_duration_seconds_count",
    ] {
        assert_eq!(of(&samples, name, ""), Some(1.0), "{name}");
    }
    // As the scene's instances say of themselves.
    assert_eq!(
        of(
            &samples,
            "utsuwa_wake_step_seconds_total",
            ",step=\"rootfs\""
        ),
        Some(0.0002)
    );

    let id = scene.demand().instances[0].id.clone();
    scene.ingress.publish(vec![RouteChange {
        service: key().service,
        routes: Arc::new(RouteTable::default()),
    }]);
    scene.ingress.forget(&id, false);
    let text = scene.ingress.metrics();
    assert!(!text.contains("service_name=\"hello\""), "{text}");
}

/// Prometheus' own reading, where it is installed.
fn promtool(text: &str) {
    let child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        skip(here!(), "promtool is not installed (Debian: prometheus)");
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
