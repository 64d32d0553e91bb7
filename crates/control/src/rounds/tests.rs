use std::collections::VecDeque;

use std::collections::BTreeMap;
use std::time::Duration;

use super::queue::{LONGEST_BACKOFF, OTHER_SLOTS, REVISION_SLOTS, backoff};
use super::*;

const HOUR: Duration = Duration::from_secs(3600);

#[derive(Debug, Default)]
struct Env;

impl Environment for Env {
    fn now(&self) -> Timestamp {
        Timestamp(0)
    }

    /// Somebody set the host's clock an hour forward.
    fn wall(&self) -> Timestamp {
        Timestamp(0).plus(HOUR)
    }

    fn random(&self) -> u64 {
        0
    }
}

/// Answers from a list; notes who came and how many were there at once.
#[derive(Debug, Default)]
struct Notes {
    came: Mutex<Vec<Key>>,
    answers: Mutex<VecDeque<Result<Report, PassError>>>,
    takes: Duration,
    now: Mutex<BTreeMap<Key, usize>>,
}

impl Passes for Notes {
    fn pass(&self, key: Key) -> BoxFuture<'_, Result<Report, PassError>> {
        async move {
            let together = {
                let mut now = self.now.lock();
                let count = now.entry(key.clone()).or_default();
                *count += 1;
                *count
            };
            assert_eq!(together, 1, "one pass per key at a time");
            self.came.lock().push(key.clone());
            tokio::time::sleep(self.takes).await;
            self.now.lock().remove(&key);
            self.answers
                .lock()
                .pop_front()
                .unwrap_or_else(|| Ok(Report::default()))
        }
        .boxed()
    }
}

fn service(name: &str) -> Key {
    Key::Service(
        format!("demo/here/{name}")
            .parse()
            .unwrap_or_else(|e| panic!("{e}")),
    )
}

fn revision(name: &str) -> Key {
    Key::Instances(
        format!("demo/here/a/{name}")
            .parse()
            .unwrap_or_else(|e| panic!("{e}")),
    )
}

fn rounds(notes: Notes) -> (Arc<Rounds>, Arc<Notes>, CancellationToken) {
    let (tracker, cancel) = (TaskTracker::new(), CancellationToken::new());
    let rounds = Arc::new(Rounds::new(tracker.clone(), cancel.clone(), Arc::new(Env)));
    let notes = Arc::new(notes);
    rounds.open(&notes);
    tracker.spawn(Arc::clone(&rounds).drive(Arc::clone(&notes)));
    (rounds, notes, cancel)
}

async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

#[tokio::test(start_paused = true)]
async fn many_wishes_are_one_pass_and_one_more() {
    let (rounds, notes, _cancel) = rounds(Notes {
        takes: Duration::from_millis(10),
        ..Notes::default()
    });
    for _ in 0..100 {
        rounds.ask(&notes, service("a"), Priority::Soon);
    }
    pass(Duration::from_secs(1)).await;
    assert_eq!(
        notes.came.lock().len(),
        2,
        "one that ran, one for what came meanwhile"
    );
}

#[tokio::test(start_paused = true)]
async fn the_earliest_wish_wins() {
    let (rounds, notes, _cancel) = rounds(Notes::default());
    let now = Instant::now();
    rounds.ask_at(
        &notes,
        service("a"),
        now + Duration::from_secs(60),
        Priority::Housekeeping,
    );
    rounds.ask_at(
        &notes,
        service("a"),
        now + Duration::from_secs(5),
        Priority::Housekeeping,
    );
    rounds.ask_at(
        &notes,
        service("a"),
        now + Duration::from_secs(90),
        Priority::Housekeeping,
    );
    pass(Duration::from_secs(4)).await;
    assert_eq!(notes.came.lock().len(), 0);
    pass(Duration::from_secs(200)).await;
    assert_eq!(notes.came.lock().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_wake_passes_a_full_house() {
    let (rounds, notes, _cancel) = rounds(Notes {
        takes: Duration::from_secs(10),
        ..Notes::default()
    });
    for n in 0..100 {
        rounds.ask(&notes, service(&format!("s{n}")), Priority::Housekeeping);
    }
    rounds.ask(&notes, service("soon"), Priority::Soon);
    rounds.ask(&notes, revision("woken"), Priority::Wake);
    pass(Duration::from_secs(1)).await;
    assert_eq!(notes.came.lock().len(), OTHER_SLOTS + 1);
    assert!(notes.came.lock().contains(&revision("woken")));
    assert!(!rounds.is_at_rest());
    pass(Duration::from_secs(10)).await;
    assert_eq!(
        notes.came.lock()[OTHER_SLOTS + 1],
        service("soon"),
        "before housekeeping that was asked earlier"
    );
    pass(Duration::from_secs(60)).await;
    assert_eq!(notes.came.lock().len(), 102);
    assert!(rounds.is_at_rest());
}

#[tokio::test(start_paused = true)]
async fn slow_pulls_hold_up_nothing_but_pulls() {
    let (rounds, notes, _cancel) = rounds(Notes {
        takes: Duration::from_secs(10),
        ..Notes::default()
    });
    let pull = |n: usize| {
        let key = format!("demo/here/a/r{n}");
        Key::Revision(key.parse().unwrap_or_else(|e| panic!("{e}")))
    };
    for n in 0..REVISION_SLOTS + 1 {
        rounds.ask(&notes, pull(n), Priority::Soon);
    }
    pass(Duration::from_secs(1)).await;
    rounds.ask(&notes, service("a"), Priority::Housekeeping);
    rounds.ask(&notes, revision("idle"), Priority::Housekeeping);
    pass(Duration::from_secs(1)).await;
    let came = notes.came.lock().clone();
    assert_eq!(came.len(), REVISION_SLOTS + 2);
    assert!(came.contains(&service("a")) && came.contains(&revision("idle")));
    assert!(!came.contains(&pull(REVISION_SLOTS)), "waits for a slot");
    pass(Duration::from_secs(20)).await;
    assert_eq!(notes.came.lock().len(), REVISION_SLOTS + 3);
    assert!(rounds.is_at_rest());
}

#[tokio::test(start_paused = true)]
async fn failures_come_again_later_and_later() {
    let failed = || Err(PassError("no".to_owned()));
    let (rounds, notes, _cancel) = rounds(Notes {
        answers: Mutex::new(VecDeque::from([failed(), failed(), failed()])),
        ..Notes::default()
    });
    rounds.ask(&notes, service("a"), Priority::Soon);
    pass(Duration::from_millis(100)).await;
    assert_eq!(notes.came.lock().len(), 1);
    assert_eq!(rounds.table()[0].last_error.as_deref(), Some("no"));
    pass(Duration::from_millis(150)).await;
    assert_eq!(notes.came.lock().len(), 2, "after 200 ms");
    pass(Duration::from_secs(2)).await;
    assert_eq!(
        notes.came.lock().len(),
        4,
        "after 400 and 800 ms, then it was well"
    );
    pass(Duration::from_secs(60)).await;
    assert_eq!(notes.came.lock().len(), 4);
    assert_eq!(backoff(40, 0), LONGEST_BACKOFF);
    assert!(backoff(40, 499) >= LONGEST_BACKOFF / 2);
}

#[tokio::test(start_paused = true)]
async fn what_is_shown_is_by_the_hosts_clock() {
    let soon = Report {
        wake_at: Some(Timestamp(0).plus(Duration::from_secs(5))),
        ..Report::default()
    };
    let (rounds, notes, _cancel) = rounds(Notes {
        answers: Mutex::new(VecDeque::from([Ok(soon)])),
        ..Notes::default()
    });
    rounds.ask(&notes, service("a"), Priority::Soon);
    pass(Duration::from_millis(100)).await;
    let line = rounds.table().remove(0);
    assert_eq!(line.last_pass, Timestamp(0).plus(HOUR));
    let next = Timestamp(0).plus(HOUR + Duration::from_secs(5));
    assert_eq!(line.next_wake, Some(next));
}

#[tokio::test(start_paused = true)]
async fn a_sweep_that_finds_work_is_counted() {
    let found = Ok(Report {
        actions: 1,
        ..Report::default()
    });
    let (rounds, notes, _cancel) = rounds(Notes {
        answers: Mutex::new(VecDeque::from([
            found.clone(),
            Ok(Report::default()),
            found,
        ])),
        ..Notes::default()
    });
    for (priority, counted) in [
        (Priority::Sweep, 1),
        (Priority::Sweep, 1),
        (Priority::Soon, 1),
    ] {
        rounds.ask(&notes, service("a"), priority);
        pass(Duration::from_millis(1)).await;
        assert_eq!(rounds.sweep_found(), counted);
    }
}

#[tokio::test(start_paused = true)]
async fn a_line_that_is_gone_is_forgotten_and_nothing_begins_after_the_stop() {
    let gone = Ok(Report {
        gone: true,
        ..Report::default()
    });
    let (rounds, notes, _cancel) = rounds(Notes {
        answers: Mutex::new(VecDeque::from([gone])),
        ..Notes::default()
    });
    rounds.ask(&notes, service("a"), Priority::Soon);
    pass(Duration::from_millis(1)).await;
    assert!(rounds.table().is_empty() && rounds.keys().is_empty());
    rounds.stop();
    rounds.ask(&notes, service("b"), Priority::Wake);
    pass(Duration::from_secs(1)).await;
    assert_eq!(notes.came.lock().len(), 1);
}
