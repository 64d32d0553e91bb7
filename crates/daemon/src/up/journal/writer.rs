//! The thread that writes journals: files, their budget, the disk's reserve, and what is missing.
//!
//! Two files per service: the current one, and the one before. When the current one is full the older one is dropped, after
//! its lines were counted into a third, small one.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::watch;
use utsuwa_model::{ServiceKey, Timestamp};
use utsuwa_runtime::logs::layout::{newest_change, service_directory};

use super::append::{append_beside, append_whole, end_half_line};
use super::dropped::{CURRENT, count_gone, turn};
use super::format::{happening_line, missing_line, ms, request_line};
use super::told::Told;
use super::{Entry, JournalLimits, Lost};

/// Open files at most; the least recently used goes first.
const MAX_FILES: usize = 256;
/// A file that nothing was written to for this long is closed: services that sleep, or were deleted, hold none.
const IDLE: Duration = Duration::from_secs(5);
/// Free space is looked at again after this many bytes, and where it is too little, after this time.
const LOOK_AFTER: u64 = 4 << 20;
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Entries that are taken before the disk is seen to.
const BATCH: usize = 4_096;
/// Entries are gathered for so long where more than a few come at once, or the last ones came within that time: their senders
/// need not wake this thread then, and many lines are one write. An entry after a pause is written at once.
/// Not longer: what was gathered is written in one go, and takes the processor from requests meanwhile.
const GATHER: Duration = Duration::from_millis(5);
const FEW: usize = 3;
/// Bytes of one write, where the budget isn't tiny.
const WRITE: usize = 256 << 10;

const SLOW: &str = "more came than could be written";
const DISK_FULL: &str = "the disk was full";

struct Output {
    file: File,
    bytes: u64,
    used: Instant,
}

/// Lines of one service that were not written yet.
struct Gathered {
    service: ServiceKey,
    lines: String,
    count: u64,
}

struct Missing {
    entries: u64,
    why: &'static str,
}

/// The state of the thread.
pub(super) struct Writer {
    root: PathBuf,
    limits: JournalLimits,
    lost: Arc<Lost>,
    written: Arc<watch::Sender<u64>>,
    outputs: BTreeMap<PathBuf, Output>,
    /// Told before the next entry of the service that can be written.
    missing: BTreeMap<ServiceKey, Missing>,
    count: u64,
    since_look: u64,
    disk_low: bool,
    looked: Timestamp,
    /// When idle files were last looked for.
    tidied: Instant,
    /// Whose cold start was told.
    told: Told,
    gathered: Option<Gathered>,
    /// Memory for the next line.
    line: String,
    /// The next server writes, too: it alone turns and removes files.
    shared: Arc<Mutex<bool>>,
}

impl Writer {
    pub(super) fn new(
        root: &Path,
        limits: JournalLimits,
        lost: Arc<Lost>,
        written: Arc<watch::Sender<u64>>,
        shared: Arc<Mutex<bool>>,
    ) -> Self {
        Self {
            root: root.to_owned(),
            limits,
            lost,
            written,
            outputs: BTreeMap::new(),
            missing: BTreeMap::new(),
            count: 0,
            since_look: LOOK_AFTER,
            disk_low: false,
            looked: Timestamp(0),
            tidied: Instant::now(),
            told: Told::default(),
            gathered: None,
            line: String::new(),
            shared,
        }
    }

    pub(super) fn run(mut self, receiver: &Receiver<Entry>) {
        let mut ended = false;
        let mut before: Option<Instant> = None;
        while !ended && let Some(first) = self.next(receiver) {
            self.learn_lost();
            let mut batch = 1;
            let mut next = Some(first);
            while let Some(entry) = next {
                if matches!(entry, Entry::End) {
                    ended = true;
                    break;
                }
                self.take(entry);
                next = (batch < BATCH).then(|| receiver.try_recv().ok()).flatten();
                batch += 1;
            }
            self.flush();
            self.written.send_replace(self.count);
            let now = Instant::now();
            let often = before.is_some_and(|before| now.duration_since(before) < GATHER);
            before = Some(now);
            if !ended && (often || batch > FEW) {
                // Under load: whoever sends to a thread that waits must wake it, which costs more than the entry.
                std::thread::sleep(GATHER);
            }
        }
        self.learn_lost();
        for service in self.missing.keys().cloned().collect::<Vec<_>>() {
            let _ = self.tell_missing(&service, wall());
        }
        self.flush();
    }

    fn take(&mut self, entry: Entry) {
        match entry {
            Entry::End => {}
            Entry::Remove {
                service,
                before,
                done,
            } => {
                // Nobody need be waiting.
                let _ = done.send(self.remove(&service, before));
            }
            Entry::Request(record) => {
                let Some(service) = record.service() else {
                    return;
                };
                if let Some(cold) = &record.cold
                    && let Some(instance) = &record.instance
                    && self.told.is_news(instance)
                {
                    tracing::info!(service = %service.service, %instance, total_ms = ms(cold.total), listen_ms = ms(cold.listen), "cold start");
                }
                let mut line = std::mem::take(&mut self.line);
                line.clear();
                request_line(&mut line, &record);
                self.entry(service, record.at, &line);
                self.line = line;
            }
            Entry::Happening(happening) => {
                let line = happening_line(&happening);
                self.entry(&happening.service, happening.at, &line);
                self.flush();
                if let Some(done) = happening.written {
                    let _ = done.send(());
                }
            }
        }
    }

    /// Writes what was gathered. Lines go out whole, many in one write; one that a kill cut is ended at the next start.
    pub(super) fn flush(&mut self) {
        let Some(gathered) = &mut self.gathered else {
            return;
        };
        if gathered.lines.is_empty() {
            return;
        }
        let Gathered {
            service,
            lines,
            count,
        } = gathered;
        let service = service.clone();
        let (text, entries) = (std::mem::take(lines), std::mem::take(count));
        let result = self.append(&service, &text);
        if let Err(error) = result {
            if !self.missing.contains_key(&service) {
                tracing::warn!(%service, %error, "write the journal; entries are dropped");
            }
            self.miss(&service, entries, DISK_FULL);
        }
        if let Some(gathered) = &mut self.gathered {
            // Its memory is for the next lines.
            gathered.lines = text;
            gathered.lines.clear();
        }
    }

    /// Keeps the line for the next [`Writer::flush`].
    fn gather(&mut self, service: &ServiceKey, line: &str) {
        let most =
            usize::try_from(self.limits.service_budget / 8).map_or(WRITE, |part| part.min(WRITE));
        let full = |gathered: &Gathered| {
            gathered.service != *service || gathered.lines.len() + line.len() > most
        };
        if self.gathered.as_ref().is_some_and(full) {
            self.flush();
        }
        let gathered = self.gathered.get_or_insert_with(|| Gathered {
            service: service.clone(),
            lines: String::new(),
            count: 0,
        });
        if gathered.service != *service {
            gathered.service = service.clone();
        }
        gathered.lines.push_str(line);
        gathered.count += 1;
    }

    /// Waits for an entry, and closes files while nothing comes. `None`: the last handle is gone.
    fn next(&mut self, receiver: &Receiver<Entry>) -> Option<Entry> {
        while !self.outputs.is_empty() {
            self.close_idle(Instant::now());
            match receiver.recv_timeout(IDLE) {
                Ok(entry) => return Some(entry),
                Err(RecvTimeoutError::Disconnected) => return None,
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
        receiver.recv().ok()
    }

    /// Answers how many files stay open.
    pub(super) fn close_idle(&mut self, now: Instant) -> usize {
        if now.duration_since(self.tidied) >= IDLE {
            self.tidied = now;
            self.outputs
                .retain(|_, output| now.duration_since(output.used) < IDLE);
        }
        self.outputs.len()
    }

    fn learn_lost(&mut self) {
        for (service, entries) in self.lost.take() {
            self.miss(&service, entries, SLOW);
        }
    }

    fn miss(&mut self, service: &ServiceKey, entries: u64, why: &'static str) {
        let none = Missing { entries: 0, why };
        let missing = self.missing.entry(service.clone()).or_insert(none);
        missing.entries += entries;
        missing.why = why;
    }

    /// Writes one line, or counts it as missing.
    pub(super) fn entry(&mut self, service: &ServiceKey, at: Timestamp, line: &str) {
        self.count += 1;
        let result = self
            .look_at_disk()
            .and_then(|()| self.tell_missing(service, at))
            .map(|()| self.gather(service, line));
        if let Err(error) = result {
            if !self.missing.contains_key(service) {
                tracing::warn!(%service, %error, "write the journal; entries are dropped");
            }
            self.miss(service, 1, DISK_FULL);
        }
    }

    fn tell_missing(&mut self, service: &ServiceKey, at: Timestamp) -> io::Result<()> {
        if let Some(missing) = self.missing.get(service) {
            let line = missing_line(at, missing.entries, missing.why);
            self.flush();
            self.append(service, &line)?;
            self.missing.remove(service);
        }
        Ok(())
    }

    /// Fails while the reserve would be touched.
    fn look_at_disk(&mut self) -> io::Result<()> {
        let again = || self.disk_low && wall().since(self.looked) >= LOOK_AGAIN;
        if self.since_look >= LOOK_AFTER || again() {
            self.since_look = 0;
            self.looked = wall();
            let disk = rustix::fs::statvfs(&self.root)?;
            self.disk_low = disk.f_bavail.saturating_mul(disk.f_frsize) < self.limits.reserve;
        }
        if self.disk_low {
            Err(io::ErrorKind::StorageFull.into())
        } else {
            Ok(())
        }
    }

    fn append(&mut self, service: &ServiceKey, line: &str) -> io::Result<()> {
        let folder = service_directory(&self.root, service);
        let shared = Arc::clone(&self.shared);
        let shared = shared.lock();
        if *shared {
            self.outputs.clear();
            return append_beside(&folder, line);
        }
        let length = line.len() as u64;
        let full = self.limits.service_budget / 2;
        if self
            .output(&folder)?
            .is_some_and(|output| output.bytes > 0 && output.bytes + length > full)
        {
            self.outputs.remove(&folder);
            turn(&folder)?;
        }
        let Some(output) = self.output(&folder)? else {
            return Ok(());
        };
        // The server before may write here, too: what it appends must not be what is taken back.
        output.file.lock()?;
        let appended = append_whole(&output.file, line);
        output.file.unlock()?;
        output.bytes = appended? + length;
        output.used = Instant::now();
        self.since_look += length;
        Ok(())
    }

    fn output(&mut self, folder: &Path) -> io::Result<Option<&mut Output>> {
        if !self.outputs.contains_key(folder) {
            if self.outputs.len() >= MAX_FILES
                && let Some(oldest) = self
                    .outputs
                    .iter()
                    .min_by_key(|(_, o)| o.used)
                    .map(|(path, _)| path.clone())
            {
                self.outputs.remove(&oldest);
            }
            fs::create_dir_all(folder)?;
            count_gone(folder)?;
            let file = fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(folder.join(CURRENT))?;
            end_half_line(&folder.join(CURRENT), &file)?;
            let output = Output {
                bytes: file.metadata()?.len(),
                file,
                used: Instant::now(),
            };
            self.outputs.insert(folder.to_owned(), output);
        }
        Ok(self.outputs.get_mut(folder))
    }

    fn remove(&mut self, service: &ServiceKey, before: Option<Timestamp>) -> Result<(), String> {
        self.flush();
        let shared = Arc::clone(&self.shared);
        let shared = shared.lock();
        if *shared {
            return Err("another server has the journals".to_owned());
        }
        let folder = service_directory(&self.root, service);
        let told = |error: io::Error| format!("delete {}: {error}", folder.display());
        if let Some(before) = before
            && let Some(newest) = newest_change(&folder).map_err(told)?
            && micros(newest) >= before.0
        {
            return Err(format!("{} was written to meanwhile", folder.display()));
        }
        self.gathered = None;
        self.outputs.remove(&folder);
        self.missing.remove(service);
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(told(error)),
            _ => {}
        }
        // Of the region and the project, if this was the last.
        for parent in folder.ancestors().skip(1).take(2) {
            if fs::remove_dir(parent).is_err() {
                break;
            }
        }
        Ok(())
    }
}

fn wall() -> Timestamp {
    Timestamp(micros(std::time::SystemTime::now()))
}

fn micros(time: std::time::SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
