//! Field masks: which fields of a message a request means.
//!
//! Paths are proto names (`template.containers`, `labels.team`); in JSON they come in camelCase and are mapped by the JSON
//! parser. `*` means everything. A path may end in a map's key, not in a list's index.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage, Value};

/// A path that names no field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path:?} {why}")]
pub struct MaskError {
    pub path: String,
    pub why: String,
}

/// Copies what `paths` name from `from` into `into` (both of one type): set fields are replaced, unset ones cleared.
///
/// # Errors
/// When a path names no field; `into` may then be half changed, so use a copy.
pub fn apply(
    paths: &[String],
    from: &DynamicMessage,
    into: &mut DynamicMessage,
) -> Result<(), MaskError> {
    for path in paths {
        if path == "*" {
            into.clone_from(from);
            continue;
        }
        let parts: Vec<&str> = path.split('.').collect();
        copy(path, &parts, from, into)?;
    }
    Ok(())
}

fn copy(
    path: &str,
    parts: &[&str],
    from: &DynamicMessage,
    into: &mut DynamicMessage,
) -> Result<(), MaskError> {
    let error = |why: String| MaskError {
        path: path.to_owned(),
        why,
    };
    let Some((first, rest)) = parts.split_first() else {
        return Ok(());
    };
    let field = into
        .descriptor()
        .get_field_by_name(first)
        .or_else(|| into.descriptor().get_field_by_json_name(first))
        .ok_or_else(|| {
            error(format!(
                "names no field: {} has no field {first:?}",
                into.descriptor().name()
            ))
        })?;
    if rest.is_empty() {
        if from.has_field(&field) {
            into.set_field(&field, from.get_field(&field).into_owned());
        } else {
            into.clear_field(&field);
        }
        return Ok(());
    }
    if field.is_map() {
        return copy_key(&error, &field, rest, from, into);
    }
    match field.kind() {
        Kind::Message(inner) if !field.is_list() => {
            let source = from.get_field(&field);
            let empty = DynamicMessage::new(inner);
            let source = source.as_message().unwrap_or(&empty);
            // An untouched nested message must not appear just because a mask named one of its unset fields.
            let present = from.has_field(&field) || into.has_field(&field);
            let mut target = into.get_field(&field).into_owned();
            let Some(message) = target.as_message_mut() else {
                return Ok(());
            };
            copy(path, rest, source, message)?;
            if present {
                into.set_field(&field, target);
            }
            Ok(())
        }
        _ => Err(error(format!(
            "goes too deep: {first:?} has no fields; name {first:?} itself"
        ))),
    }
}

fn copy_key(
    error: &impl Fn(String) -> MaskError,
    field: &FieldDescriptor,
    rest: &[&str],
    from: &DynamicMessage,
    into: &mut DynamicMessage,
) -> Result<(), MaskError> {
    // Keys of labels and annotations contain dots themselves, so all that is left is the key.
    let key = rest.join(".");
    let key = MapKey::String(key.trim_matches('`').to_owned());
    let source = from.get_field(field);
    let value = source.as_map().and_then(|m| m.get(&key)).cloned();
    let mut target = into.get_field(field).into_owned();
    let Value::Map(map) = &mut target else {
        return Err(error(
            "names a key of something that isn't a map".to_owned(),
        ));
    };
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
    into.set_field(field, target);
    Ok(())
}

#[cfg(test)]
mod tests;
