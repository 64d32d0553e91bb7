//! What the edge needs from outside besides the store. Joined in `daemon`.

use std::fmt;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use utsuwa_decide::standing::Standing;
use utsuwa_model::demand::FailingProbe;
use utsuwa_model::{Because, InstanceId, RevisionKey, ServiceKey, Timestamp};

/// What runs and why, for `--why` and the dashboard. Observed, never stored.
pub trait Insight: fmt::Debug + Send + Sync + 'static {
    /// Every revision of the service that is routed or running, with its instances and the reasons of the last decisions.
    fn explain(&self, service: &ServiceKey) -> Vec<RevisionInsight>;
    /// The table of loops (§4.5): one line per key.
    fn loops(&self) -> Vec<LoopInsight>;
    /// Counters, histograms and levels in Prometheus' text format, version 0.0.4.
    fn metrics(&self) -> String;
}

#[derive(Debug, Clone)]
pub struct RevisionInsight {
    pub revision: RevisionKey,
    pub percent: u32,
    pub in_flight: u32,
    pub queued: u32,
    pub instances: Vec<InstanceInsight>,
    pub because: Vec<Because>,
    /// When that was decided.
    pub decided_at: Option<Timestamp>,
    /// The last start or instance that failed: when and why.
    pub last_failure: Option<(Timestamp, String)>,
    /// So many starts or instances failed in a row, up to now.
    pub failures_in_a_row: u32,
}

#[derive(Debug, Clone)]
pub struct InstanceInsight {
    pub id: InstanceId,
    pub state: String,
    pub pid: u32,
    pub in_flight: u32,
    pub started: Timestamp,
    pub standing: Standing,
    pub failing: Vec<FailingProbe>,
}

#[derive(Debug, Clone)]
pub struct LoopInsight {
    pub name: String,
    pub key: String,
    pub last_pass: Timestamp,
    pub duration_us: u64,
    pub because: String,
    pub next_wake: Option<Timestamp>,
    pub last_error: Option<String>,
}

/// Reads what instances wrote.
pub trait Logs: fmt::Debug + Send + Sync + 'static {
    /// Lines of a service, oldest first.
    fn lines(&self, service: &ServiceKey, wanted: Wanted) -> BoxStream<'static, LogLine>;
}

/// The header of a log stream that tells [`Wanted::new_from`]: a reader who comes again asks from there.
pub const NEW_FROM_HEADER: &str = "utsuwa-new-from";

/// Which lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// At most so many of the past.
    pub tail: usize,
    /// Goes on with new ones.
    pub follow: bool,
    /// When the service was created: what happened before belongs to another one of that name.
    pub since: Timestamp,
    /// What was written before is left out.
    pub from: Timestamp,
    /// When following: what was written from then on is new, and `tail` doesn't count it.
    pub new_from: Timestamp,
}

/// One line of an instance. (`instance`, `container`, `stream`, `sequence`) is unique and the same whenever it is read; lines of our own are
/// numbered together, whatever instance they concern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// `None` for lines of our own that concern no single instance.
    pub instance: Option<InstanceId>,
    /// Which of its containers wrote it; empty where there is only one.
    pub container: String,
    pub revision: String,
    /// `stdout`, `stderr`, or `utsuwa` for lines of our own (exits, refused egress, request records).
    pub stream: String,
    pub sequence: u64,
    pub at: Timestamp,
    pub text: String,
}

/// Images that a client brings itself (decision 15).
pub trait Images: fmt::Debug + Send + Sync + 'static {
    /// Takes an OCI or docker archive (a tar, uncompressed) and answers the reference to deploy it by. Reads one that is
    /// refused on to its end, for a minute at most, so that its sender hears the answer. `wanted`, a reference or a tag,
    /// chooses among several images.
    fn load(
        &self,
        archive: BoxStream<'static, std::io::Result<Bytes>>,
        wanted: Option<String>,
    ) -> BoxFuture<'_, Result<LoadedImage, LoadError>>;
    fn list(&self) -> BoxFuture<'_, Vec<ImageInsight>>;
    /// How far the pull of `reference` is that goes on now. Cheap: it is asked at every read of a service that pulls.
    fn pulling(&self, reference: &str) -> Option<PullInsight>;
}

/// Why an archive was not taken, in words for who sent it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadError {
    /// It is no archive, or its image is wrong.
    Wrong(String),
    /// The server has no room for it.
    NoRoom(String),
    /// It is not the archive's fault; later may work.
    Unavailable(String),
}

/// How far a pull is. Without layers: the registry is being asked what the image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PullInsight {
    pub layers: usize,
    /// Layers on disk, unpacked and checked.
    pub layers_ready: usize,
    pub total_bytes: u64,
    pub done_bytes: u64,
}

#[derive(Debug, Clone)]
pub struct LoadedImage {
    pub reference: String,
    pub digest: String,
}

#[derive(Debug, Clone)]
pub struct ImageInsight {
    pub reference: String,
    pub digest: String,
    pub size_bytes: u64,
    pub in_use: bool,
    /// What of its layers is not as their archives say, in words.
    pub left_out: Vec<String>,
}
