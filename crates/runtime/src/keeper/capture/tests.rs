#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "tests"
)]

use std::io::Write;

use futures_util::StreamExt;
use rustix::fs::inotify;
use rustix::pipe::{PipeFlags, pipe_with};

use super::stream::has_data;
use super::*;
use crate::logs::layout::Stream;
use crate::logs::{LogReader, LogRecord, ReadOptions};

struct World {
    store: LogStore,
    directory: tempfile::TempDir,
    service: ServiceKey,
    now: i64,
}

impl World {
    fn new(limits: LogLimits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let gid = rustix::process::getegid().as_raw();
        let store = LogStore::open(&directory.path().join("logs"), gid, limits).unwrap();
        Self {
            store,
            directory,
            service: "demo/local/hello".parse().unwrap(),
            now: 1_000,
        }
    }

    fn capture(&self, number: u32, resume: bool) -> (Capture, File) {
        let (reader, writer) = pipe_with(PipeFlags::NONBLOCK).unwrap();
        let key = StreamKey {
            container: String::new(),
            instance: format!("{number:032x}").parse().unwrap(),
            stream: Stream::Stdout,
        };
        (
            self.store.capture(&self.service, key, reader, resume),
            File::from(writer),
        )
    }

    fn drain(&mut self, capture: &mut Capture) {
        self.now += 1;
        while self.store.drain(capture, Timestamp(self.now)) > 0 {}
    }

    async fn read(&self) -> Vec<LogRecord> {
        let reader = LogReader::new(&self.directory.path().join("logs"));
        reader
            .read(&self.service, ReadOptions::default())
            .map(Result::unwrap)
            .collect()
            .await
    }

    fn bytes_on_disk(&self) -> u64 {
        let directory =
            layout::service_directory(&self.directory.path().join("logs"), &self.service);
        fs::read_dir(directory)
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum()
    }
}

fn numbers(records: &[LogRecord]) -> Vec<(u64, String)> {
    let line = |record: &LogRecord| match record {
        LogRecord::Line(line) => Some((line.sequence, line.text.clone())),
        LogRecord::Dropped { .. } | LogRecord::Present => None,
    };
    records.iter().filter_map(line).collect()
}

fn limits(service_budget: u64, segment: u64) -> LogLimits {
    LogLimits {
        service_budget,
        segment,
        reserve: 0,
    }
}

#[tokio::test]
async fn a_new_keeper_goes_on_where_the_old_one_was_killed() {
    let mut world = World::new(limits(1 << 30, 64));
    let (mut first, mut writer) = world.capture(1, false);
    let mut expected = Vec::new();
    for number in 1..=100_u64 {
        writeln!(writer, "line {number}").unwrap();
        expected.push((number, format!("line {number}")));
        if number % 3 == 0 {
            world.drain(&mut first);
        }
    }
    // Bytes that the old one hadn't taken are in the FIFO, which lives on.
    let fifo = first.fifo().try_clone().unwrap();
    let key = first.key.clone();
    drop(first);
    let mut second = world.store.capture(&world.service, key, fifo, true);
    writeln!(writer, "line 101").unwrap();
    expected.push((101, "line 101".to_owned()));
    write!(writer, "unfinished").unwrap();
    let at = Timestamp(9_999);
    second.finish(&mut world.store, at);
    expected.push((102, "unfinished".to_owned()));
    assert_eq!(numbers(&world.read().await), expected);
    assert_eq!(second.last_lines(2), ["line 101", "unfinished"]);
}

#[tokio::test]
async fn a_service_stays_within_its_budget_and_says_what_is_missing() {
    let budget = 256 * 1024;
    let mut world = World::new(limits(budget, 32 * 1024));
    let (mut ended, mut writer) = world.capture(1, false);
    for number in 0..1000 {
        writeln!(writer, "ended {number}").unwrap();
    }
    world.drain(&mut ended);
    ended.finish(&mut world.store, Timestamp(5_000));
    let (mut live, mut writer) = world.capture(2, false);
    let alive = BTreeSet::from([live.key.instance.clone()]);
    let mut written = 0_u64;
    while written < 8 * budget {
        for _ in 0..100 {
            let text = format!("{written:0100}\n");
            writer.write_all(text.as_bytes()).unwrap();
            written += text.len() as u64;
        }
        world.drain(&mut live);
        if world.store.over_budget(&live) {
            world.store.keep_budget(&live, &alive);
        }
        assert!(
            world.bytes_on_disk() < budget + 64 * 1024,
            "{}",
            world.bytes_on_disk()
        );
    }
    let records = world.read().await;
    let dropped: Vec<_> = records
        .iter()
        .filter_map(|record| match record {
            LogRecord::Dropped {
                instance,
                bytes,
                lines,
                ..
            } => Some((instance.is_some(), *bytes, *lines)),
            LogRecord::Line(_) | LogRecord::Present => None,
        })
        .collect();
    assert!(
        matches!(dropped[..], [(false, bytes, 1000), (true, _, _)] if bytes == 1000 * 10 - 110),
        "{dropped:?}"
    );
    let lines = numbers(&records);
    assert_eq!(
        lines.last().unwrap().0,
        written / 101,
        "numbers count what was dropped too"
    );
    // The first one may be the rest of a line whose beginning was dropped.
    for pair in lines[1..].windows(2) {
        assert_eq!(pair[1].0, pair[0].0 + 1);
        assert_eq!(pair[1].1.parse::<u64>().unwrap(), (pair[1].0 - 1) * 101);
    }
}

#[tokio::test]
async fn a_full_disk_never_stops_the_app_and_leaves_a_count() {
    let mut world = World::new(limits(1 << 30, 1 << 20));
    let (mut capture, mut writer) = world.capture(1, false);
    writeln!(writer, "before").unwrap();
    world.drain(&mut capture);
    world.store.limits.reserve = u64::MAX;
    world.store.since_look = LOOK_AFTER;
    writeln!(writer, "lost\nlost too").unwrap();
    world.drain(&mut capture);
    assert!(!has_data(capture.fifo()), "the app can go on writing");
    world.store.limits.reserve = 0;
    world.store.since_look = LOOK_AFTER;
    writeln!(writer, "after").unwrap();
    world.drain(&mut capture);
    let lines = numbers(&world.read().await);
    let texts: Vec<&str> = lines.iter().map(|(_, text)| text.as_str()).collect();
    assert_eq!(
        texts,
        [
            "before",
            "utsuwa: 14 bytes (2 lines) of this log are missing here: the disk was full",
            "after"
        ]
    );
}

#[tokio::test]
async fn a_quiet_program_is_stored_again_soon_after_there_is_room() {
    let mut world = World::new(limits(1 << 30, 1 << 20));
    let (mut capture, mut writer) = world.capture(1, false);
    world.store.limits.reserve = u64::MAX;
    writeln!(writer, "lost").unwrap();
    let at = Timestamp(1_000_000_000);
    world.store.drain(&mut capture, at);
    world.store.limits.reserve = 0;
    writeln!(writer, "lost too").unwrap();
    world.store.drain(&mut capture, at.plus(LOOK_AGAIN / 2));
    writeln!(writer, "kept").unwrap();
    world.store.drain(&mut capture, at.plus(LOOK_AGAIN));
    let lines = numbers(&world.read().await);
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].1.contains("14 bytes (2 lines)"), "{lines:?}");
    assert_eq!(lines[1].1, "kept");
}

#[tokio::test]
async fn logs_of_a_deleted_service_are_out_of_sight_at_once() {
    let mut world = World::new(limits(1 << 30, 1 << 20));
    let (mut capture, mut writer) = world.capture(1, false);
    writeln!(writer, "the former one").unwrap();
    world.drain(&mut capture);
    capture.finish(&mut world.store, Timestamp(5_000));
    let root = world.directory.path().join("logs");
    let service = world.service.clone();
    let kept = layout::services(&root).unwrap();
    assert_eq!(kept, std::slice::from_ref(&service));
    let refused = world.store.put_aside(&service, Some(Timestamp(1)));
    assert!(refused.is_err(), "written to since then");
    assert_eq!(world.read().await.len(), 1);

    let hence = Timestamp(4_000_000_000_000_000);
    world.store.put_aside(&service, Some(hence)).unwrap();
    world.store.put_aside(&service, None).unwrap();
    assert_eq!(world.read().await, []);
    assert_eq!(layout::services(&root).unwrap(), []);
    assert_eq!(layout::removed(&root).len(), 1, "to be deleted");

    // One of the same name begins anew, also with what it may take.
    let (mut capture, mut writer) = world.capture(2, false);
    writeln!(writer, "another").unwrap();
    world.drain(&mut capture);
    assert_eq!(numbers(&world.read().await), [(1, "another".to_owned())]);
    assert!(world.store.used.values().all(|used| *used < 20_000));
    world.store.put_aside(&service, None).unwrap();
    assert_eq!(layout::removed(&root).len(), 2);
}

/// What got the name of something in `directory` since `notices` began: by being made under it, or by being renamed.
fn appeared(notices: &OwnedFd) -> Vec<(bool, String)> {
    let mut buffer = [std::mem::MaybeUninit::uninit(); 4096];
    let mut reader = inotify::Reader::new(notices, &mut buffer);
    let mut found = Vec::new();
    while let Ok(event) = reader.next() {
        let renamed = event.events().contains(inotify::ReadFlags::MOVED_TO);
        let name = event.file_name().unwrap_or_default().to_string_lossy();
        if !name.starts_with('.') {
            found.push((renamed, name.into_owned()));
        }
    }
    found
}

/// Between being made and being given to the server's group, it was there for the server to see and not to read.
#[test]
fn whatever_can_be_seen_can_be_read() {
    let mut world = World::new(limits(1 << 30, 16));
    let watched = |path: &Path| {
        let notices =
            inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK).unwrap();
        let flags = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&notices, path, flags).unwrap();
        notices
    };
    let root = world.directory.path().join("logs");
    let projects = watched(&root);
    let (mut first, mut writer) = world.capture(1, false);
    writeln!(writer, "the first").unwrap();
    world.drain(&mut first);
    assert_eq!(appeared(&projects), [(true, "demo".to_owned())]);

    let directory = layout::service_directory(&root, &world.service);
    let files = watched(&directory);
    // What a killed keeper left is in nobody's way.
    let (mut second, mut writer) = world.capture(2, false);
    let left = unseen(&second.key.segment(&directory, 0));
    fs::write(&left, "left").unwrap();
    writeln!(writer, "more than a segment holds").unwrap();
    world.drain(&mut second);
    let files = appeared(&files);
    assert!(files.len() > 2, "{files:?}");
    assert!(files.iter().all(|(renamed, _)| *renamed), "{files:?}");
    assert!(!left.exists());
}
