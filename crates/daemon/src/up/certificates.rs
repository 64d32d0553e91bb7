//! Certificates of domains, as the loops see them: the ingress has them, the keys directory keeps them, an authority issues them.

use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use utsuwa_control::seam::{Certificates, IssueError};
use utsuwa_ingress::tls::acme::Acme;
use utsuwa_ingress::tls::{Cabinet, Given, Pattern, Tls, TlsError};
use utsuwa_model::domain::{CertificateStanding, DomainName};

use super::environment::Machine;

/// What HTTPS stands on.
#[derive(Debug, Clone)]
pub(super) struct Secured {
    pub(super) tls: Arc<Tls>,
    pub(super) cabinet: Cabinet,
    /// `None`: no authority is asked.
    pub(super) acme: Option<Arc<Acme>>,
}

/// The loops' view of it. Without HTTPS there are no certificates, and none is asked for.
#[derive(Debug)]
pub(super) struct Registrar(pub(super) Option<Secured>);

impl Certificates for Registrar {
    fn standing(&self, host: &DomainName) -> CertificateStanding {
        self.0
            .as_ref()
            .map_or_else(CertificateStanding::default, |s| {
                s.tls.standing(host.as_str())
            })
    }

    fn issued(&self) -> Vec<DomainName> {
        self.0.as_ref().map_or_else(Vec::new, |s| s.tls.issued())
    }

    fn issue(&self, host: &DomainName, attempt: u32) -> BoxFuture<'_, Result<(), IssueError>> {
        let host = host.clone();
        async move {
            let Some(secured) = &self.0 else {
                return Err(plain(
                    "This server serves no HTTPS (listen-https is empty).",
                ));
            };
            secured.issue(host, attempt).await
        }
        .boxed()
    }

    fn forget(&self, host: &DomainName) -> BoxFuture<'_, Result<(), String>> {
        let host = host.clone();
        async move {
            let Some(secured) = &self.0 else {
                return Ok(());
            };
            secured.tls.remove(&host);
            let cabinet = secured.cabinet.clone();
            on_disk(move || cabinet.remove(&host)).await
        }
        .boxed()
    }
}

impl Secured {
    async fn issue(&self, host: DomainName, attempt: u32) -> Result<(), IssueError> {
        let Some(acme) = &self.acme else {
            return Err(plain(
                "This server asks no certificate authority (acme-directory is empty).",
            ));
        };
        let issued = acme
            .issue(host.as_str(), attempt)
            .await
            .map_err(|error| IssueError {
                message: error.message,
                wait: error.wait,
            })?;
        let (chain, key) = (issued.chain_pem, issued.key_pem);
        let pattern = Pattern::Host(host.to_string());
        let given = Given::new(pattern, chain.as_bytes(), key.as_bytes(), Machine::time());
        let given = given.map_err(|error| {
            plain(&format!(
                "The certificate authority issued what is of no use: {error}."
            ))
        })?;
        let (cabinet, name) = (self.cabinet.clone(), host.clone());
        on_disk(move || cabinet.keep(&name, &chain, &key))
            .await
            .map_err(|error| plain(&format!("The certificate could not be kept: {error}.")))?;
        tracing::info!(%host, "a certificate was issued");
        self.tls.install(&host, given);
        Ok(())
    }
}

fn plain(message: &str) -> IssueError {
    IssueError {
        message: message.to_owned(),
        wait: None,
    }
}

async fn on_disk(
    work: impl FnOnce() -> Result<(), TlsError> + Send + 'static,
) -> Result<(), String> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(error) => Err(format!("write to the keys directory: {error}")),
    }
}
