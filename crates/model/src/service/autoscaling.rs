//! The annotations of the autoscaler, in both of Knative's spellings (`cloud-run-spec.md` §3.1).

use super::RevisionTemplate;

/// The namespace of all of them.
pub const AUTOSCALING: &str = "autoscaling.knative.dev/";

/// All there are. `metric-aggregation-algorithm` is kept and has no effect.
pub(super) const KNOWN: [&str; 15] = [
    "activation-scale",
    "class",
    "initial-scale",
    "max-scale",
    "metric",
    "metric-aggregation-algorithm",
    "min-scale",
    "panic-threshold-percentage",
    "panic-window-percentage",
    "scale-down-delay",
    "scale-to-zero-pod-retention-period",
    "target",
    "target-burst-capacity",
    "target-utilization-percentage",
    "window",
];

/// The name of the setting that `name` (`min-scale` or `minScale`) is a spelling of.
pub(super) fn known(name: &str) -> Option<&'static str> {
    let spelt = |known: &&&str| **known == name || camel(known) == name;
    KNOWN.iter().find(spelt).copied()
}

/// Whether `annotation` is in the autoscaler's namespace and none of its settings.
#[must_use]
pub fn is_unknown(annotation: &str) -> bool {
    let name = annotation.strip_prefix(AUTOSCALING);
    name.is_some_and(|name| known(name).is_none())
}

/// `min-scale` → `minScale`.
pub(super) fn camel(name: &str) -> String {
    let mut parts = name.split('-');
    let mut all = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (first, rest) = part.split_at(part.len().min(1));
        all.push_str(&first.to_ascii_uppercase());
        all.push_str(rest);
    }
    all
}

impl RevisionTemplate {
    /// What the annotation of the autoscaler's setting `name` (`min-scale`) says, in either spelling.
    #[must_use]
    pub fn autoscaling(&self, name: &str) -> Option<&str> {
        let of = |name: &str| self.annotations.get(&format!("{AUTOSCALING}{name}"));
        of(name).or_else(|| of(&camel(name))).map(String::as_str)
    }
}
