//! The logs of instances: their layout on disk (`layout`), lines of one stream (`lines`), and reading those of a service.
//!
//! Doesn't: write; the keeper does. A reader needs no keeper, only the files.
//!
//! Invariants
//! 1. Every line once: (instance, stream, sequence) never repeats in one reading, and is the same in every reading.
//! 2. What the budget dropped is told by its count ([`LogRecord::Dropped`]).
//! 3. An unfinished last line is shown once its instance has ended.
//!
//! Failure: an unreadable file ends the reading with an error that names the directory.

pub mod layout;
mod lines;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::Stream as AsyncStream;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::inotify;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};

use layout::{Dropped, SERVICE_MARKER};
pub use layout::{Stream, StreamKey};
pub use lines::LINE_LIMIT;
use lines::Lines;

/// Records between the reading thread and the reader.
const BUFFERED: usize = 256;
/// Where no notice comes (directory not there yet, notices lost), the files are looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// Records of one stream at a time while following, so that a noisy one doesn't hold up the others.
const TURN: usize = 1000;

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    pub instance: InstanceId,
    /// Which of its containers; empty in an instance of one.
    #[serde(default)]
    pub container: String,
    pub stream: Stream,
    /// Number within the stream, from 1.
    pub sequence: u64,
    pub at: Timestamp,
    /// Without its line end; what is no UTF-8 is replaced.
    pub text: String,
}

/// What a reading gives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogRecord {
    Line(LogLine),
    /// So much is missing here because the service's budget was used up. Without an instance: whole instances.
    Dropped {
        instance: Option<InstanceId>,
        stream: Option<Stream>,
        bytes: u64,
        lines: u64,
    },
    /// Once, when following: what was there has been given, what comes from here on was found later.
    Present,
}

impl LogRecord {
    /// What is missing comes before what is there.
    fn at(&self) -> Timestamp {
        match self {
            Self::Line(line) => line.at,
            Self::Dropped { .. } | Self::Present => Timestamp(i64::MIN),
        }
    }
}

/// How to read.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReadOptions {
    /// Only this many last lines; `None`: all that are kept.
    pub tail: Option<usize>,
    /// Lines written from this time on are new: all are given, and `tail` doesn't count them.
    pub new_from: Option<Timestamp>,
    /// Go on with lines that are written from now on.
    pub follow: bool,
}

/// Reads the logs below one directory.
#[derive(Debug, Clone)]
pub struct LogReader {
    root: PathBuf,
}

impl LogReader {
    /// `root` is [`crate::keeper::KeeperConfig::logs_dir`].
    #[must_use]
    pub fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// The lines of a service, of all its instances, in the order of their times. A service that never logged has none.
    pub fn read(
        &self,
        service: &ServiceKey,
        options: ReadOptions,
    ) -> impl AsyncStream<Item = io::Result<LogRecord>> + Send + use<> {
        let (sender, receiver) = mpsc::channel(BUFFERED);
        let directory = layout::service_directory(&self.root, service);
        // The thread ends when the reader is dropped, at the latest after LOOK_AGAIN.
        tokio::task::spawn_blocking(move || {
            let mut reading = Reading {
                directory,
                streams: BTreeMap::new(),
                done: BTreeSet::new(),
                sender,
            };
            if let Err(error) = reading.run(options) {
                let text = format!("read the logs in {}: {error}", reading.directory.display());
                let _ = reading
                    .sender
                    .blocking_send(Err(io::Error::new(error.kind(), text)));
            }
        });
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|record| (record, receiver))
        })
    }
}

struct Reading {
    directory: PathBuf,
    streams: BTreeMap<StreamKey, Lines>,
    done: BTreeSet<StreamKey>,
    sender: mpsc::Sender<io::Result<LogRecord>>,
}

impl Reading {
    fn run(&mut self, options: ReadOptions) -> io::Result<()> {
        // Before the first look, so that nothing falls between the two.
        let mut notices = if options.follow { self.watch() } else { None };
        match options.tail {
            Some(count) => self.tail(count, options)?,
            None => self.everything()?,
        }
        if !options.follow {
            return Ok(());
        }
        self.send(LogRecord::Present);
        while !self.sender.is_closed() {
            self.find_streams()?;
            if self.turn()? {
                continue;
            }
            match &notices {
                Some(notices) => wait(notices)?,
                None => {
                    std::thread::sleep(LOOK_AGAIN);
                    notices = self.watch();
                }
            }
        }
        Ok(())
    }

    fn find_streams(&mut self) -> io::Result<()> {
        for (key, _) in lines::streams(&self.directory)? {
            if !self.done.contains(&key) {
                let directory = &self.directory;
                self.streams
                    .entry(key.clone())
                    .or_insert_with(|| Lines::new(directory.clone(), key));
            }
        }
        Ok(())
    }

    /// `false`: nobody reads any more.
    fn send(&self, record: LogRecord) -> bool {
        self.sender.blocking_send(Ok(record)).is_ok()
    }

    fn service_marker(&self) -> Option<LogRecord> {
        let dropped = Dropped::read(&self.directory.join(SERVICE_MARKER));
        (dropped.bytes > 0).then_some(LogRecord::Dropped {
            instance: None,
            stream: None,
            bytes: dropped.bytes,
            lines: dropped.lines,
        })
    }

    /// All that is there now, merged by time.
    fn everything(&mut self) -> io::Result<()> {
        if let Some(marker) = self.service_marker() {
            self.send(marker);
        }
        self.find_streams()?;
        let mut next = BinaryHeap::new();
        for (key, lines) in &mut self.streams {
            if let Some(record) = lines.peek()? {
                next.push(Reverse((record.at(), key.clone())));
            }
        }
        while let Some(Reverse((_, key))) = next.pop() {
            let Some(lines) = self.streams.get_mut(&key) else {
                continue;
            };
            let record = lines.pop();
            if let Some(record) = lines.peek()? {
                next.push(Reverse((record.at(), key)));
            }
            if let Some(record) = record
                && !self.send(record)
            {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The last `count` lines that are there now, and what is missing before them if that is all there is.
    fn tail(&mut self, count: usize, options: ReadOptions) -> io::Result<()> {
        let mut missing: Vec<LogRecord> = self.service_marker().into_iter().collect();
        let mut kept: BTreeMap<(Timestamp, StreamKey, u64), LogLine> = BTreeMap::new();
        let mut new = Vec::new();
        for (key, modified) in lines::streams(&self.directory)? {
            let modified = modified
                .duration_since(std::time::UNIX_EPOCH)
                .unwrap_or_default()
                .as_micros();
            let oldest = kept.keys().next().map_or(i64::MIN, |(at, ..)| at.0);
            if !options.follow
                && kept.len() >= count
                && i64::try_from(modified).unwrap_or(i64::MAX) < oldest
            {
                // All others were written to before the oldest line that is kept.
                break;
            }
            let mut lines = Lines::new(self.directory.clone(), key.clone());
            while lines.peek()?.is_some() {
                let line = match lines.pop() {
                    Some(LogRecord::Line(line)) => line,
                    Some(dropped @ LogRecord::Dropped { .. }) => {
                        missing.push(dropped);
                        continue;
                    }
                    Some(LogRecord::Present) | None => break,
                };
                if options.new_from.is_some_and(|from| line.at >= from) {
                    new.push(line);
                    continue;
                }
                kept.insert((line.at, key.clone(), line.sequence), line);
                if kept.len() > count {
                    kept.pop_first();
                }
            }
            self.streams.insert(key, lines);
        }
        if kept.len() >= count {
            missing.clear();
        }
        new.sort_by_key(|line| line.at);
        let lines = kept.into_values().chain(new).map(LogRecord::Line);
        for record in missing.into_iter().chain(lines) {
            if !self.send(record) {
                break;
            }
        }
        Ok(())
    }

    /// Passes on what came since the last turn; `false` if nothing did.
    fn turn(&mut self) -> io::Result<bool> {
        let mut came = Vec::new();
        for (key, lines) in &mut self.streams {
            let before = came.len();
            while came.len() - before < TURN && lines.peek()?.is_some() {
                came.extend(lines.pop());
            }
            if lines.is_done() {
                self.done.insert(key.clone());
            }
        }
        self.streams.retain(|key, _| !self.done.contains(key));
        came.sort_by_key(LogRecord::at);
        let any = !came.is_empty();
        for record in came {
            if !self.send(record) {
                break;
            }
        }
        Ok(any)
    }

    fn watch(&self) -> Option<std::os::fd::OwnedFd> {
        let notices =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).ok()?;
        let flags = inotify::WatchFlags::MODIFY
            | inotify::WatchFlags::CREATE
            | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&notices, &self.directory, flags).ok()?;
        Some(notices)
    }
}

fn wait(notices: &std::os::fd::OwnedFd) -> io::Result<()> {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(LOOK_AGAIN.subsec_nanos()),
    };
    match rustix::event::poll(&mut [PollFd::new(notices, PollFlags::IN)], Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(errno) => return Err(errno.into()),
    }
    // What changed doesn't matter: all streams are looked at.
    let mut buffer = [0; 4096];
    while rustix::io::read(notices, &mut buffer).is_ok_and(|count| count > 0) {}
    Ok(())
}

#[cfg(test)]
mod tests;
