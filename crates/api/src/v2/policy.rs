//! IAM policies on services, in v2's messages. What a policy may say is [`crate::iam`]'s.

use utsuwa_model::ServiceKey;
use utsuwa_model::iam as model;
use utsuwa_wire::google::iam::v1 as wire;
use utsuwa_wire::google::r#type::Expr;

use crate::{ApiError, ApiState, iam};

/// The policy of a service.
pub(super) fn get(state: &ApiState, key: &ServiceKey) -> Result<wire::Policy, ApiError> {
    write(&iam::get(state, key)?)
}

/// Replaces the policy, or the part that the mask names.
pub(super) async fn set(
    state: &ApiState,
    key: &ServiceKey,
    request: wire::SetIamPolicyRequest,
) -> Result<wire::Policy, ApiError> {
    let wish = request
        .policy
        .ok_or_else(|| ApiError::invalid("policy", "is required"))?;
    let mut mask = request.update_mask.map(|m| m.paths).unwrap_or_default();
    if mask.iter().any(|p| p == "*") {
        mask.clear();
    }
    let policy = model::Policy {
        version: wish.version,
        etag: encode(&wish.etag),
        bindings: wish.bindings.into_iter().map(read).collect(),
    };
    write(&iam::set(state, key, policy, &mask).await?)
}

/// Which of the permissions the caller has.
pub(super) fn test(permissions: &[String]) -> Result<wire::TestIamPermissionsResponse, ApiError> {
    Ok(wire::TestIamPermissionsResponse {
        permissions: iam::test(permissions)?,
    })
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
