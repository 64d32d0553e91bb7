//! The machine-readable part of an error (`google/rpc/error_details.proto`), as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use prost::{Message, Name};
use serde_json::{Value, json};
use utsuwa_model::FieldViolation;
use utsuwa_wire::google::rpc;
use utsuwa_wire::pack;

/// One entry of `details`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// Which fields of the request are wrong.
    BadRequest(Vec<FieldViolation>),
    /// A reason a program can branch on.
    ErrorInfo {
        reason: String,
        domain: String,
        metadata: BTreeMap<String, String>,
    },
    /// Worth trying again after this long.
    RetryInfo(Duration),
    /// Which limit was reached.
    QuotaFailure {
        subject: String,
        description: String,
    },
    /// Under which id the log knows this request.
    RequestInfo { request_id: String },
    /// Which resource it was about.
    ResourceInfo {
        resource_type: String,
        resource_name: String,
    },
}

impl Detail {
    /// The JSON of the detail as it stands in an `Any`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        match self {
            Self::BadRequest(violations) => json!({
                "@type": "type.googleapis.com/google.rpc.BadRequest",
                "fieldViolations": violations.iter()
                    .map(|v| json!({"field": v.field, "description": v.description})).collect::<Vec<_>>(),
            }),
            Self::ErrorInfo {
                reason,
                domain,
                metadata,
            } => json!({
                "@type": "type.googleapis.com/google.rpc.ErrorInfo",
                "reason": reason, "domain": domain, "metadata": metadata,
            }),
            Self::RetryInfo(delay) => json!({
                "@type": "type.googleapis.com/google.rpc.RetryInfo",
                "retryDelay": format!("{}.{:03}s", delay.as_secs(), delay.subsec_millis()),
            }),
            Self::QuotaFailure {
                subject,
                description,
            } => json!({
                "@type": "type.googleapis.com/google.rpc.QuotaFailure",
                "violations": [{"subject": subject, "description": description}],
            }),
            Self::RequestInfo { request_id } => json!({
                "@type": "type.googleapis.com/google.rpc.RequestInfo",
                "requestId": request_id,
            }),
            Self::ResourceInfo {
                resource_type,
                resource_name,
            } => json!({
                "@type": "type.googleapis.com/google.rpc.ResourceInfo",
                "resourceType": resource_type, "resourceName": resource_name,
            }),
        }
    }
}

impl Detail {
    /// The detail as gRPC carries it.
    #[must_use]
    pub fn to_any(&self) -> prost_types::Any {
        match self {
            Self::BadRequest(violations) => pack(&rpc::BadRequest {
                field_violations: violations
                    .iter()
                    .map(|v| rpc::bad_request::FieldViolation {
                        field: v.field.clone(),
                        description: v.description.clone(),
                    })
                    .collect(),
            }),
            Self::ErrorInfo {
                reason,
                domain,
                metadata,
            } => pack(&rpc::ErrorInfo {
                reason: reason.clone(),
                domain: domain.clone(),
                metadata: metadata.clone(),
            }),
            Self::RetryInfo(delay) => pack(&rpc::RetryInfo {
                retry_delay: prost_types::Duration::try_from(*delay).ok(),
            }),
            Self::QuotaFailure {
                subject,
                description,
            } => pack(&rpc::QuotaFailure {
                violations: vec![rpc::quota_failure::Violation {
                    subject: subject.clone(),
                    description: description.clone(),
                }],
            }),
            Self::RequestInfo { request_id } => pack(&rpc::RequestInfo {
                request_id: request_id.clone(),
                serving_data: String::new(),
            }),
            Self::ResourceInfo {
                resource_type,
                resource_name,
            } => pack(&rpc::ResourceInfo {
                resource_type: resource_type.clone(),
                resource_name: resource_name.clone(),
                ..rpc::ResourceInfo::default()
            }),
        }
    }

    /// The reverse of [`Detail::to_any`]; `None` for details of other kinds.
    #[must_use]
    pub fn from_any(any: &prost_types::Any) -> Option<Self> {
        fn read<M: Message + Name + Default>(any: &prost_types::Any) -> Option<M> {
            (any.type_url.rsplit('/').next() == Some(M::full_name().as_str()))
                .then(|| M::decode(any.value.as_slice()).ok())?
        }
        if let Some(detail) = read::<rpc::BadRequest>(any) {
            return Some(Self::BadRequest(
                detail
                    .field_violations
                    .into_iter()
                    .map(|v| FieldViolation {
                        field: v.field,
                        description: v.description,
                    })
                    .collect(),
            ));
        }
        if let Some(detail) = read::<rpc::ErrorInfo>(any) {
            return Some(Self::ErrorInfo {
                reason: detail.reason,
                domain: detail.domain,
                metadata: detail.metadata,
            });
        }
        if let Some(detail) = read::<rpc::RetryInfo>(any) {
            return Some(Self::RetryInfo(
                Duration::try_from(detail.retry_delay?).ok()?,
            ));
        }
        if let Some(detail) = read::<rpc::QuotaFailure>(any) {
            let violation = detail.violations.into_iter().next()?;
            return Some(Self::QuotaFailure {
                subject: violation.subject,
                description: violation.description,
            });
        }
        if let Some(detail) = read::<rpc::RequestInfo>(any) {
            return Some(Self::RequestInfo {
                request_id: detail.request_id,
            });
        }
        let detail = read::<rpc::ResourceInfo>(any)?;
        Some(Self::ResourceInfo {
            resource_type: detail.resource_type,
            resource_name: detail.resource_name,
        })
    }
}
