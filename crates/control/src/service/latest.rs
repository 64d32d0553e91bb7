//! Which revision serves `latest`: what is stored, as `utsuwa_decide` judges it.

use utsuwa_decide::latest::{Latest, Standing, latest_ready};
use utsuwa_model::RevisionId;
use utsuwa_model::revision::Revision;
use utsuwa_model::service::Service;

/// What serves `latest` now.
pub(super) fn latest(
    service: &Service,
    revisions: &[Revision],
    current: Option<&RevisionId>,
) -> Latest {
    let ready: Vec<Standing> = revisions
        .iter()
        .filter(|r| r.can_serve())
        .map(|r| Standing {
            id: r.key.revision.clone(),
            generation: r.service_generation,
        })
        .collect();
    let standing = |id: &RevisionId, generation: u64| Standing {
        id: id.clone(),
        generation,
    };
    let status = &service.status;
    let current = current.map(|id| standing(id, service.meta.generation));
    let before = status.latest_ready.as_ref();
    let before = before.map(|id| standing(id, status.latest_ready_generation));
    latest_ready(&ready, current.as_ref(), before.as_ref())
}
