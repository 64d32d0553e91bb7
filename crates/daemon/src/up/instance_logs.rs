//! What a service's instances wrote, merged with its journal: one list in the order of time.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use utsuwa_api::seam::{LogLine, Logs, Wanted};
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};
use utsuwa_runtime::logs::{LogReader, LogRecord, ReadOptions, Stream};

use super::journal::{self, Journal};

/// Lines between the readers and the caller.
const BUFFERED: usize = 256;
/// What was dropped has no time of its own.
const DROPPED_AT: Timestamp = Timestamp(0);

#[derive(Debug, Clone)]
pub(super) struct InstanceLogs {
    root: PathBuf,
    journal: Journal,
    /// Which revision an instance is of, for those that run.
    revisions: Arc<dyn Revisions>,
}

/// Names the revision of an instance that is known now.
pub(super) trait Revisions: std::fmt::Debug + Send + Sync + 'static {
    fn revision(&self, instance: &InstanceId) -> Option<String>;
}

impl InstanceLogs {
    pub(super) fn new(root: PathBuf, journal: Journal, revisions: Arc<dyn Revisions>) -> Self {
        Self {
            root,
            journal,
            revisions,
        }
    }

    /// The line, unless it was written before `from`.
    fn line_from(&self, record: LogRecord, from: Timestamp) -> Option<LogLine> {
        self.instance_line(record).filter(|line| is_of(line, from))
    }

    fn instance_line(&self, record: LogRecord) -> Option<LogLine> {
        Some(match record {
            LogRecord::Line(line) => LogLine {
                revision: self.revisions.revision(&line.instance).unwrap_or_default(),
                instance: Some(line.instance),
                container: line.container,
                stream: match line.stream {
                    Stream::Stdout => "stdout",
                    Stream::Stderr => "stderr",
                }
                .to_owned(),
                sequence: line.sequence,
                at: line.at,
                text: line.text,
            },
            LogRecord::Dropped {
                instance,
                bytes,
                lines,
                ..
            } => dropped_line(instance, lines, bytes),
            LogRecord::Present => return None,
        })
    }
}

/// A line, and when it was written: a request's is placed where it began, and written when it ended.
type Written = (Timestamp, LogLine);

/// The last `tail` of what was there before `new_from`, and all that was written since: a stable sort, lines of one stream keep
/// their order also where times are equal.
fn last_lines(
    past: Vec<Written>,
    tail: usize,
    new_from: Timestamp,
) -> impl Iterator<Item = LogLine> {
    let (mut old, mut new): (Vec<Written>, Vec<Written>) = past
        .into_iter()
        .partition(|(written, _)| *written < new_from);
    old.sort_by_key(|(_, line)| line.at);
    new.sort_by_key(|(_, line)| line.at);
    let skip = old.len().saturating_sub(tail);
    old.into_iter().skip(skip).chain(new).map(|(_, line)| line)
}

fn journal_line(shown: journal::Shown, sequence: u64) -> LogLine {
    LogLine {
        instance: shown.instance,
        container: String::new(),
        revision: shown.revision,
        stream: "utsuwa".to_owned(),
        sequence,
        at: shown.at,
        text: shown.text,
    }
}

/// Where a follower is in the journal.
#[derive(Debug, Default)]
struct Place {
    /// The file that was read last.
    inode: u64,
    offset: u64,
    /// Number of the last line, of all that were ever written: the same in every reading.
    sequence: u64,
    /// What happened to instances, as told already. An end that was written but not acknowledged before a kill is written
    /// again by the next server: the same entry.
    told: BTreeSet<(Option<InstanceId>, Timestamp, String)>,
    /// Nothing that was written before.
    from: Timestamp,
}

impl Place {
    /// Reads whole lines from here on; a half line waits for its other half.
    fn rest_of(&mut self, mut file: File) -> Vec<Written> {
        let mut text = String::new();
        if file.seek(SeekFrom::Start(self.offset)).is_err()
            || file.read_to_string(&mut text).is_err()
        {
            return Vec::new();
        }
        let mut lines = Vec::new();
        for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
            self.offset += line.len() as u64;
            self.sequence += 1;
            let Some(shown) = journal::read(line.trim_end()) else {
                continue;
            };
            if shown.written < self.from {
                continue;
            }
            let happened = shown.instance.is_some() && !shown.request;
            if happened
                && !self
                    .told
                    .insert((shown.instance.clone(), shown.at, shown.text.clone()))
            {
                continue;
            }
            lines.push((shown.written, journal_line(shown, self.sequence)));
        }
        lines
    }
}

fn open(path: &Path) -> Option<(File, u64)> {
    let file = File::open(path).ok()?;
    let inode = file.metadata().ok()?.ino();
    Some((file, inode))
}

/// What came since the last reading, also when the current file became the old one meanwhile.
fn read_on(journal: &Journal, service: &ServiceKey, place: &mut Place) -> Vec<Written> {
    let [old, current] = journal.files(service);
    let mut lines = Vec::new();
    // The old one is looked for after the current one: in between, one may become the other.
    let current = open(&current);
    if current
        .as_ref()
        .is_none_or(|(_, inode)| *inode != place.inode)
        && let Some((file, _)) = open(&old).filter(|(_, inode)| *inode == place.inode)
    {
        lines.extend(place.rest_of(file));
    }
    if let Some((file, inode)) = current {
        if inode != place.inode {
            place.inode = inode;
            place.offset = 0;
        }
        lines.extend(place.rest_of(file));
    }
    lines
}

/// The whole journal, old file first, and what it has lost.
fn read_past(journal: &Journal, service: &ServiceKey, place: &mut Place) -> Vec<Written> {
    loop {
        let dropped = journal.dropped(service);
        *place = Place {
            sequence: dropped.lines,
            from: place.from,
            ..Place::default()
        };
        let lines = read_files(journal, service, place, dropped);
        // Otherwise a file was dropped meanwhile, and the lines' numbers are not theirs.
        if journal.dropped(service) == dropped {
            return lines;
        }
    }
}

fn read_files(
    journal: &Journal,
    service: &ServiceKey,
    place: &mut Place,
    dropped: journal::Dropped,
) -> Vec<Written> {
    let mut lines = Vec::new();
    if dropped.lines > 0 {
        let line = dropped_line(None, dropped.lines, dropped.bytes);
        lines.push((line.at, line));
    }
    let [old, _] = journal.files(service);
    if let Some((file, inode)) = open(&old) {
        place.inode = inode;
        lines.extend(place.rest_of(file));
    }
    lines.extend(read_on(journal, service, place));
    lines
}

/// It stands before everything else.
fn dropped_line(instance: Option<InstanceId>, lines: u64, bytes: u64) -> LogLine {
    LogLine {
        instance,
        container: String::new(),
        revision: String::new(),
        stream: "utsuwa".to_owned(),
        sequence: 0,
        at: DROPPED_AT,
        text: format!(
            "{lines} older lines ({bytes} bytes) were dropped: the service's log budget is used up"
        ),
    }
}

/// What stands before everything has no time.
fn is_of(line: &LogLine, since: Timestamp) -> bool {
    line.at >= since || line.at == DROPPED_AT
}

impl Logs for InstanceLogs {
    fn lines(&self, service: &ServiceKey, wanted: Wanted) -> BoxStream<'static, LogLine> {
        let (sender, receiver) = mpsc::channel(BUFFERED);
        let (logs, service) = (self.clone(), service.clone());
        // The task ends when the caller goes away: sending fails then.
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the receiver, whose drop ends it"
        )]
        tokio::spawn(async move { logs.send(service, wanted, sender).await });
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|line| (line, receiver))
        })
        // The end of an instance may be told after its service is gone, and another one of its name is there.
        .filter(move |line| std::future::ready(is_of(line, wanted.since)))
        .boxed()
    }
}

impl InstanceLogs {
    async fn send(self, service: ServiceKey, wanted: Wanted, sender: mpsc::Sender<LogLine>) {
        // Subscribed before reading, so that nothing falls between past and present.
        let mut changes = self.journal.changes();
        changes.mark_unchanged();
        let mut place = Place {
            from: wanted.from,
            ..Place::default()
        };
        let mut past = read_past(&self.journal, &service, &mut place);
        let new_from = if wanted.follow {
            wanted.new_from
        } else {
            Timestamp(i64::MAX)
        };
        // One reading for past and present: what the tail leaves out is behind the reader, and never comes again.
        let mut written = Box::pin(LogReader::new(&self.root).read(
            &service,
            ReadOptions {
                tail: Some(wanted.tail),
                new_from: Some(new_from),
                follow: wanted.follow,
            },
        ));
        while let Some(record) = written.next().await {
            match record {
                Ok(LogRecord::Present) => break,
                Ok(record) => past.extend(
                    self.line_from(record, wanted.from)
                        .map(|line| (line.at, line)),
                ),
                Err(error) => tracing::warn!(%service, %error, "read instance logs"),
            }
        }
        // Before the tail is taken: what is left out anyway must not take its place.
        past.retain(|(_, line)| is_of(line, wanted.since));
        for line in last_lines(past, wanted.tail, new_from) {
            if sender.send(line).await.is_err() {
                return;
            }
        }
        if !wanted.follow {
            return;
        }
        loop {
            let lines: Vec<LogLine> = tokio::select! {
                () = sender.closed() => return,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let new = read_on(&self.journal, &service, &mut place);
                    new.into_iter().map(|(_, line)| line).collect()
                }
                record = written.next() => match record {
                    None => return,
                    Some(Err(error)) => {
                        tracing::warn!(%service, %error, "follow instance logs");
                        return;
                    }
                    Some(Ok(LogRecord::Dropped { .. })) => Vec::new(),
                    Some(Ok(record)) => self.line_from(record, wanted.from).into_iter().collect(),
                },
            };
            for line in lines {
                if sender.send(line).await.is_err() {
                    return;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
