//! Who changed what, newest kept.

use rusqlite::{Connection, params};
use utsuwa_model::Timestamp;

use crate::{Store, StoreError};

/// Entries kept; older ones are forgotten.
const KEPT: i64 = 100_000;

/// One change that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditEntry {
    pub at: Timestamp,
    /// Who asked, as far as it is known.
    pub actor: String,
    /// What was asked for, as whoever was asked calls it. Read back as it was written.
    pub method: String,
    /// Full resource name.
    pub resource: String,
    /// `OK` or the status that was answered.
    pub result: String,
}

impl Store {
    /// Appends an entry.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::Sqlite`].
    pub async fn audit(&self, entry: AuditEntry) -> Result<(), StoreError> {
        self.write(move |c| append(c, &entry)).await
    }

    /// The newest entries, newest first.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn audit_log(&self, newest: usize) -> Result<Vec<AuditEntry>, StoreError> {
        self.read(|c| {
            let mut statement =
                c.prepare_cached("SELECT at, actor, method, resource, result FROM audit ORDER BY sequence DESC LIMIT ?")?;
            let rows = statement.query_map([i64::try_from(newest).unwrap_or(i64::MAX)], |r| {
                Ok(AuditEntry {
                    at: Timestamp(r.get(0)?),
                    actor: r.get(1)?,
                    method: r.get(2)?,
                    resource: r.get(3)?,
                    result: r.get(4)?,
                })
            })?;
            Ok(rows.collect::<Result<Vec<_>, _>>()?)
        })
    }
}

/// Appends an entry and forgets the oldest.
pub(crate) fn append(connection: &Connection, entry: &AuditEntry) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT INTO audit (at, actor, method, resource, result) VALUES (?, ?, ?, ?, ?)",
        )?
        .execute(params![
            entry.at.0,
            entry.actor,
            entry.method,
            entry.resource,
            entry.result
        ])?;
    connection
        .prepare_cached(
            "DELETE FROM audit WHERE sequence <= (SELECT max(sequence) FROM audit) - ?",
        )?
        .execute([KEPT])?;
    Ok(())
}
