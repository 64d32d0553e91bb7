//! A client for registries that speak the distribution protocol: what pulling needs, and no more.
//!
//! Owns: addresses, authentication, redirects, retries, deadlines. Doesn't: check digests of blobs (their reader does, while
//! they stream) or know what a manifest means.
//!
//! Why not a ready client: resuming by range, the refusal of redirects from https to http, deadlines per byte instead of per
//! request, a least rate, and errors a person can act on all sit below what those offer.
//!
//! Invariants: 1. Plain http is spoken only to hosts the operator listed. 2. Credentials go to the registry and to the token
//! service it names, never along a redirect to another host. 3. Every wait ends: connecting, headers and every piece of a body
//! have their own deadline, retries are counted.

mod address;
mod challenge;
mod failure;
mod names;
mod pace;
mod proof;
mod transport;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION, RANGE,
};
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use reqwest::{Response, Url};

use super::credentials::Credentials;
use super::digest::Digest;
use super::error::PullError;
use super::manifest;
use super::reference::Reference;
use address::origin;
use failure::{header_text, refusal, retry_after};
use pace::Pace;
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
    /// PEM texts of further certificate authorities, by the registry (`HOST[:PORT]`) they are believed for.
    pub certificate_authorities: BTreeMap<String, String>,
    /// Longest silence of a registry while something is expected from it.
    pub stall: Duration,
    /// Over this long the rate of a download is looked at.
    pub rate_window: Duration,
}

impl Default for RegistrySettings {
    fn default() -> Self {
        Self {
            credentials: Credentials::default(),
            insecure: Vec::new(),
            certificate_authorities: BTreeMap::new(),
            stall: Duration::from_secs(20),
            // Longer than any hiccup of a line that works.
            rate_window: Duration::from_secs(60),
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
    pace: Pace,
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
            pace: Pace::default(),
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
        let asked = Instant::now();
        match tokio::time::timeout(self.settings.stall, stream.response.chunk()).await {
            Ok(Ok(Some(chunk))) => {
                let window = self.settings.rate_window;
                match stream.pace.add(asked.elapsed(), chunk.len(), window) {
                    None => Ok(Some(chunk)),
                    Some((bytes, waited)) => Err(PullError::Slow {
                        registry: image.registry.clone(),
                        doing,
                        bytes,
                        waited,
                        least: pace::LEAST,
                    }),
                }
            }
            Ok(Ok(None)) => Ok(None),
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
                    // A stall has cost its whole deadline; once more is enough.
                    tries +=
                        u32::from(matches!(error, PullError::Stalled { .. })) * (MAX_TRIES - 2);
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
                    return Err(self.unauthorized(image, refusal(response).await));
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
}

#[cfg(test)]
mod tests;
