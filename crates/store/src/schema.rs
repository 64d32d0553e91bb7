//! The tables, as numbered steps. A step that was released never changes; a new one is added behind it.
//!
//! Rows hold the resource as JSON, in parts that are written separately (`spec` by users, `status` by loops), and beside it
//! the columns that are searched or sorted by.

use rusqlite::Connection;

use crate::StoreError;

/// Marks the file as ours ("utsw").
pub(crate) const APPLICATION_ID: i64 = 0x7574_7377;

/// Step `n` (counted from 1) takes schema `n - 1` to schema `n`.
pub(crate) const STEPS: &[&str] = &["
CREATE TABLE settings (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    project TEXT NOT NULL, region TEXT NOT NULL, domain TEXT NOT NULL
) STRICT;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE services (
    project TEXT NOT NULL, region TEXT NOT NULL, service TEXT NOT NULL,
    uid TEXT NOT NULL, create_time INTEGER NOT NULL,
    meta TEXT NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL,
    PRIMARY KEY (project, region, service)
) STRICT;
CREATE INDEX services_newest ON services (project, create_time DESC, region, service);
CREATE TABLE hosts (
    host TEXT PRIMARY KEY, project TEXT NOT NULL, region TEXT NOT NULL, service TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX hosts_of ON hosts (project, region, service);

CREATE TABLE revisions (
    project TEXT NOT NULL, region TEXT NOT NULL, service TEXT NOT NULL, revision TEXT NOT NULL,
    uid TEXT NOT NULL, create_time INTEGER NOT NULL, service_generation INTEGER NOT NULL, service_uid TEXT NOT NULL,
    nonce TEXT,
    meta TEXT NOT NULL, template TEXT NOT NULL, status TEXT NOT NULL,
    PRIMARY KEY (project, region, revision)
) STRICT;
CREATE INDEX revisions_of ON revisions (project, region, service, service_generation, create_time);
CREATE INDEX revisions_newest ON revisions (project, create_time DESC, region, revision);
CREATE INDEX revisions_nonce ON revisions (project, region, nonce) WHERE nonce IS NOT NULL;

CREATE TABLE images (pinned TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT, WITHOUT ROWID;

CREATE TABLE policies (
    project TEXT NOT NULL, region TEXT NOT NULL, service TEXT NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (project, region, service)
) STRICT, WITHOUT ROWID;

CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    project TEXT NOT NULL, region TEXT NOT NULL, service TEXT NOT NULL, service_uid TEXT NOT NULL,
    generation INTEGER NOT NULL, kind TEXT NOT NULL, create_time INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX operations_newest ON operations (project, region, create_time DESC, id);
CREATE INDEX operations_of ON operations (service_uid, create_time DESC);
CREATE TABLE outcomes (
    service_uid TEXT NOT NULL, generation INTEGER NOT NULL, body TEXT NOT NULL,
    PRIMARY KEY (service_uid, generation)
) STRICT, WITHOUT ROWID;
CREATE TABLE removals (service_uid TEXT PRIMARY KEY) STRICT, WITHOUT ROWID;

CREATE TABLE uid_ranges (
    base INTEGER PRIMARY KEY, project TEXT NOT NULL, region TEXT NOT NULL, service TEXT NOT NULL,
    UNIQUE (project, region, service)
) STRICT;
CREATE TABLE audit (
    sequence INTEGER PRIMARY KEY, at INTEGER NOT NULL, actor TEXT NOT NULL, method TEXT NOT NULL,
    resource TEXT NOT NULL, result TEXT NOT NULL
) STRICT;
", "
ALTER TABLE services ADD COLUMN version INTEGER NOT NULL DEFAULT 0;
UPDATE services SET version = json_extract(meta, '$.version');
ALTER TABLE policies ADD COLUMN etag TEXT NOT NULL DEFAULT '';
UPDATE policies SET etag = json_extract(body, '$.etag');
ALTER TABLE revisions ADD COLUMN delete_time INTEGER;
UPDATE revisions SET delete_time = json_extract(meta, '$.delete_time');
CREATE INDEX revisions_going ON revisions (project, region, service) WHERE delete_time IS NOT NULL;
", "
CREATE TABLE domains (
    name TEXT PRIMARY KEY,
    project TEXT NOT NULL, region TEXT NOT NULL, service TEXT NOT NULL,
    create_time INTEGER NOT NULL, meta TEXT NOT NULL, spec TEXT NOT NULL, status TEXT NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX domains_of ON domains (project, region, service);
"];

/// The newest schema this program knows.
pub(crate) fn known() -> i64 {
    i64::try_from(STEPS.len()).unwrap_or(i64::MAX)
}

/// Refuses a database that a newer program brought to schema `found`.
pub(crate) fn refuse_newer(found: i64, path: &std::path::Path) -> Result<(), StoreError> {
    if found > known() {
        return Err(StoreError::Newer {
            found,
            known: known(),
            path: path.to_owned(),
        });
    }
    Ok(())
}

/// Brings the database to [`known`], all steps in one transaction.
pub(crate) fn migrate(
    connection: &mut Connection,
    path: &std::path::Path,
) -> Result<(), StoreError> {
    let found: i64 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    let application: i64 =
        connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
    let tables: i64 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if (tables > 0 || application != 0) && application != APPLICATION_ID {
        return Err(StoreError::Corrupt {
            path: path.to_owned(),
            problem: "it is a SQLite database of another program".to_owned(),
        });
    }
    refuse_newer(found, path)?;
    let done = usize::try_from(found).unwrap_or(0);
    if done == STEPS.len() {
        return Ok(());
    }
    let transaction = connection.transaction()?;
    for step in &STEPS[done..] {
        transaction.execute_batch(step)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", known())?;
    transaction.commit()?;
    tracing::info!(from = found, to = known(), path = %path.display(), "database migrated");
    Ok(())
}
