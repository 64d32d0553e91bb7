//! Revisions: written once, their status many times.

use rusqlite::{Connection, OptionalExtension, Row, ToSql, params};
use utsuwa_model::revision::Revision;
use utsuwa_model::{ProjectId, Region, RevisionId, RevisionKey, ServiceId, ServiceKey};

use crate::page::{self, After};
use crate::{Listing, Page, Store, StoreError, row};

/// The label by which `gcloud` finds the revision that a template of its own became.
const NONCE: &str = "client.knative.dev/nonce";

const COLUMNS: &str =
    "project, region, service, revision, service_generation, service_uid, meta, template, status";

impl Store {
    /// The revision, if it exists.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub fn revision(&self, key: &RevisionKey) -> Result<Option<Revision>, StoreError> {
        let service = &key.service;
        Ok(self
            .revision_by_id(&service.project, &service.region, &key.revision)?
            .filter(|r| r.key == *key))
    }

    /// The revision by its name, which is unique within project and region.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub fn revision_by_id(
        &self,
        project: &ProjectId,
        region: &Region,
        id: &RevisionId,
    ) -> Result<Option<Revision>, StoreError> {
        self.read(|c| load(c, project, region, id))
    }

    /// Revisions of a project, in one region or all, of one service or all, newest created first.
    ///
    /// # Errors
    /// [`StoreError::BadPageToken`].
    pub fn revisions(
        &self,
        project: &ProjectId,
        region: Option<&Region>,
        service: Option<&ServiceId>,
        page: Page,
    ) -> Result<Listing<Revision>, StoreError> {
        let name_of = |name: Option<&str>| name.unwrap_or("-").to_owned();
        let list = format!(
            "revisions {project} {} {}",
            name_of(region.map(Region::as_str)),
            name_of(service.map(ServiceId::as_str))
        );
        let after = After::of(&page, &list)?;
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!(
                "SELECT {COLUMNS}, create_time, region || '/' || revision FROM revisions
                 WHERE project = ?1 AND (?2 IS NULL OR region = ?2) AND (?3 IS NULL OR service = ?3)
                   AND (create_time < ?4 OR (create_time = ?4 AND region || '/' || revision > ?5))
                 ORDER BY create_time DESC, region || '/' || revision LIMIT ?6"
            ))?;
            let mut rows = statement.query(params![
                project.as_str(),
                region.map(Region::as_str),
                service.map(ServiceId::as_str),
                after.time,
                after.key,
                page::limit(&page)
            ])?;
            page::fill(&mut rows, &page, &list, |row| {
                let after = After {
                    time: row.get(9)?,
                    key: row.get(10)?,
                };
                Ok((after, parse(row)?))
            })
        })
    }

    /// All revisions of a service, oldest first.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub fn revisions_of(&self, service: &ServiceKey) -> Result<Vec<Revision>, StoreError> {
        self.read(|c| {
            collect(
                c,
                "project = ? AND region = ? AND service = ? ORDER BY service_generation, create_time, revision",
                params![service.project.as_str(), service.region.as_str(), service.service.as_str()],
            )
        })
    }

    /// Revisions whose template carries this `client.knative.dev/nonce` label, newest first.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub fn revisions_with_nonce(
        &self,
        project: &ProjectId,
        region: &Region,
        nonce: &str,
    ) -> Result<Vec<Revision>, StoreError> {
        self.read(|c| {
            collect(
                c,
                "project = ? AND region = ? AND nonce = ? ORDER BY create_time DESC, revision",
                params![project.as_str(), region.as_str(), nonce],
            )
        })
    }

    /// Writes a new revision.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] if the name is taken, also by another service of the same project and region.
    pub async fn create_revision(&self, revision: Revision) -> Result<(), StoreError> {
        self.write(move |c| {
            let key = &revision.key;
            let service = &key.service;
            if load(c, &service.project, &service.region, &key.revision)?.is_some() {
                return Err(StoreError::AlreadyExists { what: key.revision.to_string() });
            }
            c.prepare_cached(
                "INSERT INTO revisions (project, region, service, revision, uid, create_time, service_generation, service_uid,
                                        nonce, delete_time, meta, template, status)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                service.project.as_str(),
                service.region.as_str(),
                service.service.as_str(),
                key.revision.as_str(),
                revision.meta.uid,
                revision.meta.create_time.0,
                row::signed(revision.service_generation),
                revision.service_uid,
                revision.template.labels.get(NONCE),
                revision.meta.delete_time.map(|t| t.0),
                row::json(&revision.meta)?,
                row::json(&revision.template)?,
                row::json(&revision.status)?
            ])?;
            Ok(())
        })
        .await
    }

    /// Writes what `change` leaves of meta and status; the template is immutable. `false` means nothing to write. A revision
    /// that is gone is no error.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::Sqlite`].
    pub async fn update_revision<F>(&self, key: &RevisionKey, change: F) -> Result<(), StoreError>
    where
        F: FnOnce(&mut Revision) -> bool + Send + 'static,
    {
        let key = key.clone();
        self.write(move |c| {
            let service = &key.service;
            let Some(mut revision) = load(c, &service.project, &service.region, &key.revision)?.filter(|r| r.key == key) else {
                return Ok(());
            };
            let going = revision.meta.delete_time;
            if change(&mut revision) {
                c.prepare_cached("UPDATE revisions SET meta = ?4, status = ?5, delete_time = ?6 WHERE project = ?1 AND region = ?2 AND revision = ?3")?
                    .execute(params![
                        service.project.as_str(),
                        service.region.as_str(),
                        key.revision.as_str(),
                        row::json(&revision.meta)?,
                        row::json(&revision.status)?,
                        revision.meta.delete_time.map(|t| t.0)
                    ])?;
                if revision.meta.delete_time != going {
                    c.touch(service);
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes the row. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::Sqlite`].
    pub async fn remove_revision(&self, key: &RevisionKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.write(move |c| {
            let service = &key.service;
            let going: Option<bool> = c
                .prepare_cached(
                    "DELETE FROM revisions WHERE project = ? AND region = ? AND service = ? AND revision = ?
                     RETURNING delete_time IS NOT NULL",
                )?
                .query_row(
                    params![service.project.as_str(), service.region.as_str(), service.service.as_str(), key.revision.as_str()],
                    |row| row.get(0),
                )
                .optional()?;
            if going == Some(true) {
                c.touch(service);
            }
            Ok(())
        })
        .await
    }
}

fn collect(
    connection: &Connection,
    condition: &str,
    values: &[&dyn ToSql],
) -> Result<Vec<Revision>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM revisions WHERE {condition}"
    ))?;
    let mut rows = statement.query(values)?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(parse(row)?);
    }
    Ok(found)
}

fn load(
    connection: &Connection,
    project: &ProjectId,
    region: &Region,
    id: &RevisionId,
) -> Result<Option<Revision>, StoreError> {
    let condition = "project = ? AND region = ? AND revision = ?";
    Ok(collect(
        connection,
        condition,
        params![project.as_str(), region.as_str(), id.as_str()],
    )?
    .pop())
}

fn parse(row: &Row<'_>) -> Result<Revision, StoreError> {
    let (project, region, service, revision): (String, String, String, String) =
        (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    let service = ServiceKey {
        project: row::name(&project)?,
        region: row::name(&region)?,
        service: row::name(&service)?,
    };
    let key = RevisionKey {
        service,
        revision: row::name(&revision)?,
    };
    let what = format!("row of revision {key}");
    let generation: i64 = row.get(4)?;
    Ok(Revision {
        meta: row::parse(&row.get::<_, String>(6)?, &what)?,
        service_generation: u64::try_from(generation).unwrap_or(0),
        service_uid: row.get(5)?,
        template: row::parse(&row.get::<_, String>(7)?, &what)?,
        status: row::parse(&row.get::<_, String>(8)?, &what)?,
        key,
    })
}
