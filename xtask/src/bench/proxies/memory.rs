//! The memory of a proxy, looked at while it works: its share of what it shares with others is counted (PSS).

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Context;

use super::super::rest::{mib, pss_kib};
use super::peer::Proxy;

/// A look costs a millisecond of the processor of app and load, where all of this program is (`mod`): of everybody's in the same way.
const LOOK: Duration = Duration::from_millis(20);

/// What was seen, in KiB.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub(super) before: u64,
    pub(super) most: u64,
    pub(super) after: u64,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [before, most, after] = [self.before, self.most, self.after].map(mib);
        write!(f, "{before:.1} / {most:.1} / {after:.1}")
    }
}

/// Looks until it is asked what it saw.
pub(super) struct Watch {
    pid: u32,
    before: u64,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<u64>,
}

impl Watch {
    pub(super) fn start(proxy: &Proxy) -> anyhow::Result<Self> {
        let (pid, stop) = (proxy.holder(), Arc::new(AtomicBool::new(false)));
        let before = pss_kib(pid)?;
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new().spawn(move || {
            let mut most = before;
            while !told.load(Ordering::Relaxed) {
                most = most.max(pss_kib(pid).unwrap_or(0));
                std::thread::sleep(LOOK);
            }
            most
        })?;
        Ok(Self {
            pid,
            before,
            stop,
            thread,
        })
    }

    pub(super) fn seen(self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let most = self.thread.join().ok().context("look at the memory")?;
        let after = pss_kib(self.pid)?;
        Ok(Seen {
            before: self.before,
            most: most.max(after),
            after,
        })
    }
}
