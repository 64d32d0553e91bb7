//! Where volumes may be mounted (§1.3, §1.9).

use std::collections::BTreeSet;

use crate::Violations;
use crate::service::{Container, RevisionTemplate};

/// Directories of the system, closed with all that is below them.
const SYSTEM: [&str; 3] = ["dev", "proc", "sys"];
/// A path that is longer than this would meet the kernel's own limits somewhere below it.
const PATH_BYTES: usize = 1024;
/// The kernel's limit of one name.
const NAME_BYTES: usize = 255;

pub(super) fn check(
    base: &str,
    container: &Container,
    template: &RevisionTemplate,
    found: &mut Violations,
) {
    let mut taken = BTreeSet::new();
    for (index, mount) in container.volume_mounts.iter().enumerate() {
        let field = format!("{base}.volumeMounts[{index}]");
        let path = mount.mount_path.as_str();
        // As the kernel reads it: "//data/./" is "/data".
        let parts = parts(path);
        let problem = if !path.starts_with('/') || path.contains(':') || parts.contains(&"..") {
            Some(format!(
                "invalid value: {path:?} must be an absolute path without ':' and '..'"
            ))
        } else if path.chars().any(char::is_control) || is_too_long(path) {
            Some(format!(
                "must be at most {PATH_BYTES} bytes, {NAME_BYTES} between slashes, without control characters"
            ))
        } else if parts.first().is_none_or(|first| SYSTEM.contains(first)) {
            Some(format!("mountPath {path:?} is a reserved path"))
        } else if !taken.insert(parts) {
            Some(format!("{path:?} must be unique"))
        } else {
            None
        };
        if let Some(problem) = problem {
            found.add(format!("{field}.mountPath"), problem);
        }
        if let Some(sub) = &mount.sub_path
            && (sub.starts_with('/')
                || self::parts(sub).contains(&"..")
                || sub.chars().any(char::is_control)
                || is_too_long(sub))
        {
            found.add(
                format!("{field}.subPath"),
                format!("{sub:?} must be a path inside the volume, without '..'"),
            );
        }
        if !template.volumes.iter().any(|v| v.name == mount.name) {
            found.add(
                format!("{field}.name"),
                format!("volumeMount has no matching volume: {:?}", mount.name),
            );
        }
    }
}

fn parts(path: &str) -> Vec<&str> {
    path.split('/')
        .filter(|part| !part.is_empty() && *part != ".")
        .collect()
}

fn is_too_long(path: &str) -> bool {
    path.len() > PATH_BYTES || path.split('/').any(|part| part.len() > NAME_BYTES)
}
