//! What a user's wish does to a service, whichever API carried it: v1 and v2 differ in words alone.
//!
//! Owns: create, update and delete of services as one store transaction each (house.md §4.4): checked against what is there,
//! generation counted, operation written with it.
//!
//! Not here: wire formats, and what the loops make of the wish.
//!
//! Invariants:
//! 1. The generation grows by one exactly when something that users set has changed; a wish that changes nothing keeps it.
//! 2. The status is never touched: it stays that of the old generation until the loops have answered (§1.8, invariant 1).
//! 3. With `validate_only` everything is checked and nothing is written.

mod revision;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use revision::{delete_revision, get_revision};

use utsuwa_model::operation::{Operation, OperationKind};
use utsuwa_model::service::validate::{Context, validate};
use utsuwa_model::service::{Meta, Service, ServiceSpec, ServiceStatus};
use utsuwa_model::{ServiceKey, Timestamp};
use utsuwa_store::{Asked, Page, StoreError};

use crate::error::Code;
use crate::{ApiError, ApiState};

/// Who calls, until identity exists.
pub const ANONYMOUS: &str = "anonymous";

/// What a user sets on a service.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Draft {
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    pub client: String,
    pub client_version: String,
    pub spec: ServiceSpec,
}

impl Draft {
    /// The user's part of a service.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        Self {
            labels: service.meta.labels.clone(),
            annotations: service.meta.annotations.clone(),
            client: service.meta.client.clone(),
            client_version: service.meta.client_version.clone(),
            spec: service.spec.clone(),
        }
    }

    fn put_into(self, service: &mut Service) {
        service.meta.labels = self.labels;
        service.meta.annotations = self.annotations;
        service.meta.client = self.client;
        service.meta.client_version = self.client_version;
        service.spec = self.spec;
    }
}

/// The service, or 404 in Google's words.
///
/// # Errors
/// `NOT_FOUND`, or what the store says.
pub fn get(state: &ApiState, key: &ServiceKey) -> Result<Service, ApiError> {
    state.store.service(key)?.ok_or_else(|| missing(key))
}

/// 404 for a service.
#[must_use]
pub fn missing(key: &ServiceKey) -> ApiError {
    ApiError::not_found(
        "SERVICE",
        key.service.as_str(),
        key.region.as_str(),
        key.project.as_str(),
    )
}

/// Creates a service. The operation is `None` with `validate_only`.
///
/// # Errors
/// `ALREADY_EXISTS`, `INVALID_ARGUMENT` with every violation.
pub async fn create(
    state: &ApiState,
    key: ServiceKey,
    draft: Draft,
    validate_only: bool,
) -> Result<(Service, Option<Operation>), ApiError> {
    if state.store.service(&key)?.is_some() {
        return Err(ApiError::already_exists(key.service.as_str()));
    }
    let now = state.now();
    let mut service = Service {
        key,
        meta: Meta {
            uid: uuid::Uuid::new_v4().to_string(),
            generation: 1,
            version: now,
            create_time: now,
            update_time: now,
            creator: ANONYMOUS.to_owned(),
            last_modifier: ANONYMOUS.to_owned(),
            ..Meta::default()
        },
        spec: ServiceSpec::default(),
        status: ServiceStatus::default(),
    };
    draft.put_into(&mut service);
    validate(
        &service,
        &Context {
            old: None,
            revisions: &[],
            host_dirs: &state.host_dirs,
        },
    )
    .into_result()?;
    if validate_only {
        return Ok((service, None));
    }
    let operation = operation(&service, OperationKind::Create, now);
    let service = state
        .store
        .create_service(service, audited(operation.clone()))
        .await?;
    Ok((service, Some(operation)))
}

/// Changes a service: `edit` gets the user's part as it is and answers it as it shall be. `expected` is the version that the
/// caller has seen (`None`: whatever is there). The operation is `None` with `validate_only`.
///
/// # Errors
/// `NOT_FOUND`; `ABORTED` for a stale version or a service that is being deleted; `INVALID_ARGUMENT`; what `edit` says.
pub async fn update<F>(
    state: &ApiState,
    key: &ServiceKey,
    expected: Option<Timestamp>,
    validate_only: bool,
    edit: F,
) -> Result<(Service, Option<Operation>), ApiError>
where
    F: FnOnce(&Service) -> Result<Draft, ApiError> + Send + 'static,
{
    let now = state.now();
    let revisions = state.store.revisions_of(key)?;
    let host_dirs = Arc::clone(&state.host_dirs);
    let change = move |service: &mut Service| -> Result<(), ApiError> {
        if service.meta.delete_time.is_some() {
            return Err(ApiError::new(
                Code::Aborted,
                format!(
                    "Resource '{}' is being deleted; wait until it is gone and create it anew.",
                    service.key.service
                ),
            ));
        }
        let old = service.clone();
        let draft = edit(&old)?;
        let changed = draft != Draft::of(&old);
        draft.put_into(service);
        validate(
            service,
            &Context {
                old: Some(&old),
                revisions: &revisions,
                host_dirs: &host_dirs,
            },
        )
        .into_result()?;
        if changed {
            service.meta.generation += 1;
            ANONYMOUS.clone_into(&mut service.meta.last_modifier);
        }
        Ok(())
    };
    if validate_only {
        let mut service = get(state, key)?;
        check_version(&service, expected)?;
        change(&mut service)?;
        return Ok((service, None));
    }
    let id = uuid::Uuid::new_v4().to_string();
    let asked = Operation {
        id,
        service: key.clone(),
        service_uid: String::new(),
        generation: 0,
        kind: OperationKind::Update,
        create_time: now,
    };
    let written = state
        .store
        .update_service(key, expected, now, Some(audited(asked.clone())), change)
        .await;
    let service = written.map_err(|e| from_store(key, e))??;
    let operation = Operation {
        service_uid: service.meta.uid.clone(),
        generation: service.meta.generation,
        ..asked
    };
    Ok((service, Some(operation)))
}

/// Asks for a service's end: loops clear its instances and revisions, then the row. Asking again changes nothing.
///
/// # Errors
/// `NOT_FOUND`; `ABORTED` for a stale version.
pub async fn delete(
    state: &ApiState,
    key: &ServiceKey,
    expected: Option<Timestamp>,
    validate_only: bool,
) -> Result<(Service, Option<Operation>), ApiError> {
    let now = state.now();
    if validate_only {
        let service = get(state, key)?;
        check_version(&service, expected)?;
        return Ok((service, None));
    }
    let asked = Operation {
        id: uuid::Uuid::new_v4().to_string(),
        service: key.clone(),
        service_uid: String::new(),
        generation: 0,
        kind: OperationKind::Delete,
        create_time: now,
    };
    let mark = move |service: &mut Service| -> Result<(), ApiError> {
        if service.meta.delete_time.is_none() {
            service.meta.delete_time = Some(now);
            // A generation of its own, so that its operation is done when the service is gone and not before.
            service.meta.generation += 1;
            ANONYMOUS.clone_into(&mut service.meta.last_modifier);
        }
        Ok(())
    };
    let written = state
        .store
        .update_service(key, expected, now, Some(audited(asked.clone())), mark)
        .await;
    let service = written.map_err(|e| from_store(key, e))??;
    let operation = Operation {
        service_uid: service.meta.uid.clone(),
        generation: service.meta.generation,
        ..asked
    };
    Ok((service, Some(operation)))
}

/// The operation, with the name of the method in the audit log: v2's for both APIs, as Google's own audit log has it.
fn audited(operation: Operation) -> Asked {
    let verb = match operation.kind {
        OperationKind::Create => "Create",
        OperationKind::Update => "Update",
        OperationKind::Delete => "Delete",
    };
    Asked {
        operation,
        method: format!("google.cloud.run.v2.Services.{verb}Service"),
    }
}

/// The project that `text` names by id or by number (`gcloud` uses both). A number is that of the default project or of one
/// that holds a service; there is no other list of projects (decision 14).
///
/// # Errors
/// `INVALID_ARGUMENT` for a malformed id or a number that no known project has.
pub fn project(state: &ApiState, text: &str) -> Result<utsuwa_model::ProjectId, ApiError> {
    use utsuwa_model::address::project_number;
    let Ok(number) = text.parse::<u64>() else {
        return Ok(text.parse()?);
    };
    if project_number(&state.settings.project) == number {
        return Ok(state.settings.project.clone());
    }
    let known = state
        .store
        .projects()?
        .into_iter()
        .find(|p| project_number(p) == number);
    known.ok_or_else(|| {
        ApiError::invalid(
            "project",
            format!("{number} is not the number of a known project; use the project's id"),
        )
    })
}

/// All services of a project (one region, or all with `None`), newest first.
///
/// # Errors
/// What the store says.
pub fn list(
    state: &ApiState,
    project: &utsuwa_model::ProjectId,
    region: Option<&utsuwa_model::Region>,
    page: Page,
) -> Result<utsuwa_store::Listing<Service>, ApiError> {
    Ok(state.store.services(project, region, page)?)
}

fn check_version(service: &Service, expected: Option<Timestamp>) -> Result<(), ApiError> {
    match expected {
        Some(sent) if sent != service.meta.version => Err(StoreError::Conflict {
            what: service.key.service.to_string(),
            sent,
            now: service.meta.version,
        }
        .into()),
        _ => Ok(()),
    }
}

fn from_store(key: &ServiceKey, error: StoreError) -> ApiError {
    match error {
        StoreError::NotFound { .. } => missing(key),
        other => other.into(),
    }
}

fn operation(service: &Service, kind: OperationKind, now: Timestamp) -> Operation {
    Operation {
        id: uuid::Uuid::new_v4().to_string(),
        service: service.key.clone(),
        service_uid: service.meta.uid.clone(),
        generation: service.meta.generation,
        kind,
        create_time: now,
    }
}
