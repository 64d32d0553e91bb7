//! What a service may say (`cloud-run-spec.md` §1.2, §1.3, §1.6, §1.7, §1.9; decision 21).
//!
//! Owns: every rule that needs nothing but the service, its predecessor and its revisions. Deliberately not here: whether an
//! image or a caller exists (loops, edge), and numbers that a wire format can't carry (its parser).
//!
//! Invariants:
//! 1. All problems are reported at once, in the order of the fields.
//! 2. A field's path is v2's (`template.containers[0].resources.limits.cpu`); the edge rewrites it for v1.
//! 3. What isn't built yet is refused by name, never dropped silently.

mod annotations;
mod container;
mod group;
mod host_dirs;
mod mounts;
mod probe;
mod template;
mod traffic;

pub use traffic::tag_problem;

#[cfg(test)]
mod tests;

use super::{ScalingMode, Service};
use crate::host_dir::HostDir;
use crate::revision::Revision;
use crate::{RevisionId, Violations};

/// Longest description, in characters.
const DESCRIPTION: usize = 512;
/// All annotations of an object together, in bytes (Kubernetes' limit).
const ANNOTATIONS: usize = 256 << 10;

/// What a service is checked against.
#[derive(Debug, Clone, Copy, Default)]
pub struct Context<'a> {
    /// The service as it was; `None` when it is created.
    pub old: Option<&'a Service>,
    /// Its revisions, in any order.
    pub revisions: &'a [Revision],
    /// Directories of the host that services may have.
    pub host_dirs: &'a [HostDir],
}

impl Context<'_> {
    fn has_revision(&self, id: &RevisionId) -> bool {
        self.revisions
            .iter()
            .any(|r| r.key.revision == *id && r.meta.delete_time.is_none())
    }
}

/// Everything that is wrong with `service`.
#[must_use]
pub fn validate(service: &Service, context: &Context<'_>) -> Violations {
    let mut found = Violations::default();
    let spec = &service.spec;
    if spec.description.chars().count() > DESCRIPTION {
        found.add(
            "description",
            format!("must be at most {DESCRIPTION} characters"),
        );
    }
    if !matches!(spec.launch_stage.as_str(), "" | "GA" | "BETA" | "ALPHA") {
        found.add(
            "launchStage",
            format!(
                "{:?} is not a launch stage: write GA, BETA or ALPHA",
                spec.launch_stage
            ),
        );
    }
    labels("labels", &service.meta.labels, &mut found);
    annotations::of_service(&service.meta.annotations, &mut found);
    scaling(service, &mut found);
    template::check(service, context, &mut found);
    host_dirs::check(&spec.template, context, &mut found);
    traffic::check(service, context, &mut found);
    found
}

fn scaling(service: &Service, found: &mut Violations) {
    let scaling = &service.spec.scaling;
    if let (Some(min), Some(max)) = (scaling.min, scaling.max)
        && max > 0
        && max < min
    {
        found.add(
            "scaling.maxInstanceCount",
            format!("max-scale={max} is less than min-scale={min}"),
        );
    }
    // What the template's revision gets of the service's minimum must fit under its own maximum: it would be cut silently.
    let share = latest_percent(service);
    if let (Some(min), Some(most)) = (scaling.min, annotations::ceiling(&service.spec.template))
        && let least = (u64::from(min) * u64::from(share)).div_ceil(100)
        && least > u64::from(most)
    {
        found.add(
            "scaling.minInstanceCount",
            format!(
                "min-scale={min} with {share} % of the traffic is {least} instances of the newest revision, more than its \
                 max-scale={most}: raise template.scaling.maxInstanceCount"
            ),
        );
    }
    if scaling.mode == ScalingMode::Manual && scaling.manual.is_none() {
        found.add(
            "scaling.manualInstanceCount",
            "is required when the scaling mode is manual: write how many instances there are to be",
        );
    }
    if scaling.mode == ScalingMode::Automatic && scaling.manual.is_some() {
        found.add(
            "scaling.manualInstanceCount",
            "may be set only when the scaling mode is manual",
        );
    }
}

/// Percent of the requests that go to the newest revision.
fn latest_percent(service: &Service) -> u32 {
    let traffic = &service.spec.traffic;
    if traffic.is_empty() {
        return 100;
    }
    let latest = traffic.iter().filter(|target| target.latest);
    latest
        .filter_map(|target| target.percent)
        .fold(0, u32::saturating_add)
        .min(100)
}

/// Label keys and values in Kubernetes' syntax.
fn labels(
    field: &str,
    labels: &std::collections::BTreeMap<String, String>,
    found: &mut Violations,
) {
    let word = |s: &str| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        let outer = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        s.len() <= 63
            && s.bytes().all(inner)
            && outer(s.as_bytes().first())
            && outer(s.as_bytes().last())
    };
    for (key, value) in labels {
        let name = match key.rsplit_once('/') {
            Some((prefix, name)) if !prefix.is_empty() && prefix.len() <= 253 => name,
            Some(_) => "",
            None => key,
        };
        if !word(name) {
            found.add(
                format!("{field}[{key}]"),
                "the key must be at most 63 letters, digits, '-', '_' or '.', beginning and ending with a letter or digit",
            );
        }
        // Keys of namespaces (`client.knative.dev/…`, `run.googleapis.com/startupProbeType`) are other programs', with their own rules.
        if !key.contains('/') && key.bytes().any(|b| b.is_ascii_uppercase()) {
            found.add(
                format!("{field}[{key}]"),
                "only lower-case letters, digits, '-' and '_' are allowed in keys: write it in lower case",
            );
        }
        let ends = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        let fine = value.is_empty()
            || (value.len() <= 63
                && value
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
                && value.bytes().next().is_some_and(ends)
                && value.bytes().last().is_some_and(ends));
        if !fine {
            found.add(
                format!("{field}[{key}]"),
                "the value must be at most 63 letters, digits, '-', '_' or '.'",
            );
        }
    }
}

/// Why `value` is not a DNS-1035 label of at most `max` characters, in Knative's words.
fn dns_1035(value: &str, max: usize) -> Option<String> {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let fine = value.len() <= max
        && value.bytes().all(inner)
        && value.bytes().next().is_some_and(|b| b.is_ascii_lowercase())
        && value.bytes().last().is_some_and(|b| b != b'-');
    (!fine).then(|| {
        format!(
            "not a DNS 1035 label: {value:?} must be 1 to {max} lower-case letters, digits and hyphens, beginning with a letter and \
             not ending with a hyphen"
        )
    })
}

/// The sentence for a feature of Cloud Run that this server doesn't have yet.
fn not_built(what: &str) -> String {
    format!("{what} not built in this server yet: leave the field out")
}
