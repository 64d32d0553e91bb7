//! Cloud Run Admin API v2: services, revisions, operations, locations (`cloud-run-spec.md` §1.1.1).
//!
//! Owns: the handlers as tonic services, mounted for gRPC as they are and for REST through the transcoder.
//!
//! Not here: what a wish does ([`crate::intent`]), defaults and validation (the model).
//!
//! Invariants:
//! 1. A mutation answers an operation whose outcome is read from the store each time it is asked for.
//! 2. Names in requests may carry the project's number; answers carry its id.

mod convert;
mod locations;
mod name;
mod operations;
mod policy;
mod revisions;
mod services;
#[cfg(test)]
mod tests;

use http::Method;
use utsuwa_wire::google::cloud::location::locations_server::LocationsServer;
use utsuwa_wire::google::cloud::run::v2::revisions_server::RevisionsServer;
use utsuwa_wire::google::cloud::run::v2::services_server::ServicesServer;
use utsuwa_wire::google::longrunning::operations_server::OperationsServer;
use utsuwa_wire::path::Template;
use utsuwa_wire::rules::{self, Body, Rule, RuleError};

use crate::ApiState;
use crate::transcode::{NotBuilt, Transcoder};

/// A page when the client names no size, and the largest.
const PAGE: usize = 100;
const LARGEST_PAGE: usize = 1000;

/// The gRPC services, with health and reflection.
pub(crate) fn grpc(state: &ApiState) -> axum::Router {
    let mut routes = tonic::service::Routes::builder();
    routes
        .add_service(ServicesServer::new(services::Handler(state.clone())))
        .add_service(RevisionsServer::new(revisions::Handler(state.clone())))
        .add_service(OperationsServer::new(operations::Handler(state.clone())))
        .add_service(LocationsServer::new(locations::Handler(state.clone())));
    let (reporter, health) = tonic_health::server::health_reporter();
    // The port answers, so the empty service name is healthy; whether deploys are possible is what /healthz says.
    drop(reporter);
    routes.add_service(health);
    match tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(utsuwa_wire::DESCRIPTORS)
        .build_v1()
    {
        Ok(reflection) => {
            routes.add_service(reflection);
        }
        Err(error) => tracing::warn!(%error, "serve gRPC without reflection"),
    }
    routes.routes().into_axum_router()
}

/// The REST form of all of it.
pub(crate) fn transcoder(state: &ApiState) -> Transcoder {
    let rules =
        rules().expect("the routes of proto/ and of this module can be read: a test reads them");
    Transcoder::new(rules, not_built(), grpc(state))
}

/// Routes from our protos, and those that Google declares in its service configuration.
fn rules() -> Result<Vec<Rule>, RuleError> {
    const OPERATIONS: &str = "google.longrunning.Operations";
    const LOCATIONS: &str = "google.cloud.location.Locations";
    let mut all = rules::of_service("google.cloud.run.v2.Services")?;
    all.extend(rules::of_service("google.cloud.run.v2.Revisions")?);
    for (service, method, verb, template, body) in [
        (
            OPERATIONS,
            "ListOperations",
            Method::GET,
            "/v2/{name=projects/*/locations/*}/operations",
            Body::None,
        ),
        (
            OPERATIONS,
            "GetOperation",
            Method::GET,
            "/v2/{name=projects/*/locations/*/operations/*}",
            Body::None,
        ),
        (
            OPERATIONS,
            "DeleteOperation",
            Method::DELETE,
            "/v2/{name=projects/*/locations/*/operations/*}",
            Body::None,
        ),
        (
            OPERATIONS,
            "WaitOperation",
            Method::POST,
            "/v2/{name=projects/*/locations/*/operations/*}:wait",
            Body::Whole,
        ),
        (
            LOCATIONS,
            "ListLocations",
            Method::GET,
            "/v2/{name=projects/*}/locations",
            Body::None,
        ),
        (
            LOCATIONS,
            "GetLocation",
            Method::GET,
            "/v2/{name=projects/*/locations/*}",
            Body::None,
        ),
    ] {
        all.push(rules::declared(service, method, verb, template, body)?);
    }
    Ok(all)
}

/// What Google's v2 has and we don't yet (§1.1.1): answered by name instead of as an unknown path.
fn not_built() -> Vec<NotBuilt> {
    const PARENT: &str = "/v2/{parent=projects/*/locations/*}";
    let mut all = Vec::new();
    let mut add = |verb: Method, path: String| {
        if let Ok(template) = Template::parse(&path) {
            all.push(NotBuilt { verb, template });
        }
    };
    for collection in ["jobs", "workerPools", "instances"] {
        add(Method::POST, format!("{PARENT}/{collection}"));
        add(Method::GET, format!("{PARENT}/{collection}"));
        for verb in [Method::GET, Method::PATCH, Method::DELETE] {
            add(verb, format!("{PARENT}/{collection}/*"));
        }
        add(Method::GET, format!("{PARENT}/{collection}/*:getIamPolicy"));
        for verb in ["setIamPolicy", "testIamPermissions", "run", "start", "stop"] {
            add(Method::POST, format!("{PARENT}/{collection}/*:{verb}"));
        }
    }
    for children in [
        "jobs/*/executions",
        "jobs/*/executions/*/tasks",
        "workerPools/*/revisions",
    ] {
        add(Method::GET, format!("{PARENT}/{children}"));
        add(Method::GET, format!("{PARENT}/{children}/*"));
        add(Method::DELETE, format!("{PARENT}/{children}/*"));
    }
    add(Method::POST, format!("{PARENT}/jobs/*/executions/*:cancel"));
    add(Method::POST, format!("{PARENT}/builds:submit"));
    for path in [
        "",
        "/services/*",
        "/services/*/revisions/*",
        "/jobs/*",
        "/jobs/*/executions/*",
    ] {
        for verb in [
            "exportImage",
            "exportMetadata",
            "exportImageMetadata",
            "exportProjectMetadata",
            "exportStatus",
        ] {
            add(Method::GET, format!("{PARENT}{path}:{verb}"));
            add(Method::POST, format!("{PARENT}{path}:{verb}"));
        }
    }
    all
}

/// The page that a list request asks for.
fn page(size: i32, token: String) -> Result<utsuwa_store::Page, crate::ApiError> {
    let size = match usize::try_from(size) {
        Ok(0) => PAGE,
        Ok(size) => size.min(LARGEST_PAGE),
        Err(_) => {
            return Err(crate::ApiError::invalid(
                "pageSize",
                format!("{size} must not be negative"),
            ));
        }
    };
    Ok(utsuwa_store::Page {
        size,
        token: (!token.is_empty()).then_some(token),
    })
}
