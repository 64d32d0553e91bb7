//! The defaults of a service's template: filled in where it is shown, as Cloud Run does, and taken out again where a client
//! sends back what it was shown. What is stored stays as the user wrote it.
//!
//! Invariant: `without_echoes(t, shown(t)) == t`, and what was written is shown as it was written.

use utsuwa_model::service::{Container, RevisionTemplate};

/// What an answer shows of a template.
pub(super) fn shown(template: &RevisionTemplate) -> RevisionTemplate {
    let (full, mut out) = (template.defaulted(), template.clone());
    out.concurrency = out.concurrency.or(full.concurrency);
    out.timeout_secs = out.timeout_secs.or(full.timeout_secs);
    for (container, full) in out.containers.iter_mut().zip(full.containers) {
        for (name, limit) in full.limits {
            // One CPU as Cloud Run writes it.
            let limit = if name == "cpu" && limit == "1" {
                "1000m".to_owned()
            } else {
                limit
            };
            container.limits.entry(name).or_insert(limit);
        }
        if container.ports.is_empty() {
            container.ports = full.ports;
        }
        if template.health_check_disabled != Some(true) {
            container.startup_probe = container.startup_probe.take().or(full.startup_probe);
        }
    }
    out
}

/// `new` without what only we had written into the answer about `old`: it was not asked for, and must not stay when what it
/// was made from changes.
pub(super) fn without_echoes(
    old: &RevisionTemplate,
    mut new: RevisionTemplate,
) -> RevisionTemplate {
    let (told, port) = (shown(old), old.port());
    if old.concurrency.is_none() && new.concurrency == told.concurrency {
        new.concurrency = None;
    }
    if old.timeout_secs.is_none() && new.timeout_secs == told.timeout_secs {
        new.timeout_secs = None;
    }
    // Which of several takes requests is told by its port: there it isn't an echo.
    let alone = new.containers.len() == 1;
    let ingress = new.ingress_index();
    for (index, container) in new.containers.iter_mut().enumerate() {
        let Some(before) = counterpart(old, container, index == ingress) else {
            continue;
        };
        let (old, told) = (&old.containers[before], &told.containers[before]);
        container.limits.retain(|name, limit| {
            old.limits.contains_key(name) || told.limits.get(name) != Some(limit)
        });
        if alone && old.ports.is_empty() && container.ports == told.ports {
            container.ports.clear();
        }
        let probe = container.startup_probe.as_ref();
        if old.startup_probe.is_none() && probe.map(|p| p.defaulted(port)) == told.startup_probe {
            container.startup_probe = None;
        }
    }
    new
}

/// Which container of `old` this one was: that of its name; a nameless one was the only one, and takes requests now.
fn counterpart(old: &RevisionTemplate, container: &Container, ingress: bool) -> Option<usize> {
    let all = &old.containers;
    let alone = all.len() == 1 && (all[0].name.is_empty() || container.name.is_empty());
    if alone {
        return ingress.then_some(0);
    }
    all.iter().position(|one| one.name == container.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(limits: &[(&str, &str)]) -> RevisionTemplate {
        let limits = limits.iter();
        RevisionTemplate {
            containers: vec![Container {
                image: "utsuwa.local/hello".to_owned(),
                limits: limits
                    .map(|(name, limit)| ((*name).to_owned(), (*limit).to_owned()))
                    .collect(),
                ..Container::default()
            }],
            ..RevisionTemplate::default()
        }
    }

    #[test]
    fn defaults_are_shown_and_never_stay() {
        let bare = template(&[]);
        let told = shown(&bare);
        assert_eq!((told.concurrency, told.timeout_secs), (Some(80), Some(300)));
        let container = &told.containers[0];
        assert_eq!(container.limits["cpu"], "1000m");
        assert_eq!(container.limits["memory"], "512Mi");
        assert_eq!(container.ports[0].container_port, 8080);
        assert!(container.startup_probe.is_some());
        assert_eq!(without_echoes(&bare, told.clone()), bare);

        // What was written is shown as it was, and stays.
        let written = template(&[("cpu", "1")]);
        assert_eq!(shown(&written).containers[0].limits["cpu"], "1");
        assert_eq!(without_echoes(&written, shown(&written)), written);

        // With half a CPU the concurrency of the answer before would be refused.
        let mut changed = told;
        let limits = &mut changed.containers[0].limits;
        limits.insert("cpu".to_owned(), "500m".to_owned());
        let kept = without_echoes(&bare, changed);
        assert_eq!(kept, template(&[("cpu", "500m")]));
        assert_eq!(kept.effective_concurrency(), 1);
    }

    #[test]
    fn a_container_beside_what_was_shown_keeps_it_apart_by_its_port() {
        let bare = template(&[]);
        let mut new = shown(&bare);
        new.containers[0].name = "app".to_owned();
        let side = Container {
            name: "side".to_owned(),
            ..bare.containers[0].clone()
        };
        for first in [false, true] {
            let mut new = new.clone();
            new.containers.insert(usize::from(!first), side.clone());
            let kept = without_echoes(&bare, new);
            let app = &kept.containers[usize::from(first)];
            assert_eq!((app.name.as_str(), app.ports.len()), ("app", 1));
            assert!(app.limits.is_empty() && app.startup_probe.is_none());
            assert_eq!(kept.containers[usize::from(!first)], side);
        }
    }
}
