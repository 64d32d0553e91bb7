//! What a program is given: its arguments and its environment, as the kernel takes them.

use std::ffi::CString;

use super::program;
use crate::spawner::SpawnError;

pub(super) fn strings(field: &str, values: &[String]) -> Result<Vec<CString>, SpawnError> {
    values
        .iter()
        .map(|value| {
            CString::new(value.as_str()).map_err(|_| SpawnError::Invalid {
                field: field.to_owned(),
                why: format!("{value:?} contains a NUL character, which no program can be given"),
            })
        })
        .collect()
}

/// One entry per name, the last given; PATH and HOME filled in where nobody set them. Also answers PATH.
pub(super) fn environment(
    given: &[String],
    home: &str,
) -> Result<(Vec<CString>, String), SpawnError> {
    fn name(entry: &str) -> &str {
        entry.split_once('=').map_or(entry, |(name, _)| name)
    }
    let mut last: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for (index, entry) in given.iter().enumerate() {
        last.insert(name(entry), index);
    }
    let mut entries: Vec<String> = given
        .iter()
        .enumerate()
        .filter(|(index, entry)| last.get(name(entry)) == Some(index))
        .map(|(_, entry)| entry.clone())
        .collect();
    let path = match last
        .get("PATH")
        .and_then(|index| given[*index].split_once('='))
    {
        Some((_, path)) => path.to_owned(),
        None => {
            entries.push(format!("PATH={}", program::DEFAULT_PATH));
            program::DEFAULT_PATH.to_owned()
        }
    };
    if !last.contains_key("HOME") {
        entries.push(format!("HOME={home}"));
    }
    Ok((strings("env", &entries)?, path))
}
