//! HTTP clients, made when first needed: a machine without certificates can still use plain-http registries.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use reqwest::{Certificate, Client, ClientBuilder, Url};

use super::names::{NameError, Names};
use crate::image::error::PullError;

const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Transport {
    /// PEM texts by `HOST[:PORT]`.
    authorities: BTreeMap<String, String>,
    /// For registries with authorities of their own, which nobody else is believed by.
    own: Mutex<BTreeMap<String, Client>>,
    /// For https, through the proxy of the environment if there is one.
    secure: OnceLock<Client>,
    /// For plain http elsewhere, through the proxy too.
    plain: OnceLock<Client>,
    /// For this machine: never through a proxy.
    loopback: OnceLock<Client>,
}

impl Transport {
    pub(super) fn new(authorities: BTreeMap<String, String>) -> Self {
        Self {
            authorities,
            own: Mutex::default(),
            secure: OnceLock::new(),
            plain: OnceLock::new(),
            loopback: OnceLock::new(),
        }
    }

    /// The client for `url`.
    pub(super) fn client(&self, url: &Url) -> Result<Client, PullError> {
        let host = url.host_str().unwrap_or_default();
        let near = host == "localhost" || host.starts_with("127.") || host == "[::1]";
        let authority = url
            .port()
            .map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
        if url.scheme() == "https"
            && let Some(pem) = self.authorities.get(&authority)
        {
            let mut own = self.own.lock();
            if let Some(client) = own.get(&authority) {
                return Ok(client.clone());
            }
            let client = self.make(url, near, Some(pem))?;
            own.insert(authority, client.clone());
            return Ok(client);
        }
        let cell = match (url.scheme(), near) {
            ("https", _) => &self.secure,
            (_, true) => &self.loopback,
            (_, false) => &self.plain,
        };
        if let Some(client) = cell.get() {
            return Ok(client.clone());
        }
        let client = self.make(url, near, None)?;
        Ok(cell.get_or_init(|| client).clone())
    }

    fn make(&self, url: &Url, near: bool, pem: Option<&String>) -> Result<Client, PullError> {
        let failed = |error: &dyn Error| PullError::Registry {
            registry: url.host_str().unwrap_or_default().to_owned(),
            doing: "set up a connection".to_owned(),
            why: chain(error),
        };
        let mut builder = self.builder();
        if let Some(pem) = pem {
            let certificates =
                Certificate::from_pem_bundle(pem.as_bytes()).map_err(|error| failed(&error))?;
            builder = builder.tls_certs_merge(certificates);
        } else if url.scheme() != "https" {
            // No certificate is ever needed here, so none must be found either.
            builder = builder.tls_certs_only([]);
        }
        if near {
            builder = builder.no_proxy();
        }
        builder.build().map_err(|error| failed(&error))
    }

    fn builder(&self) -> ClientBuilder {
        Client::builder()
            .user_agent(concat!("utsuwa/", env!("CARGO_PKG_VERSION")))
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_DEADLINE)
            .dns_resolver(Arc::new(Names::default()))
            // Parallel layers on one HTTP/2 connection would share one small window.
            .http1_only()
    }
}

/// The error and its causes in one line, without the address (which may hold a token).
pub(super) fn chain(error: &dyn Error) -> String {
    let mut parts = Vec::new();
    let mut next = error.source();
    while let Some(cause) = next {
        let text = cause.to_string();
        if parts.last() != Some(&text) {
            parts.push(text);
        }
        next = cause.source();
    }
    if parts.is_empty() {
        error.to_string()
    } else {
        parts.join(": ")
    }
}

/// The last cause alone: of a connection that was never made it says all there is to say.
pub(super) fn innermost(error: &dyn Error) -> String {
    let mut last = error;
    while let Some(cause) = last.source() {
        last = cause;
    }
    last.to_string()
}

/// Why the name has no address, if that is what failed.
pub(super) fn name_error<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a NameError> {
    let mut next = Some(error);
    while let Some(cause) = next {
        if let Some(found) = cause.downcast_ref() {
            return Some(found);
        }
        next = cause.source();
    }
    None
}

/// TLS libraries report through `io::Error` of this kind: the other side spoke, but not TLS we accept.
pub(super) fn is_tls(error: &(dyn Error + 'static)) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if cause
            .downcast_ref::<io::Error>()
            .is_some_and(is_invalid_data)
        {
            return true;
        }
        next = cause.source();
    }
    false
}

/// `source` of an `io::Error` skips the error it wraps.
fn is_invalid_data(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::InvalidData
        || error
            .get_ref()
            .and_then(|inner| inner.downcast_ref::<io::Error>())
            .is_some_and(is_invalid_data)
}
