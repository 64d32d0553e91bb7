//! Ranges of user ids, one per service (decision 7). A range stays with its service until the service is removed, so that files
//! it owns never belong to another.

use rusqlite::{Connection, OptionalExtension, params};
use utsuwa_model::ServiceKey;

use crate::{Store, StoreError, service};

/// First id that is handed out; below it are people, system users and the usual ranges for rootless containers.
const FIRST: i64 = 0x2000_0000;
/// Ids per range: all that an image can name.
const SIZE: i64 = 65_536;
/// The end: from 2³¹ on, some tools read ids as negative numbers.
const END: i64 = 0x7fff_0000;

impl Store {
    /// First id of the service's range of 65,536, given out on the first call.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] without such a service, [`StoreError::NoUidRange`] when all are taken.
    pub async fn uid_base(&self, service: &ServiceKey) -> Result<u32, StoreError> {
        if let Some(base) = self.read(|c| load(c, service))? {
            return Ok(base);
        }
        let key = service.clone();
        self.write(move |c| {
            if let Some(base) = load(c, &key)? {
                return Ok(base);
            }
            if service::load(c, &key)?.is_none() {
                return Err(service::not_found(&key));
            }
            // The lowest range that is free: the first one, or the one behind a taken one.
            let base: Option<i64> = c
                .prepare_cached(
                    "SELECT min(candidate) FROM (SELECT ?1 AS candidate UNION ALL SELECT base + ?2 FROM uid_ranges)
                     WHERE candidate NOT IN (SELECT base FROM uid_ranges) AND candidate + ?2 <= ?3",
                )?
                .query_row(params![FIRST, SIZE, END], |r| r.get(0))?;
            let Some(base) = base.and_then(|b| u32::try_from(b).ok()) else {
                let used: i64 = c.query_row("SELECT count(*) FROM uid_ranges", [], |r| r.get(0))?;
                return Err(StoreError::NoUidRange { used: usize::try_from(used).unwrap_or(0) });
            };
            c.prepare_cached("INSERT INTO uid_ranges (base, project, region, service) VALUES (?, ?, ?, ?)")?.execute(params![
                base,
                key.project.as_str(),
                key.region.as_str(),
                key.service.as_str()
            ])?;
            Ok(base)
        })
        .await
    }
}

impl Store {
    /// First id of the service's range, if it was given one.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn known_uid_base(&self, service: &ServiceKey) -> Result<Option<u32>, StoreError> {
        self.read(|c| load(c, service))
    }
}

fn load(connection: &Connection, key: &ServiceKey) -> Result<Option<u32>, StoreError> {
    Ok(connection
        .prepare_cached(
            "SELECT base FROM uid_ranges WHERE project = ? AND region = ? AND service = ?",
        )?
        .query_row(
            params![
                key.project.as_str(),
                key.region.as_str(),
                key.service.as_str()
            ],
            |r| r.get(0),
        )
        .optional()?)
}

/// Gives the range back.
pub(crate) fn free(connection: &Connection, key: &ServiceKey) -> Result<(), StoreError> {
    connection
        .prepare_cached("DELETE FROM uid_ranges WHERE project = ? AND region = ? AND service = ?")?
        .execute(params![
            key.project.as_str(),
            key.region.as_str(),
            key.service.as_str()
        ])?;
    Ok(())
}
