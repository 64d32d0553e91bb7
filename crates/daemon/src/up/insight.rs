//! What the loops know, as the API shows it.

use utsuwa_api::seam::{InstanceInsight, LoopInsight, RevisionInsight};
use utsuwa_control::ControlHandle;
use utsuwa_model::ServiceKey;

#[derive(Debug, Clone)]
pub(super) struct Insight {
    pub(super) control: ControlHandle,
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
                    .map(|i| InstanceInsight { id: i.id, state: i.state, pid: i.pid, in_flight: i.in_flight, started: i.started })
                    .collect(),
                because: revision.because,
            })
            .collect()
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
