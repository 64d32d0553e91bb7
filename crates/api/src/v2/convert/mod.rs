//! Between the model and v2's messages (§1.2, §1.3, §1.5).
//!
//! Invariants:
//! 1. What a client writes it reads back: `None` in the model is absent on the wire, defaults are not written out (revisions
//!    show them; services don't).
//! 2. Every problem of a message is collected, each with its field's path in JSON spelling.
//! 3. A field that the model can't hold is refused by name, never dropped.
//! 4. v2 has fields where v1 has annotations of Google's own namespaces; such annotations are neither shown nor taken, and
//!    survive a v2 write.

mod condition;
mod container;
mod read;
mod revision;
mod service;
mod template;
#[cfg(test)]
mod tests;

pub(super) use revision::revision;
pub(super) use service::{draft, service, version};

use std::collections::BTreeMap;

use utsuwa_model::Timestamp;

/// A model time on the wire.
pub(super) fn timestamp(time: Timestamp) -> prost_types::Timestamp {
    let nanos = time.0.rem_euclid(1_000_000) * 1000;
    prost_types::Timestamp {
        seconds: time.0.div_euclid(1_000_000),
        nanos: i32::try_from(nanos).unwrap_or(0),
    }
}

/// Namespaces of keys that v2 expresses as fields.
const OURS: [&str; 4] = [
    "run.googleapis.com",
    "cloud.googleapis.com",
    "serving.knative.dev",
    "autoscaling.knative.dev",
];

/// Whether `key` is in a namespace of Google's own (subdomains included).
fn is_system(key: &str) -> bool {
    let Some((namespace, _)) = key.split_once('/') else {
        return false;
    };
    OURS.iter().any(|o| {
        namespace == *o
            || namespace
                .strip_suffix(o)
                .is_some_and(|front| front.ends_with('.'))
    })
}

/// Autoscaler settings that no v2 field expresses (`window`, `target`, …). Unlike Google we take them on templates, since
/// Knative's settings work here (decision 19).
fn is_autoscaler_setting(key: &str) -> bool {
    let bounds = ["minScale", "maxScale", "min-scale", "max-scale"];
    key.strip_prefix("autoscaling.knative.dev/")
        .is_some_and(|name| !bounds.contains(&name))
}

/// The entries that v2 shows.
fn shown(map: &BTreeMap<String, String>, also: fn(&str) -> bool) -> BTreeMap<String, String> {
    map.iter()
        .filter(|(k, _)| !is_system(k) || also(k))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// The entries that v2 doesn't show and therefore can't change.
fn hidden(map: &BTreeMap<String, String>, also: fn(&str) -> bool) -> BTreeMap<String, String> {
    map.iter()
        .filter(|(k, _)| is_system(k) && !also(k))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// No exception.
fn none(_: &str) -> bool {
    false
}
