//! The seam between deciding and doing: what any way of running an instance must offer.
//!
//! Owns: the [`Driver`] trait and its errors. A driver names things by id and digest, never by path.
//! Implementations: the sandbox driver (our launcher, through the keeper) and [`crate::fake`] for tests.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::broadcast;
use utsuwa_model::instance::{
    Exit, InstanceObservation, InstanceSpec, Kernel, RootfsSpec, StartPhases, Tier,
};
use utsuwa_model::quantity::MilliCpu;
use utsuwa_model::{InstanceId, Timestamp};

/// Makes instances exist and stop. All calls may be repeated: starting a running id or stopping a gone one is no error.
pub trait Driver: fmt::Debug + Send + Sync + 'static {
    /// Makes `rootfs` ready, so that [`Driver::start`] need not. Idempotent; called when a revision is made and again after
    /// a restart of the host. The layers must be in the image store.
    fn prepare(&self, rootfs: RootfsSpec) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Starts the instance and answers once its program runs (it need not listen yet); of several containers those that don't
    /// wait.
    fn start(&self, spec: InstanceSpec) -> BoxFuture<'_, Result<StartPhases, DriverError>>;

    /// Starts a container of an instance that waits for it ([`InstanceSpec::waits`]), by its number, and answers once its program
    /// runs.
    fn start_container(
        &self,
        id: &InstanceId,
        container: usize,
    ) -> BoxFuture<'_, Result<(), DriverError>>;

    /// SIGTERM, then SIGKILL after `grace`; answers when nothing of the instance is left. Its exit is reported as an event.
    fn stop(&self, id: InstanceId, grace: Duration) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Lets go of all that was prepared for the ids from `uid_base` on: their service is being deleted. Idempotent; refused
    /// as [`DriverError::Exhausted`] while an instance has them.
    fn release(&self, uid_base: u32) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Everything that runs now, whoever started it. This is how a restarted server finds out.
    fn list(&self) -> BoxFuture<'_, Result<Vec<InstanceObservation>, DriverError>>;

    /// Ends of instances. A receiver that lags must call [`Driver::list`].
    fn events(&self) -> broadcast::Receiver<InstanceEvent>;

    /// A TCP socket that lives in the instance's network and is not connected yet, and the address to connect it to.
    fn socket(&self, id: &InstanceId) -> BoxFuture<'_, Result<(OwnedFd, SocketAddr), DriverError>>;

    /// Takes back a socket of [`Driver::socket`] whose connection was refused, for the next call. Nothing is lost if it isn't.
    fn give_back(&self, id: &InstanceId, socket: OwnedFd) {
        let _ = (id, socket);
    }

    /// Process id on the host of an instance started or listed by this driver; for showing, never for acting.
    fn pid(&self, id: &InstanceId) -> Option<u32> {
        let _ = id;
        None
    }

    /// Changes the CPU limit of a running instance (startup boost). Its observation tells the new one from then on.
    fn set_cpu(&self, id: &InstanceId, cpu: MilliCpu) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Takes the CPU away from a running instance; its observation says so from then on. [`DriverError::Refused`] where that
    /// will not become possible for this instance, with the reason.
    fn freeze(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Gives it back; no error for one that isn't frozen. A request waits for it.
    fn thaw(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>>;

    /// Lets an instance that was started with [`Zygote::Park`](utsuwa_model::instance::Zygote) go on, once; no error for one that
    /// isn't parked. Its start was answered when it was parked. [`DriverError::Refused`] by a driver that parks nothing, also to
    /// such a start.
    fn go_on(&self, id: &InstanceId) -> BoxFuture<'_, Result<(), DriverError>>;

    /// The modules that an instance started with `Zygote::Learn` has imported so far, or why none can be learnt. `None`: nothing
    /// is known of it (here, any more).
    fn learnt(&self, id: &InstanceId) -> Option<Result<Vec<String>, String>> {
        let _ = id;
        None
    }

    /// Gives back the memory of a frozen instance, and answers what it has kept. [`DriverError::Refused`] where there is nothing
    /// that may hold it, with the reason. A thaw doesn't wait for it.
    fn reclaim(&self, id: &InstanceId) -> BoxFuture<'_, Result<Reclaimed, DriverError>>;

    /// The first tier that an instance on `kernel` can't reach on this machine as it is now, and why: what [`Driver::freeze`] or
    /// [`Driver::reclaim`] would be refused with. For showing, never for acting. `None`: nothing is known against any.
    fn barred(&self, kernel: Kernel) -> Option<(Tier, String)> {
        let _ = kernel;
        None
    }

    /// What the instance uses now.
    fn usage(&self, id: &InstanceId) -> BoxFuture<'_, Result<Usage, DriverError>>;
}

/// What an instance had in memory before and after it was given back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reclaimed {
    pub before_bytes: u64,
    pub after_bytes: u64,
}

/// Memory and CPU of one instance.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub memory_bytes: u64,
    pub cpu_us: u64,
    pub pids: u32,
}

/// Something happened to an instance that nobody asked for at that moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InstanceEvent {
    /// It ended. Sent exactly once for each instance, also after a restart of the server.
    Exited {
        id: InstanceId,
        /// Which of its containers ended first; empty in an instance of one.
        container: String,
        exit: Exit,
        at: Timestamp,
        last_lines: Vec<String>,
    },
}

/// Why a driver could not do it.
#[derive(Debug, Clone, thiserror::Error)]
pub enum DriverError {
    /// The image's program can't be started: the user must change something. The text is for the user.
    #[error("{0}")]
    Refused(String),
    #[error("instance {0} is not running")]
    NotFound(InstanceId),
    /// A resource ran out (processes, descriptors, memory, disk); later may work.
    #[error("{0}")]
    Exhausted(String),
    /// The keeper can't be reached just now.
    #[error("reach the keeper: {0}")]
    Unavailable(String),
    /// A bug or a kernel that behaves differently than probed.
    #[error("{0}")]
    Internal(String),
}
