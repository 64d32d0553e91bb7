//! What every handler may use. Cloning is cheap: all parts are shared.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use tokio_util::sync::CancellationToken;
use utsuwa_model::Timestamp;
use utsuwa_model::host_dir::HostDir;
use utsuwa_store::{Settings, Store};

use crate::seam::{Images, Insight, Logs};

/// Tells the time. Given from outside so that tests decide what time it is.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// Now, in microseconds since 1970 (UTC).
    fn now(&self) -> Timestamp;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(i64::try_from(since.as_micros()).unwrap_or(i64::MAX))
    }
}

/// Where this server listens, as printed for people (`http://127.0.0.1:8787`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    pub api: Vec<String>,
    pub http: Vec<String>,
    pub https: Vec<String>,
}

/// What every handler may use.
#[derive(Debug, Clone)]
pub struct ApiState {
    pub store: Store,
    pub insight: Arc<dyn Insight>,
    pub logs: Arc<dyn Logs>,
    pub images: Arc<dyn Images>,
    /// Default project, default region and domain, frozen at the first start (decision 13).
    pub settings: Settings,
    pub clock: Arc<dyn Clock>,
    pub addresses: Addresses,
    /// Directory of keys (`DATA-DIR/keys`): the authority of the forward proxy lives there.
    pub keys_dir: PathBuf,
    /// Every option of the server with its value and where it came from, as `utsuwa config show` prints it.
    pub configuration: Arc<Vec<serde_json::Value>>,
    /// Directories of the host that services may have.
    pub host_dirs: Arc<Vec<HostDir>>,
    /// Set once deploys are possible; `GET /healthz` says so.
    pub ready: Readiness,
    /// Cancelled when the server ends: answers without an end of their own (a log that is followed) end then.
    pub closing: CancellationToken,
}

impl ApiState {
    /// Now, by the clock in use.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

/// Whether deploys are possible. Starts as "not yet".
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// From now on `/healthz` answers 200 (or 503 again).
    pub fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Release);
    }

    /// Whether deploys are possible.
    #[must_use]
    pub fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
