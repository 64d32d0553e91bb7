//! How a server ends: its place is given up as soon as nothing new can need it, and streams go on in it until they end.
//!
//! Owns: the order of the end, and the file in `leaving/` by which the next server knows what is still inside instances. The
//! file is locked as long as its process lives, so that a killed one is never believed.
//! Deliberately not here: what settling means (`utsuwa_ingress`), the sockets (the keeper has them).
//!
//! Invariants
//! 1. The place is given up only when every request under way has been sent, the loops have stopped and writes are on the disk.
//! 2. What goes on after that is in the file before the next server can begin.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::fs::OFlags;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_control::ControlHandle;
use utsuwa_ingress::Ingress;
use utsuwa_model::InstanceId;
use utsuwa_runtime::client::SandboxDriver;
use utsuwa_runtime::image::ImageStore;
use utsuwa_store::Store;

use super::journal::Journal;
use super::prepare::PidFile;

/// Where servers that made place tell what they still have inside instances.
pub(super) const LEAVING: &str = "leaving";
/// How long requests may wait for an instance, and those of the API go on, after the word to end; after a signal, also all
/// others: whoever sent it waits for this process.
const DRAIN: Duration = Duration::from_secs(10);
/// How often what is still inside is told, and looked at. What has ended is counted this much longer.
const LOOK: Duration = Duration::from_millis(100);
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
                self.place.cancel();
                return self.drain(None, told, limit.min(DRAIN)).await;
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

/// What this process has inside instances, as a file that it holds locked. Gone with it.
#[derive(Debug)]
struct Rest {
    path: PathBuf,
    file: File,
}

impl Rest {
    fn open(folder: &Path) -> io::Result<Self> {
        let path = folder.join(std::process::id().to_string());
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        file.lock()?;
        Ok(Self { path, file })
    }

    fn tell(&self, inside: &BTreeMap<InstanceId, u32>) -> io::Result<()> {
        let text = lines(inside);
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.set_len(text.len() as u64)
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        // What stays is taken for a killed server's and removed by the next look.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// An instance a line, closed by a line that says that it is whole.
fn lines(inside: &BTreeMap<InstanceId, u32>) -> String {
    let mut text: String = inside
        .iter()
        .map(|(id, count)| format!("{id} {count}\n"))
        .collect();
    text.push_str("end\n");
    text
}

/// `None`: half written.
fn parse(text: &str) -> Option<BTreeMap<InstanceId, u32>> {
    let (whole, _) = text.split_once("end\n")?;
    whole
        .lines()
        .map(|line| {
            let (id, count) = line.split_once(' ')?;
            Some((id.parse().ok()?, count.parse().ok()?))
        })
        .collect()
}

/// The processes of servers that made place and go on, for whoever ends everything. Nothing is followed or believed there that
/// the server's user could have made up: it must be a process of the directory's owner.
///
/// # Errors
/// The directory can't be read.
pub(crate) fn leaving_servers(data: &Path) -> io::Result<Vec<u32>> {
    let folder = data.join(LEAVING);
    let owner = match std::fs::symlink_metadata(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        metadata => metadata?,
    };
    if !owner.is_dir() {
        return Ok(Vec::new());
    }
    let lives = |path: &Path| {
        let pid = path.file_name()?.to_str()?.parse::<u32>().ok()?;
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .ok()?;
        let process = std::fs::metadata(format!("/proc/{pid}")).ok()?;
        (matches!(file.try_lock(), Err(TryLockError::WouldBlock)) && process.uid() == owner.uid())
            .then_some(pid)
    };
    let mut pids = Vec::new();
    for file in std::fs::read_dir(&folder)? {
        pids.extend(lives(&file?.path()));
    }
    Ok(pids)
}

/// The files of servers that made place and live; those of others are removed.
///
/// # Errors
/// Whether one lives can't be found out.
fn leaving(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let files = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        files => files?,
    };
    let mut alive = Vec::new();
    for path in files {
        let path = path?.path();
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue, // it has just ended
            file => file?,
        };
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => alive.push(path),
            // Its process is gone and left it; perhaps somebody else has just removed it.
            Ok(()) => drop(std::fs::remove_file(&path)),
            Err(TryLockError::Error(error)) => return Err(error),
        }
    }
    Ok(alive)
}

/// What servers before this one still have inside instances. `None`: none of them is left.
#[derive(Debug)]
pub(super) struct Before {
    folder: PathBuf,
    /// By file, as last read.
    known: BTreeMap<PathBuf, BTreeMap<InstanceId, u32>>,
}

impl Before {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self {
            folder,
            known: BTreeMap::new(),
        }
    }

    /// Reads what there is; `None` once there is nothing. What can't be read is taken for what it was: to think that nothing is
    /// inside an instance may end it under a stream.
    pub(super) fn look(&mut self) -> Option<BTreeMap<InstanceId, u32>> {
        match leaving(&self.folder) {
            Ok(alive) => {
                let read = |path: PathBuf| {
                    let last = self.known.remove(&path).unwrap_or_default();
                    let text = std::fs::read_to_string(&path).ok();
                    let now = text.and_then(|text| parse(&text)).unwrap_or(last);
                    (path, now)
                };
                self.known = alive.into_iter().map(read).collect();
                if self.known.is_empty() {
                    return None;
                }
            }
            Err(error) => {
                tracing::debug!(%error, folder = %self.folder.display(), "look what servers before this one have inside instances");
            }
        }
        let mut all = BTreeMap::new();
        for (id, count) in self.known.values().flatten() {
            *all.entry(id.clone()).or_insert(0) += count;
        }
        Some(all)
    }

    /// Keeps `ingress` told until nothing is left, or `stop`.
    pub(super) async fn follow(mut self, ingress: Ingress, stop: CancellationToken) {
        let follow = async {
            while let Some(held) = self.look() {
                ingress.hold(held);
                tokio::time::sleep(LOOK).await;
            }
            ingress.hold(BTreeMap::new());
        };
        tokio::select! {
            () = follow => {}
            () = stop.cancelled() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: char) -> InstanceId {
        digit.to_string().repeat(32).parse().unwrap()
    }

    #[test]
    fn what_is_told_is_read_while_its_process_lives() {
        let folder = tempfile::tempdir().unwrap();
        let mut before = Before::new(folder.path().to_owned());
        assert_eq!(before.look(), None);
        let rest = Rest::open(folder.path()).unwrap();
        let inside = BTreeMap::from([(id('a'), 2), (id('b'), 1)]);
        rest.tell(&inside).unwrap();
        assert_eq!(before.look(), Some(inside.clone()));
        // Half written: what was known stays.
        rest.file.set_len(10).unwrap();
        assert_eq!(before.look(), Some(inside));
        rest.tell(&BTreeMap::new()).unwrap();
        assert_eq!(before.look(), Some(BTreeMap::new()));
        drop(rest);
        assert_eq!(before.look(), None);
        // One that was killed leaves its file, and not the lock.
        std::fs::write(
            folder.path().join("7"),
            lines(&BTreeMap::from([(id('c'), 9)])),
        )
        .unwrap();
        assert_eq!(before.look(), None);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }
}
