//! Annotations that are fields in the model (`cloud-run-spec.md` §1.5), both ways.
//!
//! Owns: which annotation is which field, and its canonical text. What a user wrote in other words (`"True"`, `min-scale`) is kept
//! beside the field, so that it reads back as written for as long as it still means what the field says.
//!
//! Invariants:
//! 1. `write(read(a)) == a` for every set of annotations without output-only ones.
//! 2. A canonical text is never stored beside its field, so what v2 wrote and v1 echoes is no change.

pub(super) mod dependencies;

use std::collections::BTreeMap;

use utsuwa_model::Violations;
use utsuwa_model::service::{
    ExecutionEnvironment, IngressSetting, RevisionTemplate, ScalingMode, ServiceSpec,
};

use super::read::parse_flag;

pub(super) type Annotations = BTreeMap<String, String>;

/// One field: its names (the canonical one first) and its canonical text, `None` when it isn't set.
type Field = (&'static [&'static str], Option<String>);

/// Written by us alone; dropped from requests, since clients echo what they read.
pub(super) const OUTPUT: &[&str] = &[
    "run.googleapis.com/urls",
    "run.googleapis.com/operation-id",
    "run.googleapis.com/ingress-status",
    "serving.knative.dev/creator",
    "serving.knative.dev/lastModifier",
];

/// Takes the fields of a service out of `annotations`.
pub(super) fn read_service(
    annotations: &mut Annotations,
    spec: &mut ServiceSpec,
    found: &mut Violations,
) {
    annotations.retain(|key, _| !OUTPUT.contains(&key.as_str()));
    parse_service(annotations, spec, found);
    forget_canonical(annotations, &service_fields(spec));
}

/// The annotations of a service with its fields.
pub(super) fn write_service(annotations: &Annotations, spec: &ServiceSpec) -> Annotations {
    let mut parsed = ServiceSpec::default();
    parse_service(annotations, &mut parsed, &mut Violations::default());
    merge(annotations, service_fields(&parsed), service_fields(spec))
}

/// Takes the fields of a template out of `annotations`.
pub(super) fn read_template(
    annotations: &mut Annotations,
    template: &mut RevisionTemplate,
    found: &mut Violations,
) {
    annotations.retain(|key, _| !OUTPUT.contains(&key.as_str()));
    parse_template(annotations, template, found);
    forget_canonical(annotations, &template_fields(template));
}

/// The annotations of a template with its fields.
pub(super) fn write_template(template: &RevisionTemplate) -> Annotations {
    let mut parsed = RevisionTemplate::default();
    parse_template(
        &template.annotations,
        &mut parsed,
        &mut Violations::default(),
    );
    let mut all = merge(
        &template.annotations,
        template_fields(&parsed),
        template_fields(template),
    );
    dependencies::write(&mut all, &template.containers);
    all
}

const DESCRIPTION: &[&str] = &["run.googleapis.com/description"];
const LAUNCH_STAGE: &[&str] = &["run.googleapis.com/launch-stage"];
const INGRESS: &[&str] = &["run.googleapis.com/ingress"];
const SERVICE_MIN: &[&str] = &["run.googleapis.com/minScale"];
const SERVICE_MAX: &[&str] = &["run.googleapis.com/maxScale"];
const SCALING_MODE: &[&str] = &["run.googleapis.com/scalingMode"];
const MANUAL: &[&str] = &["run.googleapis.com/manualInstanceCount"];
const INVOKER_IAM_DISABLED: &[&str] = &["run.googleapis.com/invoker-iam-disabled"];
const DEFAULT_URL_DISABLED: &[&str] = &["run.googleapis.com/default-url-disabled"];
const AUDIENCES: &[&str] = &["run.googleapis.com/custom-audiences"];

const MIN: &[&str] = &[
    "autoscaling.knative.dev/minScale",
    "autoscaling.knative.dev/min-scale",
];
const MAX: &[&str] = &[
    "autoscaling.knative.dev/maxScale",
    "autoscaling.knative.dev/max-scale",
];
const ENVIRONMENT: &[&str] = &["run.googleapis.com/execution-environment"];
const AFFINITY: &[&str] = &["run.googleapis.com/sessionAffinity"];
const HEALTH_CHECK_DISABLED: &[&str] = &["run.googleapis.com/health-check-disabled"];
const CPU_THROTTLING: &[&str] = &["run.googleapis.com/cpu-throttling"];
const CPU_BOOST: &[&str] = &["run.googleapis.com/startup-cpu-boost"];

fn parse_service(annotations: &Annotations, spec: &mut ServiceSpec, found: &mut Violations) {
    let mut reader = Reader {
        annotations,
        base: "metadata.annotations",
        found,
    };
    spec.description = reader.text(DESCRIPTION).unwrap_or_default().to_owned();
    spec.launch_stage = reader.text(LAUNCH_STAGE).unwrap_or_default().to_owned();
    spec.ingress = reader
        .one_of(
            INGRESS,
            &[
                ("all", IngressSetting::All),
                ("internal", IngressSetting::InternalOnly),
                (
                    "internal-and-cloud-load-balancing",
                    IngressSetting::InternalLoadBalancer,
                ),
                ("none", IngressSetting::None),
            ],
        )
        .unwrap_or_default();
    spec.scaling.min = reader.count(SERVICE_MIN);
    spec.scaling.max = reader.count(SERVICE_MAX);
    spec.scaling.mode = reader
        .one_of(
            SCALING_MODE,
            &[
                ("automatic", ScalingMode::Automatic),
                ("manual", ScalingMode::Manual),
            ],
        )
        .unwrap_or_default();
    spec.scaling.manual = reader.count(MANUAL);
    spec.invoker_iam_disabled = reader.flag(INVOKER_IAM_DISABLED).unwrap_or_default();
    spec.default_uri_disabled = reader.flag(DEFAULT_URL_DISABLED).unwrap_or_default();
    spec.custom_audiences = match reader.text(AUDIENCES).map(serde_json::from_str) {
        None => Vec::new(),
        Some(Ok(list)) => list,
        Some(Err(_)) => {
            reader.wrong(AUDIENCES[0], "must be a JSON list of texts");
            Vec::new()
        }
    };
}

fn service_fields(spec: &ServiceSpec) -> Vec<Field> {
    let text = |value: &str| (!value.is_empty()).then(|| value.to_owned());
    let count = |value: Option<u32>| value.map(|v| v.to_string());
    let on = |value: bool| value.then(|| "true".to_owned());
    let audiences = serde_json::Value::from(spec.custom_audiences.clone()).to_string();
    vec![
        (DESCRIPTION, text(&spec.description)),
        (LAUNCH_STAGE, text(&spec.launch_stage)),
        (
            INGRESS,
            match spec.ingress {
                IngressSetting::All => None,
                other => Some(ingress_name(other).to_owned()),
            },
        ),
        (SERVICE_MIN, count(spec.scaling.min)),
        (SERVICE_MAX, count(spec.scaling.max)),
        (
            SCALING_MODE,
            (spec.scaling.mode == ScalingMode::Manual).then(|| "manual".to_owned()),
        ),
        (MANUAL, count(spec.scaling.manual)),
        (INVOKER_IAM_DISABLED, on(spec.invoker_iam_disabled)),
        (DEFAULT_URL_DISABLED, on(spec.default_uri_disabled)),
        (
            AUDIENCES,
            (!spec.custom_audiences.is_empty()).then_some(audiences),
        ),
    ]
}

/// The setting in v1's words.
pub(super) fn ingress_name(setting: IngressSetting) -> &'static str {
    match setting {
        IngressSetting::All => "all",
        IngressSetting::InternalOnly => "internal",
        IngressSetting::InternalLoadBalancer => "internal-and-cloud-load-balancing",
        IngressSetting::None => "none",
    }
}

fn parse_template(
    annotations: &Annotations,
    template: &mut RevisionTemplate,
    found: &mut Violations,
) {
    let mut reader = Reader {
        annotations,
        base: "spec.template.metadata.annotations",
        found,
    };
    template.min_instances = reader.count(MIN);
    template.max_instances = reader.count(MAX);
    template.execution_environment = reader.one_of(
        ENVIRONMENT,
        &[
            ("gen1", ExecutionEnvironment::Gen1),
            ("gen2", ExecutionEnvironment::Gen2),
        ],
    );
    template.session_affinity = reader.flag(AFFINITY);
    template.health_check_disabled = reader.flag(HEALTH_CHECK_DISABLED);
    template.cpu_idle = reader.flag(CPU_THROTTLING);
    template.startup_cpu_boost = reader.flag(CPU_BOOST);
}

fn template_fields(template: &RevisionTemplate) -> Vec<Field> {
    let count = |value: Option<u32>| value.map(|v| v.to_string());
    let flag = |value: Option<bool>| value.map(|v| v.to_string());
    let environment = template.execution_environment.map(|e| match e {
        ExecutionEnvironment::Gen1 => "gen1".to_owned(),
        ExecutionEnvironment::Gen2 => "gen2".to_owned(),
    });
    vec![
        (MIN, count(template.min_instances)),
        (MAX, count(template.max_instances)),
        (ENVIRONMENT, environment),
        (AFFINITY, flag(template.session_affinity)),
        (HEALTH_CHECK_DISABLED, flag(template.health_check_disabled)),
        (CPU_THROTTLING, flag(template.cpu_idle)),
        (CPU_BOOST, flag(template.startup_cpu_boost)),
    ]
}

fn forget_canonical(annotations: &mut Annotations, fields: &[Field]) {
    for (names, text) in fields {
        if text.is_some() && annotations.get(names[0]) == text.as_ref() {
            annotations.remove(names[0]);
        }
    }
}

fn merge(stored: &Annotations, parsed: Vec<Field>, actual: Vec<Field>) -> Annotations {
    let mut all = stored.clone();
    for ((names, parsed), (_, actual)) in parsed.into_iter().zip(actual) {
        if parsed == actual {
            continue;
        }
        for name in names {
            all.remove(*name);
        }
        if let Some(text) = actual {
            all.insert(names[0].to_owned(), text);
        }
    }
    all
}

struct Reader<'a> {
    annotations: &'a Annotations,
    base: &'static str,
    found: &'a mut Violations,
}

impl<'a> Reader<'a> {
    fn entry(&self, names: &[&'static str]) -> Option<(&'static str, &'a str)> {
        names
            .iter()
            .find_map(|name| self.annotations.get(*name).map(|v| (*name, v.as_str())))
    }

    fn wrong(&mut self, name: &str, problem: impl Into<String>) {
        self.found.add(format!("{}[{name}]", self.base), problem);
    }

    fn text(&self, names: &[&'static str]) -> Option<&'a str> {
        self.entry(names).map(|(_, text)| text)
    }

    fn count(&mut self, names: &[&'static str]) -> Option<u32> {
        let (name, text) = self.entry(names).filter(|(_, t)| !t.is_empty())?;
        let count = text
            .trim()
            .parse::<u32>()
            .ok()
            .filter(|c| i32::try_from(*c).is_ok());
        if count.is_none() {
            self.wrong(
                name,
                format!("invalid value: {text:?} is not a whole number from 0"),
            );
        }
        count
    }

    fn flag(&mut self, names: &[&'static str]) -> Option<bool> {
        let (name, text) = self.entry(names).filter(|(_, t)| !t.is_empty())?;
        let flag = parse_flag(text);
        if flag.is_none() {
            self.wrong(
                name,
                format!("invalid value: {text:?}: write true or false"),
            );
        }
        flag
    }

    fn one_of<T: Copy>(&mut self, names: &[&'static str], words: &[(&str, T)]) -> Option<T> {
        let (name, text) = self.entry(names).filter(|(_, t)| !t.is_empty())?;
        let found = words
            .iter()
            .find(|(word, _)| word.eq_ignore_ascii_case(text))
            .map(|(_, value)| *value);
        if found.is_none() {
            let known: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            self.wrong(
                name,
                format!("invalid value: {text:?}: write {}", known.join(", ")),
            );
        }
        found
    }
}

#[cfg(test)]
mod tests;
