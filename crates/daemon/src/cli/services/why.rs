//! `utsuwa services describe NAME --why`: what runs, since when, and for what reason.

use serde_json::Value;

use super::super::short;
use super::super::words::cause;
use crate::output::{line, moment, text_at};

pub(super) fn print_why(name: &str, explained: &Value) {
    for text in lines(name, explained) {
        line(&text);
    }
}

fn lines(name: &str, explained: &Value) -> Vec<String> {
    let mut lines = Vec::new();
    let revisions = all(explained, "revisions");
    if revisions.is_empty() {
        lines.push(format!(
            "Service {name}: nothing is routed and nothing runs."
        ));
    }
    if !revisions.is_empty() {
        lines.push(in_a_sentence(name, revisions));
    }
    for revision in revisions {
        lines.push(format!(
            "{}  {}% of traffic, {} in flight, {} queued",
            short(&text_at(revision, "revision")),
            text_at(revision, "percent"),
            text_at(revision, "inFlight"),
            text_at(revision, "queued")
        ));
        for instance in all(revision, "instances") {
            lines.extend(instance_lines(instance));
        }
        let decided = moment(&text_at(revision, "decidedAt"));
        if !decided.is_empty() {
            lines.push(format!("  decided at {decided}, by what was seen then:"));
        }
        for because in all(revision, "because") {
            lines.push(format!("  because {}", text_at(because, "summary")));
            for fact in all(because, "facts") {
                lines.push(format!(
                    "    {} = {}",
                    text_at(fact, "0"),
                    text_at(fact, "1")
                ));
            }
        }
        if !revision["lastFailure"].is_null() {
            let at = moment(&text_at(revision, "lastFailure.at"));
            let message = cause(&text_at(revision, "lastFailure.message"));
            lines.push(format!("  the last failure was at {at}: {message}"));
        }
    }
    lines
}

/// Of each revision that gets traffic and whose last instances all failed: that, why, and where to read on. One failure alone may
/// be chance, and its next instance is started at once.
pub(super) fn trouble(name: &str, explained: &Value) -> Vec<String> {
    let serving = all(explained, "revisions")
        .iter()
        .filter(|revision| revision["percent"].as_u64().unwrap_or(0) > 0);
    let failing = serving.filter_map(|revision| {
        let count = revision["failuresInARow"].as_u64().unwrap_or(0);
        (count > 1 && !revision["lastFailure"].is_null()).then_some((revision, count))
    });
    failing
        .flat_map(|(revision, count)| {
            let id = short(&text_at(revision, "revision"));
            let at = moment(&text_at(revision, "lastFailure.at"));
            let why = cause(&text_at(revision, "lastFailure.message"));
            [
                format!("But {id} does not stay up: its last {count} instances failed, the last at {at}: {why}"),
                format!("`utsuwa logs {name}` shows what they wrote."),
            ]
        })
        .collect()
}

/// What runs and for whom, before the details.
fn in_a_sentence(name: &str, revisions: &[Value]) -> String {
    let sum = |key: &str| -> u64 { revisions.iter().filter_map(|r| r[key].as_u64()).sum() };
    let (inside, waiting) = (sum("inFlight"), sum("queued"));
    let runs: usize = revisions.iter().map(|r| all(r, "instances").len()).sum();
    let count = |number: u64, what: &str| match number {
        0 => format!("no {what}"),
        1 => format!("1 {what}"),
        more => format!("{more} {what}s"),
    };
    let requests = match (inside, waiting) {
        (0, 0) => "no request is inside or waits".to_owned(),
        (inside, waiting) => format!("{} inside, {waiting} waiting", count(inside, "request")),
    };
    let instances = match runs {
        0 => "no instance runs".to_owned(),
        1 => "1 instance is there".to_owned(),
        more => format!("{more} instances are there"),
    };
    format!("Service {name}: {instances}; {requests}.")
}

fn all<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn instance_lines(instance: &Value) -> Vec<String> {
    let id = text_at(instance, "id");
    let state = match text_at(instance, "state").as_str() {
        // Of the four that take requests, the one that runs.
        "ready" => "awake".to_owned(),
        "reclaimed" => "frozen, its memory given back,".to_owned(),
        other => other.to_owned(),
    };
    let since = match moment(&text_at(instance, "since")) {
        empty if empty.is_empty() => String::new(),
        since => format!(" since {since}"),
    };
    let mut lines = vec![format!(
        "  instance {} {state}{since} because {}",
        id.get(..12).unwrap_or(&id),
        text_at(instance, "because")
    )];
    let mut below = |text: String| lines.push(format!("    {text}"));
    let next: Vec<String> = all(instance, "next")
        .iter()
        .map(|next| {
            format!(
                "{} at {}",
                text_at(next, "what"),
                moment(&text_at(next, "at"))
            )
        })
        .collect();
    let kept = text_at(instance, "kept");
    match (next.join(", "), kept.is_empty()) {
        (next, true) if next.is_empty() => {}
        (next, true) => below(format!("unless it is called, {next}")),
        (next, false) if next.is_empty() => below(format!("what keeps it: {kept}")),
        (next, false) => below(format!("unless it is called, {next}: {kept}")),
    }
    for failing in all(instance, "failingProbes") {
        below(probe_line(failing));
        let advice = text_at(failing, "advice");
        if !advice.is_empty() {
            below(advice);
        }
    }
    let pid = match text_at(instance, "pid") {
        unknown if unknown == "0" => String::new(),
        pid => format!("pid {pid}, "),
    };
    below(format!(
        "{pid}{} in flight, started {}",
        text_at(instance, "inFlight"),
        moment(&text_at(instance, "started"))
    ));
    lines
}

fn probe_line(failing: &Value) -> String {
    let probe = text_at(failing, "probe");
    let often = match (text_at(failing, "failures").as_str(), probe.as_str()) {
        ("0", _) => "it succeeds again, not often enough yet".to_owned(),
        // Its attempts to connect are many more than its checks.
        (_, "startup") => String::new(),
        (count, _) => format!(
            "{count} in a row, {} count as failed",
            text_at(failing, "failureThreshold")
        ),
    };
    let often = match often.is_empty() {
        true => often,
        false => format!(" ({often})"),
    };
    format!(
        "its {probe} probe fails since {}{often}: {}; last answer: {}",
        moment(&text_at(failing, "since")),
        text_at(failing, "asks"),
        text_at(failing, "lastAnswer")
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn who_serves_and_never_stays_is_told() {
        let revision = |percent: u32, failures: u32| {
            json!({"revisions": [{
                "revision": "web-00001-abc",
                "percent": percent,
                "failuresInARow": failures,
                "lastFailure": {
                    "at": "2026-11-25T19:00:00Z",
                    "message": "the container \"side\" exited with status 7",
                },
            }]})
        };
        assert_eq!(
            trouble("web", &revision(100, 3)),
            [
                "But web-00001-abc does not stay up: its last 3 instances failed, the last at 2026-11-25 19:00:00 UTC: the container \
                 \"side\" exited with status 7",
                "`utsuwa logs web` shows what they wrote.",
            ]
        );
        for fine in [
            revision(0, 3),
            revision(100, 1),
            revision(100, 0),
            Value::Null,
        ] {
            assert_eq!(trouble("web", &fine), Vec::<String>::new(), "{fine}");
        }
    }

    #[test]
    fn an_instance_tells_its_state_since_when_and_what_comes() {
        let explained = json!({"revisions": [{
            "revision": "hello-00001-abc",
            "percent": 100,
            "inFlight": 0,
            "queued": 0,
            "instances": [
                {
                    "id": "0123456789abcdef0123456789abcdef",
                    "state": "frozen",
                    "since": "2026-11-25T20:00:01.250000Z",
                    "because": "no request for 1s",
                    "next": [
                        {"what": "its memory is given back", "at": "2026-11-25T20:01:00Z"},
                        {"what": "it stops", "at": "2026-11-25T20:15:00Z"},
                    ],
                    "kept": "an idle instance stays 15m (retention period)",
                    "pid": 7,
                    "inFlight": 0,
                    "started": "2026-11-25T19:59:00Z",
                    "failingProbes": [],
                },
                {
                    "id": "fedcba9876543210fedcba9876543210",
                    "state": "ready",
                    "since": null,
                    "because": "1 request inside",
                    "next": [],
                    "kept": null,
                    "pid": 0,
                    "inFlight": 1,
                    "started": "2026-11-25T19:59:00Z",
                    "failingProbes": [{
                        "probe": "liveness",
                        "asks": "GET /health on port 8080",
                        "since": "2026-11-25T20:00:00Z",
                        "lastAnswer": "HTTP status 503 Service Unavailable",
                        "failures": 2,
                        "failureThreshold": 3,
                        "advice": "Mend /health.",
                    }],
                },
            ],
            "because": [{"summary": "keep 1: no request", "facts": [["ready", "2"]]}],
            "decidedAt": "2026-11-25T20:00:02Z",
            "lastFailure": {"at": "2026-11-25T19:00:00Z", "message": "the container exited with status 1"},
        }]});
        let want = [
            "Service hello: 2 instances are there; no request is inside or waits.",
            "hello-00001-abc  100% of traffic, 0 in flight, 0 queued",
            "  instance 0123456789ab frozen since 2026-11-25 20:00:01 UTC because no request for 1s",
            "    unless it is called, its memory is given back at 2026-11-25 20:01:00 UTC, it stops at 2026-11-25 20:15:00 UTC: an idle \
             instance stays 15m (retention period)",
            "    pid 7, 0 in flight, started 2026-11-25 19:59:00 UTC",
            "  instance fedcba987654 awake because 1 request inside",
            "    its liveness probe fails since 2026-11-25 20:00:00 UTC (2 in a row, 3 count as failed): GET /health on port 8080; last \
             answer: HTTP status 503 Service Unavailable",
            "    Mend /health.",
            "    1 in flight, started 2026-11-25 19:59:00 UTC",
            "  decided at 2026-11-25 20:00:02 UTC, by what was seen then:",
            "  because keep 1: no request",
            "    ready = 2",
            "  the last failure was at 2026-11-25 19:00:00 UTC: the container exited with status 1",
        ];
        assert_eq!(lines("hello", &explained), want);
        let busy = [json!({"inFlight": 1, "queued": 2, "instances": []})];
        assert_eq!(
            in_a_sentence("hello", &busy),
            "Service hello: no instance runs; 1 request inside, 2 waiting."
        );
        assert_eq!(
            lines("hello", &json!({"revisions": []})),
            ["Service hello: nothing is routed and nothing runs."]
        );
    }
}
