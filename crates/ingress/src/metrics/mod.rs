//! Counters and histograms of the data path, by service and revision, for Prometheus.
//!
//! Owns: what is counted and how it is written out ([`text`]). Deliberately not here: who may read it (the API, on loopback).
//!
//! Invariants:
//! 1. Counting an app's answer takes no lock, no memory and no lookup: its series is at hand, and each thread counts in a part
//!    of its own.
//! 2. A service or revision that is forgotten takes its series along; one that never had a request has none.

mod rejected;
mod text;

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use utsuwa_model::{RevisionKey, ServiceKey};

use crate::seam::ColdStart;

pub(crate) use rejected::Rejected;
pub(crate) use text::write;

/// Upper bounds of the classes of a time, in microseconds: warm answers take a fraction of a millisecond, a cold Python some
/// seconds, a timeout an hour.
const BOUNDS_US: [u64; 17] = [
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
];

/// Parts that threads count in; more threads than this share them.
const MOST_SHARDS: usize = 8;

/// Status classes as they are exposed; the first is for what is none.
const CLASSES: [&str; 6] = ["other", "1xx", "2xx", "3xx", "4xx", "5xx"];

/// Where the time of a wake goes.
const STEPS: [&str; 6] = ["decide", "sandbox", "rootfs", "exec", "listen", "answer"];

#[derive(Debug, Default)]
struct Times {
    classes: [AtomicU64; BOUNDS_US.len() + 1],
    sum_us: AtomicU64,
}

impl Times {
    fn add(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = BOUNDS_US
            .iter()
            .take_while(|bound| micros > **bound)
            .count();
        self.classes[class].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(micros, Ordering::Relaxed);
    }
}

/// What every request adds to. Two cache lines of its own each, so that threads don't take them from each other.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Shard {
    status: [AtomicU64; CLASSES.len()],
    latency: Times,
    request_bytes: AtomicU64,
    response_bytes: AtomicU64,
}

/// What happens now and then.
#[derive(Debug, Default)]
struct Rare {
    queue: Times,
    wake: Times,
    steps_us: [AtomicU64; STEPS.len()],
    wakes: AtomicU64,
    starts: AtomicU64,
    failed_starts: AtomicU64,
    /// By the words that `X-Utsuwa-Answered-By` knows.
    refusals: Mutex<BTreeMap<&'static str, u64>>,
}

/// The counts of one revision, or of one service without a revision. Takes memory from the first count on.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    shards: OnceLock<Box<[Shard]>>,
    rare: OnceLock<Box<Rare>>,
}

impl Meters {
    /// A request has ended.
    pub(crate) fn ended(&self, status: u16, latency: Duration, bytes: (u64, u64)) {
        let (request_bytes, response_bytes) = bytes;
        let shards = self
            .shards
            .get_or_init(|| (0..shard_count()).map(|_| Shard::default()).collect());
        // A power of two.
        let shard = &shards[own_number() & (shards.len() - 1)];
        let class = usize::from(status / 100);
        shard.status[if class < CLASSES.len() { class } else { 0 }].fetch_add(1, Ordering::Relaxed);
        shard.latency.add(latency);
        if request_bytes > 0 {
            shard
                .request_bytes
                .fetch_add(request_bytes, Ordering::Relaxed);
        }
        shard
            .response_bytes
            .fetch_add(response_bytes, Ordering::Relaxed);
    }

    /// A request has left the queue for an instance.
    pub(crate) fn waited(&self, took: Duration) {
        self.rare().queue.add(took);
    }

    /// A request had an instance started.
    pub(crate) fn woken(&self, cold: &ColdStart) {
        let rare = self.rare();
        rare.wake.add(cold.total);
        let start = cold.start;
        let steps = [
            cold.decide,
            start.sandbox,
            start.rootfs,
            start.exec,
            cold.listen,
            cold.answer,
        ];
        for (sum, took) in rare.steps_us.iter().zip(steps) {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            sum.fetch_add(micros, Ordering::Relaxed);
        }
    }

    /// We answered ourselves, for one of a closed set of reasons.
    pub(crate) fn refused(&self, reason: &'static str) {
        *self.rare().refusals.lock().entry(reason).or_insert(0) += 1;
    }

    /// The loops were asked for a first instance.
    pub(crate) fn wake_raised(&self) {
        self.rare().wakes.fetch_add(1, Ordering::Relaxed);
    }

    /// An instance has begun.
    pub(crate) fn started(&self) {
        self.rare().starts.fetch_add(1, Ordering::Relaxed);
    }

    /// An instance was never reached.
    pub(crate) fn start_failed(&self) {
        self.rare().failed_starts.fetch_add(1, Ordering::Relaxed);
    }

    fn rare(&self) -> &Rare {
        self.rare.get_or_init(Box::default)
    }

    fn sum(&self, of: impl Fn(&Shard) -> &AtomicU64) -> u64 {
        let shards = self
            .shards
            .get()
            .map(|shards| &**shards)
            .unwrap_or_default();
        shards
            .iter()
            .map(|shard| of(shard).load(Ordering::Relaxed))
            .sum()
    }
}

fn shard_count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        threads.min(MOST_SHARDS).next_power_of_two()
    })
}

/// A number of the calling thread's own.
fn own_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static OWN: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.try_with(|own| *own).unwrap_or(0)
}

/// What is so at the moment.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Levels {
    pub(crate) in_flight: u64,
    pub(crate) queued: u64,
    /// In the order of [`STATES`].
    pub(crate) instances: [u64; STATES.len()],
}

/// States of instances as they are exposed.
pub(crate) const STATES: [&str; 6] = [
    "starting", "active", "idle", "resting", "unready", "leaving",
];

/// One service or revision, to be written out.
#[derive(Debug)]
pub(crate) struct Series<'a> {
    /// `project_id="…",location="…",service_name="…",revision_name="…"`.
    pub(crate) labels: String,
    pub(crate) meters: &'a Meters,
    /// `None` for a service without a revision.
    pub(crate) levels: Option<Levels>,
}

impl<'a> Series<'a> {
    pub(crate) fn of_revision(key: &RevisionKey, meters: &'a Meters, levels: Levels) -> Self {
        let labels = format!(
            "{},revision_name=\"{}\"",
            labels(Some(&key.service)),
            key.revision
        );
        Self {
            labels,
            meters,
            levels: Some(levels),
        }
    }

    /// Anything at all happened to it: ten thousand services that sleep need no lines.
    pub(crate) fn is_news(&self) -> bool {
        let Levels {
            in_flight,
            queued,
            instances,
        } = self.levels.unwrap_or_default();
        let counted = self.meters.shards.get().is_some() || self.meters.rare.get().is_some();
        counted || in_flight + queued + instances.iter().sum::<u64>() > 0
    }

    /// Requests that no revision saw; without a service, that nobody's host was asked for.
    pub(crate) fn of_service(service: Option<&ServiceKey>, meters: &'a Meters) -> Self {
        let labels = format!("{},revision_name=\"\"", labels(service));
        Self {
            labels,
            meters,
            levels: None,
        }
    }
}

/// Names as Cloud Monitoring has them. They need no escaping: a key is made of letters, digits and hyphens.
fn labels(service: Option<&ServiceKey>) -> String {
    let [project, location, service] = service.map_or([""; 3], |key| {
        [
            key.project.as_str(),
            key.region.as_str(),
            key.service.as_str(),
        ]
    });
    format!("project_id=\"{project}\",location=\"{location}\",service_name=\"{service}\"")
}
