//! What the ingress needs from outside. Joined to the runtime and to files in `daemon`.

pub(crate) mod trace_id;

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
pub use http::Method;
use tokio::net::TcpStream;
use utsuwa_model::instance::StartPhases;
use utsuwa_model::{InstanceId, RevisionKey, ServiceKey, Timestamp};

pub use trace_id::TraceId;

/// A connection that is being made. Its errors are what the instance answered: `ConnectionRefused` while nothing listens.
pub type Connecting = BoxFuture<'static, io::Result<TcpStream>>;

/// Reaches instances. Identity is the id, never an address (decision 9).
pub trait Connect: fmt::Debug + Send + Sync + 'static {
    /// A socket inside the instance's network, for one TCP connection to `port` of its `eth0`. Whoever judges the instance by
    /// its answer begins to count the time when this is there.
    ///
    /// # Errors
    /// No socket could be had, which says nothing of the instance; `NotFound` when it is gone.
    fn socket(&self, id: &InstanceId, port: u16) -> BoxFuture<'static, io::Result<Connecting>>;

    /// Where programs inside listen, as far as that can be seen: told to the owner of one that can't be reached.
    fn listens_on(&self, _id: &InstanceId) -> Vec<SocketAddr> {
        Vec::new()
    }
}

/// Told of a revision that needs an instance now. Must not block: it only sets a level and wakes a loop.
pub trait Wake: fmt::Debug + Send + Sync + 'static {
    fn wake(&self, revision: &RevisionKey);
    /// A request was let into an instance that may be frozen: it is on its way there already.
    fn thaw(&self, revision: &RevisionKey, instance: &InstanceId);
    /// An instance became ready, failed its startup probe, or went idle: the loop should look.
    fn changed(&self, revision: &RevisionKey);
}

/// Takes one record per request, and notes. Must not block; drops (and counts) what it can't take.
pub trait RequestLog: fmt::Debug + Send + Sync + 'static {
    fn record(&self, record: Box<RequestRecord>);
    /// What the owner of a service should know about one of its instances.
    fn noticed(&self, note: InstanceNote);
}

/// Time as the ingress sees it; paused in tests.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// For deciding, the same as the loops': it goes on evenly whatever happens to the host's clock.
    fn now(&self) -> Timestamp;

    /// As the host's clock shows it, for what people read.
    fn wall(&self) -> Timestamp {
        self.now()
    }
}

/// Something that the ingress found out about an instance.
#[derive(Debug, Clone)]
pub struct InstanceNote {
    pub at: Timestamp,
    pub revision: RevisionKey,
    pub instance: InstanceId,
    pub weight: Weight,
    /// In the user's words.
    pub text: String,
}

/// How much a note matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    Info,
    Warning,
    Error,
}

/// One request, ended.
#[derive(Debug, Clone)]
pub struct RequestRecord {
    pub at: Timestamp,
    /// As it is looked up: lower case, without port.
    pub host: Arc<str>,
    /// The port that the client named beside it: another than ours where something in between changes it.
    pub port: Option<u16>,
    pub method: Method,
    pub path: String,
    pub status: u16,
    /// Whether Utsuwa answered itself (and why) or the app did.
    pub answered_by: AnsweredBy,
    /// The service whose host was asked for, of a request that was rejected before a revision was chosen.
    pub service: Option<ServiceKey>,
    pub revision: Option<RevisionKey>,
    pub instance: Option<InstanceId>,
    pub remote: IpAddr,
    pub user_agent: String,
    pub referer: String,
    /// What the client spoke to: `http` or `https`.
    pub scheme: &'static str,
    /// As the client said it: `HTTP/1.1`, `HTTP/2.0`.
    pub protocol: &'static str,
    /// The address that the client connected to.
    pub server_ip: Option<IpAddr>,
    pub trace: TraceId,
    pub span: u64,
    pub sampled: bool,
    pub request_bytes: u64,
    pub response_bytes: u64,
    /// How long it waited for an instance; zero for one that had not to.
    pub queued: Duration,
    /// Arrival to the head of the answer; zero while there is none.
    pub first_byte: Duration,
    /// Arrival to the last byte of the answer.
    pub latency: Duration,
    /// Set when the request waited for an instance to start.
    pub cold: Option<ColdStart>,
}

impl RequestRecord {
    /// In whose log it belongs; `None`: no service is served under its host.
    #[must_use]
    pub fn service(&self) -> Option<&ServiceKey> {
        let chosen = self.revision.as_ref().map(|revision| &revision.service);
        chosen.or(self.service.as_ref())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnsweredBy {
    App,
    Utsuwa { why: String },
}

/// Where the time of a cold start went, from the request's arrival on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ColdStart {
    /// Arrival to the loop's decision to start.
    pub decide: Duration,
    pub start: StartPhases,
    /// Program running to the first accepted connection.
    pub listen: Duration,
    /// First accepted connection to the first byte of the answer.
    pub answer: Duration,
    pub total: Duration,
}
