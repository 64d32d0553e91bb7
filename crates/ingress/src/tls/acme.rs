//! Certificates of an authority that speaks ACME (RFC 8555): Let's Encrypt, or one of a house's own.
//!
//! Owns: the account, one order from beginning to end, and what to tell people when it fails. Deliberately not here: when to
//! ask (`utsuwa_decide::certificate`), and keeping what was issued ([`super::Cabinet`]).
//!
//! Invariants: 1. The account's key is made once for each authority and is only its owner's to read. 2. Challenges are answered
//! while their order is under way, and not longer.

mod problem;

use std::error::Error as _;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, ChallengeType, Error, Identifier, NewAccount,
    NewOrder, Order, OrderStatus, Problem, RetryPolicy,
};
use parking_lot::Mutex;
use rcgen::{CertificateParams, DistinguishedName, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::sync::Semaphore;

use super::authority::{read, write_private};
use problem::{is, is_unknown_account, words};

use super::challenge::{Challenges, Raised};

/// How long an authority may take for its checks, and again for its signature.
const PATIENCE: Duration = Duration::from_secs(90);
/// One attempt, whatever hangs in it.
const WHOLE: Duration = Duration::from_secs(240);
/// Who asks too often is not heard for an hour at least.
const RATE_LIMITED: Duration = Duration::from_secs(3600);

/// How an authority may check that a host leads here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Check {
    /// A text over plain HTTP on port 80.
    Http,
    /// A handshake on port 443.
    Handshake,
    /// One after the other, from attempt to attempt.
    Either,
}

/// Which authority is asked, and as whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AcmeSettings {
    /// The address of its directory.
    pub directory: String,
    /// Where it may write to: mail addresses.
    pub contact: Vec<String>,
    /// The only authority that its own address is trusted by (a PEM file); without one the machine's are.
    pub root: Option<PathBuf>,
    pub check: Check,
}

/// What was issued, as PEM.
pub struct Issued {
    pub chain_pem: String,
    pub key_pem: String,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued").finish_non_exhaustive()
    }
}

/// Why nothing was issued, in the user's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct AcmeError {
    pub message: String,
    /// The authority doesn't want to be asked before.
    pub wait: Option<Duration>,
}

impl AcmeError {
    fn new(message: String) -> Self {
        Self {
            message,
            wait: None,
        }
    }
}

/// One authority, as its client.
pub struct Acme {
    settings: AcmeSettings,
    keys_dir: PathBuf,
    challenges: Challenges,
    account: Mutex<Option<Account>>,
    /// Held while an account is made: there must not be two.
    opening: Semaphore,
}

impl fmt::Debug for Acme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Acme")
            .field("settings", &self.settings)
            .finish_non_exhaustive()
    }
}

impl Acme {
    /// `keys_dir` is where the account's key is kept; `challenges` are those that the ingress answers.
    #[must_use]
    pub fn new(settings: AcmeSettings, keys_dir: &Path, challenges: Challenges) -> Self {
        Self {
            settings,
            keys_dir: keys_dir.to_owned(),
            challenges,
            account: Mutex::default(),
            opening: Semaphore::new(1),
        }
    }

    /// Asks for a certificate of `host`. `attempt` counts from 1.
    ///
    /// # Errors
    /// The authority can't be reached, refuses, or didn't find this server under the name.
    pub async fn issue(&self, host: &str, attempt: u32) -> Result<Issued, AcmeError> {
        match tokio::time::timeout(WHOLE, self.ask(host, attempt)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(AcmeError::new(format!(
                "The certificate authority at {} did not finish within {} s.",
                self.settings.directory,
                WHOLE.as_secs()
            ))),
        }
    }

    async fn ask(&self, host: &str, attempt: u32) -> Result<Issued, AcmeError> {
        let account = self.account().await?;
        let identifiers = [Identifier::Dns(host.to_owned())];
        let opened = account.new_order(&NewOrder::new(&identifiers)).await;
        let mut order = match opened {
            Ok(order) => order,
            Err(error) => {
                if is_unknown_account(&error) {
                    self.lose_account();
                }
                return Err(self.told(error));
            }
        };
        let kind = self.kind(attempt);
        let (raised, kind) = self.raise(&mut order, host, kind).await?;
        let policy = RetryPolicy::new().timeout(PATIENCE);
        let ready = order.poll_ready(&policy).await;
        match ready {
            Ok(OrderStatus::Ready | OrderStatus::Valid) => {}
            Ok(_) => return Err(self.not_found(&mut order, host, &kind, None).await),
            Err(Error::Api(problem)) => {
                return Err(self.not_found(&mut order, host, &kind, Some(problem)).await);
            }
            Err(error) => return Err(self.told(error)),
        }
        let bug = |error: rcgen::Error| {
            AcmeError::new(format!(
                "The request for a certificate of {host} could not be made: {error}."
            ))
        };
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(bug)?;
        let mut params = CertificateParams::new(vec![host.to_owned()]).map_err(bug)?;
        params.distinguished_name = DistinguishedName::new();
        let request = params.serialize_request(&key).map_err(bug)?;
        order
            .finalize_csr(request.der())
            .await
            .map_err(|error| self.told(error))?;
        let chain_pem = order
            .poll_certificate(&policy)
            .await
            .map_err(|error| self.told(error))?;
        drop(raised);
        Ok(Issued {
            chain_pem,
            key_pem: key.serialize_pem(),
        })
    }

    fn kind(&self, attempt: u32) -> ChallengeType {
        match self.settings.check {
            Check::Http => ChallengeType::Http01,
            Check::Handshake => ChallengeType::TlsAlpn01,
            Check::Either if attempt % 2 == 1 => ChallengeType::Http01,
            Check::Either => ChallengeType::TlsAlpn01,
        }
    }

    /// Answers what the authority is going to ask for, and tells it so.
    async fn raise(
        &self,
        order: &mut Order,
        host: &str,
        kind: ChallengeType,
    ) -> Result<(Vec<Raised>, ChallengeType), AcmeError> {
        let mut raised = Vec::new();
        let mut authorizations = order.authorizations();
        while let Some(next) = authorizations.next().await {
            let mut authorization = next.map_err(|error| self.told(error))?;
            match authorization.status {
                AuthorizationStatus::Valid => continue,
                AuthorizationStatus::Pending => {}
                _ => {
                    return Err(AcmeError::new(format!(
                        "The certificate authority does not let this account ask for {host} again yet."
                    )));
                }
            }
            let Some(mut challenge) = authorization.challenge(kind.clone()) else {
                return Err(AcmeError::new(format!(
                    "The certificate authority offers no check of the kind {} for {host}: let acme-challenge be auto.",
                    shown(&kind)
                )));
            };
            let text = challenge.key_authorization();
            raised.push(match kind {
                ChallengeType::Http01 => {
                    self.challenges
                        .raise_http(host, &challenge.token, text.as_str())
                }
                _ => {
                    let digest = text.digest();
                    let digest = <[u8; 32]>::try_from(digest.as_ref()).unwrap_or_default();
                    self.challenges
                        .raise_handshake(host, &digest)
                        .map_err(|error| AcmeError::new(error.to_string()))?
                }
            });
            challenge
                .set_ready()
                .await
                .map_err(|error| self.told(error))?;
        }
        Ok((raised, kind))
    }

    /// The check failed: what the authority saw, and what to do about it.
    async fn not_found(
        &self,
        order: &mut Order,
        host: &str,
        kind: &ChallengeType,
        problem: Option<Problem>,
    ) -> AcmeError {
        let mut seen = None;
        let mut authorizations = order.authorizations();
        while let Some(Ok(mut authorization)) = authorizations.next().await {
            if let Ok(state) = authorization.refresh().await {
                let failed = state.challenges.iter().find_map(|c| c.error.as_ref());
                seen = seen.or_else(|| failed.map(words));
            }
        }
        let seen = seen
            .or_else(|| problem.as_ref().map(words))
            .unwrap_or_else(|| "it did not say why".to_owned());
        let (address, way) = match kind {
            ChallengeType::Http01 => (
                format!("http://{host}"),
                "port 80 of that address reach --listen-http",
            ),
            _ => (
                format!("https://{host}"),
                "port 443 of that address reach --listen-https",
            ),
        };
        AcmeError::new(format!(
            "The certificate authority did not find this server at {address}: {seen}. Let the DNS records of {host} lead here, and {way}."
        ))
    }

    /// The account, made at the first use.
    async fn account(&self) -> Result<Account, AcmeError> {
        let known = || self.account.lock().clone();
        if let Some(account) = known() {
            return Ok(account);
        }
        let _one = self.opening.acquire().await;
        if let Some(account) = known() {
            return Ok(account);
        }
        let account = self.open_account().await?;
        *self.account.lock() = Some(account.clone());
        Ok(account)
    }

    async fn open_account(&self) -> Result<Account, AcmeError> {
        let path = self.account_file();
        let file = |error: &dyn fmt::Display| {
            AcmeError::new(format!(
                "The account at the certificate authority could not be used: {error}."
            ))
        };
        let builder = match &self.settings.root {
            Some(root) => Account::builder_with_root(root),
            None => Account::builder(),
        }
        .map_err(|error| self.told(error))?;
        if let Some(text) = read(&path).map_err(|error| file(&error))? {
            let credentials: AccountCredentials = serde_json::from_str(&text)
                .map_err(|error| file(&format!("{}: {error}", path.display())))?;
            let account = builder.from_credentials(credentials).await;
            return account.map_err(|error| self.told(error));
        }
        let contact: Vec<String> = self
            .settings
            .contact
            .iter()
            .map(|address| format!("mailto:{address}"))
            .collect();
        let contact: Vec<&str> = contact.iter().map(String::as_str).collect();
        let new = NewAccount {
            contact: &contact,
            // Who names an authority agrees to its terms: the option says so.
            terms_of_service_agreed: true,
            only_return_existing: false,
        };
        let (account, credentials) = builder
            .create(&new, self.settings.directory.clone(), None)
            .await
            .map_err(|error| self.told(error))?;
        let text = serde_json::to_string(&credentials).map_err(|error| file(&error))?;
        write_private(&path, &text).map_err(|error| file(&error))?;
        tracing::info!(
            directory = self.settings.directory,
            "opened an account at the certificate authority"
        );
        Ok(account)
    }

    /// The authority doesn't know it (any more): the next attempt opens another one.
    fn lose_account(&self) {
        *self.account.lock() = None;
        let path = self.account_file();
        if let Err(error) = std::fs::remove_file(&path) {
            tracing::warn!(%error, path = %path.display(), "remove an account that its authority doesn't know");
        }
    }

    /// One for each authority.
    fn account_file(&self) -> PathBuf {
        let name: String = self
            .settings
            .directory
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        self.keys_dir.join(format!("acme-account-{name}.json"))
    }

    fn told(&self, error: Error) -> AcmeError {
        let directory = &self.settings.directory;
        match error {
            Error::Api(problem) => AcmeError {
                wait: is(&problem, "rateLimited").then_some(RATE_LIMITED),
                message: format!(
                    "The certificate authority at {directory} refused: {}.",
                    words(&problem)
                ),
            },
            Error::Timeout(_) => AcmeError::new(format!(
                "The certificate authority at {directory} did not answer within {} s.",
                PATIENCE.as_secs()
            )),
            error => {
                let mut text = error.to_string();
                let mut source = error.source();
                while let Some(cause) = source {
                    let cause_text = cause.to_string();
                    if !text.contains(&cause_text) {
                        text.push_str(": ");
                        text.push_str(&cause_text);
                    }
                    source = cause.source();
                }
                AcmeError::new(format!(
                    "The certificate authority at {directory} could not be asked: {text}."
                ))
            }
        }
    }
}

fn shown(kind: &ChallengeType) -> &'static str {
    match kind {
        ChallengeType::Http01 => "http-01",
        _ => "tls-alpn-01",
    }
}
