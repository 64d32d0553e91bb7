//! An authority for the loops under test: it issues for ninety days, or says why not. What it issued outlives the loops.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use utsuwa_control::seam::{Certificates, Environment, IssueError};
use utsuwa_model::Timestamp;
use utsuwa_model::domain::{CertificateStanding, DomainName, Validity};

use super::{Clock, Gate};

#[derive(Debug)]
pub(crate) struct Registrar {
    clock: Arc<Clock>,
    issued: Mutex<BTreeMap<DomainName, Validity>>,
    /// Attempts: when, and which in a row.
    pub(crate) asked: Mutex<Vec<(Timestamp, DomainName, u32)>>,
    /// What it says instead of issuing.
    pub(crate) refuses: Mutex<Option<String>>,
    /// It answers nobody while this is so; how many wait for it is the number of those who look.
    pub(crate) hangs: watch::Sender<bool>,
    pub(crate) gate: Mutex<Option<Arc<Gate>>>,
}

impl Registrar {
    pub(crate) fn new(clock: Arc<Clock>) -> Arc<Self> {
        Arc::new(Self {
            clock,
            issued: Mutex::default(),
            asked: Mutex::default(),
            refuses: Mutex::default(),
            hangs: watch::Sender::new(false),
            gate: Mutex::default(),
        })
    }

    pub(crate) fn kept(&self) -> Vec<String> {
        self.issued.lock().keys().map(ToString::to_string).collect()
    }

    fn passes(&self, action: &'static str) -> BoxFuture<'static, ()> {
        let gate = self.gate.lock().clone();
        async move {
            if let Some(gate) = gate {
                gate.pass(action).await;
            }
        }
        .boxed()
    }
}

impl Certificates for Registrar {
    fn standing(&self, host: &DomainName) -> CertificateStanding {
        CertificateStanding {
            given: None,
            issued: self.issued.lock().get(host).copied(),
        }
    }

    fn issued(&self) -> Vec<DomainName> {
        self.issued.lock().keys().cloned().collect()
    }

    fn issue(&self, host: &DomainName, attempt: u32) -> BoxFuture<'_, Result<(), IssueError>> {
        let (host, passes) = (host.clone(), self.passes("issue"));
        let mut hangs = self.hangs.subscribe();
        async move {
            passes.await;
            // The sender is this registrar's own.
            drop(hangs.wait_for(|hangs| !*hangs).await);
            let now = self.clock.now();
            self.asked.lock().push((now, host.clone(), attempt));
            if let Some(message) = self.refuses.lock().clone() {
                return Err(IssueError {
                    message,
                    wait: None,
                });
            }
            let until = now.plus(Duration::from_secs(90 * 24 * 3600));
            self.issued
                .lock()
                .insert(host, Validity { from: now, until });
            Ok(())
        }
        .boxed()
    }

    fn forget(&self, host: &DomainName) -> BoxFuture<'_, Result<(), String>> {
        let (host, passes) = (host.clone(), self.passes("forget"));
        async move {
            passes.await;
            self.issued.lock().remove(&host);
            Ok(())
        }
        .boxed()
    }
}
