//! What the loops know, as the API shows it.

use std::sync::Arc;

use utsuwa_api::seam::{InstanceInsight, LoopInsight, RevisionInsight};
use utsuwa_control::ControlHandle;
use utsuwa_ingress::Ingress;
use utsuwa_model::ServiceKey;
use utsuwa_runtime::Driver;

use super::journal::Journal;
use super::metrics;

#[derive(Debug, Clone)]
pub(super) struct Insight {
    pub(super) control: ControlHandle,
    pub(super) driver: Arc<dyn Driver>,
    pub(super) ingress: Ingress,
    pub(super) journal: Journal,
}

/// Which revision an instance that runs is of.
#[derive(Debug, Clone)]
pub(super) struct Running(pub(super) super::internal::Directory);

impl super::instance_logs::Revisions for Running {
    fn revision(&self, instance: &utsuwa_model::InstanceId) -> Option<String> {
        self.0.revision(instance).map(|r| r.revision.to_string())
    }
}

impl utsuwa_api::seam::Insight for Insight {
    fn explain(&self, service: &ServiceKey) -> Vec<RevisionInsight> {
        self.control
            .explain(service)
            .into_iter()
            .map(|revision| RevisionInsight {
                revision: revision.revision,
                percent: revision.percent,
                in_flight: revision.in_flight,
                queued: revision.queued,
                instances: revision
                    .instances
                    .into_iter()
                    .map(|i| InstanceInsight {
                        pid: if i.pid == 0 {
                            self.driver.pid(&i.id).unwrap_or(0)
                        } else {
                            i.pid
                        },
                        id: i.id,
                        state: i.state,
                        in_flight: i.in_flight,
                        started: i.started,
                        standing: i.standing,
                        failing: i.failing,
                    })
                    .collect(),
                because: revision.because,
                decided_at: revision.decided_at,
                last_failure: revision.last_failure,
                failures_in_a_row: revision.failures_in_a_row,
            })
            .collect()
    }

    fn metrics(&self) -> String {
        let mut text = self.ingress.metrics();
        metrics::of_server(&mut text, self.journal.lost());
        text
    }

    fn loops(&self) -> Vec<LoopInsight> {
        self.control
            .loops()
            .into_iter()
            .map(|l| LoopInsight {
                name: l.name,
                key: l.key,
                last_pass: l.last_pass,
                duration_us: l.duration_us,
                because: l.because,
                next_wake: l.next_wake,
                last_error: l.last_error,
            })
            .collect()
    }
}
