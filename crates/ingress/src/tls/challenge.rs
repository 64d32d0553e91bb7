//! What an authority asks to see that a host leads here: a text under a path of plain HTTP (HTTP-01, RFC 8555 §8.3), or a
//! certificate with a mark in it (TLS-ALPN-01, RFC 8737).
//!
//! Invariant: only what was raised is answered, and only while whoever raised it holds it.

use std::collections::HashMap;
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

#[derive(Debug, Default)]
struct Inner {
    /// By host and token: the text.
    texts: Mutex<HashMap<(String, String), String>>,
    /// By host.
    handshakes: Mutex<HashMap<String, Arc<ServerConfig>>>,
    /// Texts there are. Read by every request of plain HTTP.
    count: AtomicUsize,
}

/// Answers a challenge until it is dropped.
#[derive(Debug)]
pub struct Raised {
    challenges: Challenges,
    host: String,
    /// Of HTTP-01.
    token: Option<String>,
}

impl Challenges {
    /// Answers `token` of `host` with `text`.
    #[must_use]
    pub fn raise_http(&self, host: &str, token: &str, text: &str) -> Raised {
        let key = (host.to_owned(), token.to_owned());
        let mut texts = self.0.texts.lock();
        texts.insert(key, text.to_owned());
        self.0.count.store(texts.len(), Ordering::Release);
        Raised {
            challenges: self.clone(),
            host: host.to_owned(),
            token: Some(token.to_owned()),
        }
    }

    /// Answers a handshake for `host` with `digest`, the SHA-256 of the text.
    ///
    /// # Errors
    /// The certificate can't be made.
    pub fn raise_handshake(&self, host: &str, digest: &[u8; 32]) -> Result<Raised, TlsError> {
        let config = marked(host, digest)?;
        let mut handshakes = self.0.handshakes.lock();
        handshakes.insert(host.to_owned(), Arc::new(config));
        Ok(Raised {
            challenges: self.clone(),
            host: host.to_owned(),
            token: None,
        })
    }

    /// The text to answer a request for `path` of `host` with, if an authority may ask for it now.
    pub(crate) fn text(&self, host: &str, path: &str) -> Option<String> {
        if self.0.count.load(Ordering::Acquire) == 0 {
            return None;
        }
        let token = path.strip_prefix(PATH)?;
        let key = (host.to_owned(), token.to_owned());
        self.0.texts.lock().get(&key).cloned()
    }

    pub(super) fn handshake(&self, host: &str) -> Option<Arc<ServerConfig>> {
        self.0.handshakes.lock().get(host).cloned()
    }
}

impl Drop for Raised {
    fn drop(&mut self) {
        let inner = &self.challenges.0;
        let host = std::mem::take(&mut self.host);
        match self.token.take() {
            Some(token) => {
                let mut texts = inner.texts.lock();
                texts.remove(&(host, token));
                inner.count.store(texts.len(), Ordering::Release);
            }
            None => {
                inner.handshakes.lock().remove(&host);
            }
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
