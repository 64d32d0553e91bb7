//! `google.longrunning.Operations`: views of what became of a generation (house.md §4.4).

use std::time::Duration;

use tonic::{Request, Response, Status};
use utsuwa_model::operation::{self as model, GenerationOutcome, OperationKind};
use utsuwa_model::service::Service;
use utsuwa_model::{ProjectId, Region};
use utsuwa_wire::google::cloud::run::v2;
use utsuwa_wire::google::longrunning::{self as lro, Operation, operation::Result as Outcome};
use utsuwa_wire::google::rpc;
use utsuwa_wire::pack;

use super::{convert, name, page};
use crate::error::Code;
use crate::{ApiError, ApiState, progress};

/// How long `wait` waits when the caller names no time, and at most.
const WAIT: Duration = Duration::from_secs(30);
const LONGEST_WAIT: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(super) struct Handler(pub(super) ApiState);

/// The answer to a mutation: its operation as it stands, or with `validate_only` a finished one without a name.
pub(super) fn started(
    state: &ApiState,
    service: &Service,
    operation: Option<model::Operation>,
) -> Result<Operation, ApiError> {
    let Some(operation) = operation else {
        let service = pack(&convert::service(service));
        let result = Some(Outcome::Response(service.clone()));
        return Ok(Operation {
            name: String::new(),
            metadata: Some(service),
            done: true,
            result,
        });
    };
    // A wish that changed nothing may be settled already.
    let outcome = state
        .store
        .operation(&operation.id)?
        .and_then(|(_, outcome)| outcome);
    // Then the answer is the service as it came out, not as it was written.
    let settled = match outcome {
        Some(_) => state.store.service(&operation.service)?,
        None => None,
    };
    Ok(view(
        settled.as_ref().or(Some(service)),
        &operation,
        outcome,
    ))
}

/// An operation for the wire. `service` is the resource as it is now, if it is still there.
fn view(
    service: Option<&Service>,
    operation: &model::Operation,
    outcome: Option<GenerationOutcome>,
) -> Operation {
    let wire = match service.filter(|s| s.meta.uid == operation.service_uid) {
        Some(service) => convert::service(service),
        // It is gone, perhaps with another of the same name in its place.
        None => v2::Service {
            name: name::of_service(&operation.service),
            uid: operation.service_uid.clone(),
            delete_time: (operation.kind == OperationKind::Delete)
                .then(|| convert::timestamp(operation.create_time)),
            ..v2::Service::default()
        },
    };
    let resource = pack(&wire);
    let result = outcome.map(|outcome| match outcome {
        GenerationOutcome::Succeeded => Outcome::Response(resource.clone()),
        GenerationOutcome::Failed { reason, message } => Outcome::Error(rpc::Status {
            code: Code::FailedPrecondition.number(),
            message,
            details: vec![pack(&rpc::ErrorInfo {
                reason,
                domain: "run.googleapis.com".to_owned(),
                ..rpc::ErrorInfo::default()
            })],
        }),
    });
    Operation {
        name: name::of_operation(&operation.service, &operation.id),
        metadata: Some(resource),
        done: result.is_some(),
        result,
    }
}

impl Handler {
    fn read(&self, full: &str) -> Result<Operation, ApiError> {
        let (project, region, id) = name::operation(&self.0, "name", full)?;
        let found = self.0.store.operation(&id)?;
        let (operation, outcome) = found
            .filter(|(o, _)| o.service.project == project && o.service.region == region)
            .ok_or_else(|| {
                ApiError::not_found("OPERATION", &id, region.as_str(), project.as_str())
            })?;
        let service = self.0.store.service(&operation.service)?;
        let service = service.map(|s| progress::of_service(&self.0, s));
        Ok(view(service.as_ref(), &operation, outcome))
    }

    async fn wait(&self, request: lro::WaitOperationRequest) -> Result<Operation, ApiError> {
        let wanted = match request.timeout {
            None => WAIT,
            Some(timeout) => Duration::try_from(timeout).map_err(|_| {
                ApiError::invalid("timeout", "must be a duration of zero or more seconds")
            })?,
        };
        let deadline = tokio::time::Instant::now() + wanted.min(LONGEST_WAIT);
        // Subscribed before the first look, so that no change falls between.
        let mut changes = self.0.store.changes();
        loop {
            changes.borrow_and_update();
            let operation = self.read(&request.name)?;
            if operation.done {
                return Ok(operation);
            }
            match tokio::time::timeout_at(deadline, changes.changed()).await {
                Ok(Ok(())) => {}
                // Time is up, or the store is going down: the operation as it stands is the answer.
                Ok(Err(_)) | Err(_) => return Ok(operation),
            }
        }
    }

    fn list(
        &self,
        request: lro::ListOperationsRequest,
    ) -> Result<lro::ListOperationsResponse, ApiError> {
        let (project, region): (ProjectId, Region) =
            name::location(&self.0, "name", &request.name)?;
        if !request.filter.is_empty() {
            return Err(ApiError::invalid(
                "filter",
                "is not built in this server yet: leave the field out",
            ));
        }
        let listing = self.0.store.operations(
            &project,
            &region,
            page(request.page_size, request.page_token)?,
        )?;
        let mut operations = Vec::with_capacity(listing.items.len());
        for (operation, outcome) in listing.items {
            let service = self.0.store.service(&operation.service)?;
            operations.push(view(service.as_ref(), &operation, outcome));
        }
        Ok(lro::ListOperationsResponse {
            operations,
            next_page_token: listing.next.unwrap_or_default(),
        })
    }
}

#[tonic::async_trait]
impl lro::operations_server::Operations for Handler {
    async fn list_operations(
        &self,
        request: Request<lro::ListOperationsRequest>,
    ) -> Result<Response<lro::ListOperationsResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner())?))
    }

    async fn get_operation(
        &self,
        request: Request<lro::GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        Ok(Response::new(self.read(&request.get_ref().name)?))
    }

    /// Deleting says that nobody wants the result any more; being a view, there is nothing to free. It must exist, though.
    async fn delete_operation(
        &self,
        request: Request<lro::DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        self.read(&request.get_ref().name)?;
        Ok(Response::new(()))
    }

    async fn cancel_operation(
        &self,
        _: Request<lro::CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        Err(ApiError::unimplemented(
            "A deploy can't be cancelled: deploy the former image instead.",
        )
        .into())
    }

    async fn wait_operation(
        &self,
        request: Request<lro::WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        Ok(Response::new(self.wait(request.into_inner()).await?))
    }
}
