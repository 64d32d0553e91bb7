//! A client for registries that speak the distribution protocol: what pulling needs, and no more.
//!
//! Owns: addresses, authentication, redirects, retries, deadlines. Doesn't: check digests of blobs (their reader does, while
//! they stream) or know what a manifest means.
//!
//! Why not a ready client: resuming by range, the refusal of redirects from https to http, deadlines per byte instead of per
//! request, and errors a person can act on all sit below what those offer.
//!
//! Invariants: 1. Plain http is spoken only to hosts the operator listed. 2. Credentials go to the registry and to the token
//! service it names, never along a redirect to another host. 3. Every wait ends: connecting, headers and every piece of a body
//! have their own deadline, retries are counted.

mod challenge;
mod transport;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE,
};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use reqwest::{Response, Url};
use serde::Deserialize;

use super::credentials::{Credential, Credentials};
use super::digest::Digest;
use super::error::PullError;
use super::manifest;
use super::reference::Reference;
use challenge::Challenge;
use transport::Transport;

/// Registries refuse larger manifests themselves.
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
const MAX_REDIRECTS: usize = 5;
/// Tries of one request when the registry is busy or the connection fails.
const MAX_TRIES: u32 = 4;
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistrySettings {
    pub credentials: Credentials,
    /// `HOST[:PORT]` of registries that speak plain http.
    pub insecure: Vec<String>,
    /// PEM texts of further certificate authorities.
    pub certificate_authorities: Vec<String>,
    /// Longest silence of a registry while something is expected from it.
    pub stall: Duration,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            credentials: Credentials::default(),
            insecure: Vec::new(),
            certificate_authorities: Vec::new(),
            stall: Duration::from_secs(20),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Registry {
    settings: RegistrySettings,
    transport: Transport,
    /// Proofs by repository, until the given time.
    proofs: Mutex<HashMap<String, (HeaderValue, Instant)>>,
}

/// A document together with what the registry said about it.
#[derive(Debug)]
pub(crate) struct Document {
    pub(crate) content: Bytes,
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
}

/// A blob that starts to arrive.
#[derive(Debug)]
pub(crate) struct BlobStream {
    response: Response,
    /// Where in the blob the first byte belongs: the offset that was asked for, or 0 from registries that can't resume.
    pub(crate) offset: u64,
}

impl Registry {
    pub(crate) fn new(settings: RegistrySettings) -> Self {
        let transport = Transport::new(settings.certificate_authorities.clone());
        Self {
            settings,
            transport,
            proofs: Mutex::new(HashMap::new()),
        }
    }

    /// The manifest at `at` (a tag or a digest). Its digest is checked when it is known.
    pub(crate) async fn manifest(
        &self,
        image: &Reference,
        at: &str,
    ) -> Result<Document, PullError> {
        let doing = format!("read the manifest of '{image}'");
        let response = self
            .get(image, &format!("manifests/{at}"), 0, &doing)
            .await?;
        let media_type = header_text(response.headers(), CONTENT_TYPE.as_str());
        let announced = header_text(response.headers(), "docker-content-digest")
            .parse::<Digest>()
            .ok();
        let content = self.read_document(image, response, &doing).await?;
        let digest = Digest::of(&content);
        let expected = at.parse::<Digest>().ok().or(announced);
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(PullError::Corrupt {
                registry: image.registry.clone(),
                what: format!("the manifest '{at}'"),
                expected: expected.to_string(),
                found: digest.to_string(),
            });
        }
        Ok(Document {
            content,
            media_type,
            digest,
        })
    }

    /// A small blob, whole and checked.
    pub(crate) async fn document(
        &self,
        image: &Reference,
        digest: Digest,
    ) -> Result<Bytes, PullError> {
        let doing = format!("read the configuration of '{image}'");
        let response = self
            .get(image, &format!("blobs/{digest}"), 0, &doing)
            .await?;
        let content = self.read_document(image, response, &doing).await?;
        let found = Digest::of(&content);
        if found != digest {
            return Err(PullError::Corrupt {
                registry: image.registry.clone(),
                what: "the configuration".to_owned(),
                expected: digest.to_string(),
                found: found.to_string(),
            });
        }
        Ok(content)
    }

    /// Starts a blob at `offset`.
    pub(crate) async fn blob(
        &self,
        image: &Reference,
        digest: Digest,
        offset: u64,
    ) -> Result<BlobStream, PullError> {
        let doing = format!("pull layer {digest}");
        let response = self
            .get(image, &format!("blobs/{digest}"), offset, &doing)
            .await?;
        let resumed = response.status() == StatusCode::PARTIAL_CONTENT
            && header_text(response.headers(), CONTENT_RANGE.as_str())
                .starts_with(&format!("bytes {offset}-"));
        Ok(BlobStream {
            offset: if resumed { offset } else { 0 },
            response,
        })
    }

    /// The next piece of a blob; `None` at its end.
    pub(crate) async fn next(
        &self,
        image: &Reference,
        digest: Digest,
        stream: &mut BlobStream,
    ) -> Result<Option<Bytes>, PullError> {
        let doing = format!("pull layer {digest}");
        match tokio::time::timeout(self.settings.stall, stream.response.chunk()).await {
            Ok(Ok(chunk)) => Ok(chunk),
            Ok(Err(error)) => Err(self.failure(image, &doing, &error)),
            Err(_elapsed) => Err(self.stalled(image, &doing)),
        }
    }

    async fn read_document(
        &self,
        image: &Reference,
        mut response: Response,
        doing: &str,
    ) -> Result<Bytes, PullError> {
        let mut content = BytesMut::new();
        loop {
            let chunk = tokio::time::timeout(self.settings.stall, response.chunk())
                .await
                .map_err(|_elapsed| self.stalled(image, doing))?
                .map_err(|error| self.failure(image, doing, &error))?;
            let Some(chunk) = chunk else {
                return Ok(content.freeze());
            };
            content.extend_from_slice(&chunk);
            if content.len() as u64 > MAX_DOCUMENT_BYTES {
                return Err(PullError::Registry {
                    registry: image.registry.clone(),
                    doing: doing.to_owned(),
                    why: format!("it sends more than {MAX_DOCUMENT_BYTES} bytes"),
                });
            }
        }
    }

    /// One GET with proofs and retries.
    async fn get(
        &self,
        image: &Reference,
        path: &str,
        offset: u64,
        doing: &str,
    ) -> Result<Response, PullError> {
        let mut pause = FIRST_PAUSE;
        let mut proved = false;
        let mut tries = 0;
        loop {
            tries += 1;
            let last = tries >= MAX_TRIES;
            let response = match self.follow(image, path, offset, doing).await {
                Ok(response) => response,
                Err(error @ (PullError::Registry { .. } | PullError::Stalled { .. })) if !last => {
                    tracing::debug!(%error, "try the registry again");
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let status = response.status();
            match status {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !proved => {
                    proved = true;
                    tries -= 1;
                    self.prove(image, response, doing).await?;
                }
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    self.proofs.lock().remove(&image.name());
                    let known = self.settings.credentials.find(image).await;
                    return Err(self.unauthorized(
                        image,
                        matches!(known, Ok(Some(_))),
                        refusal(response).await,
                    ));
                }
                StatusCode::NOT_FOUND => {
                    return Err(PullError::NotFound {
                        image: image.to_string(),
                    });
                }
                // Nothing is left after what is there already; start over.
                StatusCode::RANGE_NOT_SATISFIABLE if offset > 0 => {
                    return Box::pin(self.get(image, path, 0, doing)).await;
                }
                StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT if !last => {
                    tokio::time::sleep(retry_after(response.headers()).unwrap_or(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                status if status.is_server_error() && !last => {
                    tokio::time::sleep(retry_after(response.headers()).unwrap_or(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                _ => {
                    let detail = refusal(response).await;
                    return Err(PullError::Registry {
                        registry: image.registry.clone(),
                        doing: doing.to_owned(),
                        why: format!("it answers {status}{detail}"),
                    });
                }
            }
        }
    }

    /// One request and the redirects it leads to. Only the first goes with the proof.
    async fn follow(
        &self,
        image: &Reference,
        path: &str,
        offset: u64,
        doing: &str,
    ) -> Result<Response, PullError> {
        let base = self.base(&image.registry);
        let text = format!("{base}/v2/{}/{path}", image.repository);
        let mut url = Url::parse(&text)
            .map_err(|error| self.broken(image, doing, format!("its address {text}: {error}")))?;
        let first = origin(&url);
        for _ in 0..=MAX_REDIRECTS {
            let mut headers = HeaderMap::new();
            if path.starts_with("manifests/") {
                headers.insert(ACCEPT, HeaderValue::from_static(manifest::ACCEPT));
            }
            if offset > 0
                && let Ok(range) = HeaderValue::from_str(&format!("bytes={offset}-"))
            {
                headers.insert(RANGE, range);
            }
            if origin(&url) == first
                && let Some(proof) = self.proof(image)
            {
                headers.insert(AUTHORIZATION, proof);
            }
            let response = self
                .send(
                    image,
                    doing,
                    self.transport
                        .client(&url)?
                        .get(url.clone())
                        .headers(headers),
                )
                .await?;
            if !response.status().is_redirection() {
                return Ok(response);
            }
            let location = header_text(response.headers(), LOCATION.as_str());
            let target = url.join(&location).map_err(|error| {
                self.broken(
                    image,
                    doing,
                    format!("it redirects to '{location}': {error}"),
                )
            })?;
            self.allow(image, &url, &target)?;
            url = target;
        }
        Err(self.broken(
            image,
            doing,
            format!("it redirects more than {MAX_REDIRECTS} times"),
        ))
    }

    /// Plain http is reached from plain http or where the operator allowed it; other schemes never.
    fn allow(&self, image: &Reference, from: &Url, target: &Url) -> Result<(), PullError> {
        let insecure = || {
            let host = target.host_str().unwrap_or_default();
            let authority = target
                .port()
                .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
            self.is_insecure(&authority)
        };
        match target.scheme() {
            "https" => Ok(()),
            "http" if from.scheme() == "http" || insecure() => Ok(()),
            _ => Err(PullError::InsecureRedirect {
                registry: image.registry.clone(),
                target: origin(target),
            }),
        }
    }

    async fn send(
        &self,
        image: &Reference,
        doing: &str,
        request: reqwest::RequestBuilder,
    ) -> Result<Response, PullError> {
        tokio::time::timeout(self.settings.stall, request.send())
            .await
            .map_err(|_elapsed| self.stalled(image, doing))?
            .map_err(|error| self.failure(image, doing, &error))
    }

    fn base(&self, registry: &str) -> String {
        let host = if registry == "docker.io" {
            "registry-1.docker.io"
        } else {
            registry
        };
        let scheme = if self.is_insecure(registry) {
            "http"
        } else {
            "https"
        };
        format!("{scheme}://{host}")
    }

    fn is_insecure(&self, registry: &str) -> bool {
        let host = registry
            .rsplit_once(':')
            .map_or(registry, |(host, _port)| host);
        self.settings
            .insecure
            .iter()
            .any(|entry| entry == registry || entry == host)
    }

    fn proof(&self, image: &Reference) -> Option<HeaderValue> {
        let proofs = self.proofs.lock();
        proofs
            .get(&image.name())
            .filter(|(_proof, until)| *until > Instant::now())
            .map(|(proof, _until)| proof.clone())
    }

    /// Answers the challenge of a 401 with the best proof there is; without credentials, an anonymous token.
    async fn prove(
        &self,
        image: &Reference,
        response: Response,
        doing: &str,
    ) -> Result<(), PullError> {
        let challenges: Vec<Challenge> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(challenge::parse)
            .collect();
        let detail = refusal(response).await;
        let credential =
            self.settings
                .credentials
                .find(image)
                .await
                .map_err(|why| PullError::Credentials {
                    registry: image.registry.clone(),
                    why,
                })?;
        let bearer = challenges
            .iter()
            .find(|challenge| matches!(challenge, Challenge::Bearer { .. }));
        let (proof, lifetime) = match (bearer.or_else(|| challenges.first()), credential) {
            (_, Some(Credential::AccessToken { access_token })) => {
                (format!("Bearer {access_token}"), Duration::from_secs(60))
            }
            (
                Some(Challenge::Bearer {
                    realm,
                    service,
                    scope,
                }),
                credential,
            ) => {
                let scope = scope
                    .clone()
                    .unwrap_or_else(|| format!("repository:{}:pull", image.repository));
                self.token(
                    image,
                    realm,
                    service.as_deref(),
                    &scope,
                    credential.as_ref(),
                    doing,
                )
                .await?
            }
            (Some(Challenge::Basic), Some(Credential::Password { username, password })) => (
                format!(
                    "Basic {}",
                    encode_base64(format!("{username}:{password}").as_bytes())
                ),
                Duration::from_secs(3600),
            ),
            (Some(Challenge::Basic), Some(Credential::IdentityToken { .. })) => {
                return Err(self.unauthorized(
                    image,
                    true,
                    ": it wants a user name and password, not a token".to_owned(),
                ));
            }
            (_, credential) => return Err(self.unauthorized(image, credential.is_some(), detail)),
        };
        let mut proof = HeaderValue::from_str(&proof).map_err(|_error| {
            self.unauthorized(
                image,
                true,
                ": the credentials contain characters that can't be sent".to_owned(),
            )
        })?;
        proof.set_sensitive(true);
        self.proofs
            .lock()
            .insert(image.name(), (proof, Instant::now() + lifetime));
        Ok(())
    }

    async fn token(
        &self,
        image: &Reference,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        credential: Option<&Credential>,
        doing: &str,
    ) -> Result<(String, Duration), PullError> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<String>,
            access_token: Option<String>,
            expires_in: Option<u64>,
        }
        let doing = format!("{doing} (get a token)");
        let base = Url::parse(&self.base(&image.registry))
            .map_err(|error| self.broken(image, &doing, error.to_string()))?;
        let mut url = base.join(realm).map_err(|error| {
            self.broken(
                image,
                &doing,
                format!("its token service '{realm}': {error}"),
            )
        })?;
        self.allow(image, &base, &url)?;
        let client = self.transport.client(&url)?;
        let request = match credential {
            Some(Credential::IdentityToken { identity_token }) => {
                let mut form = Url::parse("form:")
                    .map_err(|error| self.broken(image, &doing, error.to_string()))?;
                form.query_pairs_mut()
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("service", service.unwrap_or_default())
                    .append_pair("scope", scope)
                    .append_pair("client_id", "utsuwa")
                    .append_pair("refresh_token", identity_token);
                client
                    .post(url)
                    .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                    .body(form.query().unwrap_or_default().to_owned())
            }
            other => {
                url.query_pairs_mut().append_pair("scope", scope);
                if let Some(service) = service {
                    url.query_pairs_mut().append_pair("service", service);
                }
                let request = client.get(url);
                match other {
                    Some(Credential::Password { username, password }) => {
                        request.basic_auth(username, Some(password))
                    }
                    _ => request,
                }
            }
        };
        let response = self.send(image, &doing, request).await?;
        let status = response.status();
        if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            let detail = refusal(response).await;
            return Err(self.unauthorized(image, credential.is_some(), detail));
        }
        if !status.is_success() {
            let detail = refusal(response).await;
            return Err(self.broken(
                image,
                &doing,
                format!("its token service answers {status}{detail}"),
            ));
        }
        let content = self.read_document(image, response, &doing).await?;
        let answer: Answer = serde_json::from_slice(&content).map_err(|error| {
            self.broken(
                image,
                &doing,
                format!("the answer of its token service: {error}"),
            )
        })?;
        let token = answer.token.or(answer.access_token).ok_or_else(|| {
            self.broken(
                image,
                &doing,
                "its token service answers without a token".to_owned(),
            )
        })?;
        // A little less than it says: clocks differ. The specification's default is 60 s.
        let lifetime = Duration::from_secs(answer.expires_in.unwrap_or(60).clamp(10, 3600) - 5);
        Ok((format!("Bearer {token}"), lifetime))
    }

    fn unauthorized(&self, image: &Reference, had_credentials: bool, detail: String) -> PullError {
        PullError::Unauthorized {
            image: image.to_string(),
            registry: image.registry.clone(),
            had_credentials,
            detail,
        }
    }

    fn stalled(&self, image: &Reference, doing: &str) -> PullError {
        PullError::Stalled {
            registry: image.registry.clone(),
            doing: doing.to_owned(),
            waited: self.settings.stall,
        }
    }

    fn broken(&self, image: &Reference, doing: &str, why: String) -> PullError {
        PullError::Registry {
            registry: image.registry.clone(),
            doing: doing.to_owned(),
            why,
        }
    }

    fn failure(&self, image: &Reference, doing: &str, error: &reqwest::Error) -> PullError {
        let tls =
            error.is_connect() && !self.is_insecure(&image.registry) && transport::is_tls(error);
        let why = transport::chain(error);
        if tls {
            PullError::NoTls {
                registry: image.registry.clone(),
                why,
            }
        } else {
            self.broken(image, doing, why)
        }
    }
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

fn header_text(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header_text(headers, RETRY_AFTER.as_str())
        .parse()
        .ok()
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// `: MESSAGE` from the error document registries send, if it is one.
async fn refusal(mut response: Response) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Error>,
    }
    #[derive(Deserialize)]
    struct Error {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let mut content = Vec::new();
    // A courtesy to the reader: never worth waiting for.
    while let Ok(Ok(Some(chunk))) =
        tokio::time::timeout(Duration::from_secs(2), response.chunk()).await
    {
        content.extend_from_slice(&chunk);
        if content.len() > 64 << 10 {
            break;
        }
    }
    let Ok(errors) = serde_json::from_slice::<Errors>(&content) else {
        return String::new();
    };
    let Some(first) = errors.errors.first() else {
        return String::new();
    };
    let text = if first.message.is_empty() {
        &first.code
    } else {
        &first.message
    };
    let text: String = text
        .chars()
        .filter(|character| !character.is_control())
        .take(200)
        .collect();
    if text.is_empty() {
        text
    } else {
        format!(": {text}")
    }
}

fn encode_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let bits = group
            .iter()
            .fold(0_u32, |bits, byte| (bits << 8) | u32::from(*byte))
            << (8 * (3 - group.len()));
        for position in 0..4 {
            let digit = DIGITS[((bits >> (18 - 6 * position)) & 63) as usize];
            text.push(if position <= group.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_is_the_usual_one() {
        for (plain, coded) in [
            ("", ""),
            ("a", "YQ=="),
            ("ab", "YWI="),
            ("abc", "YWJj"),
            ("user:pa:ss", "dXNlcjpwYTpzcw=="),
        ] {
            assert_eq!(encode_base64(plain.as_bytes()), coded);
        }
    }
}
