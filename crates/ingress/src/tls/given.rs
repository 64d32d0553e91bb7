//! Certificates that came from outside: files of the operator, or what an authority issued. Checked before they are in force.

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::client::verify_server_name;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::ParsedCertificate;
use rustls::sign::CertifiedKey;
use utsuwa_model::Timestamp;
use utsuwa_model::domain::Validity;
use x509_parser::prelude::{ASN1Time, FromDer, X509Certificate};

/// Which hosts a certificate is for: one, or all of one label below a domain (`*.example.com`).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pattern {
    Host(String),
    Below(String),
}

/// Why a pattern or a certificate is of no use, in the operator's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unusable(pub String);

impl FromStr for Pattern {
    type Err = Unusable;

    fn from_str(text: &str) -> Result<Self, Unusable> {
        let (below, name) = match text.strip_prefix("*.") {
            Some(name) => (true, name),
            None => (false, text),
        };
        let lower = name.to_ascii_lowercase();
        let is_name = !name.contains('*')
            && matches!(
                ServerName::try_from(lower.as_str()),
                Ok(ServerName::DnsName(_))
            );
        if !is_name {
            return Err(Unusable(format!(
                "{text:?} is no host: write a name such as www.example.com, or *.example.com for all names right below it"
            )));
        }
        Ok(if below {
            Self::Below(lower)
        } else {
            Self::Host(lower)
        })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(name) => f.write_str(name),
            Self::Below(name) => write!(f, "*.{name}"),
        }
    }
}

impl Pattern {
    /// A host it is for.
    fn example(&self) -> String {
        match self {
            Self::Host(name) => name.clone(),
            Self::Below(name) => format!("any.{name}"),
        }
    }
}

/// A certificate that may be used.
#[derive(Debug, Clone)]
pub struct Given {
    pub pattern: Pattern,
    pub validity: Validity,
    pub key: CertifiedKey,
}

impl Given {
    /// A chain and its key, both PEM, for `pattern`.
    ///
    /// # Errors
    /// They can't be read, don't belong together, aren't for these hosts, or are over (at `now`).
    pub fn new(
        pattern: Pattern,
        chain_pem: &[u8],
        key_pem: &[u8],
        now: Timestamp,
    ) -> Result<Self, Unusable> {
        let wrong = |text: String| Unusable(text);
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain_pem)
            .collect::<Result<_, _>>()
            .map_err(|error| wrong(format!("the certificate file is not PEM: {error}")))?;
        let Some(leaf) = chain.first() else {
            return Err(wrong(
                "the certificate file holds no certificate: it must begin with the host's own, followed by those that signed it"
                    .to_owned(),
            ));
        };
        let key = PrivateKeyDer::from_pem_slice(key_pem)
            .map_err(|error| wrong(format!("the key file holds no private key in PEM: {error}")))?;
        let (_, parsed) = X509Certificate::from_der(leaf)
            .map_err(|error| wrong(format!("the certificate can't be read: {error}")))?;
        let time = |at: ASN1Time| Timestamp(at.timestamp().saturating_mul(1_000_000));
        let validity = Validity {
            from: time(parsed.validity().not_before),
            until: time(parsed.validity().not_after),
        };
        if validity.until <= now {
            return Err(wrong(format!(
                "the certificate ended at {}",
                parsed.validity().not_after
            )));
        }
        let name = pattern.example();
        let fits = ServerName::try_from(name.as_str()).is_ok_and(|name| {
            ParsedCertificate::try_from(leaf)
                .is_ok_and(|leaf| verify_server_name(&leaf, &name).is_ok())
        });
        if !fits {
            return Err(wrong(format!("the certificate is not for {pattern}")));
        }
        let key = CertifiedKey::from_der(chain, key, &super::provider()).map_err(|error| {
            wrong(format!(
                "the key is not the certificate's, or of no use: {error}"
            ))
        })?;
        Ok(Self {
            pattern,
            validity,
            key,
        })
    }
}

/// A certificate and until when it is one.
pub(super) struct InForce {
    pub(super) config: Arc<ServerConfig>,
    pub(super) validity: Validity,
}

/// All that were given, by host.
#[derive(Default)]
pub struct GivenCertificates {
    hosts: HashMap<String, InForce>,
    below: HashMap<String, InForce>,
}

impl fmt::Debug for GivenCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenCertificates")
            .field("hosts", &self.hosts.keys())
            .field("below", &self.below.keys())
            .finish()
    }
}

impl GivenCertificates {
    pub(super) fn new(given: Vec<Given>, config: impl Fn(CertifiedKey) -> ServerConfig) -> Self {
        let mut all = Self::default();
        for given in given {
            let in_force = InForce {
                config: Arc::new(config(given.key)),
                validity: given.validity,
            };
            match given.pattern {
                Pattern::Host(name) => all.hosts.insert(name, in_force),
                Pattern::Below(name) => all.below.insert(name, in_force),
            };
        }
        all
    }

    fn find(&self, host: &str) -> Option<&InForce> {
        self.hosts.get(host).or_else(|| {
            let (_, parent) = host.split_once('.')?;
            self.below.get(parent)
        })
    }

    pub(super) fn of(&self, host: &str) -> Option<Arc<ServerConfig>> {
        self.find(host).map(|found| Arc::clone(&found.config))
    }

    pub(super) fn validity(&self, host: &str) -> Option<Validity> {
        self.find(host).map(|found| found.validity)
    }
}
