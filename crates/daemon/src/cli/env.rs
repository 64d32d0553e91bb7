//! `utsuwa env`: shell lines that make gcloud and the client libraries in one shell talk to this server
//! (`gcloud-protocol.md` §1.3; method A, or B with `--no-tls`).

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use clap::Args;
use sha2::{Digest, Sha256};

use super::ClientArgs;
use super::words::shell_quote;
use crate::client::Failure;
use crate::output::line;

#[derive(Debug, Args)]
pub(crate) struct EnvArgs {
    /// Undo it: print lines that give the shell back what it had before. The certificate's file stays, for other shells.
    #[arg(long)]
    unset: bool,
    /// Without TLS: every API over plain HTTP through the proxy. No gRPC.
    #[arg(long)]
    no_tls: bool,
}

/// APIs that get an override without TLS.
const OVERRIDES: &[&str] = &[
    "RUN",
    "SERVICEUSAGE",
    "CLOUDRESOURCEMANAGER",
    "IAM",
    "IAMCREDENTIALS",
    "LOGGING",
    "SECRETMANAGER",
    "PUBSUB",
    "EVENTARC",
    "CLOUDSCHEDULER",
    "CLOUDTASKS",
    "CLOUDBUILD",
    "ARTIFACTREGISTRY",
    "STORAGE",
];

const OVERRIDE: &str = "CLOUDSDK_API_ENDPOINT_OVERRIDES_";
/// Set in a shell while it talks to this server.
const ACTIVE: &str = "UTSUWA_ENV_ACTIVE";
/// Before the name of a variable: where the user's own value waits meanwhile.
const SAVED: &str = "UTSUWA_ENV_SAVED_";

/// gcloud believes the proxy's certificates only by an authority in a file: there is no property for its text.
const CA_FILE: &str = "CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE";

const NAMES: &[&str] = &[
    "UTSUWA_API",
    "CLOUDSDK_PROXY_TYPE",
    "CLOUDSDK_PROXY_ADDRESS",
    "CLOUDSDK_PROXY_PORT",
    CA_FILE,
    "CLOUDSDK_AUTH_DISABLE_CREDENTIALS",
    "CLOUDSDK_CORE_PROJECT",
    "CLOUDSDK_RUN_REGION",
    "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING",
    "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK",
    "CLOUDSDK_CORE_SHOULD_PROMPT_TO_ENABLE_API",
];

pub(crate) async fn run(args: &EnvArgs, client: &ClientArgs) -> Result<(), Failure> {
    if args.unset {
        for text in restore() {
            line(&text);
        }
        return Ok(());
    }
    let api = client.connect().await?;
    let info = api.get("/utsuwa/v1/info").await?;
    let address = client
        .api
        .split_once("://")
        .map_or(client.api.as_str(), |(_, rest)| rest)
        .trim_end_matches('/');
    let (host, port) = address.rsplit_once(':').unwrap_or((address, "80"));
    let host = if host == "localhost" {
        "127.0.0.1"
    } else {
        host
    };
    let mut exports = vec![
        ("UTSUWA_API", format!("http://{host}:{port}")),
        ("CLOUDSDK_PROXY_TYPE", "http".to_owned()),
        ("CLOUDSDK_PROXY_ADDRESS", host.to_owned()),
        ("CLOUDSDK_PROXY_PORT", port.to_owned()),
        ("CLOUDSDK_AUTH_DISABLE_CREDENTIALS", "true".to_owned()),
        ("CLOUDSDK_CORE_PROJECT", api.project.clone()),
        ("CLOUDSDK_RUN_REGION", api.region.clone()),
        ("CLOUDSDK_CORE_DISABLE_USAGE_REPORTING", "1".to_owned()),
        (
            "CLOUDSDK_COMPONENT_MANAGER_DISABLE_UPDATE_CHECK",
            "1".to_owned(),
        ),
        (
            "CLOUDSDK_CORE_SHOULD_PROMPT_TO_ENABLE_API",
            "false".to_owned(),
        ),
    ];
    if !args.no_tls {
        let pem = info["caPem"]
            .as_str()
            .filter(|pem| !pem.is_empty())
            .ok_or_else(|| {
                Failure::failed("the server has no certificate authority for googleapis.com")
                    .hint("use `utsuwa env --no-tls`")
            })?;
        let file = keep_certificate(&cache_dir()?, pem)?;
        exports.push((CA_FILE, file.display().to_string()));
    }
    save();
    let set = |name: &str, value: &str| line(&format!("export {name}={}", shell_quote(value)));
    for (name, value) in &exports {
        set(name, value);
    }
    if args.no_tls {
        line(&format!("unset {CA_FILE}"));
    }
    for api in OVERRIDES {
        let name = format!("{OVERRIDE}{api}");
        if args.no_tls {
            set(
                &name,
                &format!("http://{}.googleapis.com/", api.to_lowercase()),
            );
        } else {
            // A shell that used --no-tls before must not keep its overrides.
            line(&format!("unset {name}"));
        }
    }
    line("# Run this: eval \"$(utsuwa env)\"      and to undo it: eval \"$(utsuwa env --unset)\"");
    Ok(())
}

/// Every variable that is set or unset here.
fn names() -> Vec<String> {
    let overrides = OVERRIDES.iter().map(|api| format!("{OVERRIDE}{api}"));
    NAMES
        .iter()
        .map(|n| (*n).to_owned())
        .chain(overrides)
        .collect()
}

/// Lines that remember what the shell has, once: a second `utsuwa env` must not take our values for the user's. Exported, so
/// that a shell started from this one can restore too.
fn save() {
    line(&format!("if [ -z \"${{{ACTIVE}-}}\" ]; then"));
    line(&format!("  export {ACTIVE}=1"));
    for name in names() {
        line(&format!(
            "  if [ -n \"${{{name}+x}}\" ]; then export {SAVED}{name}=\"${name}\"; fi"
        ));
    }
    line("fi");
}

/// Lines that give back what was remembered. In a shell where nothing was set they do nothing. The certificate's file stays: other
/// shells that talk to the server have its name, and a gcloud without it does nothing at all.
fn restore() -> Vec<String> {
    let mut lines = vec![format!("if [ -n \"${{{ACTIVE}-}}\" ]; then")];
    for name in names() {
        lines.push(format!(
            "  if [ -n \"${{{SAVED}{name}+x}}\" ]; then export {name}=\"${SAVED}{name}\"; unset {SAVED}{name}; else unset {name}; fi"
        ));
    }
    lines.push(format!("  unset {ACTIVE}"));
    lines.push("fi".to_owned());
    lines
}

/// `${XDG_CACHE_HOME:-$HOME/.cache}/utsuwa`. The server's own copy lies in its data directory, which is closed to other users.
fn cache_dir() -> Result<PathBuf, Failure> {
    let absolute = |name: &str| {
        crate::environment::variable(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".cache")))
        .map(|cache| cache.join("utsuwa"))
        .ok_or_else(|| {
            Failure::failed("neither XDG_CACHE_HOME nor HOME names a directory to keep the server's certificate in")
                .hint("set HOME, or use `utsuwa env --no-tls`")
        })
}

/// Writes the certificate under a name made of its content, so that several servers' lie side by side, and answers the file.
/// Other users may read it: a gcloud in a container of the same user, for one.
fn keep_certificate(dir: &Path, pem: &str) -> Result<PathBuf, Failure> {
    let digest = Sha256::digest(pem.as_bytes());
    let name: String = digest
        .iter()
        .take(4)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let file = dir.join(format!("ca-{name}.pem"));
    let failed = |what: &str, path: &Path, error: &std::io::Error| {
        Failure::failed(format!("{what} {}: {error}", path.display())).hint(
            "set XDG_CACHE_HOME to a directory you may write to, or use `utsuwa env --no-tls`",
        )
    };
    if std::fs::read(&file).is_ok_and(|kept| kept == pem.as_bytes()) {
        return Ok(file);
    }
    std::fs::create_dir_all(dir).map_err(|e| failed("make", dir, &e))?;
    // Whole or not at all: another shell may be reading it.
    let next = dir.join(format!("ca-{name}.pem.{}", std::process::id()));
    std::fs::write(&next, pem)
        .and_then(|()| std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o644)))
        .and_then(|()| std::fs::rename(&next, &file))
        .map_err(|e| failed("write", &file, &e))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn undoing_it_leaves_the_file_to_other_shells() {
        let home = tempfile::tempdir().unwrap();
        let ours = keep_certificate(&home.path().join("utsuwa"), "one")
            .ok()
            .unwrap();
        let other = home.path().join("own.pem");
        std::fs::write(&other, "own").unwrap();
        let script = restore().join("\n") + &format!("\nprintf %s \"${{{CA_FILE}-none}}\"");
        let run = |set: &[(&str, &Path)]| {
            let mut shell = std::process::Command::new("sh");
            shell
                .env_clear()
                .env("PATH", "/usr/bin:/bin")
                .args(["-euc", &script]);
            let output = shell.envs(set.iter().copied()).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            String::from_utf8(output.stdout).unwrap()
        };
        let on = Path::new("1");
        assert_eq!(run(&[(CA_FILE, &ours)]), ours.to_str().unwrap());
        assert!(ours.exists(), "not active: nothing is undone");
        assert_eq!(run(&[(ACTIVE, on), (CA_FILE, &other)]), "none");
        assert!(other.exists());
        let saved = format!("{SAVED}{CA_FILE}");
        assert_eq!(
            run(&[(ACTIVE, on), (CA_FILE, &ours), (&saved, &other)]),
            other.to_str().unwrap()
        );
        assert!(ours.exists(), "another shell was told its name");
    }

    #[test]
    fn the_certificate_is_kept_once_and_readable() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("cache/utsuwa");
        let file = keep_certificate(&dir, "one").ok().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o644);
        // Somebody spoilt it: it is made good again.
        std::fs::write(&file, "spoilt").unwrap();
        assert_eq!(keep_certificate(&dir, "one").ok().unwrap(), file);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one");
        assert_ne!(keep_certificate(&dir, "two").ok().unwrap(), file);
        assert_eq!(std::fs::read_dir(&dir).unwrap().count(), 2);
        let refused = keep_certificate(&file.join("below"), "one").err().unwrap();
        assert!(refused.message.contains("below") && refused.hint.unwrap().contains("--no-tls"));
    }
}
