//! Proto3 JSON for messages known by descriptor.
//!
//! Unknown fields are ignored: clients newer than this server must not fail for a field they merely mention. A known field of
//! the wrong type is an error that names the field.

use prost_reflect::{
    DescriptorPool, DeserializeOptions, DynamicMessage, FieldDescriptor, Kind, MessageDescriptor,
    SerializeOptions,
};
use serde_json::Value;

/// How JSON is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Style {
    /// Enum values by number instead of by name (`$alt=json;enum-encoding=int`).
    pub enum_numbers: bool,
}

/// JSON that doesn't fit the message. `field` is a path in JSON spelling; empty for the message as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct JsonError {
    pub field: String,
    pub why: String,
}

/// Reads a message.
///
/// # Errors
/// When a field has the wrong type or an unknown enum value.
pub fn parse(descriptor: &MessageDescriptor, value: &Value) -> Result<DynamicMessage, JsonError> {
    known_enum_values(descriptor, value, "")?;
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    DynamicMessage::deserialize_with_options(descriptor.clone(), value, &options).map_err(|error| {
        let mut found = JsonError {
            field: String::new(),
            why: error.to_string(),
        };
        locate(descriptor, value, &mut found);
        found
    })
}

/// Writes a message.
///
/// # Errors
/// When an `Any` holds a message that `proto/` doesn't describe, or a time is out of range.
pub fn render(message: &DynamicMessage, style: Style) -> Result<Value, JsonError> {
    let options = SerializeOptions::new().use_enum_numbers(style.enum_numbers);
    message
        .serialize_with_options(serde_json::value::Serializer, &options)
        .map_err(|error| JsonError {
            field: String::new(),
            why: error.to_string(),
        })
}

/// Decodes the binary form of a message known by its type URL.
#[must_use]
pub fn decode_any(pool: &DescriptorPool, any: &prost_types::Any) -> Option<DynamicMessage> {
    let descriptor = pool.get_message_by_name(any.type_url.rsplit_once('/')?.1)?;
    DynamicMessage::decode(descriptor, any.value.as_slice()).ok()
}

/// Finds the innermost field that doesn't fit: the parser says what is wrong but not where.
fn locate(descriptor: &MessageDescriptor, value: &Value, found: &mut JsonError) {
    // Well-known types (timestamps, masks, …) are values, not objects.
    if descriptor.full_name().starts_with("google.protobuf.") {
        return;
    }
    let Value::Object(object) = value else { return };
    for (name, inner) in object {
        let Some(field) = descriptor
            .get_field_by_json_name(name)
            .or_else(|| descriptor.get_field_by_name(name))
        else {
            continue;
        };
        if let Err(why) = fits(descriptor, &field, inner) {
            if !found.field.is_empty() {
                found.field.push('.');
            }
            found.field.push_str(field.json_name());
            found.why = why;
            descend(descriptor, &field, inner, found);
            return;
        }
    }
}

fn descend(
    descriptor: &MessageDescriptor,
    field: &FieldDescriptor,
    value: &Value,
    found: &mut JsonError,
) {
    let inner = match field.kind() {
        Kind::Message(inner) => Some(inner),
        _ => None,
    };
    match value {
        Value::Array(items) if field.is_list() => {
            for (index, item) in items.iter().enumerate() {
                if let Err(why) = fits(descriptor, field, &Value::Array(vec![item.clone()])) {
                    found.field.push_str(&format!("[{index}]"));
                    found.why = why;
                    if let Some(inner) = inner {
                        locate(&inner, item, found);
                    }
                    return;
                }
            }
        }
        Value::Object(entries) if field.is_map() => {
            for (key, entry) in entries {
                let one = serde_json::Map::from_iter([(key.clone(), entry.clone())]);
                if let Err(why) = fits(descriptor, field, &Value::Object(one)) {
                    found.field.push_str(&format!("[{key:?}]"));
                    found.why = why;
                    return;
                }
            }
        }
        _ if !field.is_list() && !field.is_map() => {
            if let Some(inner) = inner {
                locate(&inner, value, found);
            }
        }
        _ => {}
    }
}

/// The lenient parser drops enum values that it doesn't know, as if they had not been sent. They are errors here.
fn known_enum_values(
    descriptor: &MessageDescriptor,
    value: &Value,
    path: &str,
) -> Result<(), JsonError> {
    let Value::Object(object) = value else {
        return Ok(());
    };
    for (name, inner) in object {
        let Some(field) = descriptor
            .get_field_by_json_name(name)
            .or_else(|| descriptor.get_field_by_name(name))
        else {
            continue;
        };
        let dot = if path.is_empty() { "" } else { "." };
        let path = format!("{path}{dot}{}", field.json_name());
        let items: Vec<(String, &Value)> = match inner {
            Value::Array(items) if field.is_list() => items
                .iter()
                .enumerate()
                .map(|(i, v)| (format!("{path}[{i}]"), v))
                .collect(),
            // Our maps hold text only.
            _ if field.is_map() => continue,
            one => vec![(path, one)],
        };
        for (path, item) in items {
            match (field.kind(), item) {
                (Kind::Enum(values), Value::String(text))
                    if values.get_value_by_name(text).is_none() =>
                {
                    let names: Vec<String> = values.values().map(|v| v.name().to_owned()).collect();
                    let why = format!(
                        "{text:?} is not a value of {}: one of {} is",
                        values.name(),
                        names.join(", ")
                    );
                    return Err(JsonError { field: path, why });
                }
                (Kind::Message(inner), item) => known_enum_values(&inner, item, &path)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn fits(
    descriptor: &MessageDescriptor,
    field: &FieldDescriptor,
    value: &Value,
) -> Result<(), String> {
    let alone = Value::Object(serde_json::Map::from_iter([(
        field.json_name().to_owned(),
        value.clone(),
    )]));
    let options = DeserializeOptions::new().deny_unknown_fields(false);
    match DynamicMessage::deserialize_with_options(descriptor.clone(), &alone, &options) {
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
