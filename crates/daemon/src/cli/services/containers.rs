//! Several containers of a template, as the command line sees them.

use serde_json::Value;
use utsuwa_model::service::defaults;

use super::container::{volumes, written_probes};
use crate::output::text_at;

/// Which container takes the requests: the one with a port, or the first.
pub(in crate::cli) fn ingress_index(template: &Value) -> usize {
    let all = template["containers"].as_array();
    let with_port = |one: &Value| {
        one["ports"]
            .as_array()
            .is_some_and(|ports| !ports.is_empty())
    };
    all.and_then(|all| all.iter().position(with_port))
        .unwrap_or(0)
}

/// The others: one a line, and below it their probes and what is mounted in them.
pub(super) fn sidecar_lines(template: &Value, ingress: usize) -> Vec<String> {
    let all = template["containers"].as_array().into_iter().flatten();
    let others = all.enumerate().filter(|(index, _)| *index != ingress);
    others
        .flat_map(|(_, one)| {
            let below = written_probes(one, &defaults::PORT.to_string())
                .map(|(label, text)| format!("    {label:<16} {text}"))
                .collect::<Vec<_>>();
            let mounts = volumes(one, template).into_iter();
            let mounts = mounts.map(|(path, what)| format!("    {path:<16} {what}"));
            let lines = std::iter::once(sidecar_line(one)).chain(below);
            lines.chain(mounts).collect::<Vec<_>>()
        })
        .collect()
}

fn sidecar_line(one: &Value) -> String {
    let written = |path: &str, default: String| match text_at(one, path) {
        text if text.is_empty() => default,
        text => text,
    };
    let memory = written("resources.limits.memory", defaults::MEMORY.to_string());
    let cpu = written("resources.limits.cpu", defaults::CPU.to_string());
    let mut line = format!(
        "  {:<16} {}: {}, {memory}, {cpu} CPU",
        "Sidecar:",
        text_at(one, "name"),
        text_at(one, "image")
    );
    let after = one["dependsOn"].as_array().into_iter().flatten();
    let after: Vec<&str> = after.filter_map(Value::as_str).collect();
    if !after.is_empty() {
        line.push_str(&format!(", after {}", after.join(", ")));
    }
    line
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn others_than_the_one_with_a_port_are_sidecars() {
        let template = json!({"containers": [
            {"name": "side", "image": "s:1", "dependsOn": ["app"], "resources": {"limits": {"memory": "256Mi"}},
                "livenessProbe": {"httpGet": {"port": 9}}, "volumeMounts": [{"name": "v", "mountPath": "/v"}]},
            {"name": "app", "image": "a:1", "ports": [{"containerPort": 80}]},
        ], "volumes": [{"name": "v", "emptyDir": {}}]});
        assert_eq!(ingress_index(&template), 1);
        assert_eq!(
            sidecar_lines(&template, 1),
            [
                "  Sidecar:         side: s:1, 256Mi, 1 CPU, after app",
                "    Liveness probe:  GET / on port 9, every 10s, up to 1s each, 3 failures in a row count",
                "    /v               v: in memory, counted in the instance's limit",
            ]
        );
        let one = json!({"containers": [{"image": "x"}]});
        assert_eq!(ingress_index(&one), 0);
        assert!(sidecar_lines(&one, 0).is_empty());
    }
}
