//! Directories of the host: only what the operator allows, and only as the operator allows it.

use super::Context;
use crate::Violations;
use crate::host_dir::HostDir;
use crate::service::{Container, RevisionTemplate, VolumeMount, VolumeSource};

pub(super) fn check(template: &RevisionTemplate, context: &Context<'_>, found: &mut Violations) {
    let unchanged = context
        .old
        .is_some_and(|old| old.spec.template.volumes == template.volumes);
    for (index, volume) in template.volumes.iter().enumerate() {
        let VolumeSource::HostDir { path, read_only } = &volume.source else {
            continue;
        };
        let kind = read_only.map_or("hostPath", |_| "nfs");
        let field = format!("template.volumes[{index}].{kind}.path");
        let mounts = || {
            let all = template.containers.iter().flat_map(|c| &c.volume_mounts);
            all.filter(|mount| mount.name == volume.name)
        };
        // What was accepted once may be kept in a change of something else; it fails where it is started.
        if !unchanged {
            let to_write = *read_only != Some(true) && mounts().any(|m| m.read_only != Some(true));
            if let Some(problem) = refusal(path, to_write, context.host_dirs) {
                found.add(&field, problem);
            }
        }
        let of_each = template.containers.iter().flat_map(|container| {
            let own = container.volume_mounts.iter();
            own.filter(|mount| mount.name == volume.name)
                .map(move |mount| (container, mount))
        });
        for (container, mount) in of_each {
            if let Some(other) = nested(container, mount) {
                found.add(
                    &field,
                    format!(
                        "it is mounted at {:?}, and volume {:?} at {:?}: a directory of the host lies in no other volume, and no \
                         other volume in it; mount one of them elsewhere",
                        mount.mount_path, other.name, other.mount_path
                    ),
                );
            }
        }
    }
}

fn refusal(path: &str, to_write: bool, rules: &[HostDir]) -> Option<String> {
    let Some((rule, _)) = HostDir::find(rules, path) else {
        return Some(format!(
            "the directory {path:?} of the host is not open to services; to allow it, start the server with --allow-host-dir \
             {path} (to read) or {path}:rw"
        ));
    };
    (to_write && !rule.writable).then(|| {
        format!(
            "the directory {:?} of the host may only be read by services: set readOnly to true where it is mounted, or start the \
             server with --allow-host-dir {}:rw",
            rule.path, rule.path
        )
    })
}

/// Another mount of the same container in this one, or around it.
fn nested<'a>(container: &'a Container, mount: &'a VolumeMount) -> Option<&'a VolumeMount> {
    let parts = |path: &'a str| -> Vec<&'a str> {
        let parts = path.split('/');
        parts.filter(|p| !p.is_empty() && *p != ".").collect()
    };
    let others = container.volume_mounts.iter().filter(|m| *m != mount);
    others.into_iter().find(|other| {
        let (a, b) = (parts(&mount.mount_path), parts(&other.mount_path));
        a != b && (a.starts_with(&b) || b.starts_with(&a))
    })
}
