//! Rules of several containers in one instance (§1.3, §2.7).

use std::collections::BTreeSet;

use super::not_built;
use crate::Violations;
use crate::service::{Container, ProbeAction, RevisionTemplate};

pub(super) fn check(template: &RevisionTemplate, found: &mut Violations) {
    let all = &template.containers;
    if all.len() > 1 {
        let with_port = all.iter().filter(|c| !c.ports.is_empty()).count();
        if with_port != 1 {
            found.add(
                "template.containers",
                format!("exactly one container must have a port, {with_port} have one"),
            );
        }
        for (index, one) in all.iter().enumerate() {
            if one.name.is_empty() {
                found.add(
                    format!("template.containers[{index}].name"),
                    "missing: each of several containers needs a name",
                );
            }
            if index != template.ingress_index() {
                sidecar_probes(&format!("template.containers[{index}]"), one, found);
            }
        }
    }
    for (index, one) in all.iter().enumerate() {
        for name in &one.depends_on {
            let field = format!("template.containers[{index}].dependsOn");
            match all.iter().position(|other| other.name == *name) {
                None => found.add(field, format!("{name:?} is no container of this revision")),
                Some(other) => probe_of_dependency(template, other, found),
            }
        }
    }
    if let Some((index, names)) = cycle(all) {
        found.add(
            format!("template.containers[{index}].dependsOn"),
            format!(
                "the containers wait for each other in a circle: {}",
                names.join(" -> ")
            ),
        );
    }
}

/// Who waits for another waits for its startup probe; the one that takes requests has one by default.
fn probe_of_dependency(template: &RevisionTemplate, index: usize, found: &mut Violations) {
    let one = &template.containers[index];
    let field = format!("template.containers[{index}].startupProbe");
    let known = found.0.iter().any(|violation| violation.field == field);
    if index != template.ingress_index() && one.startup_probe.is_none() && !known {
        let text = format!(
            "missing: other containers depend on {:?}, and start when its startup probe has succeeded",
            one.name
        );
        found.add(field, text);
    }
}

fn sidecar_probes(base: &str, one: &Container, found: &mut Violations) {
    if let Some(probe) = &one.startup_probe {
        let (kind, port) = match &probe.action {
            ProbeAction::Tcp { port } => ("tcpSocket", port),
            ProbeAction::Http { port, .. } => ("httpGet", port),
            ProbeAction::Grpc { port, .. } => ("grpc", port),
        };
        if port.is_none_or(|port| port == 0) {
            found.add(
                format!("{base}.startupProbe.{kind}.port"),
                "missing: a container without a port of its own has no default",
            );
        }
    }
    for (field, probe) in [
        ("livenessProbe", &one.liveness_probe),
        ("readinessProbe", &one.readiness_probe),
    ] {
        if probe.is_some() {
            found.add(
                format!("{base}.{field}"),
                not_built("a liveness or readiness probe of a container that takes no requests is"),
            );
        }
    }
}

/// Containers that wait for each other: the place of the first, and their names, the first again at the end.
fn cycle(all: &[Container]) -> Option<(usize, Vec<String>)> {
    let mut harmless = BTreeSet::new();
    (0..all.len()).find_map(|start| {
        let mut way = Vec::new();
        follow(all, start, &mut way, &mut harmless)
    })
}

fn follow(
    all: &[Container],
    at: usize,
    way: &mut Vec<usize>,
    harmless: &mut BTreeSet<usize>,
) -> Option<(usize, Vec<String>)> {
    if let Some(begin) = way.iter().position(|one| *one == at) {
        let circle = way[begin..].iter().chain([&at]);
        return Some((at, circle.map(|one| all[*one].name.clone()).collect()));
    }
    if harmless.contains(&at) {
        return None;
    }
    way.push(at);
    for name in &all[at].depends_on {
        if let Some(next) = all.iter().position(|other| other.name == *name)
            && let Some(circle) = follow(all, next, way, harmless)
        {
            return Some(circle);
        }
    }
    way.pop();
    harmless.insert(at);
    None
}
