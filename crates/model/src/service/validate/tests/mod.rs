//! One row per rule: what is changed on a good service, and what must be said about it.

mod container;
mod group;
mod template;

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
        |s| note(s, "metric-aggregation-algorithm", "weightedExponential"),
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
