//! Rules of annotations: those that the autoscaler reads (§1.9, §3.1), and those that ask for what isn't built yet.

use std::collections::BTreeMap;

use super::{ANNOTATIONS, not_built};
use crate::Violations;
use crate::nearest::nearest;
use crate::scaling::DEFAULT_MAX_INSTANCES;
use crate::service::autoscaling::{AUTOSCALING, KNOWN, camel, is_unknown, known};
use crate::service::{REFUSE_SCANNERS, RevisionTemplate, WAITING_PAGE, ZYGOTE};

const RUN: &str = "run.googleapis.com/";

/// Annotations of a service that ask for something we don't do yet: acting as if we did would mislead.
const SERVICE_NOT_BUILT: &[&str] = &[
    "binary-authorization",
    "binary-authorization-breakglass",
    "iap-enabled",
    "regions",
    "mesh",
    "overflow-scaling",
    "encryption-key",
];
/// The same for templates.
const TEMPLATE_NOT_BUILT: &[&str] = &[
    "cloudsql-instances",
    "vpc-access-connector",
    "vpc-access-egress",
    "network-interfaces",
    "secrets",
    "encryption-key",
    "encryption-key-shutdown-hours",
    "post-key-revocation-action-type",
    "gpu-zonal-redundancy-disabled",
    "base-images",
    "mesh",
    "mesh-dataplane",
    "scaling-cpu-target",
    "scaling-concurrency-target",
];

pub(super) fn of_service(annotations: &BTreeMap<String, String>, found: &mut Violations) {
    size("annotations", annotations, found);
    for (key, value) in annotations {
        let field = || format!("annotations[{key}]");
        if key.starts_with("autoscaling.") {
            found.add(field(), "autoscaling annotations must be put under \"spec.template.metadata.annotations\" to work");
        } else if let Some(name) = key.strip_prefix(RUN)
            && SERVICE_NOT_BUILT.contains(&name)
            && asks(value)
        {
            found.add(field(), not_built(&format!("{key} is")));
        }
    }
}

/// `old`: as the service had it before.
pub(super) fn of_template(
    template: &RevisionTemplate,
    old: Option<&RevisionTemplate>,
    found: &mut Violations,
) {
    let annotations = &template.annotations;
    let before = |key| old.and_then(|old| old.annotations.get(key));
    size("template.annotations", annotations, found);
    for (key, value) in annotations {
        if let Some(name) = key.strip_prefix(RUN)
            && TEMPLATE_NOT_BUILT.contains(&name)
            && asks(value)
        {
            found.add(
                format!("template.annotations[{key}]"),
                not_built(&format!("{key} is")),
            );
        } else if let Some(name) = key.strip_prefix(AUTOSCALING)
            // One of a time when unknown ones were taken must not stand in the way of other changes.
            && !(is_unknown(key) && before(key) == Some(value))
            && let Err(problem) = autoscaling(name, value)
        {
            found.add(format!("template.annotations[{key}]"), problem);
        } else if [ZYGOTE, REFUSE_SCANNERS, WAITING_PAGE].contains(&key.as_str())
            && !matches!(value.as_str(), "true" | "false")
        {
            found.add(
                format!("template.annotations[{key}]"),
                format!("invalid value: {value:?}: write \"true\" or \"false\""),
            );
        }
    }
    bounds(template, found);
}

/// Whether a value asks for the feature at all.
fn asks(value: &str) -> bool {
    !value.is_empty() && !value.eq_ignore_ascii_case("false")
}

fn size(field: &str, annotations: &BTreeMap<String, String>, found: &mut Violations) {
    let bytes: usize = annotations.iter().map(|(k, v)| k.len() + v.len()).sum();
    if bytes > ANNOTATIONS {
        found.add(
            field,
            format!("annotations have {bytes} bytes together, at most {ANNOTATIONS} are allowed"),
        );
    }
}

/// The value of one autoscaling annotation; names in both of Knative's spellings.
fn autoscaling(name: &str, value: &str) -> Result<(), String> {
    // The namespace is the autoscaler's alone: what it doesn't know is mistyped, and would have no effect without a word.
    let Some(setting) = known(name) else {
        return Err(unknown(name));
    };
    match setting {
        "min-scale" | "max-scale" => whole(value, 0),
        // Zero would be a revision that is ready without ever having run: Knative takes it only where `allow-zero` is set
        // (§3.1, false by default), Cloud Run never.
        "initial-scale" => whole(value, 1),
        "activation-scale" => whole(value, 2),
        "class" => match value {
            "kpa.autoscaling.knative.dev" => Ok(()),
            "hpa.autoscaling.knative.dev" => {
                Err(not_built("the class hpa.autoscaling.knative.dev is"))
            }
            _ => Err(format!(
                "invalid value: {value:?} is not a class of autoscaler: write kpa.autoscaling.knative.dev"
            )),
        },
        "metric" => match value {
            "concurrency" | "rps" => Ok(()),
            "cpu" | "memory" => Err(format!(
                "metric {value:?} needs the class hpa.autoscaling.knative.dev, which isn't built in this server yet"
            )),
            _ => Err(format!(
                "invalid value: {value:?} is not a metric: write concurrency or rps"
            )),
        },
        "target" => decimal(value, 0.01, f64::MAX),
        "target-utilization-percentage" => decimal(value, 1.0, 100.0),
        "target-burst-capacity" => match value.trim().parse::<f64>() {
            Ok(number) if number >= 0.0 || number.to_bits() == (-1.0_f64).to_bits() => Ok(()),
            _ => Err(format!(
                "invalid value: {value:?}: write -1 or a number from 0"
            )),
        },
        "panic-window-percentage" => decimal(value, 1.0, 100.0),
        "panic-threshold-percentage" => decimal(value, 110.0, 1000.0),
        "window" => duration(value, 6).and_then(|whole| {
            if whole {
                Ok(())
            } else {
                Err(format!("invalid value: {value:?}: must be whole seconds"))
            }
        }),
        "scale-down-delay" | "scale-to-zero-pod-retention-period" => duration(value, 0).map(|_| ()),
        _ => Ok(()),
    }
}

/// `windw` or `Min-Scale`: what was meant, as it is spelt there.
fn unknown(name: &str) -> String {
    let spellings: Vec<String> = KNOWN.iter().map(|known| camel(known)).collect();
    let all = KNOWN
        .into_iter()
        .chain(spellings.iter().map(String::as_str));
    match nearest(name, all) {
        Some(meant) => format!("there is no such setting: did you mean {AUTOSCALING}{meant}?"),
        None => format!(
            "there is no such setting; those there are: {}",
            KNOWN.join(", ")
        ),
    }
}

fn whole(value: &str, least: u32) -> Result<(), String> {
    match value.trim().parse::<i64>() {
        Ok(number) if number >= i64::from(least) && number <= i64::from(i32::MAX) => Ok(()),
        Ok(number) => Err(format!("expected {least} <= {number} <= {}", i32::MAX)),
        Err(_) => Err(format!("invalid value: {value:?} is not a whole number")),
    }
}

fn decimal(value: &str, least: f64, most: f64) -> Result<(), String> {
    match value.trim().parse::<f64>() {
        Ok(number) if number.is_finite() && number >= least && number <= most => Ok(()),
        Ok(number) if most == f64::MAX => Err(format!("expected {least} <= {number}")),
        Ok(number) => Err(format!("expected {least} <= {number} <= {most}")),
        Err(_) => Err(format!("invalid value: {value:?} is not a number")),
    }
}

/// Go's spelling (`90s`, `1m30s`, `1h`), from `least` seconds to one hour; answers whether it is whole seconds.
fn duration(value: &str, least: u64) -> Result<bool, String> {
    let millis = go_millis(value)
        .ok_or_else(|| format!("invalid duration {value:?}: write it as 6s, 1m30s or 1h"))?;
    if millis < least * 1000 || millis > 3_600_000 {
        return Err(format!("expected {least}s <= {value} <= 1h"));
    }
    Ok(millis % 1000 == 0)
}

fn go_millis(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text.trim();
    let mut total: f64 = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ms" => 1.0,
                "s" => 1000.0,
                "m" => 60_000.0,
                "h" => 3_600_000.0,
                _ => return None,
            };
        rest = &rest[end..];
    }
    // Far beyond what is allowed is all the same.
    let millis = total.min(1e12);
    format!("{millis:.0}").parse().ok()
}

/// A count as an annotation in either spelling.
fn count(template: &RevisionTemplate, name: &str) -> Option<u32> {
    template.autoscaling(name)?.trim().parse().ok()
}

/// The maximum as written, field before annotation; an annotation of zero means none.
fn written_max(template: &RevisionTemplate) -> Option<u32> {
    template
        .max_instances
        .filter(|max| *max > 0)
        .or_else(|| count(template, "max-scale"))
}

/// Instances a revision of `template` may have; `None`: as many as it likes.
pub(super) fn ceiling(template: &RevisionTemplate) -> Option<u32> {
    Some(written_max(template).unwrap_or(DEFAULT_MAX_INSTANCES)).filter(|max| *max > 0)
}

/// Minimum, first and activation count against the maximum; against the default one where none is written, since whatever is
/// above would be cut to it.
fn bounds(template: &RevisionTemplate, found: &mut Violations) {
    let Some(max) = ceiling(template) else {
        return;
    };
    let default = written_max(template).is_none();
    let mut least = |field: &str, kind: &str, wanted: u32| {
        if wanted > max && default {
            found.add(
                field,
                format!("max-scale={max}, the default, is less than {kind}={wanted}: set the maximum as well"),
            );
        } else if wanted > max {
            found.add(
                "template.scaling.maxInstanceCount",
                format!("max-scale={max} is less than {kind}={wanted}"),
            );
        }
    };
    let min = template
        .min_instances
        .or_else(|| count(template, "min-scale"));
    least(
        "template.scaling.minInstanceCount",
        "min-scale",
        min.unwrap_or(0),
    );
    for kind in ["initial-scale", "activation-scale"] {
        let field = format!("template.annotations[{AUTOSCALING}{kind}]");
        least(&field, kind, count(template, kind).unwrap_or(0));
    }
}
