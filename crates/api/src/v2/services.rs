//! `google.cloud.run.v2.Services`.

use prost::Message;
use prost_reflect::{DynamicMessage, ReflectMessage};
use tonic::{Request, Response, Status};
use utsuwa_wire::google::cloud::run::v2;
use utsuwa_wire::google::iam::v1 as iam;
use utsuwa_wire::google::longrunning::Operation;

use super::{convert, name, operations, page, policy};
use crate::{ApiError, ApiState, intent, progress};

type Answer<T> = Result<Response<T>, Status>;

#[derive(Debug)]
pub(super) struct Handler(pub(super) ApiState);

impl Handler {
    async fn create(&self, request: v2::CreateServiceRequest) -> Result<Operation, ApiError> {
        let (project, region) = name::location(&self.0, "parent", &request.parent)?;
        let id = request.service_id;
        if id.is_empty() {
            return Err(ApiError::invalid(
                "serviceId",
                "is required: the last part of the new service's name",
            ));
        }
        let service = id.parse().map_err(|e: utsuwa_model::name::NameError| {
            ApiError::invalid("serviceId", format!("{id:?} {}", e.rule))
        })?;
        let key = utsuwa_model::ServiceKey {
            project,
            region,
            service,
        };
        let wire = request
            .service
            .ok_or_else(|| ApiError::invalid("service", "is required"))?;
        let draft = convert::draft(wire, None)?;
        let (service, operation) =
            intent::create(&self.0, key, draft, request.validate_only).await?;
        operations::started(&self.0, &service, operation)
    }

    async fn update(&self, request: v2::UpdateServiceRequest) -> Result<Operation, ApiError> {
        let wire = request
            .service
            .ok_or_else(|| ApiError::invalid("service", "is required"))?;
        let key = name::service(&self.0, "service.name", &wire.name)?;
        let expected = convert::version("etag", &wire.etag)?;
        let mask = request.update_mask.map(|m| m.paths).unwrap_or_default();
        if request.allow_missing && self.0.store.service(&key)?.is_none() {
            let draft = convert::draft(wire, None)?;
            let (service, operation) =
                intent::create(&self.0, key, draft, request.validate_only).await?;
            return operations::started(&self.0, &service, operation);
        }
        let edit = move |old: &utsuwa_model::service::Service| {
            let wished = masked(&mask, wire, convert::service(old))?;
            let mut draft = convert::draft(wished, Some(old))?;
            if !names_template(&mask) {
                // Read back from v2 it may say the same otherwise, and that would be another revision.
                draft.spec.template.clone_from(&old.spec.template);
            }
            Ok(draft)
        };
        let (service, operation) =
            intent::update(&self.0, &key, expected, request.validate_only, edit).await?;
        operations::started(&self.0, &service, operation)
    }

    async fn delete(&self, request: v2::DeleteServiceRequest) -> Result<Operation, ApiError> {
        let key = name::service(&self.0, "name", &request.name)?;
        let expected = convert::version("etag", &request.etag)?;
        let (service, operation) =
            intent::delete(&self.0, &key, expected, request.validate_only).await?;
        operations::started(&self.0, &service, operation)
    }

    fn list(&self, request: v2::ListServicesRequest) -> Result<v2::ListServicesResponse, ApiError> {
        let (project, region) = name::location(&self.0, "parent", &request.parent)?;
        let page = page(request.page_size, request.page_token)?;
        let listing = intent::list(&self.0, &project, Some(&region), page)?;
        Ok(v2::ListServicesResponse {
            services: listing
                .items
                .iter()
                .filter(|s| request.show_deleted || s.meta.delete_time.is_none())
                .map(convert::service)
                .collect(),
            next_page_token: listing.next.unwrap_or_default(),
            unreachable: Vec::new(),
        })
    }
}

/// What the caller wants the service to be: `wish` where the mask says so, else `now`. No mask means everything.
fn masked(mask: &[String], wish: v2::Service, now: v2::Service) -> Result<v2::Service, ApiError> {
    if mask.is_empty() || mask.iter().any(|p| p == "*") {
        return Ok(wish);
    }
    let from = dynamic(&wish)?;
    let mut into = dynamic(&now)?;
    utsuwa_wire::mask::apply(mask, &from, &mut into)
        .map_err(|e| ApiError::invalid("updateMask", e.to_string()))?;
    into.transcode_to()
        .map_err(|e| ApiError::internal(format!("apply an update mask: {e}")))
}

/// Whether the caller may change the template. No mask means everything.
fn names_template(mask: &[String]) -> bool {
    let template = |path: &String| path == "*" || path.split('.').next() == Some("template");
    mask.is_empty() || mask.iter().any(template)
}

fn dynamic(service: &v2::Service) -> Result<DynamicMessage, ApiError> {
    let descriptor = utsuwa_wire::pool()
        .get_message_by_name("google.cloud.run.v2.Service")
        .ok_or_else(|| ApiError::internal("the service message is not described"))?;
    let message = DynamicMessage::decode(descriptor, service.encode_to_vec().as_slice());
    message
        .map_err(|e| ApiError::internal(format!("apply an update mask: {e}")))
        .inspect(|m| {
            debug_assert_eq!(m.descriptor().name(), "Service");
        })
}

#[tonic::async_trait]
impl v2::services_server::Services for Handler {
    async fn create_service(
        &self,
        request: Request<v2::CreateServiceRequest>,
    ) -> Answer<Operation> {
        Ok(Response::new(self.create(request.into_inner()).await?))
    }

    async fn get_service(&self, request: Request<v2::GetServiceRequest>) -> Answer<v2::Service> {
        let key = name::service(&self.0, "name", &request.get_ref().name)?;
        let service = progress::of_service(&self.0, intent::get(&self.0, &key)?);
        Ok(Response::new(convert::service(&service)))
    }

    async fn list_services(
        &self,
        request: Request<v2::ListServicesRequest>,
    ) -> Answer<v2::ListServicesResponse> {
        Ok(Response::new(self.list(request.into_inner())?))
    }

    async fn update_service(
        &self,
        request: Request<v2::UpdateServiceRequest>,
    ) -> Answer<Operation> {
        Ok(Response::new(self.update(request.into_inner()).await?))
    }

    async fn delete_service(
        &self,
        request: Request<v2::DeleteServiceRequest>,
    ) -> Answer<Operation> {
        Ok(Response::new(self.delete(request.into_inner()).await?))
    }

    async fn get_iam_policy(
        &self,
        request: Request<iam::GetIamPolicyRequest>,
    ) -> Answer<iam::Policy> {
        let key = name::service(&self.0, "resource", &request.get_ref().resource)?;
        Ok(Response::new(policy::get(&self.0, &key)?))
    }

    async fn set_iam_policy(
        &self,
        request: Request<iam::SetIamPolicyRequest>,
    ) -> Answer<iam::Policy> {
        let request = request.into_inner();
        let key = name::service(&self.0, "resource", &request.resource)?;
        Ok(Response::new(policy::set(&self.0, &key, request).await?))
    }

    async fn test_iam_permissions(
        &self,
        request: Request<iam::TestIamPermissionsRequest>,
    ) -> Answer<iam::TestIamPermissionsResponse> {
        let request = request.into_inner();
        name::service(&self.0, "resource", &request.resource)?;
        Ok(Response::new(policy::test(&request.permissions)?))
    }
}
