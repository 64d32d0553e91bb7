//! `google.iam.v1.Policy` as JSON.

use serde_json::{Map, Value, json};
use utsuwa_model::iam::{Binding, Expr, Policy};

use crate::ApiError;

/// The policy as v1 and the resource manager answer it.
pub(crate) fn to_json(policy: &Policy) -> Value {
    let mut out = json!({"version": policy.version.max(1), "etag": policy.etag});
    if !policy.bindings.is_empty() {
        out["bindings"] = policy.bindings.iter().map(binding).collect();
    }
    out
}

fn binding(binding: &Binding) -> Value {
    let mut out = json!({"role": binding.role, "members": binding.members});
    if let Some(condition) = &binding.condition {
        let mut fields = Map::new();
        for (name, text) in [
            ("expression", &condition.expression),
            ("title", &condition.title),
            ("description", &condition.description),
            ("location", &condition.location),
        ] {
            if !text.is_empty() {
                fields.insert(name.to_owned(), text.as_str().into());
            }
        }
        out["condition"] = Value::Object(fields);
    }
    out
}

/// Reads a policy from a request; `field` is where it stands there.
pub(crate) fn from_json(value: &Value, field: &str) -> Result<Policy, ApiError> {
    let object = value
        .as_object()
        .ok_or_else(|| ApiError::invalid(field, "missing: send the policy to set"))?;
    let text = |value: Option<&Value>, path: &str| match value {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(ApiError::invalid(format!("{field}.{path}"), "must be text")),
    };
    let version = match object.get("version") {
        None | Some(Value::Null) => 0,
        Some(value) => value
            .as_i64()
            .and_then(|v| i32::try_from(v).ok())
            .ok_or_else(|| {
                ApiError::invalid(format!("{field}.version"), "must be a whole number")
            })?,
    };
    let mut bindings = Vec::new();
    let given = match object.get("bindings") {
        None | Some(Value::Null) => &[],
        Some(Value::Array(items)) => items.as_slice(),
        Some(_) => {
            return Err(ApiError::invalid(
                format!("{field}.bindings"),
                "must be a list",
            ));
        }
    };
    for (index, item) in given.iter().enumerate() {
        let path = |name: &str| format!("bindings[{index}].{name}");
        let members = match item.get("members") {
            None | Some(Value::Null) => Vec::new(),
            Some(Value::Array(members)) => members
                .iter()
                .map(|m| text(Some(m), &path("members")))
                .collect::<Result<Vec<_>, _>>()?,
            Some(_) => {
                return Err(ApiError::invalid(
                    format!("{field}.{}", path("members")),
                    "must be a list",
                ));
            }
        };
        let condition = match item.get("condition").filter(|c| !c.is_null()) {
            None => None,
            Some(condition) => {
                let part =
                    |name: &str| text(condition.get(name), &path(&format!("condition.{name}")));
                Some(Expr {
                    expression: part("expression")?,
                    title: part("title")?,
                    description: part("description")?,
                    location: part("location")?,
                })
            }
        };
        bindings.push(Binding {
            role: text(item.get("role"), &path("role"))?,
            members,
            condition,
        });
    }
    Ok(Policy {
        version,
        etag: text(object.get("etag"), "etag")?,
        bindings,
    })
}
