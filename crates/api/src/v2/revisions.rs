//! `google.cloud.run.v2.Revisions`.

use tonic::{Request, Response, Status};
use utsuwa_wire::google::cloud::run::v2;
use utsuwa_wire::google::longrunning::{Operation, operation::Result as Outcome};
use utsuwa_wire::pack;

use super::{convert, name, page};
use crate::{ApiError, ApiState, intent, progress};

#[derive(Debug)]
pub(super) struct Handler(pub(super) ApiState);

impl Handler {
    fn list(
        &self,
        request: v2::ListRevisionsRequest,
    ) -> Result<v2::ListRevisionsResponse, ApiError> {
        let (project, region, service) = name::services(&self.0, "parent", &request.parent)?;
        let page = page(request.page_size, request.page_token)?;
        let listing = self
            .0
            .store
            .revisions(&project, Some(&region), service.as_ref(), page)?;
        Ok(v2::ListRevisionsResponse {
            revisions: listing
                .items
                .iter()
                .filter(|r| request.show_deleted || r.meta.delete_time.is_none())
                .map(convert::revision)
                .collect(),
            next_page_token: listing.next.unwrap_or_default(),
        })
    }

    async fn delete(&self, request: v2::DeleteRevisionRequest) -> Result<Operation, ApiError> {
        let key = name::revision(&self.0, "name", &request.name)?;
        let expected = convert::version("etag", &request.etag)?;
        let revision =
            intent::delete_revision(&self.0, &key, expected, request.validate_only).await?;
        // Done at once: nothing routes to it, and its instances end in the background.
        let id = uuid::Uuid::new_v4().to_string();
        let resource = pack(&convert::revision(&revision));
        Ok(Operation {
            name: name::of_operation(&key.service, &id),
            metadata: Some(resource.clone()),
            done: true,
            result: Some(Outcome::Response(resource)),
        })
    }
}

#[tonic::async_trait]
impl v2::revisions_server::Revisions for Handler {
    async fn get_revision(
        &self,
        request: Request<v2::GetRevisionRequest>,
    ) -> Result<Response<v2::Revision>, Status> {
        let key = name::revision(&self.0, "name", &request.get_ref().name)?;
        let revision = progress::of_revision(&self.0, intent::get_revision(&self.0, &key)?);
        Ok(Response::new(convert::revision(&revision)))
    }

    async fn list_revisions(
        &self,
        request: Request<v2::ListRevisionsRequest>,
    ) -> Result<Response<v2::ListRevisionsResponse>, Status> {
        Ok(Response::new(self.list(request.into_inner())?))
    }

    async fn delete_revision(
        &self,
        request: Request<v2::DeleteRevisionRequest>,
    ) -> Result<Response<Operation>, Status> {
        Ok(Response::new(self.delete(request.into_inner()).await?))
    }
}
