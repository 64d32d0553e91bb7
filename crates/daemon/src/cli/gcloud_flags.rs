//! Flags of `gcloud run deploy` that this server doesn't support: each is refused by its name, never silently dropped.

use clap::error::{ContextKind, ContextValue, ErrorKind};

use crate::client::Failure;

/// The reason for flags whose feature isn't there at all.
const LATER: &str = "not built in this server yet";

/// Flags, without their dashes, and why each is refused.
const REFUSED: &[(&[&str], &str)] = &[
    (
        &["service-account"],
        "would have no effect: instances have no identity yet",
    ),
    (
        &[
            "platform",
            "cluster",
            "cluster-location",
            "context",
            "kubeconfig",
            "namespace",
        ],
        "there is one platform here: leave the flag out",
    ),
    (
        &[
            "function",
            "base-image",
            "no-base-image",
            "automatic-updates",
            "build-service-account",
            "build-worker-pool",
            "build-env-vars-file",
            "set-build-env-vars",
            "update-build-env-vars",
            "remove-build-env-vars",
            "clear-build-env-vars",
        ],
        "nothing is built from source yet: build the image yourself and name it with --image",
    ),
    (
        &["startup-probe", "liveness-probe", "readiness-probe"],
        "not built as a flag yet: the API takes probes, for example with `gcloud run services replace FILE`",
    ),
    (
        &[
            "add-volume",
            "remove-volume",
            "clear-volumes",
            "add-volume-mount",
            "remove-volume-mount",
            "clear-volume-mounts",
        ],
        "not built as a flag yet: the API takes volumes in memory and allowed directories of the host, for example with `gcloud run deploy` or `gcloud run services replace FILE`",
    ),
    (
        &[
            "set-secrets",
            "update-secrets",
            "remove-secrets",
            "clear-secrets",
        ],
        "there is no secret manager yet: give the value with --set-env-vars",
    ),
    (
        &[
            "vpc-connector",
            "clear-vpc-connector",
            "vpc-egress",
            "network",
            "subnet",
            "network-tags",
            "clear-network",
            "clear-network-tags",
        ],
        "not built in this server yet: `utsuwa up --allow-egress` opens addresses",
    ),
    (
        &[
            "set-cloudsql-instances",
            "add-cloudsql-instances",
            "remove-cloudsql-instances",
            "clear-cloudsql-instances",
        ],
        LATER,
    ),
    (
        &["container", "remove-containers", "depends-on"],
        "not built as a flag yet: the API takes several containers, for example with `gcloud run deploy --container` or \
         `gcloud run services replace FILE`",
    ),
    (
        &[
            "gpu",
            "gpu-type",
            "gpu-zonal-redundancy",
            "no-gpu-zonal-redundancy",
        ],
        LATER,
    ),
    (
        &[
            "binary-authorization",
            "clear-binary-authorization",
            "breakglass",
            "key",
            "clear-key",
            "post-key-revocation-action-type",
            "clear-post-key-revocation-action-type",
            "encryption-key-shutdown-hours",
            "clear-encryption-key-shutdown-hours",
            "iap",
            "no-iap",
            "mesh",
            "identity",
            "mesh-dataplane",
            "identity-type",
            "identity-certificate",
            "add-custom-audiences",
            "set-custom-audiences",
            "remove-custom-audiences",
            "clear-custom-audiences",
        ],
        LATER,
    ),
    (
        &[
            "invoker-iam-check",
            "no-invoker-iam-check",
            "default-url",
            "no-default-url",
            "scaling",
            "env-vars-file",
            "update-labels",
            "remove-labels",
            "clear-labels",
            "deploy-health-check",
            "no-deploy-health-check",
            "connector",
            "preset",
            "domain",
        ],
        LATER,
    ),
];

/// The failure for a word that clap didn't know, if it is such a flag.
pub(super) fn refusal(error: &clap::Error) -> Option<Failure> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(word)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    let name = word.strip_prefix("--")?.split('=').next()?;
    let (_, why) = REFUSED.iter().find(|(names, _)| names.contains(&name))?;
    Some(
        Failure::usage(format!("--{name}: {why}; nothing was changed"))
            .hint("`utsuwa deploy --help` lists the flags that work"),
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn what_is_refused_is_not_offered() {
        let program = super::super::Cli::command();
        let deploy = program.find_subcommand("deploy").unwrap();
        let offered: Vec<&str> = deploy
            .get_arguments()
            .filter_map(clap::Arg::get_long)
            .collect();
        assert!(offered.contains(&"image"));
        for (names, _) in REFUSED {
            for name in *names {
                assert!(!offered.contains(name), "{name} is offered and refused");
            }
        }
    }
}
