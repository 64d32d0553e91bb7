//! Credentials for registries: from the server's configuration, and from a docker or podman configuration file.
//!
//! Doesn't: run credential helpers (`credHelpers`, `credsStore`). They are programs of the operator's that ask a desktop or a
//! cloud, and the server's user has neither. Where a file leaves credentials to one, the registry is asked without any.
//!
//! Invariant: no secret stands in an error or in what is printed for debugging.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::error::Category;

use super::reference::Reference;

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

/// The operator's docker configuration file, as it was before the server gave up the right to read it.
#[derive(Clone, PartialEq, Eq)]
pub struct DockerConfig {
    place: String,
    content: Result<Entries, String>,
}

/// Both by registry, or registry and the beginning of the repository.
#[derive(Clone, PartialEq, Eq)]
struct Entries {
    /// `None`: an entry without credentials, as docker writes them beside a helper.
    auths: BTreeMap<String, Result<Option<Credential>, String>>,
    helpers: BTreeMap<String, String>,
    /// The helper for all other registries.
    store: Option<String>,
}

/// All sources of credentials.
#[derive(Debug, Clone, Default)]
pub struct Credentials {
    /// By registry (`HOST[:PORT]`) or registry and the beginning of the repository; the longest match counts. Comes first.
    pub configured: BTreeMap<String, Credential>,
    pub docker: Option<DockerConfig>,
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

impl Credentials {
    /// The credential for a repository, or none.
    ///
    /// # Errors
    /// Why there may be one that can't be had, and what to do, as a sentence for the user. Whoever asks goes on without:
    /// public images need none.
    pub(crate) fn find(&self, image: &Reference) -> Result<Option<Credential>, String> {
        if let Some(credential) = longest(&self.configured, &image.name()) {
            return Ok(Some(credential.clone()));
        }
        self.docker
            .as_ref()
            .map_or(Ok(None), |docker| docker.find(image))
    }
}

impl DockerConfig {
    /// What the file at `path` says.
    pub fn parse(path: &Path, content: &[u8]) -> Self {
        let content = serde_json::from_slice(content)
            .map(Entries::of)
            .map_err(|error| match error.classify() {
                // Their texts quote the file, which may hold a password.
                Category::Data => format!(
                    "line {}, column {}: is not as docker writes it",
                    error.line(),
                    error.column()
                ),
                _ => format!("is not JSON: {error}"),
            });
        Self {
            place: path.display().to_string(),
            content,
        }
    }

    /// What is wrong with the file: with all of it, or with entries.
    pub fn problems(&self) -> Vec<String> {
        match &self.content {
            Err(why) => vec![format!("{}: {why}", self.place)],
            Ok(entries) => {
                let broken = entries.auths.iter().filter_map(|(registry, entry)| {
                    let why = entry.as_ref().err()?;
                    Some(self.of_entry(registry, why))
                });
                broken.collect()
            }
        }
    }

    fn of_entry(&self, registry: &str, why: &str) -> String {
        format!("{}: entry of 'auths' for '{registry}': {why}", self.place)
    }

    fn find(&self, image: &Reference) -> Result<Option<Credential>, String> {
        let (name, registry, place) = (image.name(), &image.registry, &self.place);
        let broken = |why: String| {
            format!(
                "What the server read at its start about the credentials of '{registry}' can't be used ({why}): mend that file, or give \
                 '{registry}' a table in the file of the server's option registries-file, and start the server again."
            )
        };
        let entries = self
            .content
            .as_ref()
            .map_err(|why| broken(format!("{place}: {why}")))?;
        match longest(&entries.auths, &name) {
            Some(Ok(Some(credential))) => return Ok(Some(credential.clone())),
            Some(Err(why)) => return Err(broken(self.of_entry(registry, why))),
            Some(Ok(None)) | None => {}
        }
        match longest(&entries.helpers, &name).or(entries.store.as_ref()) {
            None => Ok(None),
            Some(helper) => Err(format!(
                "{place} leaves the credentials of '{registry}' to the helper program 'docker-credential-{helper}', which the server \
                 doesn't run: write them into 'auths' of a file in docker's format (`podman login --authfile FILE {registry}` does) and \
                 name it with the server's option docker-config, or give '{registry}' a table in the file of its option \
                 registries-file, and start the server again."
            )),
        }
    }
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "DockerConfig({:?}, …)", self.place)
    }
}

impl Entries {
    fn of(file: File) -> Self {
        let by_host = |(key, helper): (String, String)| (host_key(&key), helper);
        let auths = file.auths.into_iter();
        Self {
            auths: auths
                .map(|(key, entry)| (host_key(&key), entry.credential()))
                .collect(),
            helpers: file.helpers.into_iter().map(by_host).collect(),
            store: file.store.filter(|store| !store.is_empty()),
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
            docker: Some(DockerConfig::parse(
                Path::new("/srv/op/.docker/config.json"),
                content.as_bytes(),
            )),
            ..Credentials::default()
        }
    }

    fn password(username: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password {
            username: username.into(),
            password: password.into(),
        })
    }

    #[test]
    fn docker_files_are_understood() {
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
                credentials.find(&Reference::parse(image).unwrap()),
                Ok(wanted),
                "{image}"
            );
        }
    }

    #[test]
    fn configuration_comes_first_and_helpers_are_named_not_run() {
        let mut credentials = from(
            r#"{"auths":{"gcr.io":{}},"credsStore":"desktop","credHelpers":{"gcr.io":"gcloud"}}"#,
        );
        for (image, helper) in [
            ("gcr.io/p/x", "'docker-credential-gcloud'"),
            ("alpine", "'docker-credential-desktop'"),
        ] {
            let error = credentials
                .find(&Reference::parse(image).unwrap())
                .unwrap_err();
            for word in [helper, "/srv/op/.docker/config.json", "docker-config"] {
                assert!(error.contains(word), "{word}: {error}");
            }
        }
        let image = Reference::parse("gcr.io/p/x").unwrap();
        credentials
            .configured
            .insert("gcr.io".into(), password("a", "b").unwrap());
        assert_eq!(credentials.find(&image), Ok(password("a", "b")));
    }

    #[test]
    fn a_broken_file_is_named_with_the_place_and_without_its_secrets() {
        for (content, place) in [
            ("{", "line 1 column 1"),
            ("{\"auths\":\n{\"x\":\"c2VjcmV0\"}}", "line 2, column 15"),
            (
                "{\"auths\":{\"docker.io\":{\"auth\":\"c2VjcmV0\"}}}",
                "'docker.io'",
            ),
            (
                "{\"auths\":{\"docker.io\":{\"auth\":\"c2VjcmV0!\"}}}",
                "base64",
            ),
        ] {
            let credentials = from(content);
            let error = credentials
                .find(&Reference::parse("x").unwrap())
                .unwrap_err();
            let problems = credentials.docker.as_ref().unwrap().problems();
            assert_eq!(problems.len(), 1, "{problems:?}");
            for said in [&error, &problems[0]] {
                assert!(
                    said.contains("/srv/op/.docker/config.json") && said.contains(place),
                    "{place}: {said}"
                );
                assert!(!said.contains("c2VjcmV0"), "{said}");
            }
            assert!(!format!("{credentials:?}").contains("c2VjcmV0"));
        }
        let good = from(r#"{"auths":{"r.example":{"auth":"dXNlcjpwYTpzcw=="}}}"#);
        assert!(good.docker.as_ref().unwrap().problems().is_empty());
        let shown = format!("{good:?}");
        assert!(
            !shown.contains("dXNlcj") && !shown.contains("pa:ss"),
            "{shown}"
        );
    }
}
