//! Rules of traffic (§1.6).

use std::collections::BTreeMap;

use super::{Context, dns_1035};
use crate::Violations;
use crate::service::Service;

/// Characters of tag and service name together: with `---` between them they stay one DNS label.
const TAG_AND_NAME: usize = 46;

/// What is wrong with `tag` as a name for revisions of `service`: the rule that it breaks.
#[must_use]
pub fn tag_problem(tag: &str, service: &str) -> Option<String> {
    dns_1035(tag, 63).or_else(|| {
        (tag.len() + service.len() > TAG_AND_NAME).then(|| {
            format!(
                "tag and service name may have {TAG_AND_NAME} characters together, {tag:?} and {service:?} have more"
            )
        })
    })
}

pub(super) fn check(service: &Service, context: &Context<'_>, found: &mut Violations) {
    let traffic = &service.spec.traffic;
    if traffic.is_empty() {
        return;
    }
    let mut tags: BTreeMap<&str, usize> = BTreeMap::new();
    let mut sum: u64 = 0;
    for (index, target) in traffic.iter().enumerate() {
        let at = |field: &str| format!("traffic[{index}].{field}");
        let percent = target.percent.unwrap_or(0);
        sum += u64::from(percent);
        if percent > 100 {
            found.add(at("percent"), format!("expected 0 <= {percent} <= 100"));
        }
        match (&target.revision, target.latest) {
            (Some(revision), true) => {
                found.add(
                    at("revision"),
                    format!(
                        "may not set revisionName {:?} when latestRevision is true",
                        revision.as_str()
                    ),
                );
            }
            (None, false) => found.add(
                at("revision"),
                "missing: name a revision or set latestRevision to true",
            ),
            // A client may name in one request both a new revision and its share of the traffic.
            (Some(revision), false) => {
                let asked_for = service.spec.template.revision.as_ref() == Some(revision);
                if !asked_for && !context.has_revision(revision) {
                    found.add(
                        at("revision"),
                        format!(
                            "Revision {:?} referenced in traffic not found in service {:?}.",
                            revision.as_str(),
                            service.key.service.as_str()
                        ),
                    );
                }
            }
            (None, true) => {}
        }
        let Some(tag) = target.tag.as_deref().filter(|t| !t.is_empty()) else {
            continue;
        };
        if let Some(problem) = tag_problem(tag, service.key.service.as_str()) {
            found.add(at("tag"), problem);
        }
        if let Some(first) = tags.insert(tag, index) {
            found.add(
                format!("traffic[{first}].tag"),
                format!("Multiple definitions for {tag:?}"),
            );
            found.add(at("tag"), format!("Multiple definitions for {tag:?}"));
        }
    }
    if sum != 100 {
        found.add("traffic", format!("Traffic targets sum to {sum}, want 100"));
    }
}
