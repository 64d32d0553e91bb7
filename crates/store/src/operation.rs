//! Operations and the outcomes of generations. An operation is a view: it reads as done once an outcome exists for its
//! generation; or for a later one of the same service, when its own generation made no revision of which an outcome could
//! come. Nothing has to remember to finish it.

use std::collections::BTreeSet;

use rusqlite::{Connection, OptionalExtension, Row, params};
use utsuwa_model::operation::{GenerationOutcome, Operation, OperationKind};
use utsuwa_model::service::Service;
use utsuwa_model::{ProjectId, Region, ServiceKey, Timestamp};

use crate::page::{self, After};
use crate::{AuditEntry, Listing, Page, Store, StoreError, audit, row};

/// Operations kept per service; older ones are forgotten when a new one comes.
const KEPT: i64 = 100;

/// Operations are kept this long (30 days, in microseconds): those of services that are gone have no newer ones to push them out.
const KEPT_MICROS: i64 = 30 * 24 * 3600 * 1_000_000;

const COLUMNS: &str = "id, project, region, service, service_uid, generation, kind, create_time";

/// An operation to be written with the change it stands for, and what the audit log calls that change: whoever was asked knows
/// the name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    pub operation: Operation,
    pub method: String,
}

type Seen = (Operation, Option<GenerationOutcome>);

impl Store {
    /// The operation and, when it is done, its outcome.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub fn operation(&self, id: &str) -> Result<Option<Seen>, StoreError> {
        self.read(|c| {
            let mut statement =
                c.prepare_cached(&format!("SELECT {COLUMNS} FROM operations WHERE id = ?"))?;
            let mut rows = statement.query([id])?;
            rows.next()?.map(|r| see(c, r)).transpose()
        })
    }

    /// Generations below `before` of the service with this uid that somebody asks about and that have no outcome of their own.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn unanswered(&self, uid: &str, before: u64) -> Result<Vec<u64>, StoreError> {
        let delete = row::json(&OperationKind::Delete)?;
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT DISTINCT generation FROM operations o WHERE service_uid = ?1 AND generation < ?2 AND kind <> ?3
                   AND NOT EXISTS (SELECT 1 FROM outcomes x WHERE x.service_uid = ?1 AND x.generation = o.generation)",
            )?;
            let found = statement.query_map(params![uid, row::signed(before), delete], |r| r.get::<_, i64>(0))?;
            let found = found.collect::<Result<Vec<_>, _>>()?;
            Ok(found.into_iter().filter_map(|g| u64::try_from(g).ok()).collect())
        })
    }

    /// Operations of one project and region, newest first.
    ///
    /// # Errors
    /// [`StoreError::BadPageToken`].
    pub fn operations(
        &self,
        project: &ProjectId,
        region: &Region,
        page: Page,
    ) -> Result<Listing<Seen>, StoreError> {
        let list = format!("operations {project} {region}");
        let after = After::of(&page, &list)?;
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!(
                "SELECT {COLUMNS} FROM operations WHERE project = ?1 AND region = ?2
                   AND (create_time < ?3 OR (create_time = ?3 AND id > ?4))
                 ORDER BY create_time DESC, id LIMIT ?5"
            ))?;
            let mut rows = statement.query(params![
                project.as_str(),
                region.as_str(),
                after.time,
                after.key,
                page::limit(&page)
            ])?;
            page::fill(&mut rows, &page, &list, |row| {
                let seen = see(c, row)?;
                let after = After {
                    time: seen.0.create_time.0,
                    key: seen.0.id.clone(),
                };
                Ok((after, seen))
            })
        })
    }
}

/// Writes an operation with its line in the audit log.
pub(crate) fn begin(
    connection: &Connection,
    asked: Asked,
    service: &Service,
) -> Result<(), StoreError> {
    let op = asked.operation;
    insert(connection, &op)?;
    let key = &op.service;
    let entry = AuditEntry {
        at: op.create_time,
        actor: service.meta.last_modifier.clone(),
        method: asked.method,
        resource: format!(
            "projects/{}/locations/{}/services/{}",
            key.project, key.region, key.service
        ),
        result: "OK".to_owned(),
    };
    audit::append(connection, &entry)
}

/// Writes an operation and forgets the oldest ones of its service.
fn insert(connection: &Connection, op: &Operation) -> Result<(), StoreError> {
    connection
        .prepare_cached(&format!(
            "INSERT INTO operations ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        ))?
        .execute(params![
            op.id,
            op.service.project.as_str(),
            op.service.region.as_str(),
            op.service.service.as_str(),
            op.service_uid,
            row::signed(op.generation),
            row::json(&op.kind)?,
            op.create_time.0
        ])?;
    connection
        .prepare_cached(
            "DELETE FROM operations WHERE service_uid = ?1 AND id IN
             (SELECT id FROM operations WHERE service_uid = ?1 ORDER BY create_time DESC LIMIT -1 OFFSET ?2)",
        )?
        .execute(params![op.service_uid, KEPT])?;
    let uids = connection
        .prepare_cached(
            "DELETE FROM operations WHERE project = ? AND region = ? AND create_time < ? RETURNING service_uid",
        )?
        .query_map(
            params![
                op.service.project.as_str(),
                op.service.region.as_str(),
                op.create_time.0.saturating_sub(KEPT_MICROS)
            ],
            |r| r.get::<_, String>(0),
        )?
        .collect::<Result<BTreeSet<_>, _>>()?;
    for uid in &uids {
        forget_unasked(connection, uid)?;
    }
    Ok(())
}

/// Records what became of a generation. The first record stands: a later look at the same generation can't rewrite a result
/// that somebody was told already.
pub(crate) fn record(
    connection: &Connection,
    uid: &str,
    generation: u64,
    outcome: &GenerationOutcome,
) -> Result<(), StoreError> {
    connection
        .prepare_cached(
            "INSERT OR IGNORE INTO outcomes (service_uid, generation, body) VALUES (?, ?, ?)",
        )?
        .execute(params![uid, row::signed(generation), row::json(outcome)?])?;
    connection
        .prepare_cached(
            "DELETE FROM outcomes WHERE service_uid = ?1 AND generation IN
             (SELECT generation FROM outcomes WHERE service_uid = ?1 ORDER BY generation DESC LIMIT -1 OFFSET ?2)",
        )?
        .execute(params![uid, KEPT])?;
    Ok(())
}

/// Records that the service is gone: its delete operation is done, and so is everything that still waited.
pub(crate) fn removed(connection: &Connection, uid: &str) -> Result<(), StoreError> {
    connection
        .prepare_cached("INSERT OR IGNORE INTO removals (service_uid) VALUES (?)")?
        .execute([uid])?;
    forget_unasked(connection, uid)
}

/// Nobody can ask for the outcomes of a service that is gone and has no operation left.
fn forget_unasked(connection: &Connection, uid: &str) -> Result<(), StoreError> {
    let unasked: bool = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM removals WHERE service_uid = ?1)
               AND NOT EXISTS (SELECT 1 FROM operations WHERE service_uid = ?1)",
        )?
        .query_row([uid], |r| r.get(0))?;
    if unasked {
        for table in ["outcomes", "removals"] {
            connection
                .prepare_cached(&format!("DELETE FROM {table} WHERE service_uid = ?"))?
                .execute([uid])?;
        }
    }
    Ok(())
}

fn see(connection: &Connection, row: &Row<'_>) -> Result<Seen, StoreError> {
    let (project, region, service): (String, String, String) =
        (row.get(1)?, row.get(2)?, row.get(3)?);
    let generation: i64 = row.get(5)?;
    let kind: OperationKind = row::parse(&row.get::<_, String>(6)?, "an operation")?;
    let op = Operation {
        id: row.get(0)?,
        service: ServiceKey {
            project: row::name(&project)?,
            region: row::name(&region)?,
            service: row::name(&service)?,
        },
        service_uid: row.get(4)?,
        generation: u64::try_from(generation).unwrap_or(0),
        kind,
        create_time: Timestamp(row.get(7)?),
    };
    let outcome = outcome(connection, &op)?;
    Ok((op, outcome))
}

/// Whether there is a revision that the operation's own generation made: it will have an outcome of its own.
fn made_a_revision(connection: &Connection, op: &Operation) -> Result<bool, StoreError> {
    let key = &op.service;
    let made = connection
        .prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM revisions WHERE project = ? AND region = ? AND service = ?
               AND service_generation = ? AND service_uid = ? AND delete_time IS NULL)",
        )?
        .query_row(
            params![
                key.project.as_str(),
                key.region.as_str(),
                key.service.as_str(),
                row::signed(op.generation),
                op.service_uid
            ],
            |r| r.get(0),
        )?;
    Ok(made)
}

fn outcome(
    connection: &Connection,
    op: &Operation,
) -> Result<Option<GenerationOutcome>, StoreError> {
    if op.kind != OperationKind::Delete {
        let found: Option<(i64, String)> = connection
            .prepare_cached(
                "SELECT generation, body FROM outcomes WHERE service_uid = ? AND generation >= ? ORDER BY generation LIMIT 1",
            )?
            .query_row(params![op.service_uid, row::signed(op.generation)], |r| Ok((r.get(0)?, r.get(1)?)))
            .optional()?;
        if let Some((generation, body)) = found
            && (generation == row::signed(op.generation) || !made_a_revision(connection, op)?)
        {
            return row::parse(&body, "an outcome").map(Some);
        }
    }
    let gone: bool = connection
        .prepare_cached("SELECT EXISTS (SELECT 1 FROM removals WHERE service_uid = ?)")?
        .query_row([&op.service_uid], |r| r.get(0))?;
    Ok(match (gone, op.kind) {
        (false, _) => None,
        (true, OperationKind::Delete) => Some(GenerationOutcome::Succeeded),
        (true, _) => Some(GenerationOutcome::Failed {
            reason: "Deleted".to_owned(),
            message: format!(
                "Service '{}' was deleted before this change was carried out.",
                op.service.service
            ),
        }),
    })
}
