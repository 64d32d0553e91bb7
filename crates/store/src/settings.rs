//! What is decided at the first start and never changes after (decision 13).

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};
use serde::{Deserialize, Serialize};
use utsuwa_model::{ProjectId, Region};

use crate::{Store, StoreError, row, schema};

/// For the one moment in which a server begins or ends with the database.
const PATIENCE: Duration = Duration::from_secs(10);

/// Default project, default region and domain of this data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    pub project: ProjectId,
    pub region: Region,
    /// The part of host names behind the service's own, such as `localhost` or `run.example.org`.
    pub domain: String,
}

impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "project {}, region {}, domain {}",
            self.project, self.region, self.domain
        )
    }
}

impl Settings {
    /// What was frozen in the store in `dir`, whether a server runs over it or not; `None`: nothing yet. Only reads.
    ///
    /// # Errors
    /// [`StoreError::Newer`] if a newer program wrote it; otherwise there is a database that can't be read.
    pub fn in_directory(dir: &Path) -> Result<Option<Self>, StoreError> {
        let path = dir.join("state.sqlite");
        match path.try_exists() {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(source) => {
                return Err(StoreError::Io {
                    path,
                    source: Arc::new(source),
                });
            }
        }
        let read = || -> Result<Option<Self>, StoreError> {
            let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(&path, flags)?;
            connection.busy_timeout(PATIENCE)?;
            let found: i64 =
                connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
            schema::refuse_newer(found, &path)?;
            // A database whose maker was killed at once has no tables yet.
            if found == 0 {
                return Ok(None);
            }
            frozen(&connection)
        };
        read().map_err(|error| error.located(&path))
    }
}

impl Store {
    /// What was frozen at the first start.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] before [`Store::freeze_settings`] was called for the first time.
    pub fn settings(&self) -> Result<Settings, StoreError> {
        self.read(|c| {
            frozen(c)?.ok_or_else(|| StoreError::NotFound {
                what: "the frozen settings".to_owned(),
            })
        })
    }

    /// Writes `wanted` at the first start; later checks that it is what was frozen.
    ///
    /// # Errors
    /// [`StoreError::SettingsDiffer`] if it isn't.
    pub async fn freeze_settings(&self, wanted: Settings) -> Result<Settings, StoreError> {
        self.write(move |c| match frozen(c)? {
            Some(found) if found == wanted => Ok(found),
            Some(found) => Err(StoreError::SettingsDiffer {
                frozen: found.to_string(),
                wanted: wanted.to_string(),
            }),
            None => {
                c.execute(
                    "INSERT INTO settings (only, project, region, domain) VALUES (1, ?, ?, ?)",
                    params![
                        wanted.project.as_str(),
                        wanted.region.as_str(),
                        wanted.domain
                    ],
                )?;
                Ok(wanted)
            }
        })
        .await
    }
}

/// The frozen settings, if there are any yet.
pub(crate) fn frozen(connection: &Connection) -> Result<Option<Settings>, StoreError> {
    let found: Option<(String, String, String)> = connection
        .prepare_cached("SELECT project, region, domain FROM settings")?
        .query_row([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    found
        .map(|(project, region, domain)| {
            Ok(Settings {
                project: row::name(&project)?,
                region: row::name(&region)?,
                domain,
            })
        })
        .transpose()
}
