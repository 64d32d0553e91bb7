//! What a service's instances wrote, merged with its journal: one list in the order of time.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use tokio::sync::mpsc;
use utsuwa_api::seam::{LogLine, Logs};
use utsuwa_model::{InstanceId, ServiceKey, Timestamp};
use utsuwa_runtime::logs::{LogReader, LogRecord, ReadOptions, Stream};

use super::journal::{self, Journal};

/// Lines between the readers and the caller.
const BUFFERED: usize = 256;

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

    fn instance_line(&self, record: LogRecord) -> LogLine {
        match record {
            LogRecord::Line(line) => LogLine {
                revision: self.revisions.revision(&line.instance).unwrap_or_default(),
                instance: Some(line.instance),
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
            } => LogLine {
                instance,
                revision: String::new(),
                stream: "utsuwa".to_owned(),
                sequence: 0,
                at: Timestamp(0),
                text: format!(
                    "{lines} older lines ({bytes} bytes) were dropped: the service's log budget is used up"
                ),
            },
        }
    }
}

fn journal_line(shown: journal::Shown, sequence: u64) -> LogLine {
    LogLine {
        instance: shown.instance,
        revision: shown.revision,
        stream: "utsuwa".to_owned(),
        sequence,
        at: shown.at,
        text: shown.text,
    }
}

/// Where a follower is in the journal's current file.
#[derive(Debug, Default)]
struct Place {
    offset: u64,
    sequence: u64,
}

/// Reads whole lines from `place` on; a half line waits for its other half.
fn read_on(journal: &Journal, service: &ServiceKey, place: &mut Place) -> Vec<LogLine> {
    let [_, current] = journal.files(service);
    let Ok(mut file) = std::fs::File::open(current) else {
        return Vec::new();
    };
    let length = file.metadata().map_or(0, |m| m.len());
    if length < place.offset {
        // The file was replaced by a new one: what was not read of the old one is in `….old`.
        place.offset = 0;
    }
    let mut text = String::new();
    if file.seek(SeekFrom::Start(place.offset)).is_err() || file.read_to_string(&mut text).is_err()
    {
        return Vec::new();
    }
    let mut lines = Vec::new();
    for line in text.split_inclusive('\n').filter(|l| l.ends_with('\n')) {
        place.offset += line.len() as u64;
        place.sequence += 1;
        lines.extend(
            journal::read(line.trim_end()).map(|shown| journal_line(shown, place.sequence)),
        );
    }
    lines
}

/// The whole journal, old file first.
fn read_past(journal: &Journal, service: &ServiceKey, place: &mut Place) -> Vec<LogLine> {
    let [old, _] = journal.files(service);
    let mut lines = Vec::new();
    if let Ok(file) = std::fs::File::open(old) {
        for line in BufReader::new(file).lines().map_while(Result::ok) {
            place.sequence += 1;
            lines.extend(journal::read(&line).map(|shown| journal_line(shown, place.sequence)));
        }
    }
    lines.extend(read_on(journal, service, place));
    lines
}

impl Logs for InstanceLogs {
    fn lines(
        &self,
        service: &ServiceKey,
        tail: usize,
        follow: bool,
    ) -> BoxStream<'static, LogLine> {
        let (sender, receiver) = mpsc::channel(BUFFERED);
        let (logs, service) = (self.clone(), service.clone());
        // The task ends when the caller goes away: sending fails then.
        #[expect(
            clippy::disallowed_methods,
            reason = "owned by the receiver, whose drop ends it"
        )]
        tokio::spawn(async move { logs.send(service, tail, follow, sender).await });
        futures_util::stream::unfold(receiver, |mut receiver| async move {
            receiver.recv().await.map(|line| (line, receiver))
        })
        .boxed()
    }
}

impl InstanceLogs {
    async fn send(
        self,
        service: ServiceKey,
        tail: usize,
        follow: bool,
        sender: mpsc::Sender<LogLine>,
    ) {
        let reader = LogReader::new(&self.root);
        // Subscribed before reading, so that nothing falls between past and present.
        let mut changes = self.journal.changes();
        changes.mark_unchanged();
        let mut place = Place::default();
        let mut past = read_past(&self.journal, &service, &mut place);
        let mut written = Box::pin(reader.read(
            &service,
            ReadOptions {
                tail: Some(tail),
                follow: false,
            },
        ));
        while let Some(record) = written.next().await {
            match record {
                Ok(record) => past.push(self.instance_line(record)),
                Err(error) => tracing::warn!(%service, %error, "read instance logs"),
            }
        }
        // An end that was written but not acknowledged before a kill is written again by the next server: the same entry.
        let mut ends = std::collections::BTreeSet::new();
        past.retain(|l| {
            l.stream != "utsuwa"
                || l.instance.is_none()
                || ends.insert((l.instance.clone(), l.at, l.text.clone()))
        });
        // A stable sort: lines of one stream keep their order also where times are equal.
        past.sort_by_key(|line| line.at);
        let seen: std::collections::BTreeMap<(Option<InstanceId>, String), u64> = past
            .iter()
            .filter(|l| l.stream != "utsuwa")
            .map(|l| ((l.instance.clone(), l.stream.clone()), l.sequence))
            .collect();
        let skip = past.len().saturating_sub(tail);
        for line in past.into_iter().skip(skip) {
            if sender.send(line).await.is_err() {
                return;
            }
        }
        if !follow {
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
                        let line = self.instance_line(record);
                        let known = seen.get(&(line.instance.clone(), line.stream.clone())).copied().unwrap_or(0);
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
