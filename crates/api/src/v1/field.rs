//! Field paths: the model names v2's fields, callers of v1 know v1's.

/// v2's prefix, v1's prefix; the first match counts, so longer ones stand before shorter ones.
const PREFIXES: &[(&str, &str)] = &[
    (
        "template.scaling.minInstanceCount",
        "spec.template.metadata.annotations[autoscaling.knative.dev/minScale]",
    ),
    (
        "template.scaling.maxInstanceCount",
        "spec.template.metadata.annotations[autoscaling.knative.dev/maxScale]",
    ),
    (
        "template.maxInstanceRequestConcurrency",
        "spec.template.spec.containerConcurrency",
    ),
    ("template.timeout", "spec.template.spec.timeoutSeconds"),
    (
        "template.serviceAccount",
        "spec.template.spec.serviceAccountName",
    ),
    ("template.revision", "spec.template.metadata.name"),
    ("template.labels", "spec.template.metadata.labels"),
    ("template.annotations", "spec.template.metadata.annotations"),
    ("template.", "spec.template.spec."),
    ("traffic", "spec.traffic"),
    (
        "scaling.minInstanceCount",
        "metadata.annotations[run.googleapis.com/minScale]",
    ),
    (
        "scaling.maxInstanceCount",
        "metadata.annotations[run.googleapis.com/maxScale]",
    ),
    (
        "scaling.manualInstanceCount",
        "metadata.annotations[run.googleapis.com/manualInstanceCount]",
    ),
    (
        "launchStage",
        "metadata.annotations[run.googleapis.com/launch-stage]",
    ),
    (
        "description",
        "metadata.annotations[run.googleapis.com/description]",
    ),
    ("labels", "metadata.labels"),
    ("annotations", "metadata.annotations"),
];

/// `template.containers[0].resources.limits.cpu` → `spec.template.spec.containers[0].resources.limits.cpu`.
pub(super) fn v1(v2: &str) -> String {
    let mapped = PREFIXES
        .iter()
        .find_map(|(from, to)| v2.strip_prefix(from).map(|rest| format!("{to}{rest}")));
    let mut path = mapped.unwrap_or_else(|| v2.to_owned());
    if path.starts_with("spec.traffic[")
        && let Some(target) = path.strip_suffix("].revision")
    {
        path = format!("{target}].revisionName");
    }
    path.replace(".valueSource.secretKeyRef", ".valueFrom.secretKeyRef")
}

#[cfg(test)]
mod tests {
    use super::v1;

    #[test]
    fn every_kind_of_path() {
        for (from, to) in [
            (
                "template.containers[0].resources.limits.cpu",
                "spec.template.spec.containers[0].resources.limits.cpu",
            ),
            ("template.containers", "spec.template.spec.containers"),
            ("template.timeout", "spec.template.spec.timeoutSeconds"),
            ("traffic", "spec.traffic"),
            ("traffic[2].revision", "spec.traffic[2].revisionName"),
            ("traffic[2].tag", "spec.traffic[2].tag"),
            ("annotations[a/b]", "metadata.annotations[a/b]"),
            (
                "template.containers[0].env[1].valueSource.secretKeyRef",
                "spec.template.spec.containers[0].env[1].valueFrom.secretKeyRef",
            ),
            ("metadata.name", "metadata.name"),
        ] {
            assert_eq!(v1(from), to);
        }
    }
}
