//! IAM methods of v1 services.

use serde_json::{Value, json};

use super::path::Place;
use super::services::existing_key;
use crate::error::Code;
use crate::{ApiError, ApiState, iam};

/// GET `:getIamPolicy`.
pub(super) fn get(state: &ApiState, place: &Place, name: &str) -> Result<Value, ApiError> {
    Ok(iam::to_json(&iam::get(state, &existing_key(place, name)?)?))
}

/// POST `:setIamPolicy` `{"policy", "updateMask"?}`.
pub(super) async fn set(
    state: &ApiState,
    place: &Place,
    name: &str,
    body: &[u8],
) -> Result<Value, ApiError> {
    let body = json_body(body)?;
    let policy = iam::from_json(body.get("policy").unwrap_or(&Value::Null), "policy")?;
    let mask = match body.get("updateMask") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(mask)) => mask
            .split(',')
            .map(|m| m.trim().to_owned())
            .filter(|m| !m.is_empty())
            .collect(),
        Some(_) => {
            return Err(ApiError::invalid(
                "updateMask",
                "must be text: field names joined by commas",
            ));
        }
    };
    let set = iam::set(state, &existing_key(place, name)?, policy, &mask).await?;
    Ok(iam::to_json(&set))
}

/// POST `:testIamPermissions` `{"permissions"}`.
pub(super) fn test(place: &Place, name: &str, body: &[u8]) -> Result<Value, ApiError> {
    existing_key(place, name)?;
    let body = json_body(body)?;
    let asked = match body.get("permissions") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(items)) => items.as_slice(),
        Some(_) => return Err(ApiError::invalid("permissions", "must be a list of texts")),
    };
    let asked: Option<Vec<String>> = asked
        .iter()
        .map(|p| p.as_str().map(ToOwned::to_owned))
        .collect();
    let asked = asked.ok_or_else(|| ApiError::invalid("permissions", "must be a list of texts"))?;
    let held = iam::test(&asked)?;
    Ok(if held.is_empty() {
        json!({})
    } else {
        json!({"permissions": held})
    })
}

fn json_body(body: &[u8]) -> Result<Value, ApiError> {
    serde_json::from_slice(body).map_err(|e| {
        ApiError::new(
            Code::InvalidArgument,
            format!("The request's body is not JSON: {e}."),
        )
    })
}
