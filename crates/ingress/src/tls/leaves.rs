//! Certificates that the local authority signs when a client asks for a host for the first time.
//!
//! One key for all of them: they live in one process, and a signature costs less than a key and a signature.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::sign::{CertifiedKey, SigningKey};
use utsuwa_model::Timestamp;

use super::TlsError;
use super::authority::{Authority, LEAF_DAYS};

/// Leaves kept. Some 4 KiB each; one that was let go is made anew in a tenth of a millisecond.
pub(super) const LEAVES: usize = 4096;
/// A leaf is used for half of its life: nobody meets one that is about to end.
const USED: Duration = Duration::from_secs(LEAF_DAYS * 24 * 3600 / 2);

struct Leaf {
    config: Arc<ServerConfig>,
    made: Timestamp,
}

pub(super) struct Leaves {
    authority: Authority,
    key: KeyPair,
    signing: Arc<dyn SigningKey>,
    made: Mutex<HashMap<Box<str>, Leaf>>,
}

impl fmt::Debug for Leaves {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Leaves").finish_non_exhaustive()
    }
}

impl Leaves {
    pub(super) fn new(authority: Authority, provider: &CryptoProvider) -> Result<Self, TlsError> {
        let key =
            KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|source| TlsError::Make {
                host: authority.domain().to_owned(),
                source,
            })?;
        let der = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let signing = provider.key_provider.load_private_key(der)?;
        Ok(Self {
            authority,
            key,
            signing,
            made: Mutex::default(),
        })
    }

    pub(super) fn domain(&self) -> &str {
        self.authority.domain()
    }

    /// The one of `host`, which is served.
    pub(super) fn of(
        &self,
        host: &str,
        now: Timestamp,
        config: impl FnOnce(CertifiedKey) -> ServerConfig,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        let fresh = |leaf: &Leaf| now.since(leaf.made) < USED && now >= leaf.made;
        if let Some(leaf) = self.made.lock().get(host).filter(|leaf| fresh(leaf)) {
            return Ok(Arc::clone(&leaf.config));
        }
        // Not under the lock: two that ask at once make two, and one is kept.
        let leaf = self.authority.sign(host, &self.key, now)?;
        let certificate = CertifiedKey::new(vec![leaf], Arc::clone(&self.signing));
        let config = Arc::new(config(certificate));
        let mut made = self.made.lock();
        if made.len() >= LEAVES
            && let Some(any) = made.keys().next().cloned()
        {
            made.remove(&any);
        }
        let leaf = Leaf {
            config: Arc::clone(&config),
            made: now,
        };
        made.insert(host.into(), leaf);
        Ok(config)
    }
}
