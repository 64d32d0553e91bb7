//! Containers, probes and volumes.

use utsuwa_model::host_dir::{HOST, ONLY_THIS_HOST};
use utsuwa_model::service as model;
use utsuwa_wire::google::cloud::run::v2;

use super::read::{Reader, given, number};

/// A container from the wire. Its CPU settings belong to the template: see `template`.
pub(super) fn read(mut at: Reader<'_>, wire: v2::Container) -> model::Container {
    at.not_built("baseImageUri", !wire.base_image_uri.is_empty());
    at.not_built("sourceCode", wire.source_code.is_some());
    let env = wire
        .env
        .into_iter()
        .enumerate()
        .map(|(i, e)| env(at.at(format_args!("env[{i}]")), e))
        .collect();
    let ports = wire
        .ports
        .into_iter()
        .enumerate()
        .map(|(i, p)| model::ContainerPort {
            container_port: at
                .at(format_args!("ports[{i}]"))
                .port("containerPort", p.container_port)
                .unwrap_or(0),
            name: p.name,
        })
        .collect();
    model::Container {
        env,
        ports,
        startup_probe: wire
            .startup_probe
            .and_then(|p| probe(at.at("startupProbe"), p)),
        liveness_probe: wire
            .liveness_probe
            .and_then(|p| probe(at.at("livenessProbe"), p)),
        readiness_probe: wire
            .readiness_probe
            .and_then(|p| probe(at.at("readinessProbe"), p)),
        name: wire.name,
        image: wire.image,
        command: wire.command,
        args: wire.args,
        working_dir: given(&wire.working_dir),
        limits: wire.resources.map(|r| r.limits).unwrap_or_default(),
        volume_mounts: wire
            .volume_mounts
            .into_iter()
            .map(|m| model::VolumeMount {
                name: m.name,
                mount_path: m.mount_path,
                sub_path: given(&m.sub_path),
                read_only: None,
            })
            .collect(),
        depends_on: wire.depends_on,
    }
}

fn env(mut at: Reader<'_>, wire: v2::EnvVar) -> model::EnvVar {
    let value = match wire.values {
        None => model::EnvValue::Literal(String::new()),
        Some(v2::env_var::Values::Value(text)) => model::EnvValue::Literal(text),
        Some(v2::env_var::Values::ValueSource(source)) => match source.secret_key_ref {
            Some(secret) => model::EnvValue::Secret {
                secret: secret.secret,
                version: secret.version,
            },
            None => {
                at.wrong("valueSource", "must name a secret in secretKeyRef");
                model::EnvValue::Literal(String::new())
            }
        },
    };
    model::EnvVar {
        name: wire.name,
        value,
    }
}

fn probe(mut at: Reader<'_>, wire: v2::Probe) -> Option<model::Probe> {
    use v2::probe::ProbeType;
    let action = match wire.probe_type {
        None => {
            at.wrong("", "must set exactly one of httpGet, tcpSocket and grpc");
            return None;
        }
        Some(ProbeType::HttpGet(http)) => model::ProbeAction::Http {
            port: at.at("httpGet").port("port", http.port),
            path: http.path,
            headers: http
                .http_headers
                .into_iter()
                .map(|h| (h.name, h.value))
                .collect(),
        },
        Some(ProbeType::TcpSocket(tcp)) => model::ProbeAction::Tcp {
            port: at.at("tcpSocket").port("port", tcp.port),
        },
        Some(ProbeType::Grpc(grpc)) => model::ProbeAction::Grpc {
            port: at.at("grpc").port("port", grpc.port),
            service: grpc.service,
        },
    };
    Some(model::Probe {
        initial_delay_secs: at.count("initialDelaySeconds", wire.initial_delay_seconds),
        timeout_secs: at.count("timeoutSeconds", wire.timeout_seconds),
        period_secs: at.count("periodSeconds", wire.period_seconds),
        failure_threshold: at.count("failureThreshold", wire.failure_threshold),
        // v2 has no field for it.
        success_threshold: None,
        action,
    })
}

/// A volume from the wire; `None` for a kind that isn't built.
pub(super) fn volume(mut at: Reader<'_>, wire: v2::Volume) -> Option<model::Volume> {
    use v2::volume::VolumeType;
    let source = match wire.volume_type {
        None => {
            at.wrong("", "must set exactly one of secret and emptyDir");
            return None;
        }
        Some(VolumeType::EmptyDir(empty)) => {
            if v2::empty_dir_volume_source::Medium::try_from(empty.medium).is_err() {
                let mut at = at.at("emptyDir");
                at.wrong(
                    "medium",
                    format!(
                        "{} is not built in this server yet: write MEMORY",
                        empty.medium
                    ),
                );
            }
            model::VolumeSource::EmptyDir {
                size_limit: given(&empty.size_limit),
            }
        }
        Some(VolumeType::Secret(secret)) => model::VolumeSource::Secret {
            default_mode: at.at("secret").count("defaultMode", secret.default_mode),
            items: secret
                .items
                .into_iter()
                .enumerate()
                .map(|(i, item)| model::SecretItem {
                    mode: at
                        .at(format_args!("secret.items[{i}]"))
                        .count("mode", item.mode),
                    version: item.version,
                    path: item.path,
                })
                .collect(),
            secret: secret.secret,
        },
        Some(VolumeType::CloudSqlInstance(_)) => return refuse(&mut at, "cloudSqlInstance"),
        Some(VolumeType::Nfs(nfs)) => {
            if nfs.server != HOST {
                let mut at = at.at("nfs");
                at.wrong("server", ONLY_THIS_HOST);
            }
            model::VolumeSource::HostDir {
                path: nfs.path,
                read_only: Some(nfs.read_only),
            }
        }
        Some(VolumeType::Gcs(_)) => return refuse(&mut at, "gcs"),
    };
    Some(model::Volume {
        name: wire.name,
        source,
    })
}

fn refuse(at: &mut Reader<'_>, kind: &str) -> Option<model::Volume> {
    at.not_built(kind, true);
    None
}

/// A container for the wire. `resources` are given for the containers that have any.
pub(super) fn write(
    container: &model::Container,
    resources: Option<v2::ResourceRequirements>,
) -> v2::Container {
    v2::Container {
        name: container.name.clone(),
        image: container.image.clone(),
        command: container.command.clone(),
        args: container.args.clone(),
        env: container.env.iter().map(write_env).collect(),
        resources,
        ports: container
            .ports
            .iter()
            .map(|p| v2::ContainerPort {
                name: p.name.clone(),
                container_port: i32::from(p.container_port),
            })
            .collect(),
        volume_mounts: container
            .volume_mounts
            .iter()
            .map(|m| v2::VolumeMount {
                name: m.name.clone(),
                mount_path: m.mount_path.clone(),
                sub_path: m.sub_path.clone().unwrap_or_default(),
            })
            .collect(),
        working_dir: container.working_dir.clone().unwrap_or_default(),
        liveness_probe: container.liveness_probe.as_ref().map(write_probe),
        startup_probe: container.startup_probe.as_ref().map(write_probe),
        readiness_probe: container.readiness_probe.as_ref().map(write_probe),
        depends_on: container.depends_on.clone(),
        ..v2::Container::default()
    }
}

fn write_env(env: &model::EnvVar) -> v2::EnvVar {
    use v2::env_var::Values;
    let values = match &env.value {
        model::EnvValue::Literal(text) => Values::Value(text.clone()),
        model::EnvValue::Secret { secret, version } => Values::ValueSource(v2::EnvVarSource {
            secret_key_ref: Some(v2::SecretKeySelector {
                secret: secret.clone(),
                version: version.clone(),
            }),
        }),
    };
    v2::EnvVar {
        name: env.name.clone(),
        values: Some(values),
    }
}

fn write_probe(probe: &model::Probe) -> v2::Probe {
    use v2::probe::ProbeType;
    let port = |p: &Option<u16>| p.map_or(0, i32::from);
    let action = match &probe.action {
        model::ProbeAction::Tcp { port: p } => {
            ProbeType::TcpSocket(v2::TcpSocketAction { port: port(p) })
        }
        model::ProbeAction::Http {
            path,
            port: p,
            headers,
        } => ProbeType::HttpGet(v2::HttpGetAction {
            path: path.clone(),
            port: port(p),
            http_headers: headers
                .iter()
                .map(|(name, value)| v2::HttpHeader {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
        }),
        model::ProbeAction::Grpc { port: p, service } => ProbeType::Grpc(v2::GrpcAction {
            port: port(p),
            service: service.clone(),
        }),
    };
    v2::Probe {
        initial_delay_seconds: number(probe.initial_delay_secs),
        timeout_seconds: number(probe.timeout_secs),
        period_seconds: number(probe.period_secs),
        failure_threshold: number(probe.failure_threshold),
        probe_type: Some(action),
    }
}

/// A volume for the wire. Our empty directories are always in memory.
pub(super) fn write_volume(volume: &model::Volume) -> v2::Volume {
    use v2::volume::VolumeType;
    let kind = match &volume.source {
        model::VolumeSource::EmptyDir { size_limit } => {
            VolumeType::EmptyDir(v2::EmptyDirVolumeSource {
                medium: v2::empty_dir_volume_source::Medium::Memory.into(),
                size_limit: size_limit.clone().unwrap_or_default(),
            })
        }
        model::VolumeSource::Secret {
            secret,
            items,
            default_mode,
        } => VolumeType::Secret(v2::SecretVolumeSource {
            secret: secret.clone(),
            items: items
                .iter()
                .map(|i| v2::VersionToPath {
                    path: i.path.clone(),
                    version: i.version.clone(),
                    mode: number(i.mode),
                })
                .collect(),
            default_mode: number(*default_mode),
        }),
        model::VolumeSource::HostDir { path, read_only } => VolumeType::Nfs(v2::NfsVolumeSource {
            server: HOST.to_owned(),
            path: path.clone(),
            read_only: *read_only == Some(true),
        }),
    };
    v2::Volume {
        name: volume.name.clone(),
        volume_type: Some(kind),
    }
}
