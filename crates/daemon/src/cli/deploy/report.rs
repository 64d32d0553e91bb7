//! What a deploy came to; and who may call the service.

use serde_json::{Value, json};

use super::super::ClientArgs;
use super::super::services::callers::is_public;
use super::super::services::show;
use super::DeployArgs;
use crate::client::{Api, Failure};
use crate::output::{Format, line, note, value};

/// Adds or removes `allUsers` as invoker, keeping every other binding.
pub(crate) async fn set_public(api: &Api, path: &str, public: bool) -> Result<(), Failure> {
    let mut policy = api.get(&format!("{path}:getIamPolicy")).await?;
    let mut bindings: Vec<Value> = policy["bindings"].as_array().cloned().unwrap_or_default();
    for binding in bindings
        .iter_mut()
        .filter(|b| b["role"] == json!(utsuwa_model::iam::INVOKER))
    {
        if let Some(members) = binding["members"].as_array_mut() {
            members.retain(|m| m != &json!("allUsers"));
        }
    }
    bindings.retain(|b| b["members"].as_array().is_none_or(|m| !m.is_empty()));
    if public {
        bindings.push(json!({"role": utsuwa_model::iam::INVOKER, "members": ["allUsers"]}));
    }
    policy["bindings"] = Value::Array(bindings);
    api.post(&format!("{path}:setIamPolicy"), &json!({"policy": policy}))
        .await
        .map(drop)
}

pub(super) async fn report(
    api: &Api,
    args: &DeployArgs,
    client: &ClientArgs,
) -> Result<(), Failure> {
    let service = api.get(&api.service(&args.name)).await?;
    if client.format != Format::Table {
        return value(&client.format, &service);
    }
    let revision = service["latestReadyRevision"]
        .as_str()
        .and_then(|n| n.rsplit('/').next())
        .unwrap_or_default();
    let percent: u64 = service["trafficStatuses"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|t| {
            t["revision"]
                .as_str()
                .is_some_and(|r| r.ends_with(revision))
        })
        .filter_map(|t| t["percent"].as_u64())
        .sum();
    note(&format!(
        "Service [{}] revision [{revision}] has been deployed and is serving {percent} percent of traffic.",
        args.name
    ));
    if percent == 0 {
        note(&format!(
            "hint: traffic is pinned to other revisions; send it here with: utsuwa services update-traffic {} --to-latest",
            args.name
        ));
    }
    let uri = service["uri"].as_str().unwrap_or_default();
    line(&format!("Service URL: {}", show::address(&service)));
    if show::is_off(&service) {
        note(&format!("Its own address is {}.", show::off(&service)));
    }
    if let Some(tag) = &args.tag {
        let tagged = service["trafficStatuses"]
            .as_array()
            .into_iter()
            .flatten()
            .find(|t| t["tag"] == json!(tag));
        if let Some(uri) = tagged.and_then(|t| t["uri"].as_str()) {
            line(&format!("Tag URL: {uri}"));
        }
    }
    // A name alone would mean the service of the server's own region.
    let name = match api.region == api.home {
        true => args.name.clone(),
        false => format!("{} --region {}", args.name, api.region),
    };
    let callers = Callers {
        public: is_public(api, &args.name, &service).await?,
        internal: is_internal(&service),
    };
    for text in after_address(&name, uri, callers) {
        note(&text);
    }
    Ok(())
}

/// Instead of a call from here, which would be answered 404.
const INTERNAL: &str = "Its ingress is internal: only other instances of this server reach it; to callers from elsewhere there is nothing under \
     this address. `--ingress all` opens it.";

/// Who gets in: by the invokers, and by the ingress.
#[derive(Debug, Clone, Copy)]
struct Callers {
    public: bool,
    internal: bool,
}

/// Only other instances come in; there is no load balancer that the second of them could mean.
pub(crate) fn is_internal(service: &Value) -> bool {
    let ingress = service["ingress"].as_str().unwrap_or_default();
    [
        "INGRESS_TRAFFIC_INTERNAL_ONLY",
        "INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER",
    ]
    .contains(&ingress)
}

/// What follows the address: whether a caller gets in, and how to call it.
fn after_address(name: &str, uri: &str, callers: Callers) -> Vec<String> {
    let mut lines = Vec::new();
    if callers.internal {
        lines.push(INTERNAL.to_owned());
    }
    if !callers.public {
        let all = match callers.internal {
            true => "lets everybody call it who reaches it",
            false => "lets everybody call it",
        };
        lines.push(format!(
            "The service is private: a caller needs the role {} and an identity token, and gets 403 without.",
            utsuwa_model::iam::INVOKER
        ));
        // Tokens are not checked yet, so nobody but everybody can be let in.
        lines.push(format!(
            "hint: identity tokens are not built yet; `utsuwa deploy {name} --allow-unauthenticated` {all}"
        ));
    }
    if callers.internal {
        return lines;
    }
    if let Some((host, at)) = host_and_address(uri) {
        lines.push(format!(
            "hint: where {host} does not resolve: curl -H 'Host: {host}' http://{at}/"
        ));
    }
    lines
}

/// `http://hello.localhost:8080` → (`hello.localhost:8080`, `127.0.0.1:8080`).
pub(crate) fn host_and_address(uri: &str) -> Option<(String, String)> {
    let host = uri.split_once("://")?.1.trim_end_matches('/');
    let port = host.rsplit_once(':').map_or("80", |(_, port)| port);
    Some((host.to_owned(), format!("127.0.0.1:{port}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_service_says_what_a_caller_needs_before_how_to_call_it() {
        let uri = "http://web.localhost:8080";
        let callers = |public, internal| Callers { public, internal };
        let private = after_address("web", uri, callers(false, false));
        assert!(private[0].contains("roles/run.invoker"), "{private:?}");
        assert!(private[0].contains("403"), "{private:?}");
        assert!(private[1].contains("utsuwa deploy web --allow-unauthenticated"));
        assert!(private[2].contains("curl -H 'Host: web.localhost:8080'"));
        assert_eq!(
            after_address("web", uri, callers(true, false)),
            private[2..]
        );

        // An internal one is called from no shell, but whether it is private its callers must know.
        let internal = after_address("web", uri, callers(false, true));
        assert_eq!(internal[..2], [INTERNAL, private[0].as_str()]);
        assert!(
            internal[2].contains("--allow-unauthenticated` lets everybody call it who reaches it"),
            "{internal:?}"
        );
        assert_eq!(internal.len(), 3);
        assert_eq!(after_address("web", uri, callers(true, true)), [INTERNAL]);
    }

    #[test]
    fn both_kinds_of_internal_are_internal() {
        for (ingress, internal) in [
            ("INGRESS_TRAFFIC_INTERNAL_ONLY", true),
            ("INGRESS_TRAFFIC_INTERNAL_LOAD_BALANCER", true),
            ("INGRESS_TRAFFIC_ALL", false),
        ] {
            assert_eq!(is_internal(&json!({"ingress": ingress})), internal);
        }
    }

    #[test]
    fn a_host_line_for_everywhere() {
        let expected = (
            "hello.localhost:8080".to_owned(),
            "127.0.0.1:8080".to_owned(),
        );
        assert_eq!(
            host_and_address("http://hello.localhost:8080"),
            Some(expected)
        );
    }
}
