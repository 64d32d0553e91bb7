//! Why the store didn't do what it was asked.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use utsuwa_model::{ServiceKey, Timestamp};

/// What a caller can do about an error, without reading its text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// What was asked for makes no sense (a page token of another list).
    Caller,
    NotFound,
    AlreadyExists,
    Conflict,
    /// The disk or the address range is full.
    Exhausted,
    /// Somebody else holds the data directory, or the server is going down.
    Unavailable,
    Internal,
}

/// Whether trying again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    Never,
    /// After reading again what has changed.
    AfterReading,
    /// After somebody made room or stopped the other server.
    Later,
}

/// Why the store didn't do what it was asked. Cheap to clone, since one failed commit fails every write of its group.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    #[error("{what} does not exist")]
    NotFound { what: String },
    #[error("{what} already exists")]
    AlreadyExists { what: String },
    /// A domain mapping has the host that a service needs.
    #[error("the address {host} of service {of} leads to service {to} by a domain mapping")]
    Mapped {
        host: String,
        of: Box<ServiceKey>,
        to: Box<ServiceKey>,
    },
    /// A domain that nobody can map.
    #[error("{host} is an address of service {of} itself")]
    OwnAddress { host: String, of: Box<ServiceKey> },
    #[error("{what}: version '{}' was specified but current version is '{}'", sent.0, now.0)]
    Conflict {
        what: String,
        sent: Timestamp,
        now: Timestamp,
    },
    #[error("the policy was changed by somebody else: read it again and repeat the change")]
    StaleEtag,
    #[error("{what} still has {children}")]
    Referenced { what: String, children: String },
    #[error(
        "{}: the database has schema {found}, this version of utsuwa knows {known} at most: it was written by a newer version. Start that \
         version, or restore a copy made before the upgrade, or use another --data-dir", path.display()
    )]
    Newer {
        found: i64,
        known: i64,
        path: PathBuf,
    },
    #[error(
        "{}: another server (process {pid}) uses this data directory. Stop it (`utsuwa down`) or choose another --data-dir",
        path.display()
    )]
    Locked { path: PathBuf, pid: String },
    #[error("{}: the disk is full; nothing was written. Make room and try again", path.display())]
    DiskFull { path: PathBuf },
    #[error(
        "{}: the database can't be read ({problem}). Nothing was changed. Restore a copy of it, or move it away to start anew (then \
         services must be deployed again)", path.display()
    )]
    Corrupt { path: PathBuf, problem: String },
    #[error("{}: {source}", path.display())]
    Io {
        path: PathBuf,
        source: Arc<std::io::Error>,
    },
    #[error("{}: {source}", path.display())]
    Sqlite {
        path: PathBuf,
        source: Arc<rusqlite::Error>,
    },
    #[error("the page token is not one of this list: start without one")]
    BadPageToken,
    #[error(
        "no free range of user ids is left ({used} in use): delete services that are no longer needed"
    )]
    NoUidRange { used: usize },
    #[error(
        "this data directory serves {frozen}; {wanted} was asked for. These never change: leave the option away or use another --data-dir"
    )]
    SettingsDiffer { frozen: String, wanted: String },
    #[error("the store is closing: the write was not made")]
    Closed,
    #[error("the write was abandoned by a bug in its caller: nothing was written")]
    Abandoned,
}

impl StoreError {
    /// What kind of trouble this is.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::NotFound { .. } => Class::NotFound,
            Self::AlreadyExists { .. } | Self::Mapped { .. } | Self::OwnAddress { .. } => {
                Class::AlreadyExists
            }
            Self::Conflict { .. } | Self::StaleEtag | Self::Referenced { .. } => Class::Conflict,
            Self::DiskFull { .. } | Self::NoUidRange { .. } => Class::Exhausted,
            Self::Locked { .. } | Self::Closed => Class::Unavailable,
            Self::BadPageToken | Self::SettingsDiffer { .. } => Class::Caller,
            Self::Newer { .. }
            | Self::Corrupt { .. }
            | Self::Io { .. }
            | Self::Sqlite { .. }
            | Self::Abandoned => Class::Internal,
        }
    }

    /// Whether trying again may help.
    #[must_use]
    pub fn retry(&self) -> Retry {
        match self {
            Self::Conflict { .. } | Self::StaleEtag | Self::Referenced { .. } => {
                Retry::AfterReading
            }
            Self::DiskFull { .. }
            | Self::Locked { .. }
            | Self::Closed
            | Self::NoUidRange { .. } => Retry::Later,
            _ => Retry::Never,
        }
    }

    /// The same error with the database's path where none is known yet.
    pub(crate) fn located(self, at: &Path) -> Self {
        let fill = |path: PathBuf| {
            if path.as_os_str().is_empty() {
                at.to_owned()
            } else {
                path
            }
        };
        match self {
            Self::DiskFull { path } => Self::DiskFull { path: fill(path) },
            Self::Corrupt { path, problem } => Self::Corrupt {
                path: fill(path),
                problem,
            },
            Self::Sqlite { path, source } => Self::Sqlite {
                path: fill(path),
                source,
            },
            other => other,
        }
    }

    /// A stored value that doesn't parse.
    pub(crate) fn unreadable(what: &str, source: &dyn std::fmt::Display) -> Self {
        Self::Corrupt {
            path: PathBuf::new(),
            problem: format!("{what}: {source}"),
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        match error.sqlite_error_code() {
            Some(ErrorCode::DiskFull) => Self::DiskFull {
                path: PathBuf::new(),
            },
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt {
                path: PathBuf::new(),
                problem: error.to_string(),
            },
            _ => Self::Sqlite {
                path: PathBuf::new(),
                source: Arc::new(error),
            },
        }
    }
}
