//! Resource names: `projects/P/locations/R/services/S/revisions/V`.

use utsuwa_model::{ProjectId, Region, RevisionId, RevisionKey, ServiceId, ServiceKey};

use crate::{ApiError, ApiState, intent};

/// The parts of `name` after each word of `collections`; a different shape is refused.
fn parts<'a, const N: usize>(
    field: &str,
    name: &'a str,
    collections: [&str; N],
) -> Result<[&'a str; N], ApiError> {
    let shape = || {
        let wanted: Vec<String> = collections.iter().map(|c| format!("{c}/*")).collect();
        ApiError::invalid(
            field,
            format!(
                "{name:?} is not a resource name of the form {}",
                wanted.join("/")
            ),
        )
    };
    let all: Vec<&str> = name.split('/').collect();
    if all.len() != 2 * N {
        return Err(shape());
    }
    let mut found = [""; N];
    for (index, collection) in collections.iter().enumerate() {
        if all[2 * index] != *collection || all[2 * index + 1].is_empty() {
            return Err(shape());
        }
        found[index] = all[2 * index + 1];
    }
    Ok(found)
}

/// `projects/P`.
pub(super) fn project(state: &ApiState, field: &str, name: &str) -> Result<ProjectId, ApiError> {
    let [project] = parts(field, name, ["projects"])?;
    intent::project(state, project)
}

/// `projects/P/locations/R`.
pub(super) fn location(
    state: &ApiState,
    field: &str,
    name: &str,
) -> Result<(ProjectId, Region), ApiError> {
    let [project, region] = parts(field, name, ["projects", "locations"])?;
    Ok((intent::project(state, project)?, parse(field, region)?))
}

/// `projects/P/locations/R/services/S`.
pub(super) fn service(state: &ApiState, field: &str, name: &str) -> Result<ServiceKey, ApiError> {
    let [project, region, service] = parts(field, name, ["projects", "locations", "services"])?;
    Ok(ServiceKey {
        project: intent::project(state, project)?,
        region: parse(field, region)?,
        service: parse(field, service)?,
    })
}

/// `projects/P/locations/R/services/S` where `S` may be `-` for all.
pub(super) fn services(
    state: &ApiState,
    field: &str,
    name: &str,
) -> Result<(ProjectId, Region, Option<ServiceId>), ApiError> {
    let [project, region, service] = parts(field, name, ["projects", "locations", "services"])?;
    let service = if service == "-" {
        None
    } else {
        Some(parse(field, service)?)
    };
    Ok((
        intent::project(state, project)?,
        parse(field, region)?,
        service,
    ))
}

/// `projects/P/locations/R/services/S/revisions/V`.
pub(super) fn revision(state: &ApiState, field: &str, name: &str) -> Result<RevisionKey, ApiError> {
    let [project, region, service, revision] = parts(
        field,
        name,
        ["projects", "locations", "services", "revisions"],
    )?;
    let service = ServiceKey {
        project: intent::project(state, project)?,
        region: parse(field, region)?,
        service: parse(field, service)?,
    };
    Ok(RevisionKey {
        service,
        revision: parse::<RevisionId>(field, revision)?,
    })
}

/// `projects/P/locations/R/operations/ID`.
pub(super) fn operation(
    state: &ApiState,
    field: &str,
    name: &str,
) -> Result<(ProjectId, Region, String), ApiError> {
    let [project, region, id] = parts(field, name, ["projects", "locations", "operations"])?;
    Ok((
        intent::project(state, project)?,
        parse(field, region)?,
        id.to_owned(),
    ))
}

fn parse<T: std::str::FromStr<Err = utsuwa_model::name::NameError>>(
    field: &str,
    text: &str,
) -> Result<T, ApiError> {
    text.parse().map_err(|e: utsuwa_model::name::NameError| {
        ApiError::invalid(field, format!("{} {:?} {}", e.kind, e.value, e.rule))
    })
}

/// The full name of a service.
pub(super) fn of_service(key: &ServiceKey) -> String {
    format!(
        "projects/{}/locations/{}/services/{}",
        key.project, key.region, key.service
    )
}

/// The full name of a revision.
pub(super) fn of_revision(service: &ServiceKey, revision: &RevisionId) -> String {
    format!("{}/revisions/{revision}", of_service(service))
}

/// The full name of an operation.
pub(super) fn of_operation(key: &ServiceKey, id: &str) -> String {
    format!(
        "projects/{}/locations/{}/operations/{id}",
        key.project, key.region
    )
}
