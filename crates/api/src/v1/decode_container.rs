//! From v1's JSON to the model: one container.

use utsuwa_model::service::{
    Container, ContainerPort, EnvValue, EnvVar, Probe, ProbeAction, VolumeMount,
};

use super::read::Object;

/// Reads one container.
pub(super) fn container(json: &Object<'_>) -> Container {
    let mut read = Container {
        name: json.text("name").unwrap_or_default(),
        image: json.text("image").unwrap_or_default(),
        command: json.texts("command"),
        args: json.texts("args"),
        working_dir: json.word("workingDir"),
        env: json.objects("env").iter().map(variable).collect(),
        ports: json.objects("ports").iter().map(port).collect(),
        volume_mounts: json.objects("volumeMounts").iter().map(mount).collect(),
        startup_probe: json.object("startupProbe").and_then(|p| probe(&p)),
        liveness_probe: json.object("livenessProbe").and_then(|p| probe(&p)),
        readiness_probe: json.object("readinessProbe").and_then(|p| probe(&p)),
        ..Container::default()
    };
    if let Some(resources) = json.object("resources") {
        read.limits = resources.map("limits");
        if !resources.map("requests").is_empty() {
            resources.wrong(
                "requests",
                "is not supported: write limits, which an instance gets whole",
            );
        }
        resources.forbid_rest();
    }
    // An image is resolved when its revision is made, whatever the policy says.
    json.allow(&["imagePullPolicy"]);
    json.forbid_rest();
    read
}

fn variable(json: &Object<'_>) -> EnvVar {
    let name = json.text("name").unwrap_or_default();
    let value = match json.object("valueFrom") {
        Some(from) => {
            let secret = from.object("secretKeyRef");
            if from.get("configMapKeyRef").is_some() {
                from.wrong(
                    "configMapKeyRef",
                    "is not supported: write the value, or name a secret",
                );
            } else if secret.is_none() {
                from.wrong("secretKeyRef", "missing: name a secret and its version");
            }
            from.allow(&["configMapKeyRef"]);
            from.forbid_rest();
            let part = |key| {
                secret
                    .as_ref()
                    .and_then(|s| s.text(key))
                    .unwrap_or_default()
            };
            EnvValue::Secret {
                secret: part("name"),
                version: part("key"),
            }
        }
        None => EnvValue::Literal(json.text("value").unwrap_or_default()),
    };
    json.allow(&["value"]);
    json.forbid_rest();
    EnvVar { name, value }
}

fn port(json: &Object<'_>) -> ContainerPort {
    if let Some(protocol) = json.word("protocol")
        && protocol != "TCP"
    {
        json.wrong("protocol", format!("must be TCP, not {protocol:?}"));
    }
    let read = ContainerPort {
        name: json.text("name").unwrap_or_default(),
        container_port: port_number(json, "containerPort").unwrap_or(0),
    };
    json.forbid_rest();
    read
}

/// 0 is left to validation, which knows where it means "the default".
fn port_number(json: &Object<'_>, key: &'static str) -> Option<u16> {
    let number = json.number(key, u32::MAX)?;
    let port = u16::try_from(number).ok();
    if port.is_none() {
        json.wrong(key, format!("expected 1 <= {number} <= 65535"));
    }
    port
}

fn mount(json: &Object<'_>) -> VolumeMount {
    let read = VolumeMount {
        name: json.text("name").unwrap_or_default(),
        mount_path: json.text("mountPath").unwrap_or_default(),
        sub_path: json.word("subPath"),
        read_only: json.flag("readOnly"),
    };
    json.forbid_rest();
    read
}

fn probe(json: &Object<'_>) -> Option<Probe> {
    let http = json.object("httpGet").map(|h| {
        let headers = h.objects("httpHeaders");
        let headers = headers.iter().map(|x| {
            (
                x.text("name").unwrap_or_default(),
                x.text("value").unwrap_or_default(),
            )
        });
        if let Some(scheme) = h.word("scheme")
            && !scheme.eq_ignore_ascii_case("HTTP")
        {
            h.wrong("scheme", "must be HTTP: instances are reached without TLS");
        }
        let read = ProbeAction::Http {
            path: h.text("path").unwrap_or_default(),
            port: port_number(&h, "port").filter(|p| *p > 0),
            headers: headers.collect(),
        };
        h.forbid_rest();
        read
    });
    let tcp = json.object("tcpSocket").map(|t| {
        let read = ProbeAction::Tcp {
            port: port_number(&t, "port").filter(|p| *p > 0),
        };
        t.forbid_rest();
        read
    });
    let grpc = json.object("grpc").map(|g| {
        let read = ProbeAction::Grpc {
            port: port_number(&g, "port").filter(|p| *p > 0),
            service: g.text("service").unwrap_or_default(),
        };
        g.forbid_rest();
        read
    });
    let success_threshold = json.number("successThreshold", u32::MAX);
    let times = (
        json.number("initialDelaySeconds", u32::MAX),
        json.number("timeoutSeconds", u32::MAX),
        json.number("periodSeconds", u32::MAX),
        json.number("failureThreshold", u32::MAX),
    );
    json.forbid_rest();
    let mut actions = [http, tcp, grpc].into_iter().flatten();
    match (actions.next(), actions.next()) {
        (Some(action), None) => Some(Probe {
            initial_delay_secs: times.0,
            timeout_secs: times.1,
            period_secs: times.2,
            failure_threshold: times.3,
            success_threshold,
            action,
        }),
        (None, _) => {
            json.wrong(
                "httpGet",
                "expected exactly one, got neither: httpGet, tcpSocket, grpc",
            );
            None
        }
        (Some(_), Some(_)) => {
            json.wrong(
                "httpGet",
                "expected exactly one, got several: httpGet, tcpSocket, grpc",
            );
            None
        }
    }
}
