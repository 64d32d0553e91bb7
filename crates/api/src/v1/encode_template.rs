//! From the model to v1's JSON: templates and containers. What is empty is left out; probes come with their defaults, since
//! `gcloud` prints absent ones as "Nones".

use serde_json::{Map, Value, json};
use utsuwa_model::host_dir::HOST;
use utsuwa_model::service::{
    Container, EnvValue, Probe, ProbeAction, RevisionTemplate, Volume, VolumeSource,
};

use super::annotation;

/// `spec.template` of a service.
pub(super) fn template(template: &RevisionTemplate) -> Value {
    let mut metadata = Fields::default();
    metadata.text("name", template.revision.as_ref().map(|r| r.as_str()));
    metadata.value("labels", json!(template.labels));
    metadata.value("annotations", json!(annotation::write_template(template)));
    json!({"metadata": metadata.0, "spec": revision_spec(template)})
}

/// `spec` of a revision or template.
pub(super) fn revision_spec(template: &RevisionTemplate) -> Value {
    let port = template.port();
    let mut spec = Fields::default();
    spec.number("containerConcurrency", template.concurrency);
    spec.number("timeoutSeconds", template.timeout_secs);
    spec.text("serviceAccountName", template.service_account.as_deref());
    spec.value("nodeSelector", json!(template.node_selector));
    spec.value(
        "containers",
        template
            .containers
            .iter()
            .map(|c| container(c, port))
            .collect(),
    );
    spec.value("volumes", template.volumes.iter().map(volume).collect());
    Value::Object(spec.0)
}

fn container(container: &Container, port: u16) -> Value {
    let mut out = Fields::default();
    out.text("name", Some(&container.name));
    out.text("image", Some(&container.image));
    out.value("command", json!(container.command));
    out.value("args", json!(container.args));
    out.text("workingDir", container.working_dir.as_deref());
    let env = container.env.iter().map(|variable| match &variable.value {
        EnvValue::Literal(value) => json!({"name": variable.name, "value": value}),
        EnvValue::Secret { secret, version } => {
            json!({"name": variable.name, "valueFrom": {"secretKeyRef": {"name": secret, "key": version}}})
        }
    });
    out.value("env", env.collect());
    if !container.limits.is_empty() {
        out.value("resources", json!({"limits": container.limits}));
    }
    let ports = container.ports.iter().map(|p| {
        let mut out = Fields::default();
        out.text("name", Some(&p.name));
        out.value("containerPort", json!(p.container_port));
        Value::Object(out.0)
    });
    out.value("ports", ports.collect());
    let mounts = container.volume_mounts.iter().map(|m| {
        let mut out = Fields::default();
        out.text("name", Some(&m.name));
        out.text("mountPath", Some(&m.mount_path));
        out.text("subPath", m.sub_path.as_deref());
        if let Some(read_only) = m.read_only {
            out.value("readOnly", json!(read_only));
        }
        Value::Object(out.0)
    });
    out.value("volumeMounts", mounts.collect());
    for (name, given) in [
        ("startupProbe", &container.startup_probe),
        ("livenessProbe", &container.liveness_probe),
        ("readinessProbe", &container.readiness_probe),
    ] {
        if let Some(given) = given {
            out.value(name, probe(&given.defaulted(port)));
        }
    }
    Value::Object(out.0)
}

fn probe(probe: &Probe) -> Value {
    let mut out = Fields::default();
    for (name, seconds) in [
        (
            "initialDelaySeconds",
            probe.initial_delay_secs.filter(|s| *s > 0),
        ),
        ("timeoutSeconds", probe.timeout_secs),
        ("periodSeconds", probe.period_secs),
        ("failureThreshold", probe.failure_threshold),
        ("successThreshold", probe.success_threshold),
    ] {
        out.number(name, seconds);
    }
    match &probe.action {
        ProbeAction::Tcp { port } => out.value("tcpSocket", json!({"port": port})),
        ProbeAction::Http {
            path,
            port,
            headers,
        } => {
            let mut http = Fields::default();
            http.value("path", json!(path));
            http.number("port", port.map(u32::from));
            http.value(
                "httpHeaders",
                headers
                    .iter()
                    .map(|(name, value)| json!({"name": name, "value": value}))
                    .collect(),
            );
            out.value("httpGet", Value::Object(http.0));
        }
        ProbeAction::Grpc { port, service } => {
            let mut grpc = Fields::default();
            grpc.number("port", port.map(u32::from));
            grpc.text("service", Some(service));
            out.0.insert("grpc".to_owned(), Value::Object(grpc.0));
        }
    }
    Value::Object(out.0)
}

fn volume(volume: &Volume) -> Value {
    let mut out = Fields::default();
    out.text("name", Some(&volume.name));
    match &volume.source {
        VolumeSource::EmptyDir { size_limit } => {
            let mut dir = Fields::default();
            dir.text("medium", Some("Memory"));
            dir.text("sizeLimit", size_limit.as_deref());
            out.value("emptyDir", Value::Object(dir.0));
        }
        VolumeSource::Secret {
            secret,
            items,
            default_mode,
        } => {
            let items = items.iter().map(|item| {
                let mut out = Fields::default();
                out.text("key", Some(&item.version));
                out.text("path", Some(&item.path));
                out.number("mode", item.mode);
                Value::Object(out.0)
            });
            let mut source = Fields::default();
            source.text("secretName", Some(secret));
            source.value("items", items.collect());
            source.number("defaultMode", *default_mode);
            out.value("secret", Value::Object(source.0));
        }
        VolumeSource::HostDir { path, read_only } => {
            let mut dir = Fields::default();
            let kind = match read_only {
                None => "hostPath",
                Some(_) => {
                    dir.text("server", Some(HOST));
                    "nfs"
                }
            };
            dir.text("path", Some(path));
            if *read_only == Some(true) {
                dir.0.insert("readOnly".to_owned(), Value::Bool(true));
            }
            out.value(kind, Value::Object(dir.0));
        }
    }
    Value::Object(out.0)
}

/// An object that keeps only what says something.
#[derive(Debug, Default)]
struct Fields(Map<String, Value>);

impl Fields {
    fn text(&mut self, name: &str, text: Option<&str>) {
        if let Some(text) = text.filter(|t| !t.is_empty()) {
            self.0.insert(name.to_owned(), text.into());
        }
    }

    fn number(&mut self, name: &str, number: Option<u32>) {
        if let Some(number) = number {
            self.0.insert(name.to_owned(), number.into());
        }
    }

    fn value(&mut self, name: &str, value: Value) {
        let empty = match &value {
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if !empty {
            self.0.insert(name.to_owned(), value);
        }
    }
}
