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
        Some(self.instance_line(record)).filter(|line| is_of(line, from))
    }

    fn instance_line(&self, record: LogRecord) -> LogLine {
        match record {
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
        }
    }
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
    fn rest_of(&mut self, mut file: File) -> Vec<LogLine> {
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
            lines.push(journal_line(shown, self.sequence));
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
fn read_on(journal: &Journal, service: &ServiceKey, place: &mut Place) -> Vec<LogLine> {
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
fn read_past(journal: &Journal, service: &ServiceKey, place: &mut Place) -> Vec<LogLine> {
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
) -> Vec<LogLine> {
    let mut lines = Vec::new();
    if dropped.lines > 0 {
        lines.push(dropped_line(None, dropped.lines, dropped.bytes));
    }
    let [old, _] = journal.files(service);
    if let Some((file, inode)) = open(&old) {
        place.inode = inode;
        lines.extend(place.rest_of(file));
    }
    lines.extend(read_on(journal, service, place));
    lines
}

/// Within which lines are numbered: instance, container, stream.
type Source = (Option<InstanceId>, String, String);

fn source_of(line: &LogLine) -> Source {
    (
        line.instance.clone(),
        line.container.clone(),
        line.stream.clone(),
    )
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
        let reader = LogReader::new(&self.root);
        // Subscribed before reading, so that nothing falls between past and present.
        let mut changes = self.journal.changes();
        changes.mark_unchanged();
        let mut place = Place {
            from: wanted.from,
            ..Place::default()
        };
        let mut past = read_past(&self.journal, &service, &mut place);
        let mut written = Box::pin(reader.read(
            &service,
            ReadOptions {
                tail: Some(wanted.tail),
                follow: false,
            },
        ));
        while let Some(record) = written.next().await {
            match record {
                Ok(record) => past.extend(self.line_from(record, wanted.from)),
                Err(error) => tracing::warn!(%service, %error, "read instance logs"),
            }
        }
        // Before the tail is taken: what is left out anyway must not take its place.
        past.retain(|line| is_of(line, wanted.since));
        // A stable sort: lines of one stream keep their order also where times are equal.
        past.sort_by_key(|line| line.at);
        let seen: std::collections::BTreeMap<Source, u64> = past
            .iter()
            .filter(|l| l.stream != "utsuwa")
            .map(|l| (source_of(l), l.sequence))
            .collect();
        let skip = past.len().saturating_sub(wanted.tail);
        for line in past.into_iter().skip(skip) {
            if sender.send(line).await.is_err() {
                return;
            }
        }
        if !wanted.follow {
            return;
        }
        // Everything again, less what was sent: the reader numbers lines by content, so that this loses and doubles nothing.
        let mut following = Box::pin(reader.read(
            &service,
            ReadOptions {
                tail: None,
                follow: true,
            },
        ));
        loop {
            let lines: Vec<LogLine> = tokio::select! {
                () = sender.closed() => return,
                changed = changes.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    read_on(&self.journal, &service, &mut place)
                }
                record = following.next() => match record {
                    None => return,
                    Some(Err(error)) => {
                        tracing::warn!(%service, %error, "follow instance logs");
                        return;
                    }
                    Some(Ok(LogRecord::Dropped { .. })) => Vec::new(),
                    Some(Ok(record)) => {
                        let Some(line) = self.line_from(record, wanted.from) else { continue };
                        let known = seen.get(&source_of(&line)).copied().unwrap_or(0);
                        if line.sequence > known { vec![line] } else { Vec::new() }
                    }
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
