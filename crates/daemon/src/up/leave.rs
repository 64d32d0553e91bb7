//! How a server ends: its place is given up as soon as nothing new can need it, and streams go on in it until they end.
//!
//! Owns: the order of the end. How the next server knows what is still inside instances: `leaving`.
//! Deliberately not here: what settling means (`utsuwa_ingress`), the sockets (the keeper has them).
//!
//! Invariants
//! 1. The place is given up only when every request under way has been sent, the loops have stopped and writes are on the disk.
//! 2. What goes on after that is in the file before the next server can begin.

use std::io;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_control::ControlHandle;
use utsuwa_ingress::Ingress;
use utsuwa_runtime::client::SandboxDriver;
use utsuwa_runtime::image::ImageStore;
use utsuwa_store::Store;

use super::journal::Journal;
use super::leaving::Rest;
use super::prepare::PidFile;

/// How long requests may wait for an instance, and those of the API go on, after the word to end; after a signal, also all
/// others: whoever sent it waits for this process.
const DRAIN: Duration = Duration::from_secs(10);
/// How often what is still inside is told, and looked at. What has ended is counted this much longer.
pub(super) const LOOK: Duration = Duration::from_millis(100);
/// Passes of the loops that are under way have this long to end.
const LOOPS: Duration = Duration::from_secs(5);
/// What was cut has this long to be written down.
const LAST: Duration = Duration::from_secs(2);

/// Why a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// A signal: nobody may be waiting for the place, somebody is for the process.
    Signal(&'static str),
    /// Another server wants the place, or has it.
    Place(&'static str),
    /// It can't go on.
    Broken(&'static str),
}

impl Told {
    pub(super) const fn why(self) -> &'static str {
        match self {
            Self::Signal(why) | Self::Place(why) | Self::Broken(why) => why,
        }
    }
}

/// Waits for a signal, or for another server to take over or ask to.
pub(super) async fn until_told(driver: &SandboxDriver) -> anyhow::Result<Told> {
    Ok(tokio::select! {
        signal = signalled() => Told::Signal(signal?),
        () = driver.superseded() => Told::Place("another server took over"),
        () = driver.asked_to_leave() => Told::Place("another server asked for the place"),
    })
}

async fn signalled() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// All that has to end.
#[derive(Debug)]
pub(super) struct Leave {
    pub(super) stop: CancellationToken,
    /// Cancelled once nothing new is begun in instances; `written` is, once the ends that were told until then are written down.
    pub(super) place: CancellationToken,
    pub(super) written: CancellationToken,
    pub(super) ingress: Ingress,
    pub(super) driver: SandboxDriver,
    pub(super) control: ControlHandle,
    /// Listeners of services, and all connections to them.
    pub(super) requests: TaskTracker,
    /// Connections of instances to the host.
    pub(super) open: TaskTracker,
    pub(super) api: TaskTracker,
    pub(super) images: ImageStore,
    pub(super) store: Store,
    pub(super) journal: Journal,
    pub(super) journal_thread: JoinHandle<()>,
    pub(super) pid_file: PidFile,
    pub(super) folder: PathBuf,
    /// How long streams may go on after the place was given up.
    pub(super) limit: Duration,
}

impl Leave {
    /// Ends everything in order; a second signal cuts it short.
    pub(super) async fn run(self, told: Told) {
        self.stop.cancel();
        let limit = match told {
            Told::Place(_) => self.limit,
            Told::Signal(_) | Told::Broken(_) => self.limit.min(DRAIN),
        };
        let began = Instant::now();
        tokio::select! {
            () = self.in_order(told, limit) => {}
            _ = signalled() => {
                self.requests.close();
                self.ingress.cut(began.elapsed());
                timed(LAST, self.requests.wait()).await;
            }
        }
        self.journal.end();
        let thread = self.journal_thread;
        let written = tokio::task::spawn_blocking(move || thread.join());
        if tokio::time::timeout(LAST, written).await.is_err() {
            tracing::debug!("the journal was still held at the end");
        }
    }

    async fn in_order(&self, told: Told, limit: Duration) {
        let settle = async {
            if timed(DRAIN, self.ingress.settled()).await {
                return;
            }
            self.ingress.refuse_waiting();
            timed(LAST, self.ingress.settled()).await;
        };
        self.api.close();
        let ((), ended) = tokio::join!(settle, timed(DRAIN, self.api.wait()));
        if !ended {
            tracing::warn!("some requests to the API were cut off");
        }
        self.control.shutdown(LOOPS).await;
        if !timed(DRAIN, self.images.close()).await {
            // The next server checks every layer that may not have reached the disk.
            tracing::warn!("a pull did not end within {DRAIN:?}; it is begun again");
        }
        let rest = match self.tell_rest() {
            Ok(rest) => rest,
            Err(error) => {
                // The next server would think that nothing is inside: better it waits.
                tracing::warn!(%error, folder = %self.folder.display(), "tell what goes on inside instances; the place is kept until it has ended");
                // Until then instances need names and the host, too.
                timed(limit.min(DRAIN), self.nothing_inside()).await;
                self.place.cancel();
                timed(LAST, self.written.cancelled()).await;
                return self.drain(None, told, LAST).await;
            }
        };
        if !timed(LAST, self.journal.share()).await {
            tracing::warn!("the disk is slow: two servers may drop old lines of the journal");
        }
        self.place.cancel();
        timed(LAST, self.written.cancelled()).await;
        self.driver.give_place();
        self.store.give_up().await;
        if let Err(error) = self.pid_file.clear() {
            tracing::debug!(%error, "take this process out of the file that names the server");
        }
        self.drain(Some(&rest), told, limit).await;
    }

    fn tell_rest(&self) -> io::Result<Rest> {
        let rest = Rest::open(&self.folder)?;
        rest.tell(&self.ingress.inside())?;
        Ok(rest)
    }

    /// Until nothing is under way in instances.
    async fn nothing_inside(&self) {
        while self.ingress.inside().values().any(|count| *count > 0) {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Until the last stream has ended, or is cut.
    async fn drain(&self, rest: Option<&Rest>, told: Told, limit: Duration) {
        self.requests.close();
        self.open.close();
        let left: u32 = self.ingress.inside().values().sum();
        if left > 0 {
            tracing::info!(
                left,
                "the place is given up; what is under way goes on for up to {limit:?}"
            );
        }
        let telling = async {
            loop {
                tokio::time::sleep(LOOK).await;
                if let Some(rest) = rest
                    && let Err(error) = rest.tell(&self.ingress.inside())
                {
                    tracing::debug!(%error, path = %rest.path.display(), "tell what goes on inside instances");
                }
            }
        };
        let ended = async {
            self.requests.wait().await;
            // Who sent a signal waits for this process, and what an app keeps open to the host may stay open for ever.
            if matches!(told, Told::Place(_)) {
                self.open.wait().await;
            }
        };
        tokio::select! {
            () = ended => return,
            () = tokio::time::sleep(limit) => {}
            () = telling => {}
        }
        self.ingress.cut(limit);
        timed(LAST, self.requests.wait()).await;
    }
}

/// Whether `work` ended in time.
async fn timed(limit: Duration, work: impl Future<Output = ()>) -> bool {
    tokio::time::timeout(limit, work).await.is_ok()
}
