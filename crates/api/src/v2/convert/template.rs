//! Revision templates.

use utsuwa_model::service as model;
use utsuwa_wire::google::cloud::run::v2;

use super::read::{Reader, given, number, set};
use super::{container, hidden, is_autoscaler_setting, none, shown};

/// Where v1 and the model keep the accelerator.
const ACCELERATOR: &str = "run.googleapis.com/accelerator";

/// A template from the wire. What v2 doesn't show of `old` is kept.
pub(super) fn read(
    mut at: Reader<'_>,
    wire: v2::RevisionTemplate,
    old: Option<&model::RevisionTemplate>,
) -> model::RevisionTemplate {
    at.not_built("vpcAccess", wire.vpc_access.is_some());
    at.not_built("encryptionKey", !wire.encryption_key.is_empty());
    at.not_built("serviceMesh", wire.service_mesh.is_some());
    at.keys("labels", &wire.labels, none);
    at.keys("annotations", &wire.annotations, is_autoscaler_setting);
    let timeout_secs = timeout(&mut at, wire.timeout);
    let scaling = wire.scaling.unwrap_or_default();
    let (min_instances, max_instances) = {
        let mut at = at.at("scaling");
        (
            at.count("minInstanceCount", scaling.min_instance_count),
            at.count("maxInstanceCount", scaling.max_instance_count),
        )
    };
    // v2 keeps CPU settings per container, the model (as v1) per template: those of the container that takes requests count.
    let main = wire
        .containers
        .iter()
        .position(|c| !c.ports.is_empty())
        .unwrap_or(0);
    let resources = wire.containers.get(main).and_then(|c| c.resources.as_ref());
    let cpu_idle = resources.map(|r| r.cpu_idle);
    let startup_cpu_boost = resources.and_then(|r| set(r.startup_cpu_boost));
    let mut annotations = wire.annotations;
    let mut labels = wire.labels;
    let mut node_selector = std::collections::BTreeMap::new();
    if let Some(old) = old {
        annotations.extend(hidden(&old.annotations, is_autoscaler_setting));
        labels.extend(hidden(&old.labels, none));
        node_selector.extend(old.node_selector.clone());
        node_selector.remove(ACCELERATOR);
    }
    if let Some(selector) = wire.node_selector {
        node_selector.insert(ACCELERATOR.to_owned(), selector.accelerator);
    }
    model::RevisionTemplate {
        revision: at.parsed("revision", &wire.revision),
        labels,
        annotations,
        min_instances,
        max_instances,
        concurrency: at.count(
            "maxInstanceRequestConcurrency",
            wire.max_instance_request_concurrency,
        ),
        timeout_secs,
        service_account: given(&wire.service_account),
        execution_environment: match v2::ExecutionEnvironment::try_from(wire.execution_environment)
        {
            Ok(v2::ExecutionEnvironment::Gen1) => Some(model::ExecutionEnvironment::Gen1),
            Ok(v2::ExecutionEnvironment::Gen2) => Some(model::ExecutionEnvironment::Gen2),
            Ok(v2::ExecutionEnvironment::Unspecified) => None,
            Err(_) => {
                at.wrong(
                    "executionEnvironment",
                    format!(
                        "{} is not a value of ExecutionEnvironment",
                        wire.execution_environment
                    ),
                );
                None
            }
        },
        session_affinity: set(wire.session_affinity),
        health_check_disabled: set(wire.health_check_disabled),
        cpu_idle,
        startup_cpu_boost,
        containers: wire
            .containers
            .into_iter()
            .enumerate()
            .map(|(i, c)| container::read(at.at(format_args!("containers[{i}]")), c))
            .collect(),
        volumes: wire
            .volumes
            .into_iter()
            .enumerate()
            .filter_map(|(i, v)| container::volume(at.at(format_args!("volumes[{i}]")), v))
            .collect(),
        node_selector,
    }
}

fn timeout(at: &mut Reader<'_>, wire: Option<prost_types::Duration>) -> Option<u32> {
    let wire = wire?;
    match u32::try_from(wire.seconds) {
        Ok(seconds) if wire.nanos == 0 => Some(seconds).filter(|s| *s > 0),
        _ => {
            at.wrong("timeout", "must be whole seconds, from 1s to 3600s");
            None
        }
    }
}

/// A template for the wire.
pub(super) fn write(template: &model::RevisionTemplate) -> v2::RevisionTemplate {
    v2::RevisionTemplate {
        revision: template
            .revision
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        labels: shown(&template.labels, none),
        annotations: shown(&template.annotations, is_autoscaler_setting),
        scaling: scaling(template),
        timeout: template.timeout_secs.map(|s| prost_types::Duration {
            seconds: i64::from(s),
            nanos: 0,
        }),
        service_account: template.service_account.clone().unwrap_or_default(),
        containers: containers(template),
        volumes: template
            .volumes
            .iter()
            .map(container::write_volume)
            .collect(),
        execution_environment: environment(template).into(),
        max_instance_request_concurrency: number(template.concurrency),
        session_affinity: template.session_affinity.unwrap_or(false),
        health_check_disabled: template.health_check_disabled.unwrap_or(false),
        node_selector: node_selector(template),
        ..v2::RevisionTemplate::default()
    }
}

/// The containers with their CPU settings; also for revisions.
pub(super) fn containers(template: &model::RevisionTemplate) -> Vec<v2::Container> {
    let main = template
        .containers
        .iter()
        .position(|c| !c.ports.is_empty())
        .unwrap_or(0);
    template
        .containers
        .iter()
        .enumerate()
        .map(|(i, c)| {
            let settings =
                i == main && (template.cpu_idle.is_some() || template.startup_cpu_boost.is_some());
            let resources = (settings || !c.limits.is_empty()).then(|| v2::ResourceRequirements {
                limits: c.limits.clone(),
                cpu_idle: template.cpu_idle.unwrap_or(true),
                startup_cpu_boost: i == main && template.startup_cpu_boost.unwrap_or(false),
            });
            container::write(c, resources)
        })
        .collect()
}

pub(super) fn scaling(template: &model::RevisionTemplate) -> Option<v2::RevisionScaling> {
    (template.min_instances.is_some() || template.max_instances.is_some()).then(|| {
        v2::RevisionScaling {
            min_instance_count: number(template.min_instances),
            max_instance_count: number(template.max_instances),
        }
    })
}

pub(super) fn environment(template: &model::RevisionTemplate) -> v2::ExecutionEnvironment {
    match template.execution_environment {
        None => v2::ExecutionEnvironment::Unspecified,
        Some(model::ExecutionEnvironment::Gen1) => v2::ExecutionEnvironment::Gen1,
        Some(model::ExecutionEnvironment::Gen2) => v2::ExecutionEnvironment::Gen2,
    }
}

pub(super) fn node_selector(template: &model::RevisionTemplate) -> Option<v2::NodeSelector> {
    template
        .node_selector
        .get(ACCELERATOR)
        .map(|a| v2::NodeSelector {
            accelerator: a.clone(),
        })
}
