//! The machine-readable part of an error (`google/rpc/error_details.proto`), as JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use utsuwa_model::FieldViolation;

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
