//! From the traffic a user wrote to revisions that requests go to (`cloud-run-spec.md` §1.6).
//!
//! Owns: resolving `latest`, summing shares, tags, and the rule that nothing is applied by halves. Deliberately not here:
//! host names and access (`control` knows the domain and the policy).
//!
//! Invariants:
//! 1. Shares sum to 100 and none is zero.
//! 2. Only revisions that can serve are named.
//! 3. If one target can't be resolved, nothing changes: the whole route stays where it was.

use std::collections::BTreeMap;

use utsuwa_model::RevisionId;
use utsuwa_model::service::TrafficTarget;

/// What is known of one revision of the service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servable {
    Ready,
    /// Still being proven.
    Pending,
    Failed,
}

/// One entry as really routed, in the user's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RoutedTarget {
    pub revision: RevisionId,
    pub latest: bool,
    pub percent: Option<u32>,
    pub tag: Option<String>,
}

/// The route as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Routing {
    pub targets: Vec<RoutedTarget>,
    /// By revision, in order of first mention; sums to 100.
    pub split: Vec<(RevisionId, u32)>,
    pub tags: BTreeMap<String, RevisionId>,
}

/// Why the route stays as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// True when waiting helps: the condition is Unknown, else False.
    pub waiting: bool,
    /// A reason of §1.8.
    pub reason: &'static str,
    pub message: String,
}

/// Resolves `targets` (empty: all to the latest). `service` names the configuration in messages.
///
/// # Errors
/// [`Held`]: a named revision is missing, pending or failed, or nothing is ready yet.
pub fn resolve(
    service: &str,
    targets: &[TrafficTarget],
    latest_ready: Option<&RevisionId>,
    revisions: &BTreeMap<RevisionId, Servable>,
) -> Result<Routing, Held> {
    let everything = [TrafficTarget {
        latest: true,
        percent: Some(100),
        ..TrafficTarget::default()
    }];
    let targets = if targets.is_empty() {
        &everything[..]
    } else {
        targets
    };
    let mut routing = Routing::default();
    for target in targets {
        let revision = revision_of(service, target, latest_ready, revisions)?;
        let percent = target.percent.unwrap_or(0);
        if percent > 0 {
            match routing.split.iter_mut().find(|(id, _)| *id == revision) {
                Some((_, share)) => *share += percent,
                None => routing.split.push((revision.clone(), percent)),
            }
        }
        if let Some(tag) = &target.tag {
            routing.tags.insert(tag.clone(), revision.clone());
        }
        routing.targets.push(RoutedTarget {
            revision,
            latest: target.latest || target.revision.is_none(),
            percent: target.percent,
            tag: target.tag.clone(),
        });
    }
    let sum: u32 = routing.split.iter().map(|(_, percent)| *percent).sum();
    if sum != 100 {
        let message = format!("Traffic targets sum to {sum}, want 100");
        return Err(Held {
            waiting: false,
            reason: "InvalidTraffic",
            message,
        });
    }
    Ok(routing)
}

fn revision_of(
    service: &str,
    target: &TrafficTarget,
    latest_ready: Option<&RevisionId>,
    revisions: &BTreeMap<RevisionId, Servable>,
) -> Result<RevisionId, Held> {
    let missing = |waiting, message| Held {
        waiting,
        reason: "RevisionMissing",
        message,
    };
    let Some(named) = target.revision.as_ref().filter(|_| !target.latest) else {
        return latest_ready.cloned().ok_or_else(|| {
            missing(
                true,
                format!("Configuration \"{service}\" is waiting for a Revision to become ready."),
            )
        });
    };
    match revisions.get(named) {
        Some(Servable::Ready) => Ok(named.clone()),
        Some(Servable::Pending) => Err(missing(
            true,
            format!("Revision \"{named}\" is not ready yet."),
        )),
        Some(Servable::Failed) => Err(missing(
            false,
            format!("Revision \"{named}\" failed to become ready."),
        )),
        None => Err(missing(
            false,
            format!("Revision \"{named}\" referenced in traffic not found."),
        )),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;

    fn id(name: &str) -> RevisionId {
        name.parse().unwrap()
    }

    fn to(revision: Option<&str>, percent: u32, tag: Option<&str>) -> TrafficTarget {
        TrafficTarget {
            revision: revision.map(id),
            latest: revision.is_none(),
            percent: (percent > 0).then_some(percent),
            tag: tag.map(str::to_owned),
        }
    }

    fn known() -> BTreeMap<RevisionId, Servable> {
        [
            ("a-1", Servable::Ready),
            ("a-2", Servable::Ready),
            ("a-3", Servable::Failed),
            ("a-4", Servable::Pending),
        ]
        .into_iter()
        .map(|(name, state)| (id(name), state))
        .collect()
    }

    #[test]
    fn nothing_written_means_all_to_the_latest_ready() {
        let routing = resolve("a", &[], Some(&id("a-2")), &known()).unwrap();
        assert_eq!(routing.split, [(id("a-2"), 100)]);
        assert_eq!(routing.targets[0].percent, Some(100));
        assert!(routing.targets[0].latest);
    }

    #[test]
    fn shares_of_one_revision_are_summed_and_tags_kept() {
        let targets = [
            to(Some("a-1"), 30, None),
            to(None, 60, Some("next")),
            to(Some("a-1"), 10, Some("old")),
            to(Some("a-2"), 0, Some("two")),
        ];
        let routing = resolve("a", &targets, Some(&id("a-2")), &known()).unwrap();
        assert_eq!(routing.split, [(id("a-1"), 40), (id("a-2"), 60)]);
        assert_eq!(
            routing.tags,
            BTreeMap::from([
                ("next".into(), id("a-2")),
                ("old".into(), id("a-1")),
                ("two".into(), id("a-2"))
            ])
        );
        assert_eq!(routing.targets.len(), 4, "the user's order and count stay");
    }

    #[test]
    fn one_bad_target_holds_the_whole_route() {
        for (target, latest, waiting, text) in [
            (
                to(Some("a-9"), 50, None),
                Some("a-2"),
                false,
                "Revision \"a-9\" referenced in traffic not found.",
            ),
            (
                to(Some("a-3"), 50, None),
                Some("a-2"),
                false,
                "Revision \"a-3\" failed to become ready.",
            ),
            (
                to(Some("a-4"), 50, None),
                Some("a-2"),
                true,
                "Revision \"a-4\" is not ready yet.",
            ),
            (
                to(None, 50, None),
                None,
                true,
                "Configuration \"a\" is waiting for a Revision to become ready.",
            ),
            (
                to(Some("a-2"), 49, None),
                Some("a-2"),
                false,
                "Traffic targets sum to 99, want 100",
            ),
        ] {
            let held = resolve(
                "a",
                &[to(Some("a-1"), 50, None), target],
                latest.map(id).as_ref(),
                &known(),
            )
            .unwrap_err();
            assert_eq!((held.waiting, held.message.as_str()), (waiting, text));
        }
    }
}
