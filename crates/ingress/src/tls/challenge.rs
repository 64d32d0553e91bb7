//! What an authority asks to see that a host leads here: a text under a path of plain HTTP (HTTP-01, RFC 8555 §8.3), or a
//! certificate with a mark in it (TLS-ALPN-01, RFC 8737).
//!
//! Invariants:
//! 1. Only what was raised is answered, and only while whoever raised it holds it.
//! 2. Orders for one host may overlap, even with the same token: the end of one takes nothing from another.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rcgen::{CertificateParams, CustomExtension, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use super::TlsError;

/// The protocol that only an authority's check offers.
pub(super) const PROTOCOL: &[u8] = b"acme-tls/1";
/// Where HTTP-01 asks.
const PATH: &str = "/.well-known/acme-challenge/";

/// The challenges of now. Clones are the same.
#[derive(Debug, Clone, Default)]
pub struct Challenges(Arc<Inner>);

/// What was raised, of which the last is the answer.
type All<K, T> = HashMap<K, Vec<Arc<T>>>;

#[derive(Debug, Default)]
struct Inner {
    /// By host and token.
    texts: Mutex<All<(String, String), str>>,
    /// By host.
    handshakes: Mutex<All<String, ServerConfig>>,
    /// Texts there are. Read by every request of plain HTTP.
    count: AtomicUsize,
}

/// Answers a challenge until it is dropped.
#[derive(Debug)]
pub struct Raised {
    challenges: Challenges,
    host: String,
    answer: Raising,
}

#[derive(Debug)]
enum Raising {
    Http { token: String, text: Arc<str> },
    Handshake(Arc<ServerConfig>),
}

impl Challenges {
    /// Answers `token` of `host` with `text`.
    #[must_use]
    pub fn raise_http(&self, host: &str, token: &str, text: &str) -> Raised {
        let (token, text) = (token.to_owned(), Arc::from(text));
        let key = (host.to_owned(), token.clone());
        let mut texts = self.0.texts.lock();
        texts.entry(key).or_default().push(Arc::clone(&text));
        self.0.count.store(texts.len(), Ordering::Release);
        Raised {
            challenges: self.clone(),
            host: host.to_owned(),
            answer: Raising::Http { token, text },
        }
    }

    /// Answers a handshake for `host` with `digest`, the SHA-256 of the text.
    ///
    /// # Errors
    /// The certificate can't be made.
    pub fn raise_handshake(&self, host: &str, digest: &[u8; 32]) -> Result<Raised, TlsError> {
        let config = Arc::new(marked(host, digest)?);
        let mut handshakes = self.0.handshakes.lock();
        let of_host = handshakes.entry(host.to_owned()).or_default();
        of_host.push(Arc::clone(&config));
        Ok(Raised {
            challenges: self.clone(),
            host: host.to_owned(),
            answer: Raising::Handshake(config),
        })
    }

    /// The text to answer a request for `path` of `host` with, if an authority may ask for it now.
    pub(crate) fn text(&self, host: &str, path: &str) -> Option<String> {
        if self.0.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let token = path.strip_prefix(PATH)?;
        let key = (host.to_owned(), token.to_owned());
        let texts = self.0.texts.lock();
        texts.get(&key)?.last().map(|text| text.to_string())
    }

    pub(super) fn handshake(&self, host: &str) -> Option<Arc<ServerConfig>> {
        self.0.handshakes.lock().get(host)?.last().cloned()
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        let inner = &self.challenges.0;
        let host = std::mem::take(&mut self.host);
        match &mut self.answer {
            Raising::Http { token, text } => {
                let mut texts = inner.texts.lock();
                take_back(&mut texts, (host, std::mem::take(token)), text);
                inner.count.store(texts.len(), Ordering::Release);
            }
            Raising::Handshake(config) => {
                take_back(&mut inner.handshakes.lock(), host, config);
            }
        }
    }
}

/// Removes this one of what was raised under `key`, and no other.
fn take_back<K: Eq + Hash, T: ?Sized>(raised: &mut All<K, T>, key: K, this: &Arc<T>) {
    if let Entry::Occupied(mut of_key) = raised.entry(key) {
        of_key.get_mut().retain(|other| !Arc::ptr_eq(other, this));
        if of_key.get().is_empty() {
            of_key.remove();
        }
    }
}

/// TLS for the check alone: a certificate of its own signature with the mark, and no other protocol.
fn marked(host: &str, digest: &[u8; 32]) -> Result<ServerConfig, TlsError> {
    let made = |source| TlsError::Make {
        host: host.to_owned(),
        source,
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(made)?;
    let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(made)?;
    params
        .custom_extensions
        .push(CustomExtension::new_acme_identifier(digest));
    let certificate = params.self_signed(&key).map_err(made)?;
    let provider = super::provider();
    let der = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let key = provider.key_provider.load_private_key(der)?;
    // Not by `with_single_cert`: it checks the certificate, and refuses the mark as one that it doesn't know.
    let certificate = CertifiedKey::new(vec![certificate.der().clone()], key);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(certificate)));
    config.alpn_protocols = vec![PROTOCOL.to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_one_order_takes_nothing_from_another() {
        let challenges = Challenges::default();
        let path = format!("{PATH}token");
        let first = challenges.raise_http("a.example", "token", "first");
        let second = challenges.raise_http("a.example", "token", "second");
        let said = || challenges.text("a.example", &path);
        assert_eq!(said().as_deref(), Some("second"));
        drop(first);
        assert_eq!(said().as_deref(), Some("second"));
        drop(second);
        assert_eq!(said(), None);

        let first = challenges.raise_handshake("a.example", &[1; 32]).unwrap();
        let met = || challenges.handshake("a.example");
        let of_first = met().unwrap();
        let second = challenges.raise_handshake("a.example", &[2; 32]).unwrap();
        assert!(!Arc::ptr_eq(&of_first, &met().unwrap()));
        drop(second);
        assert!(Arc::ptr_eq(&of_first, &met().unwrap()), "its order goes on");
        drop(first);
        assert!(met().is_none());
    }
}
