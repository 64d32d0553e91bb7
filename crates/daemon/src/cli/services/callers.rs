//! Who may call a service.

use serde_json::{Value, json};
use utsuwa_model::iam::INVOKER;

use crate::client::{Api, Failure};

/// Whether everybody may call `service`: its check is switched off, or its policy lets all users in.
pub(in crate::cli) async fn is_public(
    api: &Api,
    name: &str,
    service: &Value,
) -> Result<bool, Failure> {
    let policy = api
        .get(&format!("{}:getIamPolicy", api.service(name)))
        .await?;
    Ok(lets_everybody_in(service, &policy))
}

/// A binding with a condition opens nothing (`utsuwa_model::iam::Policy::is_public`).
fn lets_everybody_in(service: &Value, policy: &Value) -> bool {
    let bindings = policy["bindings"].as_array().into_iter().flatten();
    let mut open = bindings.filter(|binding| {
        let members = binding["members"].as_array();
        binding["role"] == json!(INVOKER)
            && binding["condition"].is_null()
            && members.is_some_and(|all| all.contains(&json!("allUsers")))
    });
    service["invokerIamDisabled"] == json!(true) || open.next().is_some()
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
    use super::*;

    #[test]
    fn a_service_is_open_by_its_policy_or_without_a_check() {
        let closed = json!({"invokerIamDisabled": false});
        let all = json!({"role": INVOKER, "members": ["user:a@example.com", "allUsers"]});
        let mut bound = all.clone();
        bound["condition"] = json!({"expression": "false"});
        let someone = json!({"role": INVOKER, "members": ["user:a@example.com"]});
        let viewer = json!({"role": "roles/run.viewer", "members": ["allUsers"]});
        for (binding, open) in [
            (&all, true),
            (&bound, false),
            (&someone, false),
            (&viewer, false),
        ] {
            let policy = json!({"bindings": [viewer, binding]});
            assert_eq!(lets_everybody_in(&closed, &policy), open, "{binding}");
        }
        assert!(!lets_everybody_in(&json!({}), &json!({})));
        assert!(lets_everybody_in(
            &json!({"invokerIamDisabled": true}),
            &json!({})
        ));
    }
}
