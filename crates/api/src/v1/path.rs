//! Which resource a v1 path names. Both styles are read: Kubernetes' (`/apis/…/namespaces/P/…`, the region is in the host name)
//! and Google's (`/v1/projects/P/locations/R/…`).

use utsuwa_model::{ProjectId, Region};

use crate::{ApiError, ApiState, CallContext, intent};

/// Where a collection lives. `region` is `None` for all regions (`-`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) project: ProjectId,
    pub(super) region: Option<Region>,
}

impl Place {
    /// The region, where one is needed.
    pub(super) fn one_region(&self) -> Result<&Region, ApiError> {
        self.region.as_ref().ok_or_else(|| {
            ApiError::invalid(
                "location",
                "\"-\" stands for all regions and can only be listed: name one region",
            )
        })
    }
}

/// The collections served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Collection {
    Services,
    Revisions,
    Configurations,
    Routes,
    Operations,
    DomainMappings,
}

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Path {
    /// A collection, or one resource of it, perhaps with a verb (`:wait`).
    In {
        place: Place,
        collection: Collection,
        name: Option<String>,
        verb: Option<String>,
    },
    Locations {
        project: ProjectId,
    },
    Location {
        project: ProjectId,
        region: Region,
    },
    /// The domains that the caller may map.
    AuthorizedDomains,
    /// A part of Cloud Run that isn't built yet.
    NotBuilt(String),
    Unknown,
}

/// Reads `path`.
pub(super) fn parse(state: &ApiState, context: &CallContext, path: &str) -> Result<Path, ApiError> {
    let decoded: Option<Vec<String>> = path
        .trim_start_matches('/')
        .split('/')
        .map(decode)
        .collect();
    let Some(parts) = decoded else {
        return Err(ApiError::new(
            crate::error::Code::InvalidArgument,
            "The path is not valid: percent signs must be followed by two hexadecimal digits.",
        ));
    };
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        [
            "apis",
            "serving.knative.dev",
            "v1",
            "namespaces",
            namespace,
            rest @ ..,
        ] => {
            let project = intent::project(state, namespace)?;
            let place = Place {
                project,
                region: Some(context.region_or_default(state)),
            };
            Ok(inside(place, rest))
        }
        [
            "apis",
            "domains.cloudrun.com",
            "v1",
            "namespaces",
            _,
            "authorizeddomains",
        ]
        | ["v1", "projects", _, "authorizeddomains"] => Ok(Path::AuthorizedDomains),
        [
            "apis",
            "domains.cloudrun.com",
            "v1",
            "namespaces",
            namespace,
            "domainmappings",
            rest @ ..,
        ] => {
            let project = intent::project(state, namespace)?;
            let place = Place {
                project,
                region: Some(context.region_or_default(state)),
            };
            let path: Vec<&str> = std::iter::once("domainmappings")
                .chain(rest.iter().copied())
                .collect();
            Ok(inside(place, &path))
        }
        [
            "apis",
            group @ ("run.googleapis.com" | "domains.cloudrun.com"),
            "v1",
            "namespaces",
            _,
            rest @ ..,
        ] => Ok(Path::NotBuilt(format!(
            "{} of {group}",
            rest.first().unwrap_or(&"this part")
        ))),
        ["v1", "projects", project, "locations"] => Ok(Path::Locations {
            project: intent::project(state, project)?,
        }),
        ["v1", "projects", project, "locations", region] => Ok(Path::Location {
            project: intent::project(state, project)?,
            region: self::region(region)?,
        }),
        ["v1", "projects", project, "locations", "-", rest @ ..] => Ok(inside(
            Place {
                project: intent::project(state, project)?,
                region: None,
            },
            rest,
        )),
        ["v1", "projects", project, "locations", region, rest @ ..] => {
            let place = Place {
                project: intent::project(state, project)?,
                region: Some(self::region(region)?),
            };
            Ok(inside(place, rest))
        }
        _ => Ok(Path::Unknown),
    }
}

fn inside(place: Place, rest: &[&str]) -> Path {
    let (collection, name) = match rest {
        [collection] => (*collection, None),
        [collection, name] => (*collection, Some(*name)),
        _ => return Path::Unknown,
    };
    let collection = match collection {
        "services" => Collection::Services,
        "revisions" => Collection::Revisions,
        "configurations" => Collection::Configurations,
        "routes" => Collection::Routes,
        "operations" => Collection::Operations,
        "domainmappings" => Collection::DomainMappings,
        "jobs" | "executions" | "tasks" | "workerpools" | "workerPools" | "instances" => {
            return Path::NotBuilt(collection.to_owned());
        }
        _ => return Path::Unknown,
    };
    let (name, verb) = match name.map(|n| {
        n.split_once(':')
            .map_or((n, None), |(n, verb)| (n, Some(verb)))
    }) {
        Some((name, verb)) => (Some(name.to_owned()), verb.map(ToOwned::to_owned)),
        None => (None, None),
    };
    Path::In {
        place,
        collection,
        name,
        verb,
    }
}

fn region(text: &str) -> Result<Region, ApiError> {
    text.parse().map_err(|e: utsuwa_model::name::NameError| {
        ApiError::invalid(
            "location",
            format!("{text:?} is not a region: it {}", e.rule),
        )
    })
}

fn decode(part: &str) -> Option<String> {
    if !part.contains('%') {
        return Some(part.to_owned());
    }
    let bytes = part.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        if bytes[at] == b'%' {
            let hex = part.get(at + 1..at + 3)?;
            out.push(u8::from_str_radix(hex, 16).ok()?);
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8(out).ok()
}
