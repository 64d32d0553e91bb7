//! What of a container needs lines of its own where a service is described: its probes, and what is mounted in it.

use serde_json::Value;

use super::containers::ingress_index;
use crate::output::text_at;

/// The startup probe where none is written: one attempt to connect that may take this long (`cloud-run-spec.md` §2).
const DEFAULT_STARTUP_SECS: u64 = 240;

/// Label and text of what was chosen beside the usual: how it is run, and what only this server knows.
pub(super) fn chosen(container: &Value, template: &Value) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if text_at(template, "executionEnvironment") == "EXECUTION_ENVIRONMENT_GEN1" {
        all.push(("Execution:", "gen1 (gVisor)".to_owned()));
    }
    if text_at(container, "resources.startupCpuBoost") != "true" {
        all.push(("CPU boost:", "none at the start".to_owned()));
    }
    let annotations = template["annotations"].as_object().into_iter().flatten();
    let own = annotations.filter_map(|(key, value)| {
        let name = key.strip_prefix("utsuwa.local/")?;
        Some(("Option:", format!("{name}={}", value.as_str()?)))
    });
    all.extend(own);
    all
}

/// What is said behind the number of CPUs.
pub(super) fn when(container: &Value) -> &'static str {
    match text_at(container, "resources.cpuIdle").as_str() {
        "false" => " (also between requests)",
        _ => "",
    }
}

/// Label and text of each probe; that of the start also where none is written. `port` is the container's, `checked` whether
/// what isn't written is the default, and not nothing.
pub(super) fn probes(container: &Value, port: &str, checked: bool) -> Vec<(&'static str, String)> {
    let mut all = Vec::new();
    if container["startupProbe"].is_null() {
        let text = if checked {
            format!("TCP on port {port}, within {DEFAULT_STARTUP_SECS}s (default)")
        } else {
            "none: the health check is disabled".to_owned()
        };
        all.push(("Startup probe:", text));
    }
    all.extend(written_probes(container, port));
    all
}

/// Label and text of the probes that are written: a container that takes no requests has no other.
pub(super) fn written_probes(
    container: &Value,
    port: &str,
) -> impl Iterator<Item = (&'static str, String)> {
    [
        ("Startup probe:", "startupProbe"),
        ("Liveness probe:", "livenessProbe"),
        ("Readiness probe:", "readinessProbe"),
    ]
    .into_iter()
    .filter(|(_, key)| !container[key].is_null())
    .map(|(label, key)| (label, probe(&container[key], port)))
}

fn probe(probe: &Value, port: &str) -> String {
    // Zero is what isn't written.
    let number = |key: &str, default: u64| match probe[key].as_u64().unwrap_or(0) {
        0 => default,
        given => given,
    };
    let at = |kind: &str| match text_at(probe, &format!("{kind}.port")).as_str() {
        "" | "0" => port.to_owned(),
        given => given.to_owned(),
    };
    let asks = if !probe["httpGet"].is_null() {
        let path = text_at(probe, "httpGet.path");
        let path = if path.is_empty() { "/" } else { &path };
        format!("GET {path} on port {}", at("httpGet"))
    } else if !probe["grpc"].is_null() {
        match text_at(probe, "grpc.service") {
            none if none.is_empty() => format!("gRPC health check on port {}", at("grpc")),
            service => format!("gRPC health check of {service} on port {}", at("grpc")),
        }
    } else {
        format!("TCP on port {}", at("tcpSocket"))
    };
    let delay = match number("initialDelaySeconds", 0) {
        0 => String::new(),
        seconds => format!(", first after {seconds}s"),
    };
    let failures = number("failureThreshold", 3);
    format!(
        "{asks}{delay}, every {}s, up to {}s each, {failures} failure{} in a row count{}",
        number("periodSeconds", 10),
        number("timeoutSeconds", 1),
        if failures == 1 { "" } else { "s" },
        if failures == 1 { "s" } else { "" }
    )
}

/// How long the startup probe of the container that takes requests may go on, in seconds; `None`: it has none.
pub(in crate::cli) fn probe_limit(template: &Value) -> Option<u64> {
    let container = &template["containers"][ingress_index(template)];
    let probe = &container["startupProbe"];
    if probe.is_null() {
        return (text_at(template, "healthCheckDisabled") != "true")
            .then_some(DEFAULT_STARTUP_SECS);
    }
    let number = |key: &str, default: u64| match probe[key].as_u64().unwrap_or(0) {
        0 => default,
        given => given,
    };
    let checks = number("failureThreshold", 3) * number("periodSeconds", 10);
    Some(number("initialDelaySeconds", 0) + checks)
}

/// Where each volume is mounted, and what it is.
pub(super) fn volumes(container: &Value, template: &Value) -> Vec<(String, String)> {
    let volumes = template["volumes"].as_array();
    let what = |name: &str| {
        let all = volumes.into_iter().flatten();
        let found = all.into_iter().find(|v| v["name"] == name);
        found.map_or_else(|| "not declared".to_owned(), kind)
    };
    let mounts = container["volumeMounts"].as_array().into_iter().flatten();
    mounts
        .map(|mount| {
            let name = text_at(mount, "name");
            (
                text_at(mount, "mountPath"),
                format!("{name}: {}", what(&name)),
            )
        })
        .collect()
}

fn kind(volume: &Value) -> String {
    if !volume["nfs"].is_null() {
        let path = text_at(volume, "nfs.path");
        return match text_at(volume, "nfs.readOnly").as_str() {
            "true" => format!("directory {path} of the server's machine, read-only"),
            _ => format!("directory {path} of the server's machine"),
        };
    }
    if volume["secret"].is_null() {
        match text_at(volume, "emptyDir.sizeLimit") {
            none if none.is_empty() => "in memory, counted in the instance's limit".to_owned(),
            limit => format!("in memory, at most {limit}, counted in the instance's limit"),
        }
    } else {
        format!("secret {}", text_at(volume, "secret.secret"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn probes_say_what_they_ask_and_how_often() {
        let container = json!({
            "livenessProbe": {"httpGet": {"path": "/live", "port": 9000}, "initialDelaySeconds": 5, "periodSeconds": 3, "failureThreshold": 1},
            "readinessProbe": {"grpc": {"service": "s"}},
        });
        assert_eq!(
            probes(&container, "8080", true),
            [
                ("Startup probe:", "TCP on port 8080, within 240s (default)".to_owned()),
                (
                    "Liveness probe:",
                    "GET /live on port 9000, first after 5s, every 3s, up to 1s each, 1 failure in a row counts".to_owned()
                ),
                (
                    "Readiness probe:",
                    "gRPC health check of s on port 8080, every 10s, up to 1s each, 3 failures in a row count".to_owned()
                ),
            ]
        );
        let tcp = json!({"startupProbe": {"tcpSocket": {}, "timeoutSeconds": 240, "periodSeconds": 240, "failureThreshold": 1}});
        assert!(
            probes(&tcp, "80", false)[0]
                .1
                .starts_with("TCP on port 80, every 240s")
        );
        let template = |container: &Value| probe_limit(&json!({"containers": [container]}));
        assert_eq!(template(&container), Some(240));
        assert_eq!(template(&tcp), Some(240));
        let often = json!({"startupProbe": {"initialDelaySeconds": 5, "periodSeconds": 2, "failureThreshold": 10}});
        assert_eq!(template(&often), Some(25));
        let unchecked = json!({"healthCheckDisabled": true, "containers": [{}]});
        assert_eq!(probe_limit(&unchecked), None);
        let none = probes(&json!({}), "80", false);
        assert_eq!(none[0].1, "none: the health check is disabled");
    }

    #[test]
    fn volumes_are_shown_where_they_are_mounted() {
        let template = json!({"volumes": [
            {"name": "scratch", "emptyDir": {"medium": "MEMORY", "sizeLimit": "64Mi"}},
            {"name": "key", "secret": {"secret": "api-key"}},
            {"name": "data", "nfs": {"server": "", "path": "/srv/data", "readOnly": true}},
            {"name": "work", "nfs": {"server": "", "path": "/srv/work"}},
        ]});
        let container = json!({"volumeMounts": [
            {"name": "scratch", "mountPath": "/cache"},
            {"name": "key", "mountPath": "/key"},
            {"name": "data", "mountPath": "/data"},
            {"name": "work", "mountPath": "/work"},
        ]});
        let shown = volumes(&container, &template);
        assert_eq!(shown[0].0, "/cache");
        assert!(shown[0].1.starts_with("scratch: in memory, at most 64Mi"));
        assert_eq!(shown[1].1, "key: secret api-key");
        let of = "of the server's machine";
        assert_eq!(
            shown[2].1,
            format!("data: directory /srv/data {of}, read-only")
        );
        assert_eq!(shown[3].1, format!("work: directory /srv/work {of}"));
    }
}
