//! The promises of the store, against real files.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests; those that spawn wait for their tasks"
)]

mod changes;
mod durable;
mod files;
mod rows;
mod services;
#[path = "../../../../tests/skip.rs"]
mod skip;

use std::process::{Command, Stdio};
use std::sync::Arc;

use utsuwa_model::domain::{CertificateMode, DomainMapping, DomainSpec, DomainStatus};
use utsuwa_model::iam::{Binding, Policy};
use utsuwa_model::operation::{GenerationOutcome, Operation, OperationKind};
use utsuwa_model::revision::{Revision, RevisionStatus};
use utsuwa_model::service::{
    Meta, RevisionTemplate, Service, ServiceSpec, ServiceStatus, TrafficTarget,
};
use utsuwa_model::{RevisionKey, ServiceKey, Timestamp};
use utsuwa_store::{Asked, AuditEntry, Changed, Class, Page, Settings, Store, StoreError};

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn service(at: &str, created: i64) -> Service {
    let key = key(at);
    Service {
        meta: Meta {
            uid: format!("uid-{at}-{created}"),
            generation: 1,
            version: Timestamp(created),
            create_time: Timestamp(created),
            ..Meta::default()
        },
        key,
        spec: ServiceSpec::default(),
        status: ServiceStatus::default(),
    }
}

fn operation(service: &Service, id: &str, kind: OperationKind) -> Asked {
    let operation = Operation {
        id: id.to_owned(),
        service: service.key.clone(),
        service_uid: service.meta.uid.clone(),
        generation: service.meta.generation,
        kind,
        create_time: service.meta.create_time,
    };
    Asked {
        operation,
        method: format!("test.{kind:?}"),
    }
}

fn revision(service: &Service, name: &str, created: i64, nonce: &str) -> Revision {
    let mut template = RevisionTemplate::default();
    template
        .labels
        .insert("client.knative.dev/nonce".to_owned(), nonce.to_owned());
    Revision {
        key: RevisionKey {
            service: service.key.clone(),
            revision: name.parse().unwrap(),
        },
        meta: Meta {
            create_time: Timestamp(created),
            ..Meta::default()
        },
        service_generation: service.meta.generation,
        service_uid: service.meta.uid.clone(),
        template,
        status: RevisionStatus::default(),
    }
}

async fn create(store: &Store, at: &str, created: i64) -> Service {
    let service = service(at, created);
    let op = operation(
        &service,
        &format!("op-{at}-{created}"),
        OperationKind::Create,
    );
    store.create_service(service, op).await.unwrap()
}
