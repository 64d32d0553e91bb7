//! Partial responses: `fields=services(name,template/containers/image),nextPageToken`.

use std::collections::BTreeMap;

use serde_json::Value;

/// Which fields are wanted. A field without selection of its own is wanted whole.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Selection {
    wanted: BTreeMap<String, Option<Selection>>,
}

/// Deeper than any message of ours; keeps a hostile query from exhausting the stack.
const MAX_DEPTH: usize = 32;

impl Selection {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text;
        let selection = list(&mut rest, 0)?;
        if rest.is_empty() {
            Ok(selection)
        } else {
            Err(format!("is not a field list: unexpected {rest:?}"))
        }
    }

    /// Leaves only what is wanted.
    pub(super) fn apply(&self, value: &mut Value) {
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| self.apply(item)),
            Value::Object(object) => {
                object.retain(|name, inner| {
                    match self.wanted.get(name).or_else(|| self.wanted.get("*")) {
                        Some(Some(deeper)) => {
                            deeper.apply(inner);
                            true
                        }
                        Some(None) => true,
                        None => false,
                    }
                });
            }
            _ => {}
        }
    }

    fn add(&mut self, name: String, deeper: Option<Self>) {
        match (self.wanted.get_mut(&name), deeper) {
            (Some(Some(there)), Some(more)) => {
                for (name, deeper) in more.wanted {
                    there.add(name, deeper);
                }
            }
            // Wanted whole is wanted whole.
            (Some(_), None) => {
                self.wanted.insert(name, None);
            }
            (Some(None), Some(_)) => {}
            (None, deeper) => {
                self.wanted.insert(name, deeper);
            }
        }
    }
}

fn list(rest: &mut &str, depth: usize) -> Result<Selection, String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH} levels"));
    }
    let mut selection = Selection::default();
    loop {
        let (name, deeper) = item(rest, depth)?;
        selection.add(name, deeper);
        match rest.strip_prefix(',') {
            Some(after) => *rest = after,
            None => return Ok(selection),
        }
    }
}

fn item(rest: &mut &str, depth: usize) -> Result<(String, Option<Selection>), String> {
    if depth > MAX_DEPTH {
        return Err(format!("is nested deeper than {MAX_DEPTH} levels"));
    }
    let end = rest
        .find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '*' || c == '@'))
        .unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    if name.is_empty() {
        return Err(format!(
            "is not a field list: a field name is missing before {after:?}"
        ));
    }
    *rest = after;
    let deeper = if let Some(after) = rest.strip_prefix('/') {
        *rest = after;
        let (name, deeper) = item(rest, depth + 1)?;
        let mut one = Selection::default();
        one.add(name, deeper);
        Some(one)
    } else if let Some(after) = rest.strip_prefix('(') {
        *rest = after;
        let inner = list(rest, depth + 1)?;
        *rest = rest
            .strip_prefix(')')
            .ok_or_else(|| "is not a field list: a ( is never closed".to_owned())?;
        Some(inner)
    } else {
        None
    };
    Ok((name.to_owned(), deeper))
}
