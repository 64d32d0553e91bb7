//! Regions exist implicitly (decision 14): the default one, and those where the project has services.

use serde_json::{Value, json};
use utsuwa_model::{ProjectId, Region};

use crate::{ApiError, ApiState};

/// The default region first: some clients take the first one.
pub(super) fn list(state: &ApiState, project: &ProjectId) -> Result<Value, ApiError> {
    let default = &state.settings.region;
    let keys = state.store.all_service_keys()?;
    let mut others: Vec<Region> = keys
        .into_iter()
        .filter(|k| k.project == *project)
        .map(|k| k.region)
        .collect();
    others.sort();
    others.dedup();
    let regions = std::iter::once(default).chain(others.iter().filter(|r| *r != default));
    Ok(json!({"locations": regions.map(|r| one(project, r)).collect::<Vec<_>>()}))
}

pub(super) fn one(project: &ProjectId, region: &Region) -> Value {
    json!({
        "name": format!("projects/{project}/locations/{region}"),
        "locationId": region.as_str(),
        "displayName": region.as_str(),
        "labels": {"cloud.googleapis.com/region": region.as_str()},
    })
}
