//! What Utsuwa itself has to say about a service: one JSON line per request, per end of an instance, per refused connection.
//! Written by a thread of its own, beside what instances write.
//!
//! Invariants
//! 1. A request never waits for the disk: what the bounded channel can't take is counted, and the count is written.
//! 2. A service's journal takes no more than its share of the service's budget, and none of the disk's reserve. What is
//!    dropped for it is counted, and the count can be read.
//! 3. Of two servers over the same journals one alone makes room in them; the one that made place only appends.
//! 4. Nothing is kept of a service that was removed, until somebody of its name has something to say.

mod append;
mod dropped;
mod format;
mod told;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};
use utsuwa_ingress::seam::{InstanceNote, RequestLog, RequestRecord, Weight};
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};
use utsuwa_runtime::logs::layout::service_directory;

pub(super) use dropped::Dropped;
pub(super) use format::{Shown, read};
use writer::Writer;

/// Entries that may wait for the disk: a second of heavy load.
const WAITING: usize = 16_384;

/// Something that happened to an instance.
#[derive(Debug)]
pub(super) struct Happening {
    pub at: Timestamp,
    pub service: ServiceKey,
    pub revision: String,
    pub instance: Option<InstanceId>,
    /// Cloud Logging's severities: `INFO`, `WARNING`, `ERROR`.
    pub severity: &'static str,
    pub text: String,
    /// Told once it is on its way to the disk.
    pub written: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
enum Entry {
    Request(Box<RequestRecord>),
    Happening(Box<Happening>),
    /// Everything of a service goes, if the last of it was written earlier than this.
    Remove {
        service: ServiceKey,
        before: Option<Timestamp>,
        done: oneshot::Sender<Result<(), String>>,
    },
    /// The server ends: write what is waiting, then stop.
    End,
}

impl Entry {
    fn service(&self) -> Option<&ServiceKey> {
        match self {
            Self::Request(record) => record.service(),
            Self::Happening(happening) => Some(&happening.service),
            Self::Remove { .. } | Self::End => None,
        }
    }
}

/// What the journals of all services may take.
#[derive(Debug, Clone, Copy)]
pub(super) struct JournalLimits {
    /// Bytes of one service's journal.
    pub service_budget: u64,
    /// Bytes that must stay free on the disk.
    pub reserve: u64,
}

/// Entries that the channel could not take, by service.
#[derive(Debug, Default)]
struct Lost {
    any: AtomicBool,
    /// Of all services, since the server began.
    all: AtomicU64,
    counts: Mutex<BTreeMap<ServiceKey, u64>>,
}

impl Lost {
    fn add(&self, service: &ServiceKey) -> u64 {
        let mut counts = self.counts.lock();
        let count = counts.entry(service.clone()).or_insert(0);
        *count += 1;
        self.all.fetch_add(1, Ordering::Relaxed);
        self.any.store(true, Ordering::Release);
        *count
    }

    fn take(&self) -> BTreeMap<ServiceKey, u64> {
        if self.any.swap(false, Ordering::AcqRel) {
            std::mem::take(&mut *self.counts.lock())
        } else {
            BTreeMap::new()
        }
    }
}

/// Takes entries; clones write to the same journal.
#[derive(Debug, Clone)]
pub(super) struct Journal {
    sender: SyncSender<Entry>,
    lost: Arc<Lost>,
    /// Grows with every line written, so that followers need not poll the disk.
    written: Arc<watch::Sender<u64>>,
    /// Another process writes the same journals. Held while a file is written to.
    shared: Arc<Mutex<bool>>,
    root: PathBuf,
}

impl Journal {
    /// Starts the writer below `root`. The thread ends when the last handle is dropped.
    ///
    /// # Errors
    /// No thread can be made.
    pub(super) fn start(
        root: PathBuf,
        limits: JournalLimits,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (sender, receiver) = sync_channel(WAITING);
        let written = Arc::new(watch::Sender::new(0));
        let lost = Arc::new(Lost::default());
        let shared = Arc::new(Mutex::new(false));
        let writer = Writer::new(
            &root,
            limits,
            Arc::clone(&lost),
            Arc::clone(&written),
            Arc::clone(&shared),
        );
        let thread = std::thread::Builder::new()
            .name("journal".into())
            .spawn(move || writer.run(&receiver))?;
        Ok((
            Self {
                sender,
                lost,
                written,
                shared,
                root,
            },
            thread,
        ))
    }

    pub(super) fn note(&self, happening: Happening) {
        self.send(Entry::Happening(Box::new(happening)));
    }

    /// Has the writer end once everything before this is written.
    pub(super) fn end(&self) {
        if let Err(TrySendError::Full(entry)) = self.sender.try_send(Entry::End) {
            // Whoever ends waits for the thread, not for room before it.
            let sender = self.sender.clone();
            tokio::task::spawn_blocking(move || sender.send(entry));
        }
    }

    /// Entries that could not be taken, since the server began.
    pub(super) fn lost(&self) -> u64 {
        self.lost.all.load(Ordering::Relaxed)
    }

    /// Writes on beside the next server: what is left to say is appended, and files are its. Returns once nothing else is
    /// under way, which may take as long as the disk does.
    pub(super) async fn share(&self) {
        let shared = Arc::clone(&self.shared);
        let share = tokio::task::spawn_blocking(move || *shared.lock() = true);
        if let Err(error) = share.await {
            tracing::error!(%error, "share the journal with the next server");
        }
    }

    /// Where the journals lie.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Removes all that was written about a service, if the last of it was written before `before`.
    ///
    /// # Errors
    /// In words: it was written to meanwhile, or can't be removed, or the journal can't keep up. Later may work.
    pub(super) async fn remove(
        &self,
        service: ServiceKey,
        before: Option<Timestamp>,
    ) -> Result<(), String> {
        let (done, removed) = oneshot::channel();
        self.sender
            .try_send(Entry::Remove {
                service,
                before,
                done,
            })
            .map_err(|_| "the journal can't keep up or has ended".to_owned())?;
        removed
            .await
            .unwrap_or_else(|_| Err("the journal has ended".to_owned()))
    }

    /// The files of a service, oldest first; they need not exist.
    pub(super) fn files(&self, service: &ServiceKey) -> [PathBuf; 2] {
        let folder = service_directory(&self.root, service);
        [folder.join(dropped::OLD), folder.join(dropped::CURRENT)]
    }

    /// What was dropped of a service's journal to keep its budget.
    pub(super) fn dropped(&self, service: &ServiceKey) -> Dropped {
        Dropped::all(&service_directory(&self.root, service))
    }

    /// Changes when something was written.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.written.subscribe()
    }

    fn send(&self, entry: Entry) {
        let Err(TrySendError::Full(entry) | TrySendError::Disconnected(entry)) =
            self.sender.try_send(entry)
        else {
            return;
        };
        if let Some(service) = entry.service() {
            // Told once in a while, not per entry: a journal that can't keep up must not be loud as well.
            let lost = self.lost.add(service);
            if lost.is_power_of_two() {
                tracing::warn!(%service, lost, "the journal can't keep up; entries are dropped");
            }
        }
    }
}

impl RequestLog for Journal {
    fn record(&self, record: Box<RequestRecord>) {
        // Requests to unknown hosts belong to no service; they are in the server's own log at debug level.
        if record.service().is_none() {
            tracing::debug!(host = %record.host, path = %record.path, status = record.status, "request without a service");
            return;
        }
        self.send(Entry::Request(record));
    }

    fn noticed(&self, note: InstanceNote) {
        self.note(Happening {
            at: note.at,
            service: note.revision.service,
            revision: note.revision.revision.to_string(),
            instance: Some(note.instance),
            severity: match note.weight {
                Weight::Info => "INFO",
                Weight::Warning => "WARNING",
                Weight::Error => "ERROR",
            },
            text: note.text,
            written: None,
        });
    }
}

#[cfg(test)]
mod tests;
