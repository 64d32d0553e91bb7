//! The forward proxy of `utsuwa env` (`gcloud-protocol.md` §1.3): CONNECT to a Google API ends here, in TLS with our own leaf.
//!
//! Owns: the local authority for `*.googleapis.com` (decision 16: never installed in a trust store, only named by
//! `CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE`), the leaf, and the verdict on a CONNECT.
//!
//! Not here: reading the tunnel's requests (`crate::http`). Absolute-form requests (method B) need nothing of this module.
//!
//! Invariants:
//! 1. The authority may sign for `googleapis.com` alone (critical name constraint), so its key is worth little to a thief.
//! 2. Hosts that aren't `*.googleapis.com` are refused at once, never tunnelled, never left hanging.
//! 3. Key files are made with mode 0600 in a directory of mode 0700, and are never replaced while they are usable.

mod authority;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;

use crate::ApiError;
use crate::error::Code;
use crate::http::google_host;

/// Why the proxy's authority can't be had.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    #[error("{action} {path}: {source}; the server must own its keys directory", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not a usable key or certificate: {why}; remove ca.pem and ca-key.pem there to have them made anew", path = path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("make a certificate for *.googleapis.com: {0}")]
    Make(#[from] rcgen::Error),
    #[error("set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Where the authority's certificate lies (PEM): what `CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE` must name.
#[must_use]
pub fn ca_pem_path(keys_dir: &Path) -> PathBuf {
    keys_dir.join("ca.pem")
}

/// What to do with a CONNECT.
pub(crate) enum Verdict {
    Terminate(TlsAcceptor),
    Refuse(ApiError),
}

/// The proxy's keys, ready to serve.
pub(crate) struct Proxy {
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for Proxy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Proxy").finish_non_exhaustive()
    }
}

impl Proxy {
    /// Reads the authority from `keys_dir`, or makes it, and makes a leaf.
    pub(crate) fn open(keys_dir: &Path) -> Result<Self, ProxyError> {
        let config = authority::server_config(keys_dir)?;
        Ok(Self {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    pub(crate) fn verdict(&self, host: &str, port: u16) -> Verdict {
        if port == 443 && google_host(host) {
            return Verdict::Terminate(self.acceptor.clone());
        }
        Verdict::Refuse(ApiError::new(
            Code::PermissionDenied,
            format!(
                "This proxy serves *.googleapis.com:443 alone and doesn't forward to {host}:{port}. Undo `utsuwa env` in this shell \
                 (eval \"$(utsuwa env --unset)\") to reach other hosts."
            ),
        ))
    }
}

/// Makes the authority's files if they are missing and answers the certificate's path. For `utsuwa env` before the first start.
///
/// # Errors
/// When the files can't be read, made or used.
pub fn ensure_ca(keys_dir: &Path) -> Result<PathBuf, ProxyError> {
    authority::load_or_make(keys_dir)?;
    Ok(ca_pem_path(keys_dir))
}
