//! Path, query and body become the request message. All three are first made one JSON value, so that one parser reads them.

use prost_reflect::{DynamicMessage, FieldDescriptor, Kind, MessageDescriptor};
use serde_json::{Map, Value};
use utsuwa_wire::json;
use utsuwa_wire::path::Bindings;
use utsuwa_wire::rules::{Body, Rule};

use crate::ApiError;
use crate::error::Code;

/// Builds the request of `rule`.
pub(super) fn request(
    rule: &Rule,
    path: &Bindings,
    query: &[(String, String)],
    body: &[u8],
) -> Result<DynamicMessage, ApiError> {
    let mut whole = Map::new();
    match &rule.body {
        Body::None => {
            // Some clients send `{}` with GET and DELETE.
            if !body.iter().all(u8::is_ascii_whitespace)
                && object(body)?.values().any(|v| !v.is_null())
            {
                return Err(ApiError::new(
                    Code::InvalidArgument,
                    "This method takes no body: its parameters belong in the query.",
                ));
            }
        }
        Body::Whole => whole = object(body)?,
        Body::Field(name) => {
            let field = rule.input.get_field_by_name(name);
            let key = field.map_or_else(|| name.clone(), |f| f.json_name().to_owned());
            whole.insert(key, Value::Object(object(body)?));
        }
    }
    for (name, value) in query {
        let taken = match &rule.body {
            Body::Whole => true,
            Body::Field(field) => name == field || name.starts_with(&format!("{field}.")),
            Body::None => false,
        };
        if taken {
            return Err(unknown_parameter(name));
        }
        insert(&rule.input, &mut whole, name, value, false)?;
    }
    for (field, value) in path {
        insert(&rule.input, &mut whole, field, value, true)?;
    }
    json::parse(&rule.input, &Value::Object(whole)).map_err(|error| {
        let prefix = match &rule.body {
            // The body is the resource itself: its fields are named from there.
            Body::Field(name) => rule
                .input
                .get_field_by_name(name)
                .map(|f| format!("{}.", f.json_name())),
            _ => None,
        };
        let field = prefix
            .and_then(|p| error.field.strip_prefix(&p).map(str::to_owned))
            .unwrap_or(error.field);
        ApiError::invalid(field, without_position(&error.why))
    })
}

fn object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Map::new());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(ApiError::new(
            Code::InvalidArgument,
            "Invalid JSON payload received: the body must be an object.",
        )),
        Err(error) => Err(ApiError::new(
            Code::InvalidArgument,
            format!("Invalid JSON payload received: {error}."),
        )),
    }
}

/// serde adds a position that speaks of our own intermediate text.
fn without_position(why: &str) -> &str {
    why.find(" at line ").map_or(why, |at| &why[..at])
}

/// Puts `value` where the dotted path `name` says. Path values win over what the body says; query values may not repeat
/// unless the field does.
fn insert(
    message: &MessageDescriptor,
    into: &mut Map<String, Value>,
    name: &str,
    value: &str,
    from_path: bool,
) -> Result<(), ApiError> {
    let (first, rest) = name
        .split_once('.')
        .map_or((name, None), |(f, r)| (f, Some(r)));
    let field = message
        .get_field_by_name(first)
        .or_else(|| message.get_field_by_json_name(first))
        .ok_or_else(|| unknown_parameter(name))?;
    // The body may use either spelling; keep one.
    if field.name() != field.json_name()
        && let Some(other) = into.remove(field.name())
    {
        into.entry(field.json_name().to_owned()).or_insert(other);
    }
    match (rest, field.kind()) {
        (Some(rest), Kind::Message(inner)) if !field.is_list() && !field.is_map() => {
            let slot = into
                .entry(field.json_name().to_owned())
                .or_insert_with(|| Value::Object(Map::new()));
            if slot.is_null() {
                *slot = Value::Object(Map::new());
            }
            match slot {
                Value::Object(object) => insert(&inner, object, rest, value, from_path),
                _ => Err(ApiError::invalid(first, "must be an object")),
            }
        }
        (Some(_), _) => Err(unknown_parameter(name)),
        (None, _) => {
            let parsed = scalar(&field, name, value)?;
            if field.is_list() {
                let list = into
                    .entry(field.json_name().to_owned())
                    .or_insert_with(|| Value::Array(Vec::new()));
                if let Value::Array(items) = list {
                    items.push(parsed);
                }
                return Ok(());
            }
            if into.contains_key(field.json_name()) && !from_path {
                return Err(ApiError::invalid(
                    name,
                    "is given twice but takes one value",
                ));
            }
            into.insert(field.json_name().to_owned(), parsed);
            Ok(())
        }
    }
}

/// Text as the JSON value that the field's parser expects.
fn scalar(field: &FieldDescriptor, name: &str, text: &str) -> Result<Value, ApiError> {
    match field.kind() {
        Kind::Bool => match text {
            "true" | "True" | "1" | "" => Ok(Value::Bool(true)),
            "false" | "False" | "0" => Ok(Value::Bool(false)),
            other => Err(ApiError::invalid(
                name,
                format!("{other:?} is not true or false"),
            )),
        },
        // Numbers may be text in proto3 JSON, and enums may be numbers.
        Kind::Enum(_) => Ok(text
            .parse::<i32>()
            .map_or_else(|_| Value::from(text), Value::from)),
        Kind::Message(inner) => match inner.full_name() {
            "google.protobuf.FieldMask" => Ok(Value::from(mask_in_json(text))),
            "google.protobuf.Timestamp" | "google.protobuf.Duration" => Ok(Value::from(text)),
            _ => Err(unknown_parameter(name)),
        },
        _ => Ok(Value::from(text)),
    }
}

/// Masks come in both spellings; the JSON parser reads camelCase.
fn mask_in_json(text: &str) -> String {
    let mut camel = String::with_capacity(text.len());
    let mut raise = false;
    for c in text.chars() {
        match c {
            '_' => raise = true,
            c if raise => {
                camel.push(c.to_ascii_uppercase());
                raise = false;
            }
            c => camel.push(c),
        }
    }
    camel
}

fn unknown_parameter(name: &str) -> ApiError {
    ApiError::invalid(
        name,
        format!(
            "Invalid query parameter: Unknown name \"{name}\": Cannot bind query parameter. This method has no such field."
        ),
    )
}
