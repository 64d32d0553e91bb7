//! One row per rule: what is changed on a good service, and what must be said about it.

use super::*;
use crate::service::*;
use crate::{ServiceKey, Timestamp};

fn good() -> Service {
    Service {
        key: "demo/us-central1/hello"
            .parse::<ServiceKey>()
            .expect("a key"),
        meta: Meta::default(),
        spec: ServiceSpec {
            template: RevisionTemplate {
                containers: vec![Container {
                    image: "gcr.io/cloudrun/hello".to_owned(),
                    ..Container::default()
                }],
                ..RevisionTemplate::default()
            },
            ..ServiceSpec::default()
        },
        status: ServiceStatus::default(),
    }
}

fn revision_named(name: &str) -> Revision {
    Revision {
        key: crate::RevisionKey {
            service: good().key,
            revision: name.parse().expect("a name"),
        },
        meta: Meta {
            create_time: Timestamp(1),
            ..Meta::default()
        },
        service_generation: 1,
        service_uid: String::new(),
        template: good().spec.template,
        status: crate::revision::RevisionStatus::default(),
    }
}

fn said(service: &Service, context: &Context<'_>) -> Vec<String> {
    validate(service, context)
        .0
        .into_iter()
        .map(|v| format!("{}: {}", v.field, v.description))
        .collect()
}

type Change = fn(&mut Service);

#[track_caller]
fn refused(rows: &[(&str, Change)]) {
    for (expected, change) in rows {
        let mut service = good();
        change(&mut service);
        let found = said(&service, &Context::default());
        assert!(
            found.iter().any(|f| f.starts_with(expected)),
            "expected {expected:?} in {found:#?}"
        );
    }
}

#[track_caller]
fn accepted(rows: &[Change]) {
    for (index, change) in rows.iter().enumerate() {
        let mut service = good();
        change(&mut service);
        assert_eq!(
            said(&service, &Context::default()),
            Vec::<String>::new(),
            "row {index}"
        );
    }
}

fn container(service: &mut Service) -> &mut Container {
    &mut service.spec.template.containers[0]
}

fn note(service: &mut Service, name: &str, value: &str) {
    service
        .spec
        .template
        .annotations
        .insert(format!("autoscaling.knative.dev/{name}"), value.to_owned());
}

fn limit(service: &mut Service, name: &str, value: &str) {
    container(service)
        .limits
        .insert(name.to_owned(), value.to_owned());
}

fn target(revision: Option<&str>, percent: Option<u32>, tag: Option<&str>) -> TrafficTarget {
    TrafficTarget {
        revision: revision.map(|r| r.parse().expect("a name")),
        latest: revision.is_none(),
        percent,
        tag: tag.map(ToOwned::to_owned),
    }
}

#[test]
fn a_plain_service_is_fine() {
    accepted(&[
        |_| {},
        |s| {
            s.spec.traffic = vec![
                target(None, Some(100), None),
                target(None, None, Some("blue")),
            ]
        },
        |s| limit(s, "cpu", "0.5"),
        |s| {
            limit(s, "cpu", "4");
            limit(s, "memory", "16Gi");
        },
        |s| note(s, "window", "6s"),
        |s| note(s, "target-burst-capacity", "-1"),
        |s| note(s, "something-new", "kept as written"),
        |s| {
            s.spec.template.annotations.extend([(
                "run.googleapis.com/vpc-access-egress".to_owned(),
                String::new(),
            )])
        },
        |s| {
            s.meta.labels.extend([(
                "run.googleapis.com/startupProbeType".to_owned(),
                "Default".to_owned(),
            )])
        },
        |s| {
            container(s).ports = vec![ContainerPort {
                name: "http1".to_owned(),
                container_port: 9092,
            }]
        },
        |s| s.spec.template.revision = Some("hello-blue".parse().expect("ok")),
        |s| s.spec.template.timeout_secs = Some(3600),
        |s| container(s).image = format!("localhost:5000/a/b__c:1.0@sha256:{}", "ab".repeat(32)),
    ]);
}

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
        ("template.containers[1]: more than one container", |s| {
            let second = container(s).clone();
            s.spec.template.containers.push(second);
        }),
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
fn counts_times_and_annotations() {
    refused(&[
        (
            "template.maxInstanceRequestConcurrency: expected 0 <= 1001 <= 1000",
            |s| s.spec.template.concurrency = Some(1001),
        ),
        ("template.timeout: expected 0 <= 3601 <= 3600", |s| {
            s.spec.template.timeout_secs = Some(3601)
        }),
        (
            "template.scaling.maxInstanceCount: max-scale=1 is less than min-scale=2",
            |s| {
                s.spec.template.min_instances = Some(2);
                s.spec.template.max_instances = Some(1);
            },
        ),
        (
            "template.scaling.maxInstanceCount: max-scale=1 is less than initial-scale=2",
            |s| {
                s.spec.template.max_instances = Some(1);
                note(s, "initial-scale", "2");
            },
        ),
        (
            "template.scaling.minInstanceCount: max-scale=100, the default, is less than min-scale=150",
            |s| s.spec.template.min_instances = Some(150),
        ),
        (
            "template.scaling.minInstanceCount: max-scale=100, the default, is less than min-scale=101",
            |s| note(s, "minScale", "101"),
        ),
        (
            "template.annotations[autoscaling.knative.dev/initial-scale]: max-scale=100, the default, is less",
            |s| note(s, "initial-scale", "101"),
        ),
        (
            "scaling.minInstanceCount: min-scale=150 with 100 % of the traffic is 150 instances",
            |s| s.spec.scaling.min = Some(150),
        ),
        (
            "scaling.maxInstanceCount: max-scale=1 is less than min-scale=2",
            |s| {
                s.spec.scaling.min = Some(2);
                s.spec.scaling.max = Some(1);
            },
        ),
        ("scaling.manualInstanceCount: is required", |s| {
            s.spec.scaling.mode = ScalingMode::Manual
        }),
        ("scaling.manualInstanceCount: may be set only", |s| {
            s.spec.scaling.manual = Some(1)
        }),
        (
            "annotations[autoscaling.knative.dev/window]: autoscaling annotations must be put under",
            |s| {
                s.meta
                    .annotations
                    .insert("autoscaling.knative.dev/window".to_owned(), "6s".to_owned());
            },
        ),
        (
            "annotations[run.googleapis.com/iap-enabled]: run.googleapis.com/iap-enabled is not built",
            |s| {
                s.meta.annotations.insert(
                    "run.googleapis.com/iap-enabled".to_owned(),
                    "true".to_owned(),
                );
            },
        ),
        (
            "template.annotations[run.googleapis.com/cloudsql-instances]:",
            |s| {
                s.spec.template.annotations.insert(
                    "run.googleapis.com/cloudsql-instances".to_owned(),
                    "a:b:c".to_owned(),
                );
            },
        ),
        ("template.nodeSelector: accelerators", |s| {
            s.spec.template.node_selector.insert(
                "run.googleapis.com/accelerator".to_owned(),
                "nvidia-l4".to_owned(),
            );
        }),
    ]);
    accepted(&[
        |s| s.spec.template.min_instances = Some(100),
        |s| {
            s.spec.template.min_instances = Some(150);
            s.spec.template.max_instances = Some(150);
        },
        // Unlimited, as Knative writes it.
        |s| {
            note(s, "min-scale", "150");
            note(s, "max-scale", "0");
        },
        |s| {
            s.spec.scaling.min = Some(150);
            s.spec.template.max_instances = Some(150);
        },
    ]);
    for (name, value, expected) in [
        ("window", "5s", "expected 6s <= 5s <= 1h"),
        ("window", "61m", "expected 6s <= 61m <= 1h"),
        (
            "window",
            "6500ms",
            "invalid value: \"6500ms\": must be whole seconds",
        ),
        ("window", "soon", "invalid duration \"soon\""),
        ("target", "0", "expected 0.01 <= 0"),
        ("target", "x", "invalid value: \"x\" is not a number"),
        (
            "target-utilization-percentage",
            "101",
            "expected 1 <= 101 <= 100",
        ),
        ("target-burst-capacity", "-2", "invalid value"),
        ("panic-window-percentage", "0", "expected 1 <= 0 <= 100"),
        (
            "panic-threshold-percentage",
            "100",
            "expected 110 <= 100 <= 1000",
        ),
        ("activation-scale", "1", "expected 2 <= 1"),
        ("initial-scale", "-1", "expected 1 <= -1"),
        ("initial-scale", "0", "expected 1 <= 0"),
        ("scale-down-delay", "2h", "expected 0s <= 2h <= 1h"),
        (
            "scale-to-zero-pod-retention-period",
            "-1s",
            "invalid duration",
        ),
        (
            "class",
            "hpa.autoscaling.knative.dev",
            "the class hpa.autoscaling.knative.dev is not built",
        ),
        ("class", "mine", "invalid value"),
        ("metric", "cpu", "metric \"cpu\" needs"),
        ("metric", "luck", "invalid value"),
    ] {
        let mut service = good();
        note(&mut service, name, value);
        let found = said(&service, &Context::default());
        let expected = format!("template.annotations[autoscaling.knative.dev/{name}]: {expected}");
        assert!(
            found.len() == 1 && found[0].starts_with(&expected),
            "expected {expected:?}, found {found:?}"
        );
    }
}

#[test]
fn traffic() {
    refused(&[
        ("traffic: Traffic targets sum to 90, want 100", |s| {
            s.spec.traffic = vec![target(None, Some(90), None)]
        }),
        ("traffic: Traffic targets sum to 0, want 100", |s| {
            s.spec.traffic = vec![target(None, None, Some("a"))]
        }),
        ("traffic[0].percent: expected 0 <= 101 <= 100", |s| {
            s.spec.traffic = vec![target(None, Some(101), None)]
        }),
        (
            "traffic[0].revision: may not set revisionName \"hello-x\" when latestRevision is true",
            |s| {
                s.spec.traffic = vec![TrafficTarget {
                    latest: true,
                    ..target(Some("hello-x"), Some(100), None)
                }];
            },
        ),
        ("traffic[0].revision: missing", |s| {
            s.spec.traffic = vec![TrafficTarget {
                latest: false,
                ..target(None, Some(100), None)
            }];
        }),
        (
            "traffic[0].revision: Revision \"hello-x\" referenced in traffic not found",
            |s| {
                s.spec.traffic = vec![target(Some("hello-x"), Some(100), None)];
            },
        ),
        ("traffic[0].tag: not a DNS 1035 label", |s| {
            s.spec.traffic = vec![target(None, Some(100), Some("Blue"))]
        }),
        ("traffic[0].tag: tag and service name may have 46", |s| {
            s.spec.traffic = vec![target(None, Some(100), Some(&"t".repeat(42)))];
        }),
        ("traffic[2].tag: Multiple definitions for \"a\"", |s| {
            s.spec.traffic = vec![
                target(None, Some(50), Some("a")),
                target(None, Some(50), None),
                target(None, None, Some("a")),
            ];
        }),
    ]);
    let mut service = good();
    service.spec.traffic = vec![target(Some("hello-x"), Some(100), None)];
    let known = [revision_named("hello-x")];
    assert!(
        said(
            &service,
            &Context {
                old: None,
                revisions: &known
            }
        )
        .is_empty()
    );
    let mut going = known;
    going[0].meta.delete_time = Some(Timestamp(2));
    assert_eq!(
        said(
            &service,
            &Context {
                old: None,
                revisions: &going
            }
        )
        .len(),
        1,
        "one that is being deleted can't be routed"
    );
    // gcloud deploy --tag names the revision that the same request makes.
    service.spec.template.revision = Some("hello-x".parse().expect("ok"));
    assert!(said(&service, &Context::default()).is_empty());
}

#[test]
fn a_named_revision_changes_only_with_its_name() {
    let mut old = good();
    old.spec.template.revision = Some("hello-a".parse().expect("ok"));
    let mut new = old.clone();
    let context = Context {
        old: Some(&old),
        revisions: &[],
    };
    new.spec.template.concurrency = Some(80);
    assert!(
        said(&new, &context).is_empty(),
        "writing a default out is no change"
    );
    new.spec.template.concurrency = Some(2);
    let found = said(&new, &context);
    assert!(
        found[0].starts_with(
            "template.revision: Saw the following changes without a name change: concurrency."
        ),
        "{found:?}"
    );
    new.spec.template.revision = Some("hello-b".parse().expect("ok"));
    assert!(said(&new, &context).is_empty());
    let taken = [revision_named("hello-b")];
    let context = Context {
        old: Some(&old),
        revisions: &taken,
    };
    let found = said(&new, &context);
    assert!(
        found[0].contains("Revision named 'hello-b' with different configuration already exists."),
        "{found:?}"
    );
    new.spec.template.concurrency = None;
    assert!(
        said(&new, &context).is_empty(),
        "the same configuration under its old name is a way back"
    );
}

#[test]
fn volumes_and_probes() {
    fn volume(name: &str) -> Volume {
        Volume {
            name: name.to_owned(),
            source: VolumeSource::EmptyDir { size_limit: None },
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
            action,
        }
    }
    refused(&[
        (
            "template.volumes[0].name: volume with name \"v\" not mounted",
            |s| s.spec.template.volumes = vec![volume("v")],
        ),
        ("template.volumes[0].emptyDir: volumes are not built", |s| {
            s.spec.template.volumes = vec![volume("v")]
        }),
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
            "template.containers[0].livenessProbe: liveness probes are not built",
            |s| {
                container(s).liveness_probe = Some(probe(ProbeAction::Tcp { port: None }));
            },
        ),
    ]);
    accepted(&[|s| {
        container(s).startup_probe = Some(Probe {
            initial_delay_secs: Some(240),
            failure_threshold: Some(24),
            ..probe(ProbeAction::Tcp { port: None })
        });
    }]);
}
