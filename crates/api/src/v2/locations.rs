//! `google.cloud.location.Locations`: regions exist implicitly (decision 14), so the list holds the default one, first, and
//! those in which the project has services.

use std::collections::BTreeMap;

use tonic::{Request, Response, Status};
use utsuwa_model::{ProjectId, Region};
use utsuwa_wire::google::cloud::location as wire;

use super::name;
use crate::{ApiError, ApiState};

#[derive(Debug)]
pub(super) struct Handler(pub(super) ApiState);

fn location(project: &ProjectId, region: &Region) -> wire::Location {
    wire::Location {
        name: format!("projects/{project}/locations/{region}"),
        labels: BTreeMap::from([("cloud.googleapis.com/region".to_owned(), region.to_string())]),
        metadata: None,
        location_id: region.to_string(),
        display_name: region.to_string(),
    }
}

impl Handler {
    fn list(
        &self,
        request: &wire::ListLocationsRequest,
    ) -> Result<wire::ListLocationsResponse, ApiError> {
        let project = name::project(&self.0, "name", &request.name)?;
        let default = &self.0.settings.region;
        let mut others: Vec<Region> = self
            .0
            .store
            .all_service_keys()?
            .into_iter()
            .filter(|k| k.project == project)
            .map(|k| k.region)
            .collect();
        others.sort();
        others.dedup();
        let regions = std::iter::once(default).chain(others.iter().filter(|r| *r != default));
        Ok(wire::ListLocationsResponse {
            locations: regions.map(|r| location(&project, r)).collect(),
            next_page_token: String::new(),
        })
    }
}

#[tonic::async_trait]
impl wire::locations_server::Locations for Handler {
    async fn list_locations(
        &self,
        request: Request<wire::ListLocationsRequest>,
    ) -> Result<Response<wire::ListLocationsResponse>, Status> {
        Ok(Response::new(self.list(request.get_ref())?))
    }

    async fn get_location(
        &self,
        request: Request<wire::GetLocationRequest>,
    ) -> Result<Response<wire::Location>, Status> {
        let (project, region) = name::location(&self.0, "name", &request.get_ref().name)?;
        Ok(Response::new(location(&project, &region)))
    }
}
