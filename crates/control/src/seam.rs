//! What the loops need from outside besides the store and the runtime. Joined to ingress and images in `daemon`.

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use utsuwa_model::demand::RevisionDemand;
use utsuwa_model::domain::{CertificateStanding, DomainName};
use utsuwa_model::image::ResolvedImage;
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{InstanceRoute, RouteChange, StartupProbe};
use utsuwa_model::{InstanceId, RevisionKey, ServiceKey, Timestamp};

/// The ingress, as the loops see it.
pub trait FrontDoor: fmt::Debug + Send + Sync + 'static {
    /// Replaces the routes of each of these services whole; all of it is one change to those who ask for a route.
    fn publish(&self, changes: Vec<RouteChange>);

    /// Hands over a started instance: the ingress runs its startup probe and takes it into choice once it reached it.
    /// Repeating it for a known id changes nothing.
    fn admit(&self, instance: InstanceRoute, phases: StartPhases);

    /// Makes the startup probe of one container of an instance that isn't handed over yet. The error says what was tried.
    fn probe(
        &self,
        instance: InstanceRoute,
        startup: StartupProbe,
    ) -> BoxFuture<'static, Result<(), String>>;

    /// Takes the instance out of choice at once; answers when its last request has ended or `deadline` has passed
    /// (`true`: nothing was in flight any more). After the answer it may be stopped. Unknown ids answer at once,
    /// unless a server before this one has requests in them: then when those have ended.
    fn retire(&self, id: &InstanceId, deadline: Duration) -> BoxFuture<'static, bool>;

    /// The instance may be frozen from now on, since nothing is in flight in it: the next request asks for a thaw (`Wake::thaw`
    /// of the ingress). `false`: something is, or it takes no requests; it must not be frozen.
    fn rest(&self, id: &InstanceId) -> bool;

    /// The instance runs: it was thawed, or not frozen after the door agreed to it. Its health is asked for again from then on.
    /// Called before the door is asked to agree once more. Unknown ids change nothing.
    fn awake(&self, id: &InstanceId);

    /// The instance is dead: forget it; requests inside it are answered 503 (500 when `out_of_memory`).
    fn forget(&self, id: &InstanceId, out_of_memory: bool);

    /// A revision can't get an instance now: requests waiting for it are answered, at once or later (see `Refusal`).
    fn refuse(&self, revision: &RevisionKey, why: Refusal);

    /// Demand of one revision; `None` if the ingress never heard of it.
    fn demand(&self, revision: &RevisionKey) -> Option<RevisionDemand>;
}

/// Why waiting requests can't be served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The instance could not be started or never listened: 503 at once, and the reason goes to the request log.
    StartFailed { message: String },
    /// No memory or processes left on this machine. That may change: who waits goes on waiting until its own time is up
    /// (§2.6), and is answered 500 then, as the spec says for failed scaling.
    NoCapacity { message: String },
}

/// Finds and keeps images.
pub trait Images: fmt::Debug + Send + Sync + 'static {
    /// Resolves a reference (after rewrite rules) to content, pulls and unpacks what is missing. Idempotent. Who drops the
    /// future leaves the pull, which goes on: the next call for the same reference joins it.
    fn ensure(&self, reference: &str) -> BoxFuture<'_, Result<ResolvedImage, ImageError>>;

    /// Keeps only what `pinned` (manifest digests) needs. Called by a slow loop.
    fn collect(&self, pinned: Vec<String>) -> BoxFuture<'_, ()>;
}

/// What services wrote, and what was written about them.
pub trait Logs: fmt::Debug + Send + Sync + 'static {
    /// The services that something is kept of, whether they exist or not.
    fn known(&self) -> BoxFuture<'_, Result<Vec<ServiceKey>, String>>;

    /// Removes all that is kept of a service, if the last of it was written before `before`. Idempotent. Fails while an
    /// instance of it may still write.
    fn remove(
        &self,
        service: ServiceKey,
        before: Option<Timestamp>,
    ) -> BoxFuture<'_, Result<(), String>>;
}

/// Certificates of domains: which there are, and how to get one. Joined to the ingress, whose answers an authority asks for.
pub trait Certificates: fmt::Debug + Send + Sync + 'static {
    /// Which there are for `host` now.
    fn standing(&self, host: &DomainName) -> CertificateStanding;

    /// All hosts that one is kept of that was issued.
    fn issued(&self) -> Vec<DomainName>;

    /// Asks the authority for a certificate of `host`, and has the ingress use it. `attempt`: the first, second, … in a row,
    /// since the last that brought one. Who drops the future leaves the attempt: nothing of it is kept.
    fn issue(&self, host: &DomainName, attempt: u32) -> BoxFuture<'_, Result<(), IssueError>>;

    /// Lets go of what was issued for `host`. Repeating it changes nothing.
    fn forget(&self, host: &DomainName) -> BoxFuture<'_, Result<(), String>>;
}

/// Why there is no certificate, in the user's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct IssueError {
    pub message: String,
    /// The authority said for how long it must not be asked.
    pub wait: Option<Duration>,
}

/// Why an image can't be had, in the user's words. `reason` is a condition reason of `cloud-run-spec.md` §1.8
/// (`ContainerMissing`, `ContainerImageUnauthorized`, …).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ImageError {
    pub reason: String,
    pub message: String,
    /// Whether trying later may help (registry down, disk full).
    pub transient: bool,
}

/// Time and chance, given from outside so that passes can be replayed.
pub trait Environment: fmt::Debug + Send + Sync + 'static {
    /// For deciding: as much later than before as time has passed, though somebody sets the host's clock or has it sleep.
    fn now(&self) -> Timestamp;

    /// As the host's clock shows it: for what people read, and for comparing with what others wrote. It may jump.
    fn wall(&self) -> Timestamp {
        self.now()
    }

    fn random(&self) -> u64;

    /// Bytes this machine could still give to programs; `None` where nobody knows (then everything fits).
    fn available_memory(&self) -> Option<u64> {
        None
    }

    /// Awaited before every write to the store. Tests that crash after every action stop here; otherwise it does nothing.
    fn before(&self, _write: &'static str) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
