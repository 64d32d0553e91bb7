//! Several containers of a template, as the command line sees them.

use serde_json::Value;
use utsuwa_model::service::defaults;

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

/// The others, one a line.
pub(super) fn sidecar_lines(template: &Value, ingress: usize) -> Vec<String> {
    let all = template["containers"].as_array().into_iter().flatten();
    let others = all.enumerate().filter(|(index, _)| *index != ingress);
    others
        .map(|(_, one)| {
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
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn others_than_the_one_with_a_port_are_sidecars() {
        let template = json!({"containers": [
            {"name": "side", "image": "s:1", "dependsOn": ["app"], "resources": {"limits": {"memory": "256Mi"}}},
            {"name": "app", "image": "a:1", "ports": [{"containerPort": 80}]},
        ]});
        assert_eq!(ingress_index(&template), 1);
        assert_eq!(
            sidecar_lines(&template, 1),
            ["  Sidecar:         side: s:1, 256Mi, 1 CPU, after app"]
        );
        let one = json!({"containers": [{"image": "x"}]});
        assert_eq!(ingress_index(&one), 0);
        assert!(sidecar_lines(&one, 0).is_empty());
    }
}
