//! The way back from a deploy that failed: its settings stay in the service's template, as on Cloud Run, and the next deploy begins
//! from them. Which flags lead back to what serves, or to a deploy without any.
//!
//! Owns: settings that a flag of `utsuwa deploy` has, of the container that takes the requests. Deliberately not here: what only the
//! API has (probes, volumes, sidecars).
//!
//! Invariants:
//! 1. Each flag can be typed as it is, and is taken.
//! 2. Values of variables, which may be secrets, are told only to who asks for a description.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::scaling::DEFAULT_MAX_INSTANCES;
use utsuwa_model::service::autoscaling::is_unknown;
use utsuwa_model::service::{REFUSE_SCANNERS, WAITING_PAGE, ZYGOTE, defaults};

use super::containers::ingress_index;
use crate::cli::short;
use crate::cli::words::shell_quote;
use crate::client::Api;
use crate::output::text_at;

/// The way back of one service.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::cli) struct Back {
    /// The revision that they lead to; `None`: none ever served, and they lead to the defaults.
    to: Option<String>,
    flags: Vec<String>,
    variables: Variables,
}

impl Back {
    /// From what `service` last deployed to what it last had ready; empty where nothing is to be said.
    pub(in crate::cli) async fn of(api: &Api, service: &Value) -> Self {
        let (newest, ready) = (
            text_at(service, "latestCreatedRevision"),
            text_at(service, "latestReadyRevision"),
        );
        if newest.is_empty() || newest == ready {
            return Self::default();
        }
        let Ok(failed) = api.get(&format!("/run/v2/{newest}")).await else {
            return Self::default();
        };
        if ready.is_empty() {
            return Self::to_defaults(&failed);
        }
        match api.get(&format!("/run/v2/{ready}")).await {
            Ok(serving) => Self {
                to: Some(short(&ready)),
                flags: flags(&failed, &serving),
                variables: Variables::between(&failed, &serving),
            },
            Err(_) => Self::default(),
        }
    }

    fn to_defaults(failed: &Value) -> Self {
        // As the command line makes a new service.
        let bare =
            json!({"containers": [{"resources": {"cpuIdle": true, "startupCpuBoost": true}}]});
        let mut flags = flags(failed, &bare);
        // There is no image to go back to.
        flags.retain(|flag| !flag.starts_with("--image"));
        Self {
            to: None,
            flags,
            variables: Variables::between(failed, &bare),
        }
    }

    /// What stays of the deploy that failed and the command that undoes it, with the values of variables; `None`: no flag has anything
    /// to undo.
    pub(in crate::cli) fn words(&self, name: &str) -> Option<String> {
        self.told(&self.variables.put_back(), name, "")
    }

    /// The same for who didn't ask, such as a log of deploys: of variables whose values are needed the names alone.
    pub(in crate::cli) fn words_without_values(&self, name: &str) -> Option<String> {
        let names = self.variables.names();
        let more = match names.is_empty() {
            true => String::new(),
            false => format!(
                " How to put the variables {names} back: `utsuwa services describe {name}`."
            ),
        };
        self.told(&None, name, &more)
    }

    /// The flags come last, where they are easy to copy.
    fn told(&self, put_back: &Option<String>, name: &str, more: &str) -> Option<String> {
        let all = [
            &self.flags,
            put_back.as_slice(),
            self.variables.remove.as_slice(),
        ]
        .concat();
        if all.is_empty() && more.is_empty() {
            return None;
        }
        let stays = format!(
            "What the failed deploy set stays in the service, and the next deploy begins from there.{more}"
        );
        let flags = all.join(" ");
        Some(match &self.to {
            _ if all.is_empty() => stays,
            Some(revision) => {
                let what = if more.is_empty() {
                    "what"
                } else {
                    "all else that"
                };
                format!("{stays} Back to {what} {revision} has: utsuwa deploy {name} {flags}")
            }
            None => format!("{stays} What leads back to the defaults: {flags}"),
        })
    }
}

/// The flags that lead from one revision to another.
fn flags(from: &Value, to: &Value) -> Vec<String> {
    let mut all = Vec::new();
    for setting in SETTINGS {
        let (now, then) = (setting(from), setting(to));
        if now != then && !then.is_empty() {
            all.push(then);
        }
    }
    all.extend(concurrency(from, to));
    all.extend(annotations(from, to));
    all
}

/// Compared as numbers: the default is another one with less than a CPU, and what is one's default may be refused with the other's
/// CPU.
fn concurrency(from: &Value, to: &Value) -> Option<String> {
    let usual = |revision: &Value| {
        let small = cpu(revision)
            .parse()
            .is_ok_and(|cpu: MilliCpu| cpu < defaults::CPU);
        if small { 1 } else { defaults::CONCURRENCY }
    };
    let own = |revision: &Value| {
        let written = text_at(revision, "maxInstanceRequestConcurrency");
        or(written, &usual(revision))
    };
    let then = own(to);
    (own(from) != then).then(|| match then == usual(to).to_string() {
        true => "--concurrency default".to_owned(),
        false => format!("--concurrency {then}"),
    })
}

/// How a revision's setting is written as a flag; empty where that isn't known.
type Setting = fn(&Value) -> String;

const SETTINGS: &[Setting] = &[
    |revision| match text_at(container(revision), "image") {
        none if none.is_empty() => none,
        image => format!("--image {}", quoted(&image)),
    },
    |revision| {
        let port = or(
            text_at(container(revision), "ports.0.containerPort"),
            &defaults::PORT,
        );
        format!("--port {port}")
    },
    |revision| {
        let http2 = text_at(container(revision), "ports.0.name") == "h2c";
        switch("use-http2", http2)
    },
    |revision| list("command", &container(revision)["command"]),
    |revision| list("args", &container(revision)["args"]),
    |revision| {
        let memory = text_at(container(revision), "resources.limits.memory");
        format!("--memory {}", or(memory, &defaults::MEMORY))
    },
    |revision| format!("--cpu {}", cpu(revision)),
    |revision| {
        let own = text_at(revision, "timeout");
        let own = or(
            own.trim_end_matches('s').to_owned(),
            &defaults::TIMEOUT_SECS,
        );
        format!("--timeout {own}")
    },
    |revision| {
        let own = or(text_at(revision, "scaling.minInstanceCount"), &0);
        format!("--min-instances {own}")
    },
    |revision| {
        let usual = DEFAULT_MAX_INSTANCES.to_string();
        match or(text_at(revision, "scaling.maxInstanceCount"), &usual) {
            own if own == usual => "--max-instances default".to_owned(),
            own => format!("--max-instances {own}"),
        }
    },
    |revision| match text_at(revision, "executionEnvironment").as_str() {
        "EXECUTION_ENVIRONMENT_GEN1" => "--execution-environment gen1".to_owned(),
        _ => "--execution-environment gen2".to_owned(),
    },
    |revision| {
        let idle = text_at(container(revision), "resources.cpuIdle") != "false";
        switch("cpu-throttling", idle)
    },
    |revision| {
        let boost = text_at(container(revision), "resources.startupCpuBoost") == "true";
        switch("cpu-boost", boost)
    },
    |revision| {
        let sticky = text_at(revision, "sessionAffinity") == "true";
        switch("session-affinity", sticky)
    },
    |revision| annotated(revision, ZYGOTE, "zygote"),
    |revision| annotated(revision, REFUSE_SCANNERS, "refuse-scanners"),
    |revision| annotated(revision, WAITING_PAGE, "waiting-page"),
];

fn container(revision: &Value) -> &Value {
    &revision["containers"][ingress_index(revision)]
}

fn cpu(revision: &Value) -> String {
    let own = text_at(container(revision), "resources.limits.cpu");
    or(own, &defaults::CPU)
}

fn or(written: String, default: &dyn std::fmt::Display) -> String {
    match written.as_str() {
        "" | "0" => default.to_string(),
        _ => written,
    }
}

fn switch(flag: &str, on: bool) -> String {
    match on {
        true => format!("--{flag}"),
        false => format!("--no-{flag}"),
    }
}

fn annotated(revision: &Value, annotation: &str, flag: &str) -> String {
    switch(flag, revision["annotations"][annotation] == json!("true"))
}

/// A list flag; one without parts says so: it resets.
fn list(flag: &str, words: &Value) -> String {
    let words = words.as_array().into_iter().flatten();
    let words: Vec<&str> = words.filter_map(Value::as_str).collect();
    match words.is_empty() {
        true => format!("--{flag}=''"),
        false => format!("--{flag}={}", quoted(&delimited(&words))),
    }
}

/// `a,b`, or with another delimiter where a part has a comma.
fn delimited(words: &[&str]) -> String {
    const OTHERS: [&str; 5] = ["@", ";", "|", "#", "::"];
    let free = |delimiter: &&str| !words.iter().any(|word| word.contains(*delimiter));
    let plain = free(&",") && !words.iter().any(|word| word.starts_with('^'));
    // The one after the last delimiter counts for nothing, so an empty last part needs one more.
    let end = words.last().is_some_and(|last| last.is_empty());
    let joined = |delimiter: &str| {
        let tail = if end { delimiter } else { "" };
        format!("{}{tail}", words.join(delimiter))
    };
    match OTHERS.iter().find(|other| free(other)) {
        Some(other) if !plain => format!("^{other}^{}", joined(other)),
        _ => joined(","),
    }
}

/// Readable where a shell takes it as it is.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:,=@".contains(c);
    match !text.is_empty() && text.chars().all(plain) {
        true => text.to_owned(),
        false => shell_quote(text),
    }
}

/// What became of variables with a value of their own; those of secrets have no flag here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Variables {
    /// To be put back, each with its value.
    lost: Vec<(String, String)>,
    /// The flag that removes those that are new.
    remove: Option<String>,
}

impl Variables {
    fn between(from: &Value, to: &Value) -> Self {
        let of = |revision: &Value| -> Vec<(String, String)> {
            let all = container(revision)["env"].as_array().into_iter().flatten();
            all.filter(|one| one["valueSource"].is_null())
                .map(|one| (text_at(one, "name"), text_at(one, "value")))
                .collect()
        };
        let (from, to) = (of(from), of(to));
        let new: Vec<&str> = from
            .iter()
            .filter(|(name, _)| !to.iter().any(|(known, _)| known == name))
            .map(|(name, _)| name.as_str())
            .collect();
        let remove =
            (!new.is_empty()).then(|| format!("--remove-env-vars={}", quoted(&delimited(&new))));
        let lost = to.into_iter().filter(|one| !from.contains(one)).collect();
        Self { lost, remove }
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.lost.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    }

    /// The flag that puts them back.
    fn put_back(&self) -> Option<String> {
        let lost: Vec<String> = self
            .lost
            .iter()
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        let lost: Vec<&str> = lost.iter().map(String::as_str).collect();
        (!lost.is_empty()).then(|| format!("--update-env-vars={}", quoted(&delimited(&lost))))
    }
}

/// Annotations that `to` has otherwise or not at all, but those that have a flag of their own.
fn annotations(from: &Value, to: &Value) -> Vec<String> {
    let of = |revision: &Value| {
        revision["annotations"]
            .as_object()
            .cloned()
            .unwrap_or_default()
    };
    let (from, to) = (of(from), of(to));
    let keys: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let other = keys.into_iter().filter(|key| {
        ![ZYGOTE, REFUSE_SCANNERS, WAITING_PAGE].contains(&key.as_str())
            && from.get(*key) != to.get(*key)
    });
    let then = |key: &String| to.get(key).and_then(Value::as_str).unwrap_or_default();
    let other: Vec<String> = other
        // Of a time when the server took such; one goes, but none comes back.
        .filter(|key| then(key).is_empty() || !is_unknown(key))
        .map(|key| format!("{key}={}", then(key)))
        .collect();
    let other: Vec<&str> = other.iter().map(String::as_str).collect();
    match other.is_empty() {
        true => Vec::new(),
        false => vec![format!("--annotations={}", quoted(&delimited(&other)))],
    }
}

#[cfg(test)]
mod tests;
