//! Which old revisions are forgotten.
//!
//! Invariant: a routed, latest or kept revision never is.

use std::collections::BTreeSet;

use utsuwa_model::service::Meta;
use utsuwa_model::{RevisionId, Timestamp};

/// Revisions kept per service (§1.3, quotas).
pub const KEPT_REVISIONS: usize = 1000;

/// One revision, as the collector sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aged {
    pub id: RevisionId,
    pub created: Timestamp,
    /// `serving.knative.dev/no-gc`.
    pub kept: bool,
    pub running: bool,
}

impl Aged {
    /// From what is stored.
    #[must_use]
    pub fn of(id: &RevisionId, meta: &Meta, no_gc: bool, running: bool) -> Self {
        Self {
            id: id.clone(),
            created: meta.create_time,
            kept: no_gc,
            running,
        }
    }
}

/// The revisions to delete so that at most `limit` are left: oldest first, never one in `needed` (routed, tagged, latest),
/// kept or running.
#[must_use]
pub fn collect(revisions: &[Aged], needed: &BTreeSet<RevisionId>, limit: usize) -> Vec<RevisionId> {
    let surplus = revisions.len().saturating_sub(limit);
    let mut spare: Vec<&Aged> = revisions
        .iter()
        .filter(|r| !needed.contains(&r.id) && !r.kept && !r.running)
        .collect();
    spare.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.id.cmp(&b.id)));
    spare
        .into_iter()
        .take(surplus)
        .map(|r| r.id.clone())
        .collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    #[test]
    fn collects_the_oldest_spare_ones_only() {
        let aged = |n: u32, kept, running| Aged {
            id: format!("a-{n}").parse().unwrap(),
            created: Timestamp(i64::from(n)),
            kept,
            running,
        };
        let all = [
            aged(1, false, false),
            aged(2, true, false),
            aged(3, false, true),
            aged(4, false, false),
            aged(5, false, false),
        ];
        let needed = BTreeSet::from(["a-1".parse().unwrap()]);
        let names = |limit| {
            collect(&all, &needed, limit)
                .iter()
                .map(ToString::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(names(5), Vec::<String>::new());
        assert_eq!(names(4), ["a-4"]);
        assert_eq!(
            names(1),
            ["a-4", "a-5"],
            "never the needed, kept or running ones"
        );
    }
}
