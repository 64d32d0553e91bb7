//! The addresses inside instances: DNS, this server's own services, opened ports of the host; and what was refused.
//!
//! Who calls is known by the socket, which belongs to one sandbox (decision 9). A sandbox is an instance once it was assigned.
//!
//! Invariants
//! 1. Until the place is given up, instances find names and the host, and their ends are written down: requests may wait for one
//!    that needs both to start.
//! 2. What instances have open to the host then goes on.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_ingress::{Ingress, Scheme};
use utsuwa_model::instance::Exit;
use utsuwa_model::{InstanceId, RevisionKey};
use utsuwa_runtime::client::{InternalEvent, SandboxDriver};
use utsuwa_runtime::keeper::protocol::{ExitReport, Stop};
use utsuwa_runtime::network::{self, NetInfo};

use super::environment::Machine;
use super::journal::{Happening, Journal};

/// Which instance is which service: learned from assignments, asked by whoever tells of an instance's end.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory(Arc<Mutex<BTreeMap<InstanceId, RevisionKey>>>);

impl Directory {
    pub(super) fn learn(&self, instance: InstanceId, revision: RevisionKey) {
        self.0.lock().insert(instance, revision);
    }

    pub(super) fn revision(&self, instance: &InstanceId) -> Option<RevisionKey> {
        self.0.lock().get(instance).cloned()
    }

    /// The revision of an instance, which is then forgotten: an instance ends once.
    pub(super) fn take(&self, instance: &InstanceId) -> Option<RevisionKey> {
        self.0.lock().remove(instance)
    }
}

/// One sandbox: where it is, what it became, and the tasks behind its sockets.
struct Sandbox {
    net: NetInfo,
    assigned: Option<(InstanceId, RevisionKey)>,
    stop: CancellationToken,
    internal: network::Internal,
}

/// A crash is an error; an app that has to be killed because it doesn't stop is not, but its owner should know.
fn severity(report: &ExitReport) -> &'static str {
    match report.stop {
        _ if report.is_orderly() => "INFO",
        Some(Stop::Overdue { .. }) => "WARNING",
        _ => "ERROR",
    }
}

/// The same refusal is told once in this time: an app that retries must not fill its log with it.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

pub(super) struct Inside {
    pub driver: SandboxDriver,
    pub ingress: Ingress,
    /// The port that is HTTPS inside instances, too.
    pub https_port: u16,
    pub resolver: Arc<network::dns::Resolver>,
    pub journal: Journal,
    pub directory: Directory,
    /// Connections of all instances to ports of the host.
    pub forwards: Arc<network::Forwards>,
    /// What instances still have open to the host after the place was given up.
    pub open: TaskTracker,
}

/// When it ends.
pub(super) struct Until {
    /// Instances send this server no more requests; all else goes on.
    pub stop: CancellationToken,
    /// The place is given up.
    pub place: CancellationToken,
    /// Cancelled here: every end that was told until then is written down and acknowledged, or is the next server's to write.
    pub written: CancellationToken,
}

impl Inside {
    /// Serves until `events` ends or the place is given up; then until the last request of an instance is answered.
    pub(super) async fn run(self, mut events: mpsc::Receiver<InternalEvent>, until: Until) {
        // What is still open to the host is waited for; there is none yet when the waiting may begin.
        let open = self.open.token();
        let mut sandboxes: BTreeMap<u32, Sandbox> = BTreeMap::new();
        let mut tasks: JoinSet<()> = JoinSet::new();
        let mut ends: JoinSet<()> = JoinSet::new();
        let (refused, mut refusals) = mpsc::channel(256);
        let (crowded, mut crowds) = mpsc::channel(256);
        let mut readers: JoinSet<()> = JoinSet::new();
        let mut told: BTreeMap<(InstanceId, String), utsuwa_model::Timestamp> = BTreeMap::new();
        let forwards = Arc::clone(&self.forwards);
        let telling = forwards.tell_refusals();
        tokio::pin!(telling);
        loop {
            tokio::select! {
                () = until.place.cancelled() => break,
                never = &mut telling => match never {},
                Some(refusal) = refusals.recv() => self.tell(&sandboxes, &mut told, &refusal),
                Some((index, count)) = crowds.recv() => self.tell_crowded(&sandboxes, index, count),
                event = events.recv() => match event {
                    None => break,
                    Some(InternalEvent::Attached { sandbox, net, sockets }) => {
                        // Sockets that came before are void: dropping the old entry closes them.
                        if let Some(old) = sandboxes.remove(&sandbox) {
                            old.stop.cancel();
                        }
                        if let Some(new) = self.attach(net, sockets, &crowded, &until.stop, &mut tasks) {
                            sandboxes.insert(sandbox, new);
                        }
                    }
                    Some(InternalEvent::Assigned { sandbox, instance, revision }) => {
                        self.directory.learn(instance.clone(), revision.clone());
                        if let Some(known) = sandboxes.get_mut(&sandbox) {
                            known.assigned = Some((instance, revision));
                        }
                    }
                    Some(InternalEvent::Exited(report)) => self.ended(report, &mut ends),
                    Some(InternalEvent::Gone { sandbox }) => {
                        if let Some(gone) = sandboxes.remove(&sandbox) {
                            gone.stop.cancel();
                        }
                    }
                    Some(InternalEvent::Refusals { sockets }) => {
                        readers.shutdown().await;
                        for socket in sockets {
                            read_refusals(socket, refused.clone(), &mut readers);
                        }
                    }
                },
            }
            while tasks.try_join_next().is_some() {}
            while ends.try_join_next().is_some() {}
        }
        // The next server has the sandboxes and is told what is told from here on. What instances asked of services here, or of
        // the host, is answered to its end.
        events.close();
        while let Ok(event) = events.try_recv() {
            if let InternalEvent::Exited(report) = event {
                self.ended(report, &mut ends);
            }
        }
        drop(events);
        while ends.join_next().await.is_some() {}
        until.written.cancel();
        if !until.place.is_cancelled() {
            return;
        }
        for sandbox in sandboxes.into_values() {
            self.open.spawn(sandbox.internal.close());
        }
        drop(open);
        while tasks.join_next().await.is_some() {}
    }

    fn attach(
        &self,
        net: NetInfo,
        sockets: Vec<(network::SocketRole, OwnedFd)>,
        crowded: &mpsc::Sender<(u32, u64)>,
        shutdown: &CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Option<Sandbox> {
        let mut internal = match network::serve_internal(sockets, &self.resolver, &self.forwards) {
            Ok(internal) => internal,
            Err(error) => {
                tracing::error!(%error, sandbox = net.index, "serve the addresses inside a sandbox");
                return None;
            }
        };
        let stop = shutdown.child_token();
        for (port, listener) in internal.ingress.drain(..) {
            let (ingress, stop) = (self.ingress.clone(), stop.clone());
            let scheme = if port == self.https_port {
                Scheme::Https
            } else {
                Scheme::Http
            };
            let (crowded, index) = (crowded.clone(), net.index);
            // One that can't be told now is told in a minute, if it is still so.
            let crowded = Arc::new(move |count| {
                let _ = crowded.try_send((index, count));
            });
            let runtime = ingress.runtime().clone();
            let serving = async move {
                ingress
                    .serve_instance(listener, scheme, crowded, stop)
                    .await
            };
            tasks.spawn_on(serving, &runtime);
        }
        Some(Sandbox {
            net,
            assigned: None,
            stop,
            internal,
        })
    }

    /// Writes the end of an instance into its service's journal, in the user's words; the keeper forgets it only then.
    fn ended(&self, report: ExitReport, ends: &mut JoinSet<()>) {
        let known = self
            .directory
            .take(&report.id)
            .or_else(|| report.revision.clone());
        let (written, on_disk) = tokio::sync::oneshot::channel();
        match known {
            // Not a word of the app's was run: its end is nothing to its users. Its memory limit is: what it imports is theirs.
            Some(_) if report.parked && !matches!(report.exit, Exit::OutOfMemory { .. }) => {
                let _ = written.send(());
            }
            Some(revision) => {
                self.journal.note(Happening {
                    at: report.at,
                    service: revision.service.clone(),
                    revision: revision.revision.to_string(),
                    severity: severity(&report),
                    text: report.log_line(),
                    instance: Some(report.id.clone()),
                    written: Some(written),
                });
            }
            None => {
                tracing::info!(instance = %report.id, exit = %report.exit.describe(), "an instance of no known service ended");
                let _ = written.send(());
            }
        }
        let driver = self.driver.clone();
        ends.spawn(async move {
            // Not written (the journal can't keep up): it is told again to the next server.
            if on_disk.await.is_ok()
                && let Err(error) = driver.acknowledge(&report.id).await
            {
                tracing::debug!(instance = %report.id, %error, "acknowledge the end of an instance");
            }
        });
    }

    /// An instance wanted more connections to services than it may have.
    fn tell_crowded(&self, sandboxes: &BTreeMap<u32, Sandbox>, index: u32, count: u64) {
        let known = sandboxes.values().find(|s| s.net.index == index);
        let Some((instance, revision)) = known.and_then(|s| s.assigned.clone()) else {
            return;
        };
        tracing::info!(%instance, service = %revision.service, count, "an instance opens more connections to services than it may");
        self.journal.note(Happening {
            at: Machine::time(),
            service: revision.service.clone(),
            revision: revision.revision.to_string(),
            instance: Some(instance),
            severity: "WARNING",
            text: format!(
                "The instance has as many connections to services open as it may; {count} more were refused. Close those that \
                 are not used, or keep fewer in its pools."
            ),
            written: None,
        });
    }

    fn tell(
        &self,
        sandboxes: &BTreeMap<u32, Sandbox>,
        told: &mut BTreeMap<(InstanceId, String), utsuwa_model::Timestamp>,
        refusal: &network::Refusal,
    ) {
        let at_source = |s: &&Sandbox| match refusal.source {
            IpAddr::V4(source) => s.net.address == source,
            IpAddr::V6(source) => s.net.address6 == Some(source),
        };
        let Some((instance, revision)) = sandboxes
            .values()
            .find(at_source)
            .and_then(|s| s.assigned.clone())
        else {
            return;
        };
        let now = Machine::time();
        told.retain(|_, at| now.since(*at) < REPEAT_AFTER);
        let text = refusal.to_string();
        if told.insert((instance.clone(), text.clone()), now).is_some() {
            return;
        }
        self.journal.note(Happening {
            at: now,
            service: revision.service.clone(),
            revision: revision.revision.to_string(),
            instance: Some(instance),
            severity: "WARNING",
            text,
            written: None,
        });
    }
}

fn read_refusals(
    socket: OwnedFd,
    refused: mpsc::Sender<network::Refusal>,
    readers: &mut JoinSet<()>,
) {
    match network::RefusalReader::new(socket) {
        Err(error) => tracing::warn!(%error, "read what is refused to instances"),
        Ok(mut reader) => {
            readers.spawn(async move {
                loop {
                    match reader.next().await {
                        Ok(refusal) => {
                            if refused.send(refusal).await.is_err() {
                                return;
                            }
                        }
                        Err(error) => {
                            tracing::warn!(%error, "read what is refused to instances");
                            return;
                        }
                    }
                }
            });
        }
    }
}
