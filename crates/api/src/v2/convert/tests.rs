//! What a client writes it reads back.

use std::collections::BTreeMap;

use prost_reflect::DynamicMessage;
use serde_json::{Value, json};
use utsuwa_model::service as model;
use utsuwa_model::{Condition, ConditionState, Severity, Timestamp};
use utsuwa_wire::google::cloud::run::v2;
use utsuwa_wire::json::{self as wire_json, Style};

use super::*;

fn from_json(value: &Value) -> v2::Service {
    let descriptor = utsuwa_wire::pool()
        .get_message_by_name("google.cloud.run.v2.Service")
        .unwrap();
    wire_json::parse(&descriptor, value)
        .unwrap()
        .transcode_to()
        .unwrap()
}

fn to_json(wire: &v2::Service) -> Value {
    let descriptor = utsuwa_wire::pool()
        .get_message_by_name("google.cloud.run.v2.Service")
        .unwrap();
    let mut message = DynamicMessage::new(descriptor);
    message.transcode_from(wire).unwrap();
    wire_json::render(&message, Style::default()).unwrap()
}

fn with(draft: crate::intent::Draft) -> model::Service {
    model::Service {
        key: "demo/asia-northeast1/hello".parse().unwrap(),
        meta: model::Meta {
            labels: draft.labels,
            annotations: draft.annotations,
            client: draft.client,
            client_version: draft.client_version,
            ..model::Meta::default()
        },
        spec: draft.spec,
        status: model::ServiceStatus::default(),
    }
}

/// Every field that the model holds.
fn full() -> Value {
    json!({
        "description": "d", "labels": {"team": "x"}, "annotations": {"example.com/note": "n"},
        "client": "c", "clientVersion": "1", "ingress": "INGRESS_TRAFFIC_INTERNAL_ONLY", "launchStage": "BETA",
        "invokerIamDisabled": true, "defaultUriDisabled": true, "customAudiences": ["a"],
        "scaling": {"minInstanceCount": 1, "maxInstanceCount": 5, "scalingMode": "MANUAL", "manualInstanceCount": 0},
        "traffic": [
            {"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_LATEST", "percent": 100},
            {"type": "TRAFFIC_TARGET_ALLOCATION_TYPE_REVISION", "revision": "hello-1", "tag": "old"},
        ],
        "template": full_template(),
    })
}

fn full_template() -> Value {
    json!({
        "revision": "hello-2", "labels": {"tier": "web"}, "annotations": {"autoscaling.knative.dev/window": "6s"},
        "scaling": {"minInstanceCount": 1, "maxInstanceCount": 3}, "timeout": "60s", "serviceAccount": "sa@demo.iam",
        "executionEnvironment": "EXECUTION_ENVIRONMENT_GEN2", "maxInstanceRequestConcurrency": 10, "sessionAffinity": true,
        "healthCheckDisabled": true, "nodeSelector": {"accelerator": "nvidia-l4"},
        "containers": full_containers(),
        "volumes": [
            {"name": "tmp", "emptyDir": {"medium": "MEMORY", "sizeLimit": "1Mi"}},
            {"name": "cert", "secret": {"secret": "s", "items": [{"path": "p", "version": "1", "mode": 256}], "defaultMode": 292}},
        ],
    })
}

fn full_containers() -> Value {
    json!([
        {
            "name": "app", "image": "example.test/app", "command": ["/app"], "args": ["-v"], "workingDir": "/srv",
            "env": [
                {"name": "A", "value": "1"},
                {"name": "B", "valueSource": {"secretKeyRef": {"secret": "s", "version": "latest"}}},
            ],
            "resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "cpuIdle": true, "startupCpuBoost": true},
            "ports": [{"name": "h2c", "containerPort": 9000}], "dependsOn": ["side"],
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp", "subPath": "x"}],
            "startupProbe": {"tcpSocket": {"port": 9000}, "periodSeconds": 5, "timeoutSeconds": 4, "failureThreshold": 2, "initialDelaySeconds": 1},
            "livenessProbe": {"httpGet": {"path": "/live", "httpHeaders": [{"name": "x", "value": "y"}], "port": 9001}},
            "readinessProbe": {"grpc": {"port": 9002, "service": "s"}},
        },
        {"name": "side", "image": "example.test/side"},
    ])
}

#[test]
fn what_is_written_is_read_back() {
    let wanted = full();
    let read = to_json(&service(&with(draft(from_json(&wanted), None).unwrap())));
    for (field, value) in wanted.as_object().unwrap() {
        assert_eq!(&read[field], value, "{field}");
    }
}

#[test]
fn writing_back_what_was_read_changes_nothing() {
    for wanted in [
        full(),
        json!({"template": {"containers": [{"image": "x"}]}}),
    ] {
        let mut old = with(draft(from_json(&wanted), None).unwrap());
        // As v1 may have left it: things for which v2 has no field.
        old.meta
            .annotations
            .insert("run.googleapis.com/operation-id".to_owned(), "o".to_owned());
        old.spec
            .template
            .annotations
            .insert("run.googleapis.com/presets".to_owned(), "p".to_owned());
        old.spec.template.cpu_idle = None;
        old.spec
            .template
            .node_selector
            .insert("example.com/other".to_owned(), "o".to_owned());
        old.spec.traffic.push(model::TrafficTarget {
            latest: true,
            percent: Some(0),
            ..model::TrafficTarget::default()
        });
        let again = draft(service(&old), Some(&old)).unwrap();
        assert_eq!(again, crate::intent::Draft::of(&old));
    }
}

#[test]
fn a_v2_write_keeps_what_v2_does_not_show() {
    let mut old = with(
        draft(
            from_json(&json!({"template": {"containers": [{"image": "x"}]}})),
            None,
        )
        .unwrap(),
    );
    let hidden = BTreeMap::from([("run.googleapis.com/presets".to_owned(), "p".to_owned())]);
    old.spec.template.annotations = hidden.clone();
    old.meta.annotations = hidden.clone();
    assert!(to_json(&service(&old)).get("annotations").is_none());
    let new = draft(
        from_json(&json!({"template": {"containers": [{"image": "y"}]}})),
        Some(&old),
    )
    .unwrap();
    assert_eq!(
        (&new.spec.template.annotations, &new.annotations),
        (&hidden, &hidden)
    );
    assert_eq!(new.spec.template.containers[0].image, "y");
}

#[test]
fn all_problems_are_named_at_once() {
    let bad = json!({
        "iapEnabled": true, "buildConfig": {}, "labels": {"cloud.googleapis.com/location": "x"},
        "template": {
            "vpcAccess": {}, "encryptionKey": "k", "serviceMesh": {},
            "volumes": [{"name": "a", "gcs": {}}, {"name": "b", "nfs": {}}, {"name": "c", "cloudSqlInstance": {}}, {"name": "d"}],
            "containers": [{"image": "x", "sourceCode": {}, "baseImageUri": "b"}],
            "annotations": {"autoscaling.knative.dev/maxScale": "1"},
        },
    });
    let error = draft(from_json(&bad), None).unwrap_err();
    let fields: Vec<&str> = error.field_violations().map(|v| v.field.as_str()).collect();
    insta::assert_snapshot!(fields.join("\n"));
}

#[test]
fn conditions_speak_v2s_words() {
    let condition = |state, reason: &str, severity| Condition {
        kind: "Ready".to_owned(),
        state,
        reason: reason.to_owned(),
        message: "m".to_owned(),
        severity,
        last_transition: Timestamp(1),
    };
    use ConditionState::{False, True, Unknown};
    let table: Vec<String> = [
        (True, "Leftover", Severity::Error),
        (False, "ContainerMissing", Severity::Error),
        (False, "HealthCheckContainerError", Severity::Error),
        (False, "ExitCode1", Severity::Error),
        (False, "ProgressDeadlineExceeded", Severity::Error),
        (False, "RevisionFailed", Severity::Error),
        (False, "NoTraffic", Severity::Info),
        (Unknown, "Deploying", Severity::Error),
        (Unknown, "", Severity::Warning),
        (Unknown, "MinInstancesNotProvisioned", Severity::Warning),
    ]
    .into_iter()
    .map(|(state, reason, severity)| {
        let wire = super::condition::write(&condition(state, reason, severity));
        let reasons = match wire.reasons {
            None => "-",
            Some(v2::condition::Reasons::Reason(r)) => v2::condition::CommonReason::try_from(r)
                .unwrap()
                .as_str_name(),
            Some(v2::condition::Reasons::RevisionReason(r)) => {
                v2::condition::RevisionReason::try_from(r)
                    .unwrap()
                    .as_str_name()
            }
        };
        format!(
            "{state:?} {reason} {severity:?}: {} {} {reasons}",
            wire.state().as_str_name(),
            wire.severity().as_str_name()
        )
    })
    .collect();
    insta::assert_snapshot!(table.join("\n"));
}

#[test]
fn times_before_1970_and_after_are_whole() {
    for (micros, seconds, nanos) in [
        (0, 0, 0),
        (1, 0, 1000),
        (-1, -1, 999_999_000),
        (1_500_000, 1, 500_000_000),
    ] {
        let wire = timestamp(Timestamp(micros));
        assert_eq!((wire.seconds, wire.nanos), (seconds, nanos));
    }
}

#[test]
fn etags_are_read_in_any_spelling() {
    for (etag, version) in [("", None), ("\"12\"", Some(12)), ("12", Some(12))] {
        assert_eq!(
            super::version("etag", etag).unwrap(),
            version.map(Timestamp)
        );
    }
    assert!(super::version("etag", "abc").is_err());
}
