//! `utsuwa env`: shell lines that make gcloud and the client libraries in one shell talk to this server
//! (`gcloud-protocol.md` §1.3; method A, or B with `--no-tls`).

use clap::Args;

use super::ClientArgs;
use crate::client::Failure;
use crate::output::line;

#[derive(Debug, Args)]
pub(crate) struct EnvArgs {
    /// Undo it: print unset lines.
    #[arg(long)]
    unset: bool,
    /// Without TLS: every API over plain HTTP through the proxy. No gRPC.
    #[arg(long)]
    no_tls: bool,
}

/// APIs that get an override without TLS.
const OVERRIDES: &[&str] = &[
    "RUN", "SERVICEUSAGE", "CLOUDRESOURCEMANAGER", "IAM", "IAMCREDENTIALS", "LOGGING", "SECRETMANAGER", "PUBSUB", "EVENTARC",
    "CLOUDSCHEDULER", "CLOUDTASKS", "CLOUDBUILD", "ARTIFACTREGISTRY", "STORAGE",
];

const NAMES: &[&str] = &[
    "UTSUWA_API",
    "CLOUDSDK_PROXY_TYPE",
    "CLOUDSDK_PROXY_ADDRESS",
    "CLOUDSDK_PROXY_PORT",
    "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
    "CLOUDSDK_AUTH_DISABLE_CREDENTIALS",
    "CLOUDSDK_CORE_PROJECT",
    "CLOUDSDK_RUN_REGION",
    "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING",
    "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK",
    "CLOUDSDK_CORE_SHOULD_PROMPT_TO_ENABLE_API",
];

pub(crate) async fn run(args: &EnvArgs, client: &ClientArgs) -> Result<(), Failure> {
    if args.unset {
        for name in NAMES {
            line(&format!("unset {name}"));
        }
        for api in OVERRIDES {
            line(&format!("unset CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}"));
        }
        return Ok(());
    }
    let api = client.connect().await?;
    let info = api.get("/utsuwa/v1/info").await?;
    let address = client.api.split_once("://").map_or(client.api.as_str(), |(_, rest)| rest).trim_end_matches('/');
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
    let host = if host == "localhost" { "127.0.0.1" } else { host };
    let mut exports = vec![
        ("UTSUWA_API", format!("http://{host}:{port}")),
        ("CLOUDSDK_PROXY_TYPE", "http".to_owned()),
        ("CLOUDSDK_PROXY_ADDRESS", host.to_owned()),
        ("CLOUDSDK_PROXY_PORT", port.to_owned()),
        ("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true".to_owned()),
        ("CLOUDSDK_CORE_PROJECT", api.project.clone()),
        ("CLOUDSDK_RUN_REGION", api.region.clone()),
        ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "1".to_owned()),
        ("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "1".to_owned()),
        ("CLOUDSDK_CORE_SHOULD_PROMPT_TO_ENABLE_API", "false".to_owned()),
    ];
    if !args.no_tls {
        let ca = info["caFile"].as_str().filter(|p| !p.is_empty()).ok_or_else(|| {
            Failure::failed("the server has no certificate authority for googleapis.com").hint("use `utsuwa env --no-tls`")
        })?;
        exports.push(("CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE", ca.to_owned()));
    }
    for (name, value) in exports {
        line(&format!("export {name}={}", shell_quote(&value)));
    }
    for api in OVERRIDES {
        if args.no_tls {
            let host = api.to_lowercase();
            line(&format!("export CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}=http://{host}.googleapis.com/"));
        } else {
            // A shell that used --no-tls before must not keep its overrides.
            line(&format!("unset CLOUDSDK_API_ENDPOINT_OVERRIDES_{api}"));
        }
    }
    line("# Run this: eval \"$(utsuwa env)\"      and to undo it: eval \"$(utsuwa env --unset)\"");
    Ok(())
}

fn shell_quote(text: &str) -> String {
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-:".contains(c)) { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
