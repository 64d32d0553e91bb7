//! Liveness and readiness: what a started instance is asked again and again (`cloud-run-spec.md` §2.7).
//!
//! Owns: asking, and what follows. Deliberately not here: the thresholds ([`utsuwa_decide::health`]), and ending and replacing
//! an instance (the loops see that it is unhealthy).
//!
//! Invariants:
//! 1. Nothing is asked before the startup probe has succeeded, nor after the instance began to leave.
//! 2. A check is no request: it goes over a connection of its own, is counted nowhere, keeps no instance from falling idle and
//!    wakes none.
//! 3. Only what the instance did or left undone counts against it.
//! 4. An instance that fails its liveness probe gets no request any more, and those inside it are answered 503 at once.
//!
//! Idle instances are asked too, as long as they are awake: see [`Revision::probed`]. One that was frozen is asked as soon as it
//! is known to run again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future;
use tokio::time::{Instant, timeout};
use utsuwa_decide::health::{Health, Turn, first_check};
use utsuwa_model::route::{HealthCheck, HealthProbe, RevisionRoute};

use crate::instance::{Ending, Instance};
use crate::outside::Outside;
use crate::probe;
use crate::revision::Revision;
use crate::seam::{Connecting, InstanceNote, Weight};

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Liveness,
    Readiness,
}

impl Kind {
    const fn word(self) -> &'static str {
        match self {
            Self::Liveness => "liveness",
            Self::Readiness => "readiness",
        }
    }

    const fn agent(self) -> &'static str {
        match self {
            Self::Liveness => "utsuwa-liveness-probe",
            Self::Readiness => "utsuwa-readiness-probe",
        }
    }
}

/// Asks as the route says until the instance leaves.
pub(crate) async fn watch(
    outside: &Outside,
    revision: &Arc<Revision>,
    instance: &Arc<Instance>,
    route: &RevisionRoute,
) {
    let one = |kind, probe: Option<HealthProbe>| async move {
        if let Some(probe) = probe {
            let watch = Watch {
                outside,
                revision,
                instance,
                kind,
                probe,
            };
            watch.run().await;
        }
    };
    let both = future::join(
        one(Kind::Liveness, route.liveness.clone()),
        one(Kind::Readiness, route.readiness.clone()),
    );
    tokio::select! {
        () = instance.leaving.cancelled() => {}
        ((), ()) = both => {}
    }
}

/// One probe of one instance.
struct Watch<'a> {
    outside: &'a Outside,
    revision: &'a Arc<Revision>,
    instance: &'a Arc<Instance>,
    kind: Kind,
    probe: HealthProbe,
}

impl Watch<'_> {
    /// Ends when a liveness probe gave up.
    async fn run(&self) {
        let age = self.instance.age + self.instance.admitted.elapsed();
        let found = !self.instance.age.is_zero();
        let first = first_check(&self.probe, age, found, self.outside.dice());
        tokio::time::sleep(first).await;
        let mut health = Health::default();
        loop {
            // Made before looking, so that no call is missed in between.
            let roused = self.instance.roused.notified();
            let Some(rests) = self.revision.probed(&self.instance.id) else {
                roused.await;
                continue;
            };
            let began = Instant::now();
            // Counted only if it was to be asked all the while.
            if let Some(answer) = self.ask().await
                && self.revision.probed(&self.instance.id) == Some(rests)
            {
                let turn = health.note(answer.is_ok(), &self.probe);
                self.note_answer(&answer, health.is_well());
                let came_back = answer.err().unwrap_or_default();
                if turn.is_some_and(|turn| self.turned(turn, &came_back)) {
                    return;
                }
            }
            tokio::time::sleep_until(began + self.probe.period).await;
        }
    }

    fn note_answer(&self, answer: &Result<(), String>, well: bool) {
        let failing = &self.instance.failing;
        match answer {
            Ok(()) if well => failing.clear(self.kind.word()),
            Ok(()) => failing.succeeded(self.kind.word()),
            Err(last) => failing.failed(
                self.kind.word(),
                last,
                self.probe.failure_threshold,
                self.outside.clock.now(),
                || self.probe.check.describe(),
            ),
        }
    }

    /// One check. The error is what came back instead of success. `None`: nothing could be asked, for want of a socket; that is
    /// no fault of the instance's (this process has no descriptors left, or the keeper is being replaced), nor does the time
    /// it takes to get one count.
    async fn ask(&self) -> Option<Result<(), String>> {
        let connecting = match self.instance.socket(self.probe.check.port()).await {
            Ok(connecting) => connecting,
            Err(error) => {
                let word = self.kind.word();
                tracing::debug!(revision = %self.revision.key, instance = %self.instance.id, %error, "no socket for a {word} probe");
                return None;
            }
        };
        let limit = self.probe.timeout;
        let asked = timeout(limit, self.ask_over(connecting)).await;
        Some(asked.unwrap_or_else(|_| Err(format!("no answer within {}", seconds(limit)))))
    }

    async fn ask_over(&self, connecting: Connecting) -> Result<(), String> {
        let stream = connecting.await.map_err(|error| error.to_string())?;
        match &self.probe.check {
            HealthCheck::Http { path, headers, .. } => {
                let agent = self.kind.agent();
                let answered = probe::get(self.outside, stream, path, headers, agent).await;
                // Closed, not kept: invariant 2.
                answered.map(drop)
            }
            HealthCheck::Grpc { service, .. } => {
                let sender = self.instance.handshake_http2(stream).await;
                crate::grpc::check(sender.map_err(|error| error.to_string())?, service).await
            }
        }
    }

    /// A threshold was reached. `true`: nothing more is to be asked.
    fn turned(&self, turn: Turn, came_back: &str) -> bool {
        let id = &self.instance.id;
        let (probe, what) = (&self.probe, self.probe.check.describe());
        let word = self.kind.word();
        let failed = format!(
            "The {word} probe failed {}: {what}; the last time: {came_back}.",
            times(probe.failure_threshold)
        );
        match (self.kind, turn) {
            (Kind::Readiness, Turn::Failed) => {
                let until = times(probe.success_threshold);
                self.note(
                    Weight::Warning,
                    format!(
                        "{failed} The instance gets no new requests until it succeeds {until}."
                    ),
                );
                self.revision.set_readiness(id, Some(failed));
            }
            (Kind::Readiness, Turn::Recovered) => {
                let after = times(probe.success_threshold);
                self.note(
                    Weight::Info,
                    format!("The {word} probe succeeded {after}: {what}. The instance gets requests again."),
                );
                self.revision.set_readiness(id, None);
            }
            (Kind::Liveness, Turn::Failed) => {
                if self.revision.set_unhealthy(id, failed.clone()) {
                    self.instance.kill(Ending::Unhealthy);
                    self.note(
                        Weight::Error,
                        format!(
                            "{failed} The instance is ended, and requests inside it are answered 503. Another takes its place \
                             when it is needed."
                        ),
                    );
                }
                return true;
            }
            // It ended with its failure.
            (Kind::Liveness, Turn::Recovered) => {}
        }
        false
    }

    fn note(&self, weight: Weight, text: String) {
        tracing::info!(revision = %self.revision.key, instance = %self.instance.id, text, "a probe turned");
        self.outside.log.noticed(InstanceNote {
            at: self.outside.clock.wall(),
            revision: self.revision.key.clone(),
            instance: self.instance.id.clone(),
            weight,
            text,
        });
    }
}

fn times(count: u32) -> String {
    match count {
        0 | 1 => "once".to_owned(),
        count => format!("{count} times in a row"),
    }
}

fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}
