//! The seams and settings that every part of the data path holds.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::budget::{Bell, Budget};
use crate::metrics::Rejected;
use crate::scanners::Scanners;
use crate::seam::{Clock, Connect, RequestLog, Wake};
use crate::settings::IngressSettings;

/// What lies outside this crate.
#[derive(Debug)]
pub(crate) struct Outside {
    pub(crate) connect: Arc<dyn Connect>,
    pub(crate) wake: Arc<dyn Wake>,
    pub(crate) log: Arc<dyn RequestLog>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: IngressSettings,
    /// Rung when something that holds an open file was given back.
    pub(crate) bell: Arc<Bell>,
    /// Idle connections of all instances.
    pub(crate) idle: Arc<Budget>,
    /// Requests that wait for an instance, of all revisions together.
    pub(crate) waiting: Arc<Budget>,
    pub(crate) scanners: Scanners,
    /// Startup probes and HTTP/2 connections to instances. Each ends with its instance.
    pub(crate) tasks: TaskTracker,
    /// Where they run.
    pub(crate) runtime: Handle,
    /// Requests that no revision saw.
    pub(crate) rejected: Rejected,
    dice: AtomicU64,
}

impl Outside {
    pub(crate) fn new(
        connect: Arc<dyn Connect>,
        wake: Arc<dyn Wake>,
        log: Arc<dyn RequestLog>,
        clock: Arc<dyn Clock>,
        settings: IngressSettings,
    ) -> Self {
        let bell = Arc::<Bell>::default();
        // The standard library's hash keys come from the kernel's random source: the one seed we need.
        let seed = RandomState::new().build_hasher().finish();
        Self {
            connect,
            wake,
            log,
            clock,
            idle: Budget::new("idle connections", settings.max_idle, &bell),
            waiting: Budget::new("requests that wait", settings.max_waiting, &bell),
            bell,
            scanners: Scanners::new(&settings.scanner_paths),
            settings,
            tasks: TaskTracker::new(),
            runtime: Handle::current(),
            rejected: Rejected::default(),
            dice: AtomicU64::new(seed),
        }
    }

    /// 64 well-mixed bits (splitmix64). For choice and trace ids, never for secrets.
    pub(crate) fn dice(&self) -> u64 {
        let mut bits = self
            .dice
            .fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }
}
