//! What went wrong with a registry, in words a person can act on.

use std::time::Duration;

use http::HeaderMap;
use http::header::RETRY_AFTER;
use reqwest::Response;
use serde::Deserialize;

use super::{LONGEST_PAUSE, Registry, transport};
use crate::image::error::{PullError, Shown};
use crate::image::reference::Reference;

impl Registry {
    pub(super) fn unauthorized(&self, image: &Reference, detail: String) -> PullError {
        let shown = match self.settings.credentials.find(image) {
            Ok(Some(_)) => Shown::Credentials,
            Ok(None) => Shown::Nothing,
            Err(why) => Shown::Unreadable(why),
        };
        PullError::Unauthorized {
            image: image.to_string(),
            registry: image.registry.clone(),
            shown,
            detail,
        }
    }

    pub(super) fn stalled(&self, image: &Reference, doing: &str) -> PullError {
        PullError::Stalled {
            registry: image.registry.clone(),
            doing: doing.to_owned(),
            waited: self.settings.stall,
        }
    }

    pub(super) fn broken(&self, image: &Reference, doing: &str, why: String) -> PullError {
        PullError::Registry {
            registry: image.registry.clone(),
            doing: doing.to_owned(),
            why,
        }
    }

    pub(super) fn failure(
        &self,
        image: &Reference,
        doing: &str,
        error: &reqwest::Error,
    ) -> PullError {
        let tls =
            error.is_connect() && !self.is_insecure(&image.registry) && transport::is_tls(error);
        let registry = image.registry.clone();
        let doing = doing.to_owned();
        if let Some(name) = transport::name_error(error) {
            let (why, lasting) = (name.to_string(), name.is_lasting());
            PullError::NoAddress {
                registry,
                host: name.host().to_owned(),
                why,
                lasting,
            }
        } else if tls {
            let why = transport::chain(error);
            PullError::NoTls { registry, why }
        } else if error.is_connect() {
            let why = transport::innermost(error);
            PullError::Unreachable {
                registry,
                doing,
                why,
            }
        } else {
            self.broken(image, &doing, transport::chain(error))
        }
    }
}

pub(super) fn header_text(headers: &HeaderMap, name: &str) -> String {
    headers
        .get(name)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    header_text(headers, RETRY_AFTER.as_str())
        .parse()
        .ok()
        .map(|seconds| Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// `: MESSAGE` from the error document registries send, if it is one.
pub(super) async fn refusal(mut response: Response) -> String {
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
