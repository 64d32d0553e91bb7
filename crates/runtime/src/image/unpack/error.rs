//! Why a layer could not be unpacked. Travels from the unpacking process to the server as a value.

use std::io;

use serde::{Deserialize, Serialize};

use crate::image::digest::Digest;
use crate::image::error::{ErrorClass, room};

/// Why a layer could not be unpacked. Nothing of the layer is to be used then.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum UnpackError {
    /// One entry must not or can't be made.
    #[error("entry '{name}': {problem}")]
    Entry { name: String, problem: EntryProblem },
    #[error(
        "the content is {found}, but the image's configuration names {expected}; rebuild or push the image again"
    )]
    DiffId { expected: Digest, found: Digest },
    /// Not a tar archive, or the compression is broken.
    #[error("not a readable archive: {why}")]
    Format { why: String },
    #[error("it unpacks to more than {limit} bytes, the most this server accepts")]
    TooLarge { limit: u64 },
    #[error(
        "{compressed} bytes unpack to more than {unpacked} bytes; this looks like a decompression bomb and is refused"
    )]
    Ratio { compressed: u64, unpacked: u64 },
    #[error("it holds more than {limit} entries, the most this server accepts")]
    TooManyEntries { limit: u64 },
    #[error(
        "only {available} bytes are free on the disk of the image store, and {reserve} are kept in reserve; free some space"
    )]
    DiskReserve { available: u64, reserve: u64 },
    #[error(
        "only {available} inodes (files and directories) are free on the disk of the image store, and {reserve} are kept in \
         reserve; delete files there (`df -i` counts them)"
    )]
    InodeReserve { available: u64, reserve: u64 },
    /// The kernel refused.
    #[error("{call} '{name}': {}{}", system(*.errno), room(system(*.errno).kind()))]
    Sys {
        call: String,
        name: String,
        errno: i32,
    },
    /// The process that unpacks found the layer wrong; its words.
    #[error("{why}")]
    Refused { why: String },
    /// The process that unpacks ran out of something; its words.
    #[error("{why}")]
    Exhausted { why: String },
    /// The process that unpacks could not be started or did not answer.
    #[error("the unpacking process is not available: {why}")]
    Unavailable { why: String },
}

fn system(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

/// What is wrong with an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum EntryProblem {
    #[error("its name contains '..' and could leave the layer")]
    ParentDirectory,
    #[error("its name is absolute and could leave the layer")]
    Absolute,
    #[error("its name is empty or not a name")]
    BadName,
    #[error("its name is longer than the system allows")]
    TooLong,
    #[error("a part of its path is a symbolic link of the same layer")]
    ThroughSymlink,
    #[error("a part of its path is not a directory")]
    NotADirectory,
    #[error("it is a hard link to the absolute path '{target}', which could leave the layer")]
    AbsoluteLink { target: String },
    #[error("it is a hard link to '{target}', which could leave the layer")]
    EscapingLink { target: String },
    #[error("it is a hard link to '{target}', which is not in the layer")]
    MissingLink { target: String },
    #[error("it is the whiteout of something that has no name")]
    BadWhiteout,
    #[error("the map of its holes is not valid")]
    BadSparseMap,
}

impl UnpackError {
    /// What a caller can do about it.
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Entry { .. }
            | Self::DiffId { .. }
            | Self::Format { .. }
            | Self::TooLarge { .. }
            | Self::Ratio { .. }
            | Self::TooManyEntries { .. }
            | Self::Refused { .. } => ErrorClass::Caller,
            Self::DiskReserve { .. } | Self::InodeReserve { .. } | Self::Exhausted { .. } => {
                ErrorClass::Exhausted
            }
            Self::Sys { errno, .. } => match *errno {
                libc::ENOSPC | libc::EDQUOT => ErrorClass::Exhausted,
                _ => ErrorClass::Internal,
            },
            Self::Unavailable { .. } => ErrorClass::Unavailable,
        }
    }

    pub(crate) fn format(why: impl ToString) -> Self {
        Self::Format {
            why: why.to_string(),
        }
    }
}

/// A name for messages: control characters escaped, at most 200 characters.
pub(crate) fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    let mut short: String = text
        .chars()
        .take(200)
        .flat_map(char::escape_debug)
        .collect();
    if text.chars().nth(200).is_some() {
        short.push('…');
    }
    short
}
