//! Rules of one container (§1.3, §1.9).

use super::{dns_1035, mounts, not_built, probe};
use crate::Violations;
use crate::quantity::{MemoryBytes, MilliCpu};
use crate::service::{Container, EnvValue, RevisionTemplate};

/// Set by the platform; a value of the user's would be lost.
const RESERVED_ENV: [&str; 4] = ["PORT", "K_SERVICE", "K_REVISION", "K_CONFIGURATION"];
const ENV_COUNT: usize = 1000;
const ENV_BYTES: usize = 32_768;
const ARGS: usize = 1000;
/// Least memory of an instance.
const LEAST_MEMORY: u64 = 128 << 20;
const MOST_MEMORY: u64 = 32 << 30;
/// Knative's own ports inside an instance: its two HTTP backends, the queue's administration, metrics of the autoscaler and of
/// users, profiling (§1.9). Refused as there, so that what runs here runs there.
const RESERVED_PORTS: [u16; 6] = [8008, 8012, 8013, 8022, 9090, 9091];

pub(super) fn check(
    index: usize,
    container: &Container,
    template: &RevisionTemplate,
    found: &mut Violations,
) {
    let base = format!("template.containers[{index}]");
    let at = |field: &str| format!("{base}.{field}");
    if !container.name.is_empty() {
        if let Some(problem) = dns_1035(&container.name, 63) {
            found.add(at("name"), problem);
        } else if container.name == "queue-proxy" {
            found.add(at("name"), "\"queue-proxy\" is a reserved container name");
        }
    }
    if container.image.is_empty() {
        found.add(at("image"), "missing: name the image to run");
    } else if let Some(problem) = image(&container.image) {
        found.add(
            at("image"),
            format!(
                "Failed to parse image reference: {:?}: {problem}",
                container.image
            ),
        );
    }
    for (field, words) in [("command", &container.command), ("args", &container.args)] {
        if words.len() > ARGS {
            found.add(
                at(field),
                format!("at most {ARGS} are allowed, there are {}", words.len()),
            );
        }
        if words.iter().any(|w| w.contains('\0')) {
            found.add(at(field), "must not contain NUL characters");
        }
    }
    if let Some(dir) = &container.working_dir
        && !dir.is_empty()
        && !dir.starts_with('/')
    {
        found.add(
            at("workingDir"),
            format!("{dir:?} must be an absolute path"),
        );
    }
    env(&base, container, index == template.ingress_index(), found);
    limits(&base, container, found);
    ports(&base, container, found);
    mounts::check(&base, container, template, found);
    probe::check(&base, container, found);
}

/// `PORT` is set in the container that takes requests alone; others may have one of their own.
fn env(base: &str, container: &Container, ingress: bool, found: &mut Violations) {
    if container.env.len() > ENV_COUNT {
        found.add(
            format!("{base}.env"),
            format!(
                "at most {ENV_COUNT} variables are allowed, there are {}",
                container.env.len()
            ),
        );
    }
    let reserved: Vec<&str> = RESERVED_ENV
        .into_iter()
        .filter(|name| ingress || *name != "PORT")
        .filter(|name| container.env.iter().any(|e| e.name == *name))
        .collect();
    if !reserved.is_empty() {
        found.add(
            format!("{base}.env"),
            format!(
                "The following reserved env names were provided: {}. These values are automatically set by the system.",
                reserved.join(", ")
            ),
        );
    }
    for (index, variable) in container.env.iter().enumerate() {
        let field = format!("{base}.env[{index}]");
        if variable.name.is_empty() {
            found.add(format!("{field}.name"), "missing");
        } else if variable.name.len() > ENV_BYTES || variable.name.contains(['=', '\0']) {
            found.add(
                format!("{field}.name"),
                format!("must be at most {ENV_BYTES} bytes without '=' and NUL"),
            );
        }
        match &variable.value {
            EnvValue::Literal(value) if value.len() > ENV_BYTES || value.contains('\0') => {
                found.add(
                    format!("{field}.value"),
                    format!("must be at most {ENV_BYTES} bytes without NUL"),
                );
            }
            EnvValue::Literal(_) => {}
            EnvValue::Secret { .. } => found.add(
                format!("{field}.valueSource.secretKeyRef"),
                not_built("secrets are"),
            ),
        }
    }
}

fn limits(base: &str, container: &Container, found: &mut Violations) {
    for (name, value) in &container.limits {
        let field = format!("{base}.resources.limits.{name}");
        match name.as_str() {
            "cpu" => match value.parse::<MilliCpu>() {
                Ok(MilliCpu(80..=999 | 1000 | 2000 | 4000 | 6000 | 8000)) => {}
                Ok(_) => found.add(
                    field,
                    format!("Invalid value specified for cpu: {value:?}. Write 1, 2, 4, 6 or 8, or a part of one CPU from 0.08."),
                ),
                Err(error) => found.add(field, format!("Invalid value specified for cpu. {error}.")),
            },
            "memory" => match value.parse::<MemoryBytes>() {
                Ok(MemoryBytes(LEAST_MEMORY..=MOST_MEMORY)) => {}
                Ok(_) => found.add(
                    field,
                    format!("Invalid value specified for memory: {value:?}. It must be at least 128Mi and at most 32Gi."),
                ),
                Err(error) => found.add(field, format!("Invalid value specified for memory. {error}.")),
            },
            "nvidia.com/gpu" => found.add(field, not_built("accelerators (GPUs) are")),
            _ => found.add(field, "is not a resource that can be limited: write cpu or memory"),
        }
    }
}

fn ports(base: &str, container: &Container, found: &mut Violations) {
    if container.ports.len() > 1 {
        found.add(
            format!("{base}.ports"),
            "more than one container port is set: an instance is reached on one port only",
        );
    }
    for (index, port) in container.ports.iter().enumerate() {
        let field = format!("{base}.ports[{index}]");
        if port.container_port == 0 {
            found.add(format!("{field}.containerPort"), "expected 1 <= 0 <= 65535");
        }
        if RESERVED_PORTS.contains(&port.container_port) {
            found.add(
                format!("{field}.containerPort"),
                format!(
                    "{} is a reserved port ({}): let the program listen on another",
                    port.container_port,
                    RESERVED_PORTS.map(|p| p.to_string()).join(", ")
                ),
            );
        }
        if !matches!(port.name.as_str(), "" | "http1" | "h2c") {
            found.add(
                format!("{field}.name"),
                format!(
                    "invalid value: {:?}: write h2c, http1 or nothing",
                    port.name
                ),
            );
        }
    }
}

/// Why `reference` can't name an image: `[HOST[:PORT]/]PATH[:TAG][@sha256:HEX]`.
fn image(reference: &str) -> Option<&'static str> {
    if reference.len() > 2048
        || reference
            .chars()
            .any(|c| c.is_whitespace() || c.is_control())
    {
        return Some("must be one word of at most 2048 characters");
    }
    if reference.contains("://") {
        return Some("must not begin with a scheme");
    }
    let (name, digest) = match reference.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (reference, None),
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64
            || !hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
        {
            return Some("a digest is sha256: and 64 hexadecimal digits");
        }
    }
    let (host, rest) = match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (Some(first), rest)
        }
        _ => (None, name),
    };
    if host.is_some_and(|h| {
        !h.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-.:[]_".contains(&b))
    }) {
        return Some("the registry must be a host name with an optional port");
    }
    if matches!(host, Some("oci:" | "oci-archive:" | "docker-archive:"))
        || ["oci:", "oci-archive:", "docker-archive:"]
            .iter()
            .any(|p| name.starts_with(p))
    {
        return Some("files are uploaded by the command line: `utsuwa deploy --image oci:PATH`");
    }
    let (path, tag) = match rest.rsplit_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let tag_fine = |t: &str| {
        (1..=128).contains(&t.len())
            && t.bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
            && !t.starts_with(['.', '-'])
    };
    if tag.is_some_and(|t| !tag_fine(t)) {
        return Some("a tag is 1 to 128 letters, digits, '_', '.' and '-'");
    }
    let part_fine = |p: &str| {
        !p.is_empty()
            && p.bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b))
            && p.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
            && p.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
    };
    if !path.split('/').all(part_fine) {
        return Some(
            "the path must be lower-case letters, digits, '.', '_' and '-' between slashes",
        );
    }
    None
}
