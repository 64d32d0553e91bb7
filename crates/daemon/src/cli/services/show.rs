//! Services and revisions for people.

use serde_json::{Value, json};
use utsuwa_decide::revision::NOT_STARTED;
use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::scaling::DEFAULT_MAX_INSTANCES;
use utsuwa_model::service::defaults;

use super::super::short;
use super::super::words::{brief, cause};
use super::container;
use super::containers::{ingress_index, sidecar_lines};
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

/// Whether its own address is switched off: there is nothing under it, nor under those of its tags.
pub(in crate::cli) fn is_off(service: &Value) -> bool {
    service["defaultUriDisabled"] == json!(true)
}

/// What is said instead of that address.
pub(in crate::cli) fn off(service: &Value) -> String {
    format!(
        "switched off (`gcloud run services update {} --region {} --default-url` switches it on)",
        short(&text_at(service, "name")),
        region(service)
    )
}

/// All addresses that lead to it, the main one first.
fn urls(service: &Value) -> Vec<String> {
    let urls = service["urls"].as_array().into_iter().flatten();
    urls.filter_map(|url| url.as_str().map(str::to_owned))
        .collect()
}

/// The main one for a listing.
pub(in crate::cli) fn address(service: &Value) -> String {
    match urls(service).into_iter().next() {
        Some(url) => url,
        None if is_off(service) => "off".to_owned(),
        None => String::new(),
    }
}

/// Whether any revision of it ever became ready: without one there is nothing that could serve.
pub(in crate::cli) fn can_serve(service: &Value) -> bool {
    !text_at(service, "latestReadyRevision").is_empty()
}

/// The state for a listing.
pub(in crate::cli) fn state(service: &Value) -> String {
    match (ready_word(service).as_str(), can_serve(service)) {
        ("failed", true) => "last deploy failed".to_owned(),
        ("failed", false) => "serves nothing".to_owned(),
        (word, _) => word.to_owned(),
    }
}

/// Why a service failed, in a line of a table (`describe` has the whole); empty for one that didn't.
pub(in crate::cli) fn reason(service: &Value) -> String {
    if ready_word(service) != "failed" {
        return String::new();
    }
    let message = text_at(service, "terminalCondition.message");
    let first = message.lines().next().unwrap_or_default();
    // Which revision that is says nothing of the cause.
    let cause = match first.split_once(NOT_READY) {
        Some((revision, cause)) if revision.starts_with("Revision '") => cause.trim_start(),
        _ => first,
    };
    brief(cause)
}

/// After the name of a revision, in Google's words.
const NOT_READY: &str = "is not ready and cannot serve traffic.";

/// Whether `revision` failed before anything of it ran: its image could not be had, or its program not be started. Its service has no more than that it failed.
pub(in crate::cli) fn nothing_ran(revision: &Value) -> bool {
    let conditions = revision["conditions"].as_array().into_iter().flatten();
    conditions
        .filter(|condition| condition["state"] == json!("CONDITION_FAILED"))
        .any(|condition| {
            let reason = text_at(condition, "reason");
            ["CONTAINER_MISSING", "CONTAINER_IMAGE_UNAUTHORIZED"].contains(&reason.as_str())
                || text_at(condition, "message").contains(NOT_STARTED)
        })
}

/// What to do about a service that serves nothing because its deploys failed. `ran`: something of it may have run.
pub(in crate::cli) fn repair(name: &str, ran: bool) -> String {
    let logs = match ran {
        true => format!("`utsuwa logs {name}` shows what it wrote; "),
        // The message says how the image can be had; there is nothing else to be looked at.
        false => String::new(),
    };
    format!(
        "{logs}deploy it again once that is mended (`utsuwa deploy {name} --image REF` names another image), or `utsuwa services delete {name}` removes it"
    )
}

/// What a description tells besides what the service itself says.
#[derive(Debug, Default)]
pub(in crate::cli) struct About<'a> {
    /// Who may call it.
    pub callers: &'a str,
    /// Something of what failed may have run.
    pub ran: bool,
    /// The way back from what failed.
    pub way: Option<String>,
    /// What hinders starts of what serves.
    pub trouble: Vec<String>,
}

pub(in crate::cli) fn print_service(service: &Value, about: &About<'_>) {
    for text in service_lines(service, about) {
        line(&text);
    }
}

fn service_lines(service: &Value, about: &About<'_>) -> Vec<String> {
    let name = short(&text_at(service, "name"));
    let mut lines = vec![format!("Service {name} in {}", region(service))];
    let mut addresses = urls(service);
    if is_off(service) {
        addresses.insert(0, format!("its own is {}", off(service)));
    }
    let labels = std::iter::once("URL:").chain(std::iter::repeat(""));
    lines.extend(
        labels
            .zip(&addresses)
            .map(|(label, url)| labelled(label, url)),
    );
    lines.push(labelled("State:", &ready_word(service)));
    let mut below = |text: &str| lines.push(labelled("", text));
    for text in cause(&text_at(service, "terminalCondition.message"))
        .lines()
        .filter(|text| !text.is_empty())
    {
        below(text);
    }
    if ready_word(service) == "failed" {
        if can_serve(service) {
            below("What served before still serves.");
        } else {
            below("It serves nothing: no revision of it ever became ready.");
            below(&repair(&name, about.ran));
        }
        if let Some(way) = &about.way {
            below(way);
        }
    }
    about.trouble.iter().for_each(|text| below(text));
    let ingress = match text_at(service, "ingress").as_str() {
        "INGRESS_TRAFFIC_INTERNAL_ONLY" => "internal",
        "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER" => "internal-and-cloud-load-balancing",
        _ => "all",
    };
    lines.push(labelled("Ingress:", ingress));
    lines.push(labelled("Callers:", about.callers));
    lines.extend(traffic_lines(service));
    lines.push(labelled("Scaling:", &scaling(&service["scaling"])));
    lines.push(format!("Template:{}", not_serving(service)));
    lines.extend(template_lines(&service["template"]));
    let by = format!(
        "{} by {}",
        moment(&text_at(service, "updateTime")),
        text_at(service, "lastModifier")
    );
    lines.push(labelled("Deployed:", &by));
    let labels = service["labels"].as_object().into_iter().flatten();
    let labels: Vec<String> = labels
        .filter_map(|(key, value)| Some(format!("{key}={}", value.as_str()?)))
        .collect();
    for (label, text) in [
        ("About:", text_at(service, "description")),
        ("Labels:", labels.join(", ")),
    ] {
        if !text.is_empty() {
            lines.push(labelled(label, &text));
        }
    }
    lines
}

/// Which revision the template is of, where that isn't what serves.
fn not_serving(service: &Value) -> String {
    let newest = short(&text_at(service, "latestCreatedRevision"));
    let targets = || service["trafficStatuses"].as_array().into_iter().flatten();
    let serves = |target: &Value| target["percent"].as_u64().unwrap_or(0) > 0;
    let mine = |target: &&Value| short(&text_at(target, "revision")) == newest;
    // While a deploy goes on, its revision may not be there yet.
    let settled = service["reconciling"] != json!(true) && !newest.is_empty();
    if !settled || !targets().any(serves) || targets().filter(mine).any(serves) {
        return String::new();
    }
    let why = match ready_word(service).as_str() {
        "failed" => "failed and does not serve",
        _ => "gets no part of the traffic",
    };
    format!(" (of {newest}, which {why})")
}

/// What the next revision has, as gcloud shows it: with the defaults of what isn't written.
fn template_lines(template: &Value) -> Vec<String> {
    let ingress = ingress_index(template);
    let container = &template["containers"][ingress];
    let mut lines = Vec::new();
    let mut add = |label: &str, text: String| {
        if !text.is_empty() {
            lines.push(format!("  {label:<16} {text}"));
        }
    };
    let at = |path: &str| text_at(container, path);
    let of = |path: &str| text_at(template, path);
    add("Image:", at("image"));
    let port = or(at("ports.0.containerPort"), &defaults::PORT);
    let checked = of("healthCheckDisabled") != "true";
    let probes = container::probes(container, &port, checked);
    add(
        "Port:",
        match at("ports.0.name").as_str() {
            "h2c" => format!("{port} (HTTP/2)"),
            _ => port,
        },
    );
    let cpu = or(at("resources.limits.cpu"), &defaults::CPU);
    let least = cpu.parse().is_ok_and(|cpu: MilliCpu| cpu < defaults::CPU);
    let concurrency = if least { 1 } else { defaults::CONCURRENCY };
    add(
        "Memory:",
        or(at("resources.limits.memory"), &defaults::MEMORY),
    );
    add("CPU:", cpu + container::when(container));
    for (label, text) in container::chosen(container, template) {
        add(label, text);
    }
    for (label, key) in [("Command:", "command"), ("Args:", "args")] {
        let words = container[key].as_array().into_iter().flatten();
        let words: Vec<&str> = words.filter_map(Value::as_str).collect();
        add(label, words.join(" "));
    }
    add(
        "Concurrency:",
        or(of("maxInstanceRequestConcurrency"), &concurrency),
    );
    let timeout = format!("{}s", defaults::TIMEOUT_SECS);
    add("Timeout:", or(of("timeout"), &timeout));
    add("Min instances:", or(of("scaling.minInstanceCount"), &0));
    add(
        "Max instances:",
        or(of("scaling.maxInstanceCount"), &DEFAULT_MAX_INSTANCES),
    );
    if of("sessionAffinity") == "true" {
        add("Affinity:", "a client goes to the same instance".to_owned());
    }
    for (label, text) in probes {
        add(label, text);
    }
    let volumes = container::volumes(container, template);
    if !volumes.is_empty() {
        lines.push("  Volumes:".to_owned());
    }
    for (path, what) in volumes {
        lines.push(format!("    {path:<14} {what}"));
    }
    lines.extend(environment_lines(container));
    lines.extend(sidecar_lines(template, ingress));
    lines
}

/// What is written, or the default.
fn or(written: String, default: &dyn std::fmt::Display) -> String {
    if written.is_empty() || written == "0" {
        default.to_string()
    } else {
        written
    }
}

fn environment_lines(container: &Value) -> Vec<String> {
    let variables = container["env"].as_array().cloned().unwrap_or_default();
    if variables.is_empty() {
        return Vec::new();
    }
    let names = variables.iter().map(|v| text_at(v, "name").len());
    let width = names.max().unwrap_or(0).max(14);
    let mut lines = vec!["  Env vars:".to_owned()];
    for variable in &variables {
        let value = if variable["valueSource"].is_null() {
            text_at(variable, "value")
        } else {
            let secret = text_at(variable, "valueSource.secretKeyRef.secret");
            format!("(secret {secret})")
        };
        lines.push(format!("    {:<width$} {value}", text_at(variable, "name")));
    }
    lines
}

/// Of the service as a whole.
fn scaling(scaling: &Value) -> String {
    if text_at(scaling, "scalingMode") == "MANUAL" {
        return format!(
            "by hand: {} instances",
            text_at(scaling, "manualInstanceCount")
        );
    }
    let mut text = "automatic".to_owned();
    for (word, path) in [
        ("at least", "minInstanceCount"),
        ("at most", "maxInstanceCount"),
    ] {
        let count = scaling[path].as_u64().unwrap_or(0);
        if count > 0 {
            let noun = if count == 1 { "instance" } else { "instances" };
            text.push_str(&format!(", {word} {count} {noun}"));
        }
    }
    text
}

fn labelled(label: &str, text: &str) -> String {
    format!("{label:<9} {text}")
}

pub(in crate::cli) fn print_traffic(service: &Value) {
    for text in traffic_lines(service) {
        line(&text);
    }
}

fn traffic_lines(service: &Value) -> Vec<String> {
    let mut lines = vec!["Traffic:".to_owned()];
    for target in service["trafficStatuses"].as_array().into_iter().flatten() {
        let latest = if target["type"] == json!(LATEST) {
            " (latest)"
        } else {
            ""
        };
        let tag = match target["tag"].as_str() {
            Some(tag) => match text_at(target, "uri").as_str() {
                "" => format!("  tag {tag}"),
                uri => format!("  tag {tag}: {uri}"),
            },
            None => String::new(),
        };
        let percent = match target["percent"].as_u64().unwrap_or(0) {
            0 if !tag.is_empty() => String::new(),
            percent => format!("{percent}%"),
        };
        lines.push(format!(
            "  {percent:>4} {}{latest}{tag}",
            short(&text_at(target, "revision"))
        ));
    }
    if lines.len() == 1 {
        lines.push("  nothing is routed".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests;
