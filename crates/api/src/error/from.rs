//! From every error a handler can meet to what the caller is told.

use std::time::Duration;

use utsuwa_model::{ServiceKey, Violations, name::NameError};
use utsuwa_store::StoreError;

use super::{ApiError, Code, Detail};

impl From<Violations> for ApiError {
    fn from(violations: Violations) -> Self {
        Self::violations(violations.0)
    }
}

impl From<NameError> for ApiError {
    fn from(error: NameError) -> Self {
        Self::invalid(error.kind, format!("{:?} {}", error.value, error.rule))
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound { what } => {
                let text = format!("Resource '{what}' does not exist.");
                Self::new(Code::NotFound, text)
            }
            StoreError::AlreadyExists { what } => Self::already_exists(what),
            StoreError::Mapped { host, of, to } => Self::new(Code::AlreadyExists, mapped(host, of, to)),
            // Not 409, which says of a mapping that it can be had by force.
            StoreError::OwnAddress { host, of } => Self::new(
                Code::FailedPrecondition,
                format!("{host} is the own address of service [{}] and can't be mapped: it leads there as long as that service exists.", of.service),
            ),
            StoreError::Conflict { what, sent, now } => Self::new(
                Code::Aborted,
                format!(
                    "Conflict for resource '{what}': version '{}' was specified but current version is '{}'.",
                    sent.0, now.0
                ),
            ),
            StoreError::StaleEtag => Self::new(
                Code::Aborted,
                "There were concurrent policy changes: the etag sent is not the current one. Read the policy again, apply your change \
                 to what you read, and send it with that etag.",
            ),
            StoreError::BadPageToken => {
                Self::invalid("page_token", "is not a token that this list has answered; start again without one")
            }
            StoreError::DiskFull { path } => Self::new(
                Code::ResourceExhausted,
                "The server's disk is full: nothing was changed. Free space on the disk of its data directory and try again.",
            )
            .with(Detail::QuotaFailure {
                subject: "data directory".to_owned(),
                description: "no space left on device".to_owned(),
            })
            .because(format!("disk full at {}", path.display())),
            StoreError::NoUidRange { .. } => Self::new(
                Code::ResourceExhausted,
                "The server has no user ids left for another service: delete services that are no longer needed.",
            )
            .with(Detail::QuotaFailure {
                subject: "user ids".to_owned(),
                description: "every range is in use".to_owned(),
            }),
            StoreError::Closed => Self::new(
                Code::Unavailable,
                "The server is stopping: nothing was changed. Try again when it is up.",
            )
            .with(Detail::RetryInfo(Duration::from_secs(1))),
            StoreError::Referenced { what, children } => Self::new(
                Code::FailedPrecondition,
                format!("Resource '{what}' still has {children}; they must go first."),
            ),
            _ => Self::internal(chain(&error)),
        }
    }
}

/// What to say of the address of a service that leads to another one already.
fn mapped(host: &str, of: &ServiceKey, to: &ServiceKey) -> String {
    let mut place = String::new();
    if of.project != to.project {
        place = format!(" --project {}", to.project);
    }
    if of.region != to.region {
        place = format!("{place} --region {}", to.region);
    }
    format!(
        "The address {host} of service [{}] leads to [{}] by a domain mapping: delete that (`utsuwa domains unmap {host}{place}`), or take \
         another name.",
        of.service, to.service
    )
}

/// An error with all its causes, for the log.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
