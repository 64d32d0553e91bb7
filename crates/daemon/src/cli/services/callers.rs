//! Who may call a service.

use serde_json::{Value, json};
use utsuwa_model::iam::Policy;

use crate::client::{Api, Failure};

/// Whether everybody may call `service`: its check is switched off, or its policy lets all users in.
pub(in crate::cli) async fn is_public(
    api: &Api,
    name: &str,
    service: &Value,
) -> Result<bool, Failure> {
    let path = format!("{}:getIamPolicy", api.service(name));
    lets_everybody_in(service, api.get(&path).await?)
}

fn lets_everybody_in(service: &Value, policy: Value) -> Result<bool, Failure> {
    let policy: Policy = serde_json::from_value(policy)
        .map_err(|error| Failure::failed(format!("the server answered no IAM policy: {error}")))?;
    Ok(service["invokerIamDisabled"] == json!(true) || policy.is_public())
}

/// The line of `describe`.
pub(super) fn words(public: bool) -> &'static str {
    match public {
        true => "everybody",
        false => {
            "nobody without an identity token (`--allow-unauthenticated` of a deploy opens it)"
        }
    }
}

#[cfg(test)]
mod tests {
    use utsuwa_model::iam::INVOKER;

    use super::*;

    #[test]
    fn a_service_is_open_by_its_policy_or_without_a_check() {
        let closed = json!({"invokerIamDisabled": false});
        let all = json!({"role": INVOKER, "members": ["user:a@example.com", "allUsers"]});
        let mut bound = all.clone();
        bound["condition"] = json!({"expression": "false"});
        let someone = json!({"role": INVOKER, "members": ["user:a@example.com"]});
        let viewer = json!({"role": "roles/run.viewer", "members": ["allUsers"]});
        let opens = |service: &Value, policy| lets_everybody_in(service, policy).unwrap();
        for (binding, open) in [
            (&all, true),
            (&bound, false),
            (&someone, false),
            (&viewer, false),
        ] {
            let policy = json!({"bindings": [viewer, binding], "etag": "AAAA"});
            assert_eq!(opens(&closed, policy), open, "{binding}");
        }
        assert!(!opens(&json!({}), json!({})));
        assert!(opens(&json!({"invokerIamDisabled": true}), json!({})));
        let failure = lets_everybody_in(&closed, json!({"bindings": 1})).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("the server answered no IAM policy: ")
        );
    }
}
