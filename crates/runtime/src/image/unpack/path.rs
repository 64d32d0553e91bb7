//! Names of entries, judged and taken apart before the kernel sees them.

use super::error::{EntryProblem, UnpackError, printable};

/// `PATH_MAX` without its NUL.
const MAX_PATH_BYTES: usize = 4_095;
const MAX_NAME_BYTES: usize = 255;

/// The path without empty and `.` components; empty for the root.
pub(super) fn normal_path(name: &[u8]) -> Result<Vec<u8>, UnpackError> {
    let problem = |problem| UnpackError::Entry {
        name: printable(name),
        problem,
    };
    let mut path = Vec::with_capacity(name.len());
    if name.contains(&0) || name.is_empty() {
        return Err(problem(EntryProblem::BadName));
    }
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => continue,
            b".." => return Err(problem(EntryProblem::ParentDirectory)),
            _ if part.len() > MAX_NAME_BYTES => return Err(problem(EntryProblem::TooLong)),
            _ => {}
        }
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(part);
    }
    if name[0] == b'/' && !path.is_empty() {
        return Err(problem(EntryProblem::Absolute));
    }
    if path.len() > MAX_PATH_BYTES {
        return Err(problem(EntryProblem::TooLong));
    }
    Ok(path)
}

pub(super) fn base_name(path: &[u8]) -> Option<&[u8]> {
    path.rsplit(|byte| *byte == b'/')
        .next()
        .filter(|name| !name.is_empty())
}

pub(super) fn directory_of(path: &[u8]) -> &[u8] {
    path.iter()
        .rposition(|byte| *byte == b'/')
        .map_or(&[], |slash| &path[..slash])
}

pub(super) fn join(directory: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = directory.to_vec();
    if !path.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
