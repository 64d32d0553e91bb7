//! JSON columns and integers on their way in and out.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::StoreError;

/// A value as a JSON column.
pub(crate) fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value)
        .map_err(|e| StoreError::unreadable("a value can't be written as JSON", &e))
}

/// A JSON column as a value. `what` names the row for the error text.
pub(crate) fn parse<T: DeserializeOwned>(text: &str, what: &str) -> Result<T, StoreError> {
    serde_json::from_str(text).map_err(|e| StoreError::unreadable(what, &e))
}

/// Generations fit: they count changes made by people and programs.
pub(crate) fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// Parses a key column.
pub(crate) fn name<T: std::str::FromStr<Err = utsuwa_model::name::NameError>>(
    text: &str,
) -> Result<T, StoreError> {
    text.parse()
        .map_err(|e| StoreError::unreadable("a name", &e))
}
