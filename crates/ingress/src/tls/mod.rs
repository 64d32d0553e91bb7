//! TLS for every host that is served: which certificate a client gets, and the handshake.
//!
//! Owns: the local authority of the served domains, the leaves it signs at once, certificates that were given or issued, and the
//! answers to an authority's challenges. Deliberately not here: what a connection carries (`serve` takes a [`Wire`], whatever is
//! under it), when a certificate is renewed (`utsuwa_decide`), and where files come from (`daemon`).
//!
//! Invariants:
//! 1. A handshake never wakes anything, and names that nobody serves get no certificate: an alert says so.
//! 2. What was given comes before what was issued, what was issued before what is made here.
//! 3. A change of certificates concerns the next handshake; no connection sees it.
//! 4. Memory is bounded: by the hosts that are served and [`leaves::LEAVES`], never by the names that clients ask for.
//! 5. Keys are written with mode 0600, and never replaced while they are usable.

pub mod acme;
mod authority;
mod cabinet;
mod challenge;
mod given;
mod handshake;
mod leaves;
mod plain;
mod wire;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::crypto::CryptoProvider;
use rustls::server::ProducesTickets;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use utsuwa_model::domain::{CertificateStanding, DomainName};

pub use self::authority::{Authority, CERTIFICATE_FILE, domain_of};
pub use self::cabinet::{Cabinet, Kept};
pub use self::challenge::{Challenges, Raised};
use self::given::InForce;
pub use self::given::{Given, GivenCertificates, Pattern, Unusable};
pub(crate) use self::handshake::enter;
use self::leaves::Leaves;
pub(crate) use self::plain::instead;
pub(crate) use self::wire::Wire;

use crate::seam::Clock;

/// What is spoken over TLS, best first.
const PROTOCOLS: [&[u8]; 2] = [b"h2", b"http/1.1"];

/// Why TLS can't be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{action} {path}: {source}; the server must own its keys directory", path = path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is not a usable key or certificate: {why}; remove {CERTIFICATE_FILE} and its key there to have them made anew (and run `utsuwa trust` again)", path = path.display())]
    Unusable { path: PathBuf, why: String },
    #[error("make a certificate for {host}: {source}")]
    Make { host: String, source: rcgen::Error },
    #[error("set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// Everything that a handshake needs. One for all listeners.
pub struct Tls {
    /// What all hosts share: versions, protocols, tickets. Its certificate is filled in by host.
    base: ServerConfig,
    leaves: Leaves,
    given: ArcSwap<GivenCertificates>,
    /// By exact host. What an authority issued.
    issued: Mutex<HashMap<String, InForce>>,
    pub(crate) challenges: Challenges,
    clock: Arc<dyn Clock>,
    /// Plain HTTP from outside is sent to HTTPS, on this port.
    redirect: Option<u16>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("redirect", &self.redirect)
            .finish_non_exhaustive()
    }
}

impl Tls {
    /// TLS with the certificates of `authority`. `redirect`: the port of HTTPS that plain HTTP requests from outside are sent to.
    ///
    /// # Errors
    /// The cryptography of this build can't do what is asked.
    pub fn new(
        authority: Authority,
        clock: Arc<dyn Clock>,
        redirect: Option<u16>,
    ) -> Result<Self, TlsError> {
        let provider = provider();
        let leaves = Leaves::new(authority, &provider)?;
        let nobody = rustls::server::ResolvesServerCertUsingSni::new();
        let mut base = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(nobody));
        base.alpn_protocols = PROTOCOLS.map(<[u8]>::to_vec).to_vec();
        // Tickets that the client keeps: resumption costs no memory here, and works whichever certificate is in force.
        base.ticketer = tickets()?;
        Ok(Self {
            base,
            leaves,
            given: ArcSwap::default(),
            issued: Mutex::default(),
            challenges: Challenges::default(),
            clock,
            redirect,
        })
    }

    /// Replaces all certificates that the operator gave. Connections that are open go on.
    pub fn give(&self, given: Vec<Given>) {
        let given = GivenCertificates::new(given, |key| self.with(key));
        self.given.store(Arc::new(given));
    }

    /// What an authority issued is used from the next handshake for its host on.
    pub fn install(&self, host: &DomainName, issued: Given) {
        let in_force = InForce {
            config: Arc::new(self.with(issued.key)),
            validity: issued.validity,
        };
        self.issued.lock().insert(host.to_string(), in_force);
    }

    /// Nothing that was issued for `host` is used any more.
    pub fn remove(&self, host: &DomainName) {
        self.issued.lock().remove(host.as_str());
    }

    /// The hosts that certificates were issued for.
    #[must_use]
    pub fn issued(&self) -> Vec<DomainName> {
        let issued = self.issued.lock();
        issued.keys().filter_map(|host| host.parse().ok()).collect()
    }

    /// Which certificates there are for `host`, beside the one that can be made here.
    #[must_use]
    pub fn standing(&self, host: &str) -> CertificateStanding {
        CertificateStanding {
            given: self.given.load().validity(host),
            issued: self.issued.lock().get(host).map(|i| i.validity),
        }
    }

    /// The answers to challenges that an authority may ask for now.
    #[must_use]
    pub fn challenges(&self) -> Challenges {
        self.challenges.clone()
    }

    /// Where plain HTTP requests from outside are sent to.
    pub(crate) const fn redirect(&self) -> Option<u16> {
        self.redirect
    }

    /// What a client that asks for `host` is met with; `None`: nothing is served under that name.
    fn config(&self, host: &str, served: bool) -> Result<Option<Arc<ServerConfig>>, TlsError> {
        if let Some(given) = self.given.load().of(host) {
            return Ok(Some(given));
        }
        if let Some(issued) = self.issued.lock().get(host) {
            return Ok(Some(Arc::clone(&issued.config)));
        }
        if !served && host != self.leaves.domain() {
            return Ok(None);
        }
        let now = self.clock.wall();
        self.leaves.of(host, now, |key| self.with(key)).map(Some)
    }

    fn with(&self, certificate: CertifiedKey) -> ServerConfig {
        let mut config = self.base.clone();
        config.cert_resolver = Arc::new(SingleCertAndKey::from(certificate));
        config
    }
}

/// The one cryptography of this program (ADR 4).
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn tickets() -> Result<Arc<dyn ProducesTickets>, rustls::Error> {
    rustls::crypto::aws_lc_rs::Ticketer::new()
}
