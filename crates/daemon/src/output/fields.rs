//! What `--format value(PATH)` says of a path that leads nowhere: a blank line alone looks like an empty value.

use std::collections::BTreeSet;

use serde_json::Value;

use super::step;

/// How far `path` leads in `items`, and the names there are from there on, if none of them has anything there. Without items nothing
/// is known.
pub(super) fn missing(items: &[Value], path: &str) -> Option<String> {
    let mut at: Vec<&Value> = items.iter().collect();
    let mut known = Vec::new();
    for part in path.split('.') {
        let next: Vec<&Value> = at
            .iter()
            .copied()
            .map(|value| step(value, part))
            .filter(|value| !value.is_null())
            .collect();
        if next.is_empty() {
            return (!at.is_empty()).then(|| told(path, &known.join("."), &at));
        }
        known.push(part);
        at = next;
    }
    None
}

fn told(path: &str, known: &str, at: &[&Value]) -> String {
    let place = match known {
        "" => String::new(),
        known => format!(" below {known}"),
    };
    let names = names(at);
    if names.is_empty() {
        return format!("nothing has {path}: there are no fields{place}");
    }
    let names: Vec<String> = names.into_iter().collect();
    format!("nothing has {path}; there is{place}: {}", names.join(", "))
}

/// The fields of all, or the places of lists.
fn names(at: &[&Value]) -> BTreeSet<String> {
    let of = |value: &&Value| -> Vec<String> {
        match value {
            Value::Object(fields) => fields.keys().cloned().collect(),
            Value::Array(list) => (0..list.len()).map(|place| place.to_string()).collect(),
            _ => Vec::new(),
        }
    };
    at.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_path_that_leads_nowhere_is_told_with_the_names_there_are() {
        let items = [
            json!({"name": "a", "uri": "http://a", "template": {"containers": [{"image": "x"}]}}),
            json!({"name": "b", "description": "", "template": {}}),
        ];
        for (path, told) in [
            ("name", None),
            // One of them has it.
            ("description", None),
            ("template.containers.0.image", None),
            (
                "metadata.name",
                Some("nothing has metadata.name; there is: description, name, template, uri"),
            ),
            (
                "template.image",
                Some("nothing has template.image; there is below template: containers"),
            ),
            (
                "template.containers.1.image",
                Some(
                    "nothing has template.containers.1.image; there is below template.containers: 0",
                ),
            ),
            (
                "name.first",
                Some("nothing has name.first: there are no fields below name"),
            ),
        ] {
            assert_eq!(missing(&items, path).as_deref(), told, "{path}");
        }
        assert_eq!(missing(&[], "name"), None);
    }
}
