//! Refusals of the server's in the words of who typed flags: its fields and annotations by the flags that set them.

use serde_json::Value;
use utsuwa_model::service::{REFUSE_SCANNERS, WAITING_PAGE, ZYGOTE};

use crate::cli::services::containers::ingress_index;
use crate::client::Failure;

/// How a field begins, and its flag. Of the container that takes the requests the index is left out; the others have no flags.
const FIELDS: &[(&str, &str)] = &[
    ("template.scaling.minInstanceCount", "--min-instances"),
    ("template.scaling.maxInstanceCount", "--max-instances"),
    ("template.maxInstanceRequestConcurrency", "--concurrency"),
    ("template.timeout", "--timeout"),
    ("template.executionEnvironment", "--execution-environment"),
    ("template.sessionAffinity", "--session-affinity"),
    ("template.revision", "--revision-suffix"),
    ("template.labels", "--labels"),
    ("template.containers.image", "--image"),
    ("template.containers.command", "--command"),
    ("template.containers.args", "--args"),
    ("template.containers.env", "--set-env-vars"),
    ("template.containers.ports", "--port"),
    ("template.containers.resources.limits.cpu", "--cpu"),
    ("template.containers.resources.limits.memory", "--memory"),
    ("scaling.minInstanceCount", "--min"),
    ("scaling.maxInstanceCount", "--max"),
    ("description", "--description"),
    ("ingress", "--ingress"),
    ("labels", "--labels"),
];

/// Annotations that a flag sets.
const ANNOTATIONS: &[(&str, &str)] = &[
    ("autoscaling.knative.dev/minScale", "--min-instances"),
    ("autoscaling.knative.dev/min-scale", "--min-instances"),
    ("autoscaling.knative.dev/maxScale", "--max-instances"),
    ("autoscaling.knative.dev/max-scale", "--max-instances"),
    ("run.googleapis.com/minScale", "--min"),
    ("run.googleapis.com/maxScale", "--max"),
    (
        "run.googleapis.com/cpu-throttling",
        "--cpu-throttling or --no-cpu-throttling",
    ),
    (
        "run.googleapis.com/startup-cpu-boost",
        "--cpu-boost or --no-cpu-boost",
    ),
    (
        "run.googleapis.com/sessionAffinity",
        "--session-affinity or --no-session-affinity",
    ),
    (
        "run.googleapis.com/execution-environment",
        "--execution-environment",
    ),
    ("run.googleapis.com/ingress", "--ingress"),
    ("run.googleapis.com/description", "--description"),
    (ZYGOTE, "--zygote or --no-zygote"),
    (REFUSE_SCANNERS, "--refuse-scanners or --no-refuse-scanners"),
    (WAITING_PAGE, "--waiting-page or --no-waiting-page"),
];

/// The same failure of what was sent with `template`, with each wrong field by its flag where it has one.
pub(super) fn flags(mut failure: Failure, template: &Value) -> Failure {
    let ingress = ingress_index(template);
    let named = |field: &str, description: &str| named(field, description, ingress);
    let mut violations = failure.violations.iter();
    if !violations.any(|(field, description)| named(field, description).is_some()) {
        return failure;
    }
    let mut all: Vec<(String, String)> = Vec::new();
    for (field, description) in &failure.violations {
        let told = match named(field, description) {
            Some((flag, instead)) => {
                let said = instead.unwrap_or_else(|| in_flags(field, description));
                (flag, said)
            }
            None => (field.clone(), description.clone()),
        };
        // One flag may set two fields: labels are the service's and the revision's.
        if !all.contains(&told) {
            all.push(told);
        }
    }
    failure.message = match all.as_slice() {
        [(field, description)] => format!("{field}: {description}"),
        // Each has a line of its own below.
        _ => format!("{} things are wrong; nothing was changed", all.len()),
    };
    failure.with_violations(all)
}

/// The flag of a field, and what to say of it where the server's words are about fields. `ingress`: which container is ours.
fn named(field: &str, description: &str, ingress: usize) -> Option<(String, Option<String>)> {
    if let Some((_, rest)) = field.split_once("annotations[") {
        let key = rest.strip_suffix(']')?;
        let own = |key| {
            ANNOTATIONS
                .iter()
                .find(|(annotation, _)| *annotation == key)
        };
        let instead = match (own(key), meant(description).and_then(own)) {
            // Ours are taken as they are written: it is the value that is wrong.
            (Some((ours, flag)), _) if ours.starts_with("utsuwa.local/") => {
                Some(format!("{description} (its flag: {flag})"))
            }
            (Some((_, flag)), _) => Some(format!("has a flag of its own: {flag}")),
            // Not first to the annotation and then to the flag.
            (None, Some((_, flag))) => {
                Some(format!("there is no such setting: did you mean {flag}?"))
            }
            (None, None) => None,
        };
        return Some((format!("--annotations {key}"), instead));
    }
    if field.starts_with("traffic[") && field.ends_with(".tag") {
        return Some(("--tag".to_owned(), None));
    }
    let plain = without_index(field, ingress);
    let (flag, rest) = FIELDS.iter().find_map(|(begin, flag)| {
        let rest = plain.strip_prefix(begin)?;
        (rest.is_empty() || rest.starts_with(['.', '['])).then_some((*flag, rest))
    })?;
    // Which of several it is.
    let one = rest.strip_prefix('[').and_then(|rest| rest.split_once(']'));
    let which = match (flag, one) {
        ("--labels", Some((key, _))) => format!(" {key}"),
        ("--set-env-vars", Some((index, _))) => match index.parse::<usize>() {
            Ok(index) => format!(", variable {} of all", index + 1),
            Err(_) => String::new(),
        },
        _ => String::new(),
    };
    Some((format!("{flag}{which}"), None))
}

/// What the server takes for meant: `… did you mean KEY?`.
fn meant(description: &str) -> Option<&str> {
    let (_, meant) = description.split_once("did you mean ")?;
    meant.strip_suffix('?')
}

/// `template.containers[0].image` → `template.containers.image`, if that is the container `own`.
fn without_index(field: &str, own: usize) -> String {
    const CONTAINERS: &str = "template.containers";
    match field.strip_prefix(&format!("{CONTAINERS}[{own}]")) {
        Some(rest) => format!("{CONTAINERS}{rest}"),
        None => field.to_owned(),
    }
}

/// Bounds by the names of the flags that set them, instead of Knative's.
fn in_flags(field: &str, description: &str) -> String {
    let [max, min] = match field.starts_with("template.") {
        true => ["--max-instances ", "--min-instances "],
        false => ["--max ", "--min "],
    };
    description
        // The revision's, whatever field is wrong.
        .replace("its max-scale=", "its --max-instances ")
        .replace("template.scaling.maxInstanceCount", "--max-instances")
        .replace("max-scale=", max)
        .replace("min-scale=", min)
        .replace("cpu-throttling switched off", "--no-cpu-throttling")
        .replace("gen2 execution environment", "--execution-environment gen2")
}

#[cfg(test)]
mod tests;
