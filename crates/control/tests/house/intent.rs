//! What users ask for, written as the API writes it.

use utsuwa_model::domain::{CertificateMode, DomainMapping, DomainSpec, DomainStatus};
use utsuwa_model::iam::{Binding, Policy};
use utsuwa_model::operation::{Operation, OperationKind};
use utsuwa_model::service::{Meta, ServiceSpec, ServiceStatus};
use utsuwa_store::Asked;

use super::*;

impl House {
    /// As the API does: a new service with its operation, open to everybody.
    pub(crate) async fn create(&self, name: &str, template: RevisionTemplate) -> ServiceKey {
        let (key, now) = (self.key(name), self.clock.now());
        let service = Service {
            key: key.clone(),
            meta: Meta {
                uid: format!("uid-{name}"),
                generation: 1,
                version: now,
                create_time: now,
                ..Meta::default()
            },
            spec: ServiceSpec {
                template,
                ..ServiceSpec::default()
            },
            status: ServiceStatus::default(),
        };
        let operation = self.operation(&service, OperationKind::Create);
        self.store.create_service(service, operation).await.unwrap();
        let binding = Binding {
            role: "roles/run.invoker".into(),
            members: vec!["allUsers".into()],
            condition: None,
        };
        self.store
            .set_policy(
                &key,
                None,
                Policy {
                    bindings: vec![binding],
                    ..Policy::default()
                },
            )
            .await
            .unwrap();
        key
    }

    /// As the API does: a change by a user.
    pub(crate) async fn update(
        &self,
        key: &ServiceKey,
        change: impl FnOnce(&mut Service) + Send + 'static,
    ) {
        let now = self.clock.now();
        let old = self.store.service(key).unwrap().unwrap();
        let operation = self.operation(&old, OperationKind::Update);
        let edit = move |service: &mut Service| -> Result<(), ()> {
            change(service);
            service.meta.generation += 1;
            Ok(())
        };
        self.store
            .update_service(key, None, now, Some(operation), edit)
            .await
            .unwrap()
            .unwrap();
    }

    /// As the API does: `name` leads to `service` from now on.
    pub(crate) async fn map(
        &self,
        name: &str,
        service: &str,
        by_force: bool,
    ) -> Result<DomainMapping, utsuwa_store::StoreError> {
        let (key, now) = (self.key(service), self.clock.now());
        let mapping = DomainMapping {
            name: name.parse().unwrap(),
            project: key.project,
            region: key.region,
            meta: Meta {
                uid: format!("uid-{name}-{service}"),
                generation: 1,
                version: now,
                create_time: now,
                ..Meta::default()
            },
            spec: DomainSpec {
                route: key.service,
                certificate: CertificateMode::Automatic,
                force_override: by_force,
            },
            status: DomainStatus::default(),
        };
        self.store.create_domain(mapping).await
    }

    pub(crate) async fn unmap(&self, name: &str) {
        let name = name.parse().unwrap();
        let mapping = self.store.domain(&name).unwrap().unwrap();
        self.store
            .remove_domain(&name, &mapping.meta.uid)
            .await
            .unwrap();
    }

    /// Lets a long time pass in few steps.
    pub(crate) async fn skip_time(&self, time: Duration) {
        let mut left = time;
        while !left.is_zero() {
            let step = left.min(Duration::from_secs(24 * 3600).max(time / 4));
            tokio::time::advance(step).await;
            left -= step;
            self.rest().await;
        }
    }

    pub(crate) async fn delete(&self, key: &ServiceKey) {
        let now = self.clock.now();
        let old = self.store.service(key).unwrap().unwrap();
        let operation = self.operation(&old, OperationKind::Delete);
        let mark = move |service: &mut Service| -> Result<(), ()> {
            service.meta.delete_time = Some(now);
            service.meta.generation += 1;
            Ok(())
        };
        self.store
            .update_service(key, None, now, Some(operation), mark)
            .await
            .unwrap()
            .unwrap();
    }

    fn operation(&self, service: &Service, kind: OperationKind) -> Asked {
        let operation = Operation {
            id: format!(
                "{}-{}",
                service.meta.uid,
                service.meta.generation + u64::from(kind != OperationKind::Create)
            ),
            service: service.key.clone(),
            service_uid: service.meta.uid.clone(),
            generation: service.meta.generation,
            kind,
            create_time: self.clock.now(),
        };
        Asked {
            operation,
            method: format!("test.{kind:?}"),
        }
    }
}
