//! Rules of a container.

use super::*;

#[test]
fn names_ports_and_images() {
    refused(&[
        (
            "template.revision: \"other-1\" must have prefix \"hello-\"",
            |s| {
                s.spec.template.revision = Some("other-1".parse().expect("ok"));
            },
        ),
        ("template.containers: missing", |s| {
            s.spec.template.containers.clear()
        }),
        ("template.containers[0].image: missing", |s| {
            container(s).image.clear()
        }),
        (
            "template.containers[0].image: Failed to parse image reference: \"Hello\"",
            |s| container(s).image = "Hello".to_owned(),
        ),
        ("template.containers[0].image: Failed", |s| {
            container(s).image = "a b".to_owned()
        }),
        ("template.containers[0].image: Failed", |s| {
            container(s).image = "a@sha256:12".to_owned()
        }),
        ("template.containers[0].image: Failed", |s| {
            container(s).image = "oci:/tmp/x".to_owned()
        }),
        ("template.containers[0].image: Failed", |s| {
            container(s).image = "https://gcr.io/x".to_owned()
        }),
        (
            "template.containers[0].name: \"queue-proxy\" is a reserved",
            |s| container(s).name = "queue-proxy".to_owned(),
        ),
        ("template.containers[0].name: not a DNS 1035 label", |s| {
            container(s).name = "A".to_owned()
        }),
        (
            "template.containers[0].ports[0].containerPort: expected 1 <= 0 <= 65535",
            |s| {
                container(s).ports = vec![ContainerPort {
                    name: String::new(),
                    container_port: 0,
                }];
            },
        ),
        (
            "template.containers[0].ports[0].containerPort: 8012 is a reserved port (8008, 8012, ",
            |s| {
                container(s).ports = vec![ContainerPort {
                    name: String::new(),
                    container_port: 8012,
                }];
            },
        ),
        (
            "template.containers[0].ports[0].containerPort: 9090 is a reserved port",
            |s| {
                container(s).ports = vec![ContainerPort {
                    name: "h2c".to_owned(),
                    container_port: 9090,
                }];
            },
        ),
        ("template.containers[0].ports[0].name: invalid value", |s| {
            container(s).ports = vec![ContainerPort {
                name: "grpc".to_owned(),
                container_port: 1,
            }];
        }),
        (
            "template.containers[0].ports: more than one container port is set",
            |s| {
                let port = ContainerPort {
                    name: String::new(),
                    container_port: 1,
                };
                container(s).ports = vec![port.clone(), port];
            },
        ),
        ("template.containers[0].workingDir: \"srv\"", |s| {
            container(s).working_dir = Some("srv".to_owned())
        }),
        ("description: must be at most 512", |s| {
            s.spec.description = "x".repeat(513)
        }),
        ("launchStage: \"SOON\"", |s| {
            s.spec.launch_stage = "SOON".to_owned()
        }),
        ("labels[a b]: the key", |s| {
            drop(s.meta.labels.insert("a b".to_owned(), String::new()))
        }),
        ("labels[Team]: only lower-case letters", |s| {
            drop(s.meta.labels.insert("Team".to_owned(), "x".to_owned()))
        }),
        ("template.labels[teamX]: only lower-case letters", |s| {
            let labels = &mut s.spec.template.labels;
            drop(labels.insert("teamX".to_owned(), "x".to_owned()))
        }),
        ("template.labels[a]: the value", |s| {
            drop(
                s.spec
                    .template
                    .labels
                    .insert("a".to_owned(), "ü".to_owned()),
            )
        }),
    ]);
}

#[test]
fn environment() {
    fn literal(name: &str, value: &str) -> EnvVar {
        EnvVar {
            name: name.to_owned(),
            value: EnvValue::Literal(value.to_owned()),
        }
    }
    refused(&[
        (
            "template.containers[0].env: The following reserved env names were provided: PORT, K_SERVICE. These values are automatically",
            |s| container(s).env = vec![literal("K_SERVICE", "x"), literal("PORT", "1")],
        ),
        ("template.containers[0].env[0].name: missing", |s| {
            container(s).env = vec![literal("", "x")]
        }),
        ("template.containers[0].env[0].name: must be", |s| {
            container(s).env = vec![literal("a=b", "x")]
        }),
        ("template.containers[0].env[0].value: must be", |s| {
            container(s).env = vec![literal("a", &"x".repeat(32_769))]
        }),
        ("template.containers[0].env: at most 1000", |s| {
            container(s).env = vec![literal("a", "x"); 1001]
        }),
        (
            "template.containers[0].env[0].valueSource.secretKeyRef: secrets are not built",
            |s| {
                let value = EnvValue::Secret {
                    secret: "s".to_owned(),
                    version: "latest".to_owned(),
                };
                container(s).env = vec![EnvVar {
                    name: "A".to_owned(),
                    value,
                }];
            },
        ),
    ]);
}

#[test]
fn cpu_and_memory() {
    refused(&[
        (
            "template.containers[0].resources.limits.cpu: Invalid value",
            |s| limit(s, "cpu", "3"),
        ),
        (
            "template.containers[0].resources.limits.cpu: Invalid value",
            |s| limit(s, "cpu", "0.07"),
        ),
        (
            "template.containers[0].resources.limits.cpu: Invalid value",
            |s| limit(s, "cpu", "many"),
        ),
        (
            "template.containers[0].resources.limits.memory: Invalid value",
            |s| limit(s, "memory", "127Mi"),
        ),
        (
            "template.containers[0].resources.limits.memory: Invalid value",
            |s| limit(s, "memory", "33Gi"),
        ),
        (
            "template.containers[0].resources.limits.memory: Invalid value",
            |s| limit(s, "memory", "512MB"),
        ),
        (
            "template.containers[0].resources.limits.nvidia.com/gpu: accelerators (GPUs) are not built",
            |s| {
                limit(s, "nvidia.com/gpu", "1");
            },
        ),
        (
            "template.containers[0].resources.limits.disk: is not a resource",
            |s| limit(s, "disk", "1"),
        ),
        (
            "template.containers[0].resources.limits.cpu: Invalid value specified for cpu. Total cpu < 1 is not supported with concurrency > 1.",
            |s| {
                limit(s, "cpu", "0.5");
                s.spec.template.concurrency = Some(2);
            },
        ),
        (
            "template.containers[0].resources.limits.cpu: Invalid value specified for cpu. Memory above 4Gi",
            |s| {
                limit(s, "memory", "5Gi");
            },
        ),
        (
            "template.containers[0].resources.limits.memory: Invalid value specified for memory. 4 CPU",
            |s| {
                limit(s, "cpu", "4");
            },
        ),
        (
            "template.containers[0].resources.limits.memory: Invalid value specified for memory. Total memory < 512 Mi is not supported with gen2",
            |s| {
                limit(s, "memory", "256Mi");
                s.spec.template.execution_environment = Some(ExecutionEnvironment::Gen2);
            },
        ),
    ]);
    // Decision 21: rules of the generations apply only where one is asked for.
    accepted(&[|s| limit(s, "memory", "256Mi")]);
}

#[test]
fn volumes_and_probes() {
    fn volume(name: &str) -> Volume {
        Volume {
            name: name.to_owned(),
            source: VolumeSource::EmptyDir { size_limit: None },
        }
    }
    fn sized(name: &str, limit: &str) -> Volume {
        Volume {
            name: name.to_owned(),
            source: VolumeSource::EmptyDir {
                size_limit: Some(limit.to_owned()),
            },
        }
    }
    fn mount(name: &str, path: &str) -> VolumeMount {
        VolumeMount {
            name: name.to_owned(),
            mount_path: path.to_owned(),
            sub_path: None,
            read_only: None,
        }
    }
    fn probe(action: ProbeAction) -> Probe {
        Probe {
            initial_delay_secs: None,
            timeout_secs: None,
            period_secs: None,
            failure_threshold: None,
            success_threshold: None,
            action,
        }
    }
    fn get(path: &str) -> ProbeAction {
        ProbeAction::Http {
            path: path.to_owned(),
            port: None,
            headers: Vec::new(),
        }
    }
    refused(&[
        (
            "template.volumes[0].name: volume with name \"v\" not mounted",
            |s| s.spec.template.volumes = vec![volume("v")],
        ),
        (
            "template.volumes[0].emptyDir.sizeLimit: \"0\" leaves no room",
            |s| {
                s.spec.template.volumes = vec![sized("v", "0")];
            },
        ),
        (
            "template.volumes[0].emptyDir.sizeLimit: \"much\" is not a quantity",
            |s| {
                s.spec.template.volumes = vec![sized("v", "much")];
            },
        ),
        (
            "template.containers[0].volumeMounts[0].subPath: \"../x\" must be a path inside",
            |s| {
                let mut sub = mount("v", "/v");
                sub.sub_path = Some("../x".to_owned());
                container(s).volume_mounts = vec![sub];
            },
        ),
        (
            "template.containers[0].volumeMounts[0].mountPath: mountPath \"//./proc/self\" is a reserved path",
            |s| {
                container(s).volume_mounts = vec![mount("v", "//./proc/self")];
            },
        ),
        (
            "template.containers[0].volumeMounts[0].mountPath: mountPath \"/./\" is a reserved path",
            |s| {
                container(s).volume_mounts = vec![mount("v", "/./")];
            },
        ),
        (
            "template.containers[0].volumeMounts[0].mountPath: invalid value: \"/a/../proc\"",
            |s| {
                container(s).volume_mounts = vec![mount("v", "/a/../proc")];
            },
        ),
        (
            "template.containers[0].volumeMounts[0].mountPath: must be at most 1024 bytes",
            |s| {
                container(s).volume_mounts = vec![mount("v", &format!("/{}", "d/".repeat(2000)))];
            },
        ),
        (
            "template.containers[0].volumeMounts[1].mountPath: \"/v/./\" must be unique",
            |s| {
                container(s).volume_mounts = vec![mount("v", "/v"), mount("v", "/v/./")];
            },
        ),
        ("template.volumes[1].name: duplicate volume name", |s| {
            s.spec.template.volumes = vec![volume("v"), volume("v")]
        }),
        (
            "template.containers[0].volumeMounts[0].name: volumeMount has no matching volume",
            |s| {
                container(s).volume_mounts = vec![mount("v", "/v")];
            },
        ),
        (
            "template.containers[0].volumeMounts[0].mountPath: mountPath \"/dev/\" is a reserved path",
            |s| {
                container(s).volume_mounts = vec![mount("v", "/dev/")];
            },
        ),
        (
            "template.containers[0].volumeMounts[0].mountPath: invalid value: \"v\"",
            |s| {
                container(s).volume_mounts = vec![mount("v", "v")];
            },
        ),
        (
            "template.containers[0].volumeMounts[1].mountPath: \"/v/\" must be unique",
            |s| {
                container(s).volume_mounts = vec![mount("v", "/v"), mount("v", "/v/")];
            },
        ),
        (
            "template.containers[0].startupProbe.periodSeconds: expected 0 <= 241 <= 240",
            |s| {
                container(s).startup_probe = Some(Probe {
                    period_secs: Some(241),
                    ..probe(ProbeAction::Tcp { port: None })
                });
            },
        ),
        (
            "template.containers[0].startupProbe.timeoutSeconds: must not be longer than periodSeconds: 11 > 10",
            |s| {
                container(s).startup_probe = Some(Probe {
                    timeout_secs: Some(11),
                    ..probe(ProbeAction::Tcp { port: None })
                });
            },
        ),
        (
            "template.containers[0].startupProbe.failureThreshold: periodSeconds * failureThreshold must not exceed 240: 240 * 3",
            |s| {
                container(s).startup_probe = Some(Probe {
                    period_secs: Some(240),
                    ..probe(ProbeAction::Tcp { port: None })
                });
            },
        ),
        (
            "template.containers[0].startupProbe.failureThreshold: periodSeconds * failureThreshold must not exceed 240: 10 * 25",
            |s| {
                container(s).startup_probe = Some(Probe {
                    failure_threshold: Some(25),
                    ..probe(ProbeAction::Tcp { port: None })
                });
            },
        ),
        (
            "template.containers[0].startupProbe.httpGet.path: \"x\" must start",
            |s| {
                let action = ProbeAction::Http {
                    path: "x".to_owned(),
                    port: None,
                    headers: Vec::new(),
                };
                container(s).startup_probe = Some(probe(action));
            },
        ),
        (
            "template.containers[0].startupProbe.httpGet.path: \"/a b\" has characters that a URL can't have",
            |s| {
                container(s).startup_probe = Some(probe(get("/a b")));
            },
        ),
        (
            "template.containers[0].startupProbe.successThreshold: must be 1, not 2",
            |s| {
                container(s).startup_probe = Some(Probe {
                    success_threshold: Some(2),
                    ..probe(get("/"))
                });
            },
        ),
        (
            "template.containers[0].livenessProbe.tcpSocket: is for startup probes only",
            |s| {
                container(s).liveness_probe = Some(probe(ProbeAction::Tcp { port: None }));
            },
        ),
        (
            "template.containers[0].readinessProbe.tcpSocket: is for startup probes only",
            |s| {
                container(s).readiness_probe = Some(probe(ProbeAction::Tcp { port: None }));
            },
        ),
        (
            "template.containers[0].livenessProbe.periodSeconds: expected 0 <= 3601 <= 3600",
            |s| {
                container(s).liveness_probe = Some(Probe {
                    period_secs: Some(3601),
                    ..probe(get("/"))
                });
            },
        ),
        (
            "template.containers[0].readinessProbe.timeoutSeconds: must not be longer than periodSeconds: 4 > 3",
            |s| {
                container(s).readiness_probe = Some(Probe {
                    period_secs: Some(3),
                    timeout_secs: Some(4),
                    ..probe(get("/"))
                });
            },
        ),
        (
            "template.containers[0].livenessProbe.successThreshold: must be 1, not 2",
            |s| {
                container(s).liveness_probe = Some(Probe {
                    success_threshold: Some(2),
                    ..probe(get("/"))
                });
            },
        ),
        (
            "template.containers[0].readinessProbe.successThreshold: expected 0 <= 1001 <= 1000",
            |s| {
                container(s).readiness_probe = Some(Probe {
                    success_threshold: Some(1001),
                    ..probe(get("/"))
                });
            },
        ),
    ]);
    accepted(&[|s| {
        s.spec.template.volumes = vec![sized("v", "64Mi"), volume("w")];
        container(s).volume_mounts = vec![mount("v", "/cache"), mount("w", "/cache/deep")];
    }]);
    accepted(&[|s| {
        container(s).startup_probe = Some(Probe {
            initial_delay_secs: Some(240),
            failure_threshold: Some(24),
            ..probe(ProbeAction::Tcp { port: None })
        });
        container(s).liveness_probe = Some(Probe {
            initial_delay_secs: Some(3600),
            period_secs: Some(3600),
            ..probe(get("/live?deep=1"))
        });
        container(s).readiness_probe = Some(Probe {
            success_threshold: Some(3),
            ..probe(ProbeAction::Grpc {
                port: Some(9000),
                service: String::new(),
            })
        });
    }]);
}
