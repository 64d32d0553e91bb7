//! Policies of services: get, set, test. Shared by v1 and v2.
//!
//! Owns: what a policy may say, the update mask, the lock by etag, and the policy's JSON. Deliberately not here: who a caller is
//! and whether the ingress lets them in.
//!
//! Invariants:
//! 1. A policy is replaced whole or not at all; a stale etag is `ABORTED`.
//! 2. What isn't named by the update mask stays as it was.

mod json;

pub(crate) use json::{from_json, to_json};
use utsuwa_model::iam::Policy;
use utsuwa_model::{ServiceKey, Violations};

use crate::{ApiError, ApiState, intent};

/// Members of all bindings together; Google's limit.
const MEMBERS: usize = 1500;

/// The policy of a service.
///
/// # Errors
/// `NOT_FOUND` without such a service.
pub fn get(state: &ApiState, key: &ServiceKey) -> Result<Policy, ApiError> {
    intent::get(state, key)?;
    Ok(state.store.policy(key)?)
}

/// Replaces the policy, or the parts that `mask` names (`bindings`, `etag`, `version`; empty means all). A policy without etag
/// replaces whatever is there.
///
/// # Errors
/// `NOT_FOUND`, `ABORTED` for a stale etag, `INVALID_ARGUMENT` naming the member or role.
pub async fn set(
    state: &ApiState,
    key: &ServiceKey,
    wanted: Policy,
    mask: &[String],
) -> Result<Policy, ApiError> {
    let current = get(state, key)?;
    if let Some(unknown) = mask
        .iter()
        .find(|m| !matches!(m.as_str(), "bindings" | "etag" | "version"))
    {
        return Err(ApiError::invalid(
            "updateMask",
            format!("{unknown:?} is not a field of a policy: write bindings, etag or version"),
        ));
    }
    let named = |field: &str| mask.is_empty() || mask.iter().any(|m| m == field);
    check(&wanted)?;
    // The etag is a lock even where the mask doesn't name it.
    let expected = if wanted.etag.is_empty() {
        None
    } else {
        Some(wanted.etag.clone())
    };
    let policy = Policy {
        version: if named("version") {
            wanted.version.max(1)
        } else {
            current.version
        },
        bindings: if named("bindings") {
            wanted.bindings
        } else {
            current.bindings
        },
        etag: String::new(),
    };
    Ok(state
        .store
        .set_policy(key, expected.as_deref(), policy)
        .await?)
}

/// Which of `permissions` the caller has. Until identity exists whoever reaches the API owns the server and has all of Cloud
/// Run's; the service need not exist (`gcloud run deploy` asks before it creates one).
///
/// # Errors
/// `INVALID_ARGUMENT` for a wildcard.
pub fn test(permissions: &[String]) -> Result<Vec<String>, ApiError> {
    if let Some(wild) = permissions.iter().find(|p| p.contains('*')) {
        return Err(ApiError::invalid(
            "permissions",
            format!("{wild:?}: wildcards are not allowed"),
        ));
    }
    Ok(permissions
        .iter()
        .filter(|p| p.starts_with("run."))
        .cloned()
        .collect())
}

fn check(policy: &Policy) -> Result<(), ApiError> {
    let mut found = Violations::default();
    if !matches!(policy.version, 0 | 1 | 3) {
        found.add(
            "policy.version",
            format!(
                "{} is not a version of policies: write 1 or 3",
                policy.version
            ),
        );
    }
    let members: usize = policy.bindings.iter().map(|b| b.members.len()).sum();
    if members > MEMBERS {
        found.add(
            "policy.bindings",
            format!("at most {MEMBERS} members are allowed, there are {members}"),
        );
    }
    for (index, binding) in policy.bindings.iter().enumerate() {
        let at = |field: &str| format!("policy.bindings[{index}].{field}");
        let role = binding.role.as_str();
        let word = |name: &str| !name.is_empty() && !name.contains(char::is_whitespace);
        let fine = role.strip_prefix("roles/").is_some_and(word)
            || ((role.starts_with("projects/") || role.starts_with("organizations/"))
                && role.contains("/roles/")
                && word(role));
        if !fine {
            found.add(
                at("role"),
                format!("Role {role:?} is not a role: write one as roles/run.invoker"),
            );
        }
        for member in &binding.members {
            if !member_is_fine(member) {
                found.add(
                    at("members"),
                    format!("Invalid member: {member:?}. Write allUsers, allAuthenticatedUsers, or a kind and a name as user:me@example.com"),
                );
            }
        }
        if binding.condition.is_some() && policy.version != 3 {
            found.add(
                at("condition"),
                "a policy with conditions must have version 3",
            );
        }
    }
    Ok(found.into_result()?)
}

fn member_is_fine(member: &str) -> bool {
    const KINDS: [&str; 10] = [
        "user",
        "serviceAccount",
        "group",
        "domain",
        "principal",
        "principalSet",
        "projectOwner",
        "projectEditor",
        "projectViewer",
        "deleted",
    ];
    match member.split_once(':') {
        None => matches!(member, "allUsers" | "allAuthenticatedUsers"),
        Some((kind, name)) => {
            KINDS.contains(&kind) && !name.is_empty() && !name.contains(char::is_whitespace)
        }
    }
}
