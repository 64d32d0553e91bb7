#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::allow_attributes,
    reason = "tests"
)]

use std::fs::{self, OpenOptions};
use std::io::Write;

use futures_util::StreamExt;

use super::*;

struct Service {
    root: tempfile::TempDir,
    key: ServiceKey,
}

impl Service {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let key: ServiceKey = "demo/local/hello".parse().unwrap();
        fs::create_dir_all(layout::service_directory(root.path(), &key)).unwrap();
        Self { root, key }
    }

    fn directory(&self) -> PathBuf {
        layout::service_directory(self.root.path(), &self.key)
    }

    fn stream(&self, number: u32, stream: Stream) -> StreamKey {
        StreamKey {
            container: String::new(),
            instance: format!("{number:032x}").parse().unwrap(),
            stream,
        }
    }

    /// As the keeper does: bytes, then the index entry.
    fn write(&self, key: &StreamKey, start: u64, text: &str, at: i64) {
        let append = |path: PathBuf| {
            OpenOptions::new()
                .create(true)
                .append(true)
                .open(path)
                .unwrap()
        };
        let mut file = append(key.segment(&self.directory(), start));
        file.write_all(text.as_bytes()).unwrap();
        let end = start + file.metadata().unwrap().len();
        let mut index = append(key.index(&self.directory(), start));
        index
            .write_all(&[end.to_le_bytes(), at.to_le_bytes()].concat())
            .unwrap();
    }

    async fn read(&self, tail: Option<usize>) -> Vec<LogRecord> {
        let options = ReadOptions {
            tail,
            ..ReadOptions::default()
        };
        let records = LogReader::new(self.root.path()).read(&self.key, options);
        records.map(Result::unwrap).collect().await
    }
}

fn shown(records: &[LogRecord]) -> Vec<String> {
    let show = |record: &LogRecord| match record {
        LogRecord::Line(line) => format!("{} {} {}", line.at.0, line.sequence, line.text),
        LogRecord::Dropped { bytes, lines, .. } => format!("dropped {bytes} {lines}"),
        LogRecord::Present => "present".to_owned(),
    };
    records.iter().map(show).collect()
}

#[tokio::test]
async fn lines_are_numbered_timed_and_merged() {
    let service = Service::new();
    let (a, b) = (
        service.stream(1, Stream::Stdout),
        service.stream(2, Stream::Stderr),
    );
    service.write(&a, 0, "a1\na2\nhalf", 10);
    service.write(&b, 0, "b1\r\n", 15);
    service.write(&a, 0, " and half\n", 20);
    assert_eq!(
        shown(&service.read(None).await),
        ["10 1 a1", "10 2 a2", "15 1 b1", "20 3 half and half"]
    );
    assert_eq!(
        shown(&service.read(Some(2)).await),
        ["15 1 b1", "20 3 half and half"]
    );
    // An unfinished line is one when its stream has ended.
    service.write(&b, 0, "last", 30);
    assert_eq!(service.read(None).await.len(), 4);
    service.write(&b, 0, "", -40);
    assert_eq!(shown(&service.read(Some(1)).await), ["40 2 last"]);
}

#[tokio::test]
async fn lines_cross_segments_and_dropped_ones_are_counted() {
    let service = Service::new();
    let key = service.stream(1, Stream::Stdout);
    let long = "x".repeat(200_000);
    service.write(&key, 0, &format!("one\n{long}"), 10);
    let second = 4 + 200_000;
    service.write(&key, second, &format!("{long}\nthree\n"), 20);
    let records = service.read(None).await;
    assert_eq!(records.len(), 3);
    let LogRecord::Line(line) = &records[1] else {
        panic!("a line")
    };
    assert_eq!(
        (line.sequence, line.text.len(), line.at.0),
        (2, 400_000, 20)
    );
    // The budget drops the first segment, as the keeper does.
    Dropped {
        bytes: second,
        lines: 1,
        streams: 0,
    }
    .write(&key.marker(&service.directory()))
    .unwrap();
    fs::remove_file(key.segment(&service.directory(), 0)).unwrap();
    let records = service.read(None).await;
    assert_eq!(records.len(), 3);
    assert_eq!(shown(&records[..1]), [format!("dropped {second} 1")]);
    let tail = service.read(Some(100)).await;
    assert_eq!(
        tail, records,
        "whoever asks for more than there is sees what is missing"
    );
    assert_eq!(shown(&service.read(Some(1)).await), ["20 3 three"]);
    let LogRecord::Line(line) = &records[2] else {
        panic!("a line")
    };
    assert_eq!(
        (line.sequence, line.text.as_str()),
        (3, "three"),
        "numbers don't change when lines are dropped"
    );
}

#[tokio::test]
async fn bytes_whose_time_was_lost_are_read_a_little_later() {
    let service = Service::new();
    let key = service.stream(1, Stream::Stdout);
    service.write(&key, 0, "one\n", 10);
    let path = key.segment(&service.directory(), 0);
    let mut file = OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(b"two\n").unwrap();
    assert_eq!(
        shown(&service.read(None).await),
        ["10 1 one"],
        "its time may be on the way"
    );
    let long_ago = std::time::UNIX_EPOCH + Duration::from_micros(5_000_000);
    file.set_modified(long_ago).unwrap();
    assert_eq!(
        shown(&service.read(None).await),
        ["10 1 one", "5000000 2 two"]
    );
}

#[tokio::test]
async fn a_line_without_end_is_cut() {
    let service = Service::new();
    let key = service.stream(1, Stream::Stdout);
    service.write(&key, 0, &"y".repeat(LINE_LIMIT + 5), 10);
    service.write(&key, 0, "\nnext\n", 20);
    let records = service.read(None).await;
    let LogRecord::Line(line) = &records[0] else {
        panic!("a line")
    };
    assert!(line.text.ends_with("y … (5 bytes more)"));
    assert_eq!(shown(&records[1..]), ["20 2 next"]);
}

#[tokio::test]
async fn following_shows_every_line_once_across_segments_and_instances() {
    let service = Service::new();
    let (a, b) = (
        service.stream(1, Stream::Stdout),
        service.stream(2, Stream::Stdout),
    );
    service.write(&a, 0, "a1\na2\n", 10);
    let options = ReadOptions {
        tail: Some(1),
        follow: true,
        ..ReadOptions::default()
    };
    let mut records = Box::pin(LogReader::new(service.root.path()).read(&service.key, options));
    let mut next = async || {
        let record = tokio::time::timeout(Duration::from_secs(10), records.next())
            .await
            .expect("in time");
        shown(&[record.unwrap().unwrap()]).remove(0)
    };
    assert_eq!(next().await, "10 2 a2");
    assert_eq!(next().await, "present");
    service.write(&b, 0, "b1\n", 20);
    assert_eq!(next().await, "20 1 b1");
    service.write(&a, 6, "a3\n", 30);
    assert_eq!(next().await, "30 3 a3");
    service.write(&a, 6, "a4", 40);
    service.write(&b, 0, "b2\n", 50);
    assert_eq!(next().await, "50 2 b2");
    service.write(&a, 6, "", -60);
    assert_eq!(next().await, "60 4 a4");
}

#[test]
fn a_time_that_is_yet_to_come_is_no_change() {
    let service = Service::new();
    let change = || layout::newest_change(&service.directory()).unwrap();
    let file = |name: &str| fs::File::create(service.directory().join(name)).unwrap();
    let ahead = std::time::SystemTime::now() + std::time::Duration::from_secs(3600);
    file("ahead").set_modified(ahead).unwrap();
    assert_eq!(change(), None);
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(3600);
    file("old").set_modified(old).unwrap();
    assert_eq!(change(), Some(old));
    file("now");
    assert!(change().unwrap() > old);
}
