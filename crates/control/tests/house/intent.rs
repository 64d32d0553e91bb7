//! What users ask for, written as the API writes it.

use utsuwa_model::iam::{Binding, Policy};
use utsuwa_model::operation::{Operation, OperationKind};
use utsuwa_model::service::{Meta, ServiceSpec, ServiceStatus};

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

    fn operation(&self, service: &Service, kind: OperationKind) -> Operation {
        Operation {
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
        }
    }
}
