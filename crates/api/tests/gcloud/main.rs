//! The unchanged `gcloud` against the API, through its forward proxy (`gcloud-protocol.md` §1.3, §3). Skipped by name where
//! `gcloud` isn't installed.
#![expect(
    clippy::disallowed_methods,
    reason = "a test learns of its tools from the environment"
)]

#[path = "../../../../tests/skip.rs"]
mod skip;
#[path = "../support/mod.rs"]
mod support;

mod flags;
mod manage;

use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use support::World;
use utsuwa_model::service::{ExecutionEnvironment, IngressSetting, ScalingMode};

/// A `gcloud` that reaches the world under test and nothing else.
#[derive(Debug)]
struct Gcloud<'a> {
    world: &'a World,
    home: tempfile::TempDir,
    /// Method B (plain HTTP with endpoint overrides) instead of A (CONNECT and our authority).
    plain: bool,
}

#[derive(Debug)]
struct Said {
    ok: bool,
    out: String,
    err: String,
}

impl Gcloud<'_> {
    async fn run(&self, args: &[&str]) -> Said {
        let mut command = tokio::process::Command::new("gcloud");
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("CLOUDSDK_CONFIG", self.home.path())
            .env("CLOUDSDK_PROXY_TYPE", "http")
            .env("CLOUDSDK_PROXY_ADDRESS", "127.0.0.1")
            .env("CLOUDSDK_PROXY_PORT", self.world.address.port().to_string())
            .env("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true")
            .env("CLOUDSDK_CORE_PROJECT", "demo")
            .env("CLOUDSDK_RUN_REGION", "us-central1")
            .env("CLOUDSDK_CORE_DISABLE_PROMPTS", "1")
            .env("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "1")
            .env("CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK", "1")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        if self.plain {
            for api in ["run", "serviceusage", "cloudresourcemanager"] {
                command.env(
                    format!("CLOUDSDK_API_ENDPOINT_OVERRIDES_{}", api.to_uppercase()),
                    format!("http://{api}.googleapis.com/"),
                );
            }
        } else {
            command.env(
                "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE",
                self.world.keys.path().join("ca.pem"),
            );
        }
        let output = command.output().await.expect("gcloud starts");
        Said {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs a command that must succeed; answers what it printed on stdout.
    #[track_caller]
    fn must(&self, args: &'static [&'static str]) -> impl Future<Output = String> {
        let caller = std::panic::Location::caller();
        async move {
            let said = self.run(args).await;
            assert!(
                said.ok,
                "{caller}: gcloud {args:?}\nstdout: {}\nstderr: {}",
                said.out, said.err
            );
            said.out
        }
    }

    async fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--format=json"]).collect();
        let said = self.run(&args).await;
        assert!(
            said.ok,
            "gcloud {args:?}\nstdout: {}\nstderr: {}",
            said.out, said.err
        );
        serde_json::from_str(&said.out).expect("JSON")
    }
}

fn installed(test: &str) -> bool {
    let found = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
        .any(|d| Path::new(&d).join("gcloud").is_file());
    if !found {
        skip::skip(test, "gcloud is not installed");
    }
    found
}

fn gcloud(world: &World, plain: bool) -> Gcloud<'_> {
    Gcloud {
        world,
        home: tempfile::tempdir().expect("a directory"),
        plain,
    }
}

const IMAGE: &str = "gcr.io/cloudrun/hello";
