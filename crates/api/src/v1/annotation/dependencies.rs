//! What the containers of a template wait for: an annotation in v1, a field of each container in v2 (§1.5).
//!
//! Kept as written for as long as it means what the fields say, like the other annotations.

use std::collections::BTreeMap;

use utsuwa_model::Violations;
use utsuwa_model::service::{Container, RevisionTemplate};

use super::Annotations;

const NAME: &str = "run.googleapis.com/container-dependencies";

/// By container: what it depends on.
type Dependencies = BTreeMap<String, Vec<String>>;

/// Takes them out of the template's annotations. After its containers were read.
pub(in crate::v1) fn read(template: &mut RevisionTemplate, found: &mut Violations) {
    let Some(text) = template
        .annotations
        .get(NAME)
        .filter(|text| !text.is_empty())
    else {
        return;
    };
    let field = format!("spec.template.metadata.annotations[{NAME}]");
    let Ok(mut given) = serde_json::from_str::<Dependencies>(text) else {
        let problem =
            "must be a JSON object of lists of container names, like {\"app\":[\"side\"]}";
        return found.add(field, problem);
    };
    for container in &mut template.containers {
        container.depends_on = given.remove(&container.name).unwrap_or_default();
    }
    for name in given.keys() {
        found.add(&field, format!("{name:?} is no container of this revision"));
    }
    if template.annotations.get(NAME) == canonical(&template.containers).as_ref() {
        template.annotations.remove(NAME);
    }
}

/// Puts them into `annotations`, which may have them in other words.
pub(super) fn write(annotations: &mut Annotations, containers: &[Container]) {
    let stored = annotations.get(NAME).map(|text| serde_json::from_str(text));
    let actual = of(containers);
    if stored.is_some_and(|stored| stored.is_ok_and(|stored: Dependencies| same(&stored, &actual)))
    {
        return;
    }
    match canonical(containers) {
        Some(text) => annotations.insert(NAME.to_owned(), text),
        None => annotations.remove(NAME),
    };
}

fn same(stored: &Dependencies, actual: &Dependencies) -> bool {
    let some = |all: &Dependencies| {
        let mut all = all.clone();
        all.retain(|_, names| !names.is_empty());
        all
    };
    some(stored) == some(actual)
}

fn of(containers: &[Container]) -> Dependencies {
    let with = containers.iter().filter(|one| !one.depends_on.is_empty());
    with.map(|one| (one.name.clone(), one.depends_on.clone()))
        .collect()
}

fn canonical(containers: &[Container]) -> Option<String> {
    let all = of(containers);
    (!all.is_empty()).then(|| serde_json::json!(all).to_string())
}
