//! Services and revisions for people.

use serde_json::{Value, json};

use super::super::short;
use super::traffic::LATEST;
use crate::output::{line, moment, text_at};

/// The state of a service or revision, in a word.
pub(in crate::cli) fn ready_word(item: &Value) -> String {
    let word = match item["terminalCondition"]["state"]
        .as_str()
        .or_else(|| condition(item, "Ready"))
    {
        Some("CONDITION_SUCCEEDED") => "ready",
        Some("CONDITION_FAILED") => "failed",
        _ => "working",
    };
    word.to_owned()
}

/// The same in one sign, as gcloud lists it.
pub(in crate::cli) fn ready_mark(item: &Value) -> String {
    let mark = match ready_word(item).as_str() {
        "ready" => "✔",
        "failed" => "X",
        _ => "…",
    };
    mark.to_owned()
}

/// The state of one condition.
pub(in crate::cli) fn condition<'a>(item: &'a Value, kind: &str) -> Option<&'a str> {
    let all = item["conditions"].as_array()?;
    all.iter().find(|c| c["type"] == json!(kind))?["state"].as_str()
}

/// `projects/P/locations/R/services/S`: its region.
pub(in crate::cli) fn region(item: &Value) -> String {
    let name = text_at(item, "name");
    name.split('/').nth(3).unwrap_or_default().to_owned()
}

pub(in crate::cli) fn print_service(service: &Value) {
    line(&format!(
        "Service {} in {}",
        short(&text_at(service, "name")),
        region(service)
    ));
    line(&format!("URL:      {}", text_at(service, "uri")));
    line(&format!("State:    {}", ready_word(service)));
    let message = text_at(service, "terminalCondition.message");
    if !message.is_empty() {
        line(&format!("          {message}"));
    }
    print_traffic(service);
    let container = &service["template"]["containers"][0];
    line(&format!("Image:    {}", text_at(container, "image")));
    for (label, path) in [
        ("Memory:", "resources.limits.memory"),
        ("CPU:", "resources.limits.cpu"),
    ] {
        let limit = text_at(container, path);
        if !limit.is_empty() {
            line(&format!("{label:<9} {limit}"));
        }
    }
    line(&format!(
        "Deployed: {} by {}",
        moment(&text_at(service, "updateTime")),
        text_at(service, "lastModifier")
    ));
}

pub(in crate::cli) fn print_traffic(service: &Value) {
    line("Traffic:");
    for target in service["trafficStatuses"].as_array().into_iter().flatten() {
        let latest = if target["type"] == json!(LATEST) {
            " (latest)"
        } else {
            ""
        };
        let tag = match target["tag"].as_str() {
            Some(tag) => format!("  tag {tag}: {}", text_at(target, "uri")),
            None => String::new(),
        };
        line(&format!(
            "  {:>3}% {}{latest}{tag}",
            target["percent"].as_u64().unwrap_or(0),
            short(&text_at(target, "revision"))
        ));
    }
}

pub(in crate::cli) fn print_why(name: &str, explained: &Value) {
    let revisions = explained["revisions"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if revisions.is_empty() {
        line(&format!(
            "Service {name}: nothing is routed and nothing runs."
        ));
    }
    for revision in &revisions {
        line(&format!(
            "{}  {}% of traffic, {} in flight, {} queued",
            short(&text_at(revision, "revision")),
            text_at(revision, "percent"),
            text_at(revision, "inFlight"),
            text_at(revision, "queued")
        ));
        for instance in revision["instances"].as_array().into_iter().flatten() {
            line(&format!(
                "  instance {} {} pid {}, {} in flight, since {}",
                text_at(instance, "id").get(..12).unwrap_or_default(),
                text_at(instance, "state"),
                text_at(instance, "pid"),
                text_at(instance, "inFlight"),
                text_at(instance, "started")
            ));
        }
        for because in revision["because"].as_array().into_iter().flatten() {
            line(&format!("  because {}", text_at(because, "summary")));
            for fact in because["facts"].as_array().into_iter().flatten() {
                line(&format!(
                    "    {} = {}",
                    text_at(fact, "0"),
                    text_at(fact, "1")
                ));
            }
        }
    }
}
