//! IAM policies on services, in v2's messages.

use utsuwa_model::ServiceKey;
use utsuwa_model::iam as model;
use utsuwa_wire::google::iam::v1 as wire;
use utsuwa_wire::google::r#type::Expr;

use crate::{ApiError, ApiState, intent};

/// The policy of a service.
pub(super) fn get(state: &ApiState, key: &ServiceKey) -> Result<wire::Policy, ApiError> {
    intent::get(state, key)?;
    write(&state.store.policy(key)?)
}

/// Replaces the policy, or the part that the mask names.
pub(super) async fn set(
    state: &ApiState,
    key: &ServiceKey,
    request: wire::SetIamPolicyRequest,
) -> Result<wire::Policy, ApiError> {
    intent::get(state, key)?;
    let wish = request
        .policy
        .ok_or_else(|| ApiError::invalid("policy", "is required"))?;
    let mask = request.update_mask.map(|m| m.paths).unwrap_or_default();
    let now = state.store.policy(key)?;
    let wants = |field: &str| mask.is_empty() || mask.iter().any(|p| p == field || p == "*");
    if let Some(unknown) = mask
        .iter()
        .find(|p| !matches!(p.as_str(), "bindings" | "etag" | "version" | "*"))
    {
        return Err(ApiError::invalid(
            "updateMask",
            format!("{unknown:?} is not a field of a policy: bindings, etag and version are"),
        ));
    }
    let etag = encode(&wish.etag);
    let policy = model::Policy {
        version: if wants("version") && wish.version != 0 {
            wish.version
        } else {
            now.version.max(1)
        },
        bindings: if wants("bindings") {
            wish.bindings.into_iter().map(read).collect()
        } else {
            now.bindings
        },
        etag: String::new(),
    };
    check(&policy)?;
    let expected = (!etag.is_empty()).then_some(etag);
    write(
        &state
            .store
            .set_policy(key, expected.as_deref(), policy)
            .await?,
    )
}

/// Until identity exists everybody who reaches the API may do everything.
pub(super) fn test(
    state: &ApiState,
    key: &ServiceKey,
    permissions: Vec<String>,
) -> Result<wire::TestIamPermissionsResponse, ApiError> {
    intent::get(state, key)?;
    Ok(wire::TestIamPermissionsResponse { permissions })
}

/// Roles and members must at least have their shape; whether they exist is not asked (decision 14).
fn check(policy: &model::Policy) -> Result<(), ApiError> {
    let mut found = utsuwa_model::Violations::default();
    if ![0, 1, 3].contains(&policy.version) {
        found.add(
            "policy.version",
            format!("{} is not a policy version: 1 and 3 are", policy.version),
        );
    }
    for (index, binding) in policy.bindings.iter().enumerate() {
        if !binding.role.contains("roles/") {
            found.add(
                format!("policy.bindings[{index}].role"),
                format!(
                    "{:?} is not a role: write it as roles/run.invoker",
                    binding.role
                ),
            );
        }
        for (position, member) in binding.members.iter().enumerate() {
            let known = matches!(member.as_str(), "allUsers" | "allAuthenticatedUsers")
                || member
                    .split_once(':')
                    .is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty());
            if !known {
                found.add(
                    format!("policy.bindings[{index}].members[{position}]"),
                    format!("{member:?} is not a member: write allUsers, user:EMAIL, serviceAccount:EMAIL, group:EMAIL or domain:NAME"),
                );
            }
        }
    }
    Ok(found.into_result()?)
}

fn read(binding: wire::Binding) -> model::Binding {
    model::Binding {
        role: binding.role,
        members: binding.members,
        condition: binding.condition.map(|c| model::Expr {
            expression: c.expression,
            title: c.title,
            description: c.description,
            location: c.location,
        }),
    }
}

fn write(policy: &model::Policy) -> Result<wire::Policy, ApiError> {
    let etag = decode(&policy.etag).ok_or_else(|| {
        ApiError::internal(format!("the stored etag {:?} is not base64", policy.etag))
    })?;
    Ok(wire::Policy {
        version: policy.version,
        etag,
        bindings: policy
            .bindings
            .iter()
            .map(|b| wire::Binding {
                role: b.role.clone(),
                members: b.members.clone(),
                condition: b.condition.as_ref().map(|c| Expr {
                    expression: c.expression.clone(),
                    title: c.title.clone(),
                    description: c.description.clone(),
                    location: c.location.clone(),
                }),
            })
            .collect(),
    })
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The model keeps etags as base64; gRPC carries the bytes.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let c = match c {
            b'-' => b'+',
            b'_' => b'/',
            c => c,
        };
        let value = ALPHABET.iter().position(|a| *a == c)?;
        bits = bits << 6 | u32::try_from(value).ok()?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).ok()?);
        }
    }
    Some(bytes)
}

fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group = u32::from(chunk[0]) << 16
            | u32::from(*chunk.get(1).unwrap_or(&0)) << 8
            | u32::from(*chunk.get(2).unwrap_or(&0));
        for index in 0..=chunk.len() {
            let digit = usize::try_from(group >> (18 - 6 * index) & 63).unwrap_or(0);
            text.push(char::from(ALPHABET[digit]));
        }
        text.extend(std::iter::repeat_n('=', 3 - chunk.len()));
    }
    text
}
