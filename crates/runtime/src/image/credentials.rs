//! Credentials for registries: from the server's configuration, and from a docker or podman configuration file.
//!
//! Doesn't: run credential helpers unless the operator says so: they are programs of the operator's, run by the server's user.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;

use super::reference::Reference;

/// A helper that asks a person or a slow service must not hold a deploy for ever.
const HELPER_DEADLINE: Duration = Duration::from_secs(15);

/// What opens a registry.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged, deny_unknown_fields)]
pub enum Credential {
    Password {
        username: String,
        password: String,
    },
    /// A refresh token (`identitytoken` in docker's files), exchanged for access tokens.
    IdentityToken {
        identity_token: String,
    },
    /// A ready access token (`registrytoken`).
    AccessToken {
        access_token: String,
    },
}

impl fmt::Debug for Credential {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Password { .. } => "Credential::Password(…)",
            Self::IdentityToken { .. } => "Credential::IdentityToken(…)",
            Self::AccessToken { .. } => "Credential::AccessToken(…)",
        })
    }
}

/// Where the operator's docker configuration is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum DockerConfig {
    #[default]
    None,
    /// Read again whenever a registry asks, so a new `docker login` counts at once.
    File(PathBuf),
    /// Its text, read before the server gave up the right to read it.
    Content(String),
}

/// All sources of credentials.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// By registry (`HOST[:PORT]`) or registry and the beginning of the repository; the longest match counts. Comes first.
    pub configured: BTreeMap<String, Credential>,
    pub docker: DockerConfig,
    /// Whether `credHelpers` and `credsStore` of the docker configuration may be run.
    pub run_helpers: bool,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct File {
    auths: BTreeMap<String, FileEntry>,
    #[serde(rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(rename = "credsStore")]
    store: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct FileEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: String,
}

impl Credentials {
    /// The credential for a repository, or none.
    ///
    /// # Errors
    /// Why a source that is configured can't be used, for the user.
    pub(crate) async fn find(&self, image: &Reference) -> Result<Option<Credential>, String> {
        let name = image.name();
        if let Some(credential) = longest(&self.configured, &name) {
            return Ok(Some(credential.clone()));
        }
        let (text, place) = match &self.docker {
            DockerConfig::None => return Ok(None),
            DockerConfig::Content(text) => (text.clone(), "the docker configuration".to_owned()),
            DockerConfig::File(path) => match tokio::fs::read_to_string(path).await {
                Ok(text) => (text, path.display().to_string()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(format!("{}: {error}", path.display())),
            },
        };
        let file: File =
            serde_json::from_str(&text).map_err(|error| format!("{place}: {error}"))?;
        let auths: BTreeMap<String, FileEntry> = file
            .auths
            .into_iter()
            .map(|(key, entry)| (host_key(&key), entry))
            .collect();
        if let Some(entry) = longest(&auths, &name)
            && let Some(credential) = entry
                .credential()
                .map_err(|why| format!("{place}, entry for {}: {why}", image.registry))?
        {
            return Ok(Some(credential));
        }
        let helpers: BTreeMap<String, String> = file
            .helpers
            .into_iter()
            .map(|(key, helper)| (host_key(&key), helper))
            .collect();
        match longest(&helpers, &name).or(file.store.as_ref()) {
            None => Ok(None),
            Some(helper) if self.run_helpers => ask_helper(helper, &image.registry).await,
            Some(helper) => Err(format!(
                "{place} leaves them to the helper program 'docker-credential-{helper}', which the server does not run; \
                 log in without a helper (`podman login --authfile FILE` does) and name that file with the server's option docker-config"
            )),
        }
    }
}

impl FileEntry {
    fn credential(&self) -> Result<Option<Credential>, String> {
        if let Some(token) = self.identitytoken.clone().filter(|token| !token.is_empty()) {
            return Ok(Some(Credential::IdentityToken {
                identity_token: token,
            }));
        }
        if let Some(token) = self.registrytoken.clone().filter(|token| !token.is_empty()) {
            return Ok(Some(Credential::AccessToken {
                access_token: token,
            }));
        }
        if let (Some(username), Some(password)) = (&self.username, &self.password) {
            return Ok(Some(Credential::Password {
                username: username.clone(),
                password: password.clone(),
            }));
        }
        let Some(auth) = self.auth.as_deref().filter(|auth| !auth.is_empty()) else {
            return Ok(None);
        };
        let text = decode_base64(auth)
            .and_then(|bytes| String::from_utf8(bytes).ok())
            .ok_or("'auth' is not base64")?;
        let (username, password) = text
            .split_once(':')
            .ok_or("'auth' holds no user name and password")?;
        Ok(Some(Credential::Password {
            username: username.to_owned(),
            password: password.trim_end_matches('\0').to_owned(),
        }))
    }
}

/// `https://index.docker.io/v1/` is Docker Hub; others are written with or without a scheme and path.
fn host_key(key: &str) -> String {
    let key = key
        .trim_start_matches("https://")
        .trim_start_matches("http://")
        .trim_end_matches('/');
    let key = key
        .strip_suffix("/v1")
        .or_else(|| key.strip_suffix("/v2"))
        .unwrap_or(key);
    match key {
        "index.docker.io" | "registry-1.docker.io" => "docker.io".to_owned(),
        other => other.to_owned(),
    }
}

/// The entry whose key is `name` or the longest beginning of it that ends at a `/`.
fn longest<'a, T>(entries: &'a BTreeMap<String, T>, name: &str) -> Option<&'a T> {
    let mut key = name;
    loop {
        if let Some(entry) = entries.get(key) {
            return Some(entry);
        }
        key = key.rsplit_once('/')?.0;
    }
}

async fn ask_helper(helper: &str, registry: &str) -> Result<Option<Credential>, String> {
    if !helper
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
    {
        return Err(format!("'{helper}' is no name of a credential helper"));
    }
    let program = format!("docker-credential-{helper}");
    let server = if registry == "docker.io" {
        "https://index.docker.io/v1/"
    } else {
        registry
    };
    let mut child = tokio::process::Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("run {program}: {error}"))?;
    if let Some(mut input) = child.stdin.take() {
        input
            .write_all(server.as_bytes())
            .await
            .map_err(|error| format!("ask {program}: {error}"))?;
    }
    let output = tokio::time::timeout(HELPER_DEADLINE, child.wait_with_output())
        .await
        .map_err(|_elapsed| {
            format!(
                "{program} did not answer within {} s",
                HELPER_DEADLINE.as_secs()
            )
        })?
        .map_err(|error| format!("wait for {program}: {error}"))?;
    if !output.status.success() {
        // Helpers say so when they know nothing about a server.
        return Ok(None);
    }
    let answer: HelperAnswer = serde_json::from_slice(&output.stdout)
        .map_err(|error| format!("answer of {program}: {error}"))?;
    Ok(Some(if answer.username == "<token>" {
        Credential::IdentityToken {
            identity_token: answer.secret,
        }
    } else {
        Credential::Password {
            username: answer.username,
            password: answer.secret,
        }
    }))
}

fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() * 3 / 4);
    let (mut bits, mut count) = (0_u32, 0);
    for character in text.trim().trim_end_matches('=').bytes() {
        let value = match character {
            b'A'..=b'Z' => character - b'A',
            b'a'..=b'z' => character - b'a' + 26,
            b'0'..=b'9' => character - b'0' + 52,
            b'+' | b'-' => 62,
            b'/' | b'_' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from((bits >> count) & 0xff).ok()?);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn from(content: &str) -> Credentials {
        Credentials {
            docker: DockerConfig::Content(content.to_owned()),
            ..Credentials::default()
        }
    }

    fn password(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password {
            username: username.into(),
            password: password.into(),
        })
    }

    #[tokio::test]
    async fn docker_files_are_understood() {
        // "user:pa:ss" and "hub:x".
        let credentials = from(
            r#"{"auths":{"r.example:5000":{"auth":"dXNlcjpwYTpzcw=="},"https://index.docker.io/v1/":{"auth":"aHViOng="},
                "r.example:5000/team":{"username":"t","password":"p"},"id.example":{"identitytoken":"tok"}}}"#,
        );
        for (image, wanted) in [
            ("r.example:5000/x", password("user", "pa:ss")),
            ("r.example:5000/team/x", password("t", "p")),
            ("alpine", password("hub", "x")),
            ("other.example/x", None),
            (
                "id.example/x",
                Some(Credential::IdentityToken {
                    identity_token: "tok".into(),
                }),
            ),
        ] {
            assert_eq!(
                credentials.find(&Reference::parse(image).unwrap()).await,
                Ok(wanted),
                "{image}"
            );
        }
    }

    #[tokio::test]
    async fn configuration_comes_first_and_helpers_are_named_not_run() {
        let mut credentials = from(r#"{"credsStore":"desktop","credHelpers":{"gcr.io":"gcloud"}}"#);
        let image = Reference::parse("gcr.io/p/x").unwrap();
        let error = credentials.find(&image).await.unwrap_err();
        assert!(
            error.contains("docker-credential-gcloud") && error.contains("docker-config"),
            "{error}"
        );
        credentials
            .configured
            .insert("gcr.io".into(), password("a", "b").unwrap());
        assert_eq!(credentials.find(&image).await, Ok(password("a", "b")));
    }

    #[tokio::test]
    async fn a_broken_file_is_named() {
        let error = from("{")
            .find(&Reference::parse("x").unwrap())
            .await
            .unwrap_err();
        assert!(error.contains("docker configuration"), "{error}");
    }
}
