//! Refusals of the server's in the words of who typed flags: its fields and annotations by the flags that set them.

use utsuwa_model::service::{REFUSE_SCANNERS, WAITING_PAGE, ZYGOTE};

use crate::client::Failure;

/// How a field begins, and its flag. Of a container's the index is left out.
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

/// The same failure, with each wrong field by its flag where it has one.
pub(super) fn flags(mut failure: Failure) -> Failure {
    if !failure
        .violations
        .iter()
        .any(|(field, _)| named(field).is_some())
    {
        return failure;
    }
    let mut all: Vec<(String, String)> = Vec::new();
    for (field, description) in &failure.violations {
        let told = match named(field) {
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

/// The flag of a field, and what to say of it where the server's words are about fields.
fn named(field: &str) -> Option<(String, Option<String>)> {
    if let Some((_, rest)) = field.split_once("annotations[") {
        let key = rest.strip_suffix(']')?;
        let own = ANNOTATIONS
            .iter()
            .find(|(annotation, _)| *annotation == key);
        let instead = own.map(|(_, flag)| format!("has a flag of its own: {flag}"));
        return Some((format!("--annotations {key}"), instead));
    }
    if field.starts_with("traffic[") && field.ends_with(".tag") {
        return Some(("--tag".to_owned(), None));
    }
    let plain = without_index(field);
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

/// `template.containers[0].image` → `template.containers.image`.
fn without_index(field: &str) -> String {
    const CONTAINERS: &str = "template.containers";
    let index = field
        .strip_prefix(CONTAINERS)
        .and_then(|rest| rest.strip_prefix('['));
    match index.and_then(|rest| rest.split_once(']')) {
        Some((_, rest)) => format!("{CONTAINERS}{rest}"),
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
        .replace("max-scale=", max)
        .replace("min-scale=", min)
        .replace("cpu-throttling switched off", "--no-cpu-throttling")
        .replace("gen2 execution environment", "--execution-environment gen2")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(violations: &[(&str, &str)]) -> Failure {
        let own = |(a, b): &(&str, &str)| ((*a).to_owned(), (*b).to_owned());
        let all = violations.iter().map(own).collect::<Vec<_>>();
        let (field, description) = &all[0];
        let message = format!("{field}: {description}");
        flags(Failure::failed(message).with_violations(all))
    }

    #[test]
    fn a_wrong_field_is_named_by_the_flag_that_sets_it() {
        for (field, description, said) in [
            (
                "template.scaling.minInstanceCount",
                "max-scale=100, the default, is less than min-scale=150: set the maximum as well",
                "--min-instances: --max-instances 100, the default, is less than --min-instances 150: set the maximum as well",
            ),
            (
                "scaling.maxInstanceCount",
                "max-scale=1 is less than min-scale=2",
                "--max: --max 1 is less than --min 2",
            ),
            (
                "template.containers[1].resources.limits.cpu",
                "Total cpu < 1 is not supported with cpu-throttling switched off.",
                "--cpu: Total cpu < 1 is not supported with --no-cpu-throttling.",
            ),
            (
                "template.annotations[autoscaling.knative.dev/minScale]",
                "keys of … are not taken in v2",
                "--annotations autoscaling.knative.dev/minScale: has a flag of its own: --min-instances",
            ),
            (
                "template.annotations[run.googleapis.com/cpu-throttling]",
                "keys of … are not taken in v2",
                "--annotations run.googleapis.com/cpu-throttling: has a flag of its own: --cpu-throttling or --no-cpu-throttling",
            ),
            (
                "template.annotations[autoscaling.knative.dev/windw]",
                "there is no such setting",
                "--annotations autoscaling.knative.dev/windw: there is no such setting",
            ),
            (
                "template.containers[0].ports[0].containerPort",
                "no",
                "--port: no",
            ),
            ("traffic[1].tag", "no", "--tag: no"),
            ("template.labels[Team]", "no", "--labels Team: no"),
            (
                "template.containers[0].env[1].name",
                "missing",
                "--set-env-vars, variable 2 of all: missing",
            ),
            // What has no flag keeps its name.
            (
                "template.volumes[0].name",
                "no",
                "template.volumes[0].name: no",
            ),
            ("labelsx", "no", "labelsx: no"),
        ] {
            assert_eq!(refused(&[(field, description)]).message, said);
        }
    }

    #[test]
    fn what_one_flag_sets_twice_is_told_once() {
        let labels = refused(&[
            ("labels[A]", "lower case"),
            ("template.labels[A]", "lower case"),
        ]);
        assert_eq!(labels.message, "--labels A: lower case");
    }

    #[test]
    fn several_have_a_line_each() {
        let both = refused(&[
            ("template.timeout", "too long"),
            ("template.volumes[0].name", "missing"),
        ]);
        assert_eq!(
            both.message,
            "2 things are wrong; nothing was changed\n  --timeout: too long\n  template.volumes[0].name: missing"
        );
    }

    /// A flag that isn't there would send people on a search.
    #[test]
    fn each_flag_is_one_of_deploys() {
        use clap::Args;
        let known = super::super::DeployArgs::augment_args(clap::Command::new("deploy"));
        let all = FIELDS.iter().chain(ANNOTATIONS).map(|(_, flag)| *flag);
        for flag in all.flat_map(|flag| flag.split(" or ")) {
            let name = flag.strip_prefix("--");
            assert!(
                known.get_arguments().any(|one| one.get_long() == name),
                "{flag}"
            );
        }
    }
}
