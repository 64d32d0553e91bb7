#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use utsuwa_runtime::logs::layout::service_directory;

use super::super::journal::JournalLimits;
use super::*;

const ROOMY: JournalLimits = JournalLimits {
    service_budget: 1 << 20,
    reserve: 0,
};

#[derive(Debug)]
struct Unknown;

impl Revisions for Unknown {
    fn revision(&self, _: &InstanceId) -> Option<String> {
        None
    }
}

struct Service {
    root: tempfile::TempDir,
    key: ServiceKey,
    logs: InstanceLogs,
}

impl Service {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let key: ServiceKey = "demo/local/hello".parse().unwrap();
        let (journal, _) = Journal::start(root.path().join("journal"), ROOMY).unwrap();
        let files = root.path().join("logs");
        std::fs::create_dir_all(service_directory(&files, &key)).unwrap();
        let logs = InstanceLogs::new(files, journal, Arc::new(Unknown));
        Self { root, key, logs }
    }

    /// A line of an instance, as the keeper writes it: its bytes, then when they came.
    fn write(&self, instance: u32, text: &str, at: i64) {
        let folder = service_directory(&self.root.path().join("logs"), &self.key);
        let append = |name: String| {
            let path = folder.join(name);
            let mut options = OpenOptions::new();
            options.create(true).append(true).open(path).unwrap()
        };
        let mut file = append(format!("{instance:032x}.out.0"));
        writeln!(file, "{text}").unwrap();
        let end = file.metadata().unwrap().len();
        append(format!("{instance:032x}.out.0.idx"))
            .write_all(&[end.to_le_bytes(), at.to_le_bytes()].concat())
            .unwrap();
    }

    fn follow(&self, tail: usize, from: i64, new_from: i64) -> BoxStream<'static, LogLine> {
        let wanted = Wanted {
            tail,
            follow: true,
            since: Timestamp(0),
            from: Timestamp(from),
            new_from: Timestamp(new_from),
        };
        self.logs.lines(&self.key, wanted)
    }

    /// Three instances that wrote forty lines each, in turn, at 1 to 120; the first one none of the last thirty.
    fn with_a_past() -> Self {
        let service = Self::new();
        for at in 1..=120 {
            let instance = if at > 90 { 2 + at % 2 } else { 1 + at % 3 };
            let instance = u32::try_from(instance).unwrap();
            service.write(instance, &format!("line {at}"), at);
        }
        service
    }
}

async fn next(lines: &mut BoxStream<'static, LogLine>) -> String {
    let line = tokio::time::timeout(Duration::from_secs(20), lines.next());
    line.await.expect("a line in time").unwrap().text
}

#[tokio::test]
async fn following_begins_with_the_tail_over_all_instances_and_goes_on_with_new_lines() {
    let service = Service::with_a_past();
    for (round, tail) in [0, 1, 10, 50].into_iter().enumerate() {
        let now = 1000 * (i64::try_from(round).unwrap() + 1);
        let mut lines = service.follow(tail, 0, now);
        // What came in the rounds before is of the past now.
        let mut past: Vec<String> = (1..=120).map(|at| format!("line {at}")).collect();
        past.extend((0..round).flat_map(|r| [format!("old {r}"), format!("late {r}")]));
        for want in &past[past.len() - tail..] {
            assert_eq!(&next(&mut lines).await, want, "tail {tail}");
        }
        service.write(1, &format!("old {round}"), now);
        assert_eq!(next(&mut lines).await, format!("old {round}"));
        let late = u32::try_from(10 + round).unwrap();
        service.write(late, &format!("late {round}"), now + 1);
        assert_eq!(next(&mut lines).await, format!("late {round}"));
    }
}

#[tokio::test]
async fn lines_since_the_request_are_new_whatever_the_tail() {
    let service = Service::with_a_past();
    let mut lines = service.follow(2, 0, 111);
    for at in 109..=120 {
        assert_eq!(next(&mut lines).await, format!("line {at}"));
    }
    // Who comes again asks from there, and gets nothing older of any instance.
    let mut again = service.follow(1_000_000, 111, 1000);
    for at in 111..=120 {
        assert_eq!(next(&mut again).await, format!("line {at}"));
    }
    service.write(1, "new", 1001);
    assert_eq!(next(&mut lines).await, "new");
    assert_eq!(next(&mut again).await, "new");
}

#[test]
fn a_request_is_old_or_new_by_when_it_was_written() {
    let line = |at: i64, text: &str| LogLine {
        at: Timestamp(at),
        text: text.to_owned(),
        ..dropped_line(None, 0, 0)
    };
    let past = vec![
        (Timestamp(12), line(9, "old request")),
        (Timestamp(10), line(10, "app")),
        (Timestamp(21), line(8, "new request")),
    ];
    let given: Vec<String> = last_lines(past, 1, Timestamp(20)).map(|l| l.text).collect();
    assert_eq!(given, ["app", "new request"]);
}
