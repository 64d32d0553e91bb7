//! Rules of the template as a whole (§1.3, §1.7).

use std::collections::BTreeSet;

use super::{Context, annotations, container, group, labels, not_built};
use crate::Violations;
use crate::quantity::{MemoryBytes, MilliCpu};
use crate::service::{ExecutionEnvironment, RevisionTemplate, Service, VolumeSource};

/// Longest a request may take on Cloud Run.
const TIMEOUT_SECS: u32 = 3600;
const CONCURRENCY: u32 = 1000;
const CONTAINERS: usize = 10;
const GIB: u64 = 1 << 30;

pub(super) fn check(service: &Service, context: &Context<'_>, found: &mut Violations) {
    let template = &service.spec.template;
    name(service, context, found);
    labels("template.labels", &template.labels, found);
    let old = context.old.map(|old| &old.spec.template);
    annotations::of_template(template, old, found);
    if let Some(seconds) = template.timeout_secs
        && seconds > TIMEOUT_SECS
    {
        found.add(
            "template.timeout",
            format!("expected 0 <= {seconds} <= {TIMEOUT_SECS}"),
        );
    }
    if let Some(concurrency) = template.concurrency
        && concurrency > CONCURRENCY
    {
        found.add(
            "template.maxInstanceRequestConcurrency",
            format!("expected 0 <= {concurrency} <= {CONCURRENCY}"),
        );
    }
    if let Some(account) = &template.service_account
        && (account.len() > 320 || account.chars().any(|c| c.is_whitespace() || c.is_control()))
    {
        found.add(
            "template.serviceAccount",
            "must be the email address of a service account",
        );
    }
    if !template.node_selector.is_empty() {
        found.add(
            "template.nodeSelector",
            not_built("accelerators (GPUs) are"),
        );
    }
    containers(template, found);
    volumes(template, found);
}

fn name(service: &Service, context: &Context<'_>, found: &mut Violations) {
    let template = &service.spec.template;
    let Some(revision) = &template.revision else {
        return;
    };
    let prefix = format!("{}-", service.key.service);
    if !revision.as_str().starts_with(&prefix) {
        found.add(
            "template.revision",
            format!("{:?} must have prefix {prefix:?}", revision.as_str()),
        );
    }
    if let Some(taken) = context
        .revisions
        .iter()
        .find(|r| r.key.revision == *revision)
        && !taken.is_made_from(template)
    {
        found.add(
            "template.revision",
            format!("Revision named '{revision}' with different configuration already exists. Give the new one another name, or none."),
        );
    } else if let Some(old) = context.old
        && old.spec.template.revision.as_ref() == Some(revision)
        && !old.spec.template.same_as(template)
    {
        found.add(
            "template.revision",
            format!(
                "Saw the following changes without a name change: {}. A revision never changes: give the new one another name, or none",
                difference(&old.spec.template.defaulted(), &template.defaulted())
            ),
        );
    }
}

/// Which parts of two templates differ, by name.
fn difference(old: &RevisionTemplate, new: &RevisionTemplate) -> String {
    let parts = [
        ("labels", old.labels != new.labels),
        ("annotations", old.annotations != new.annotations),
        (
            "scaling",
            (old.min_instances, old.max_instances) != (new.min_instances, new.max_instances),
        ),
        ("concurrency", old.concurrency != new.concurrency),
        ("timeout", old.timeout_secs != new.timeout_secs),
        ("serviceAccount", old.service_account != new.service_account),
        ("containers", old.containers != new.containers),
        ("volumes", old.volumes != new.volumes),
    ];
    let changed: Vec<&str> = parts
        .iter()
        .filter(|(_, differs)| *differs)
        .map(|(part, _)| *part)
        .collect();
    if changed.is_empty() {
        "other settings".to_owned()
    } else {
        changed.join(", ")
    }
}

fn containers(template: &RevisionTemplate, found: &mut Violations) {
    let all = &template.containers;
    if all.is_empty() {
        found.add(
            "template.containers",
            "missing: a revision needs a container with an image",
        );
        return;
    }
    if all.len() > CONTAINERS {
        found.add(
            "template.containers",
            format!(
                "at most {CONTAINERS} containers are allowed, there are {}",
                all.len()
            ),
        );
    }
    group::check(template, found);
    let mut names = BTreeSet::new();
    for (index, one) in all.iter().enumerate() {
        container::check(index, one, template, found);
        if !one.name.is_empty() && !names.insert(one.name.as_str()) {
            found.add(
                format!("template.containers[{index}].name"),
                format!("{:?} must be unique", one.name),
            );
        }
    }
    if all.iter().all(|c| {
        c.limits
            .get("cpu")
            .is_none_or(|v| v.parse::<MilliCpu>().is_ok())
    }) {
        resources(template, found);
    }
}

/// Rules between CPU, memory, concurrency and execution environment.
fn resources(template: &RevisionTemplate, found: &mut Violations) {
    let cpu: u64 = template
        .containers
        .iter()
        .map(|c| u64::from(c.cpu().0))
        .sum();
    let memory: u64 = template.containers.iter().map(|c| c.memory().0).sum();
    let limit = |what: &str| format!("template.containers[0].resources.limits.{what}");
    if cpu > 8000 {
        found.add(limit("cpu"), "Total millicpu may not exceed 8000.");
    }
    if cpu < 1000 {
        let invalid = "Invalid value specified for cpu. Total cpu < 1 is not supported with";
        if template.concurrency.is_some_and(|c| c > 1) {
            found.add(limit("cpu"), format!("{invalid} concurrency > 1."));
        }
        if template.execution_environment == Some(ExecutionEnvironment::Gen2) {
            found.add(
                limit("cpu"),
                format!("{invalid} gen2 execution environment."),
            );
        }
        if template.cpu_idle == Some(false) {
            found.add(
                limit("cpu"),
                format!("{invalid} cpu-throttling switched off."),
            );
        }
    }
    if template.execution_environment == Some(ExecutionEnvironment::Gen2) && memory < 512 << 20 {
        found.add(
            limit("memory"),
            "Invalid value specified for memory. Total memory < 512 Mi is not supported with gen2 execution environment.",
        );
    }
    for (cores, least) in [(6000, 4 * GIB), (4000, 2 * GIB)] {
        if cpu >= cores && memory < least {
            let (cores, least) = (cores / 1000, MemoryBytes(least));
            found.add(
                limit("memory"),
                format!(
                    "Invalid value specified for memory. {cores} CPU or more need at least {least}."
                ),
            );
            break;
        }
    }
    for (more_than, cores) in [
        (24 * GIB, 8000),
        (16 * GIB, 6000),
        (8 * GIB, 4000),
        (4 * GIB, 2000),
    ] {
        if memory > more_than && cpu < cores {
            let (more_than, cores) = (MemoryBytes(more_than), cores / 1000);
            found.add(limit("cpu"), format!("Invalid value specified for cpu. Memory above {more_than} needs at least {cores} CPU."));
            break;
        }
    }
}

fn volumes(template: &RevisionTemplate, found: &mut Violations) {
    let mut names = BTreeSet::new();
    for (index, volume) in template.volumes.iter().enumerate() {
        let field = format!("template.volumes[{index}]");
        if volume.name.is_empty() {
            found.add(format!("{field}.name"), "missing");
        } else if !names.insert(volume.name.as_str()) {
            found.add(
                format!("{field}.name"),
                format!("duplicate volume name {:?}", volume.name),
            );
        }
        let mounted = template
            .containers
            .iter()
            .flat_map(|c| &c.volume_mounts)
            .any(|m| m.name == volume.name);
        if !mounted {
            found.add(
                format!("{field}.name"),
                format!("volume with name {:?} not mounted", volume.name),
            );
        }
        match &volume.source {
            VolumeSource::EmptyDir { size_limit } => {
                let field = format!("{field}.emptyDir.sizeLimit");
                match size_limit.as_ref().map(|limit| (limit, limit.parse())) {
                    Some((limit, Err(_))) => found.add(
                        field,
                        format!("{limit:?} is not a quantity: write 512Mi or 1Gi"),
                    ),
                    Some((limit, Ok(MemoryBytes(0)))) => found.add(
                        field,
                        format!("{limit:?} leaves no room: write 512Mi, or nothing for as much as the memory limit"),
                    ),
                    _ => {}
                }
            }
            VolumeSource::Secret { .. } => {
                found.add(format!("{field}.secret"), not_built("secrets are"))
            }
            // With the operator's rules: `host_dirs`.
            VolumeSource::HostDir { .. } => {}
        }
    }
}
