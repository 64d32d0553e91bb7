//! Services: rows, versions, host names.

use rusqlite::{Connection, Row, params};
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::service::Service;
use utsuwa_model::{ProjectId, Region, ServiceKey, Timestamp};

use crate::page::{self, After};
use crate::{Asked, Listing, Page, Store, StoreError, host, operation, row, uid};

const COLUMNS: &str = "project, region, service, meta, spec, status";

impl Store {
    /// The service, if it exists.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::Sqlite`].
    pub fn service(&self, key: &ServiceKey) -> Result<Option<Service>, StoreError> {
        self.read(|c| load(c, key))
    }

    /// Services of a project, in one region or in all, newest created first.
    ///
    /// # Errors
    /// [`StoreError::BadPageToken`] for a token of another list.
    pub fn services(
        &self,
        project: &ProjectId,
        region: Option<&Region>,
        page: Page,
    ) -> Result<Listing<Service>, StoreError> {
        let list = format!("services {project} {}", region.map_or("-", Region::as_str));
        let after = After::of(&page, &list)?;
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!(
                "SELECT {COLUMNS}, create_time, region || '/' || service FROM services
                 WHERE project = ?1 AND (?2 IS NULL OR region = ?2)
                   AND (create_time < ?3 OR (create_time = ?3 AND region || '/' || service > ?4))
                 ORDER BY create_time DESC, region || '/' || service LIMIT ?5"
            ))?;
            let mut rows = statement.query(params![
                project.as_str(),
                region.map(Region::as_str),
                after.time,
                after.key,
                page::limit(&page)
            ])?;
            page::fill(&mut rows, &page, &list, |row| {
                let after = After {
                    time: row.get(6)?,
                    key: row.get(7)?,
                };
                Ok((after, parse(row)?))
            })
        })
    }

    /// Keys of all services, sorted.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn all_service_keys(&self) -> Result<Vec<ServiceKey>, StoreError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT project, region, service FROM services ORDER BY project, region, service",
            )?;
            let mut rows = statement.query([])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                found.push(key(row)?);
            }
            Ok(found)
        })
    }

    /// Projects that hold a service, sorted. (Projects exist implicitly, so there is no list of the others.)
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn projects(&self) -> Result<Vec<ProjectId>, StoreError> {
        self.read(|c| {
            let mut statement =
                c.prepare_cached("SELECT DISTINCT project FROM services ORDER BY project")?;
            let names = statement
                .query_map([], |r| r.get::<_, String>(0))?
                .collect::<Result<Vec<_>, _>>()?;
            names.iter().map(|n| row::name(n)).collect()
        })
    }

    /// Which service owns `host` (lower case, no port): its own name or that of one of its tags.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn host_owner(&self, host: &str) -> Result<Option<ServiceKey>, StoreError> {
        self.read(|c| host::host_owner(c, host))
    }

    /// Writes a new service with its operation and takes its host names.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] naming the service or the host name that is taken.
    pub async fn create_service(
        &self,
        service: Service,
        asked: Asked,
    ) -> Result<Service, StoreError> {
        self.write(move |c| {
            let key = &service.key;
            if load(c, key)?.is_some() {
                return Err(StoreError::AlreadyExists { what: key.service.to_string() });
            }
            host::take_hosts(c, &service)?;
            c.prepare_cached(
                "INSERT INTO services (project, region, service, uid, create_time, version, meta, spec, status)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                key.project.as_str(),
                key.region.as_str(),
                key.service.as_str(),
                service.meta.uid,
                service.meta.create_time.0,
                service.meta.version.0,
                row::json(&service.meta)?,
                row::json(&service.spec)?,
                row::json(&service.status)?
            ])?;
            operation::begin(c, asked, &service)?;
            c.touch(&service.key);
            Ok(service)
        })
        .await
    }

    /// Reads, checks `expected` (`None` = whatever is there), lets `change` edit, and writes with a new version:
    /// the later of `now` and one microsecond after the old one. `change` answering `Err` leaves everything as it was.
    /// `update_time` follows the version; the generation is `change`'s business.
    ///
    /// # Errors
    /// Outer: [`StoreError::NotFound`], [`StoreError::Conflict`] for a stale version, [`StoreError::AlreadyExists`] if a new
    /// tag's host name is taken. Inner: what `change` said.
    pub async fn update_service<F, E>(
        &self,
        key: &ServiceKey,
        expected: Option<Timestamp>,
        now: Timestamp,
        asked: Option<Asked>,
        change: F,
    ) -> Result<Result<Service, E>, StoreError>
    where
        F: FnOnce(&mut Service) -> Result<(), E> + Send + 'static,
        E: Send + 'static,
    {
        let key = key.clone();
        self.write(move |c| {
            let mut service = load(c, &key)?.ok_or_else(|| not_found(&key))?;
            let old = service.meta.version;
            if let Some(sent) = expected
                && sent != old
            {
                return Err(StoreError::Conflict { what: key.service.to_string(), sent, now: old });
            }
            let traffic = service.spec.traffic.clone();
            if let Err(refused) = change(&mut service) {
                return Ok(Err(refused));
            }
            service.key = key;
            service.meta.version = now.max(Timestamp(old.0.saturating_add(1)));
            service.meta.update_time = service.meta.version;
            if service.spec.traffic != traffic {
                host::take_hosts(c, &service)?;
            }
            c.prepare_cached(
                "UPDATE services SET meta = ?4, spec = ?5, status = ?6, version = ?7 WHERE project = ?1 AND region = ?2 AND service = ?3",
            )?
            .execute(params![
                service.key.project.as_str(),
                service.key.region.as_str(),
                service.key.service.as_str(),
                row::json(&service.meta)?,
                row::json(&service.spec)?,
                row::json(&service.status)?,
                service.meta.version.0
            ])?;
            if let Some(mut asked) = asked {
                // The caller can't know the generation before `change` has run.
                asked.operation.generation = service.meta.generation;
                asked.operation.service_uid.clone_from(&service.meta.uid);
                operation::begin(c, asked, &service)?;
            }
            c.touch(&service.key);
            Ok(Ok(service))
        })
        .await
    }

    /// Writes the status that `change` leaves (nothing else of the service), and in the same transaction what became of a
    /// generation. `change` answering `false` means the status is as it should be. A service that is gone is no error.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::Sqlite`].
    pub async fn update_service_status<F>(
        &self,
        key: &ServiceKey,
        outcome: Option<(u64, GenerationOutcome)>,
        change: F,
    ) -> Result<(), StoreError>
    where
        F: FnOnce(&mut Service) -> bool + Send + 'static,
    {
        let key = key.clone();
        self.write(move |c| {
            let Some(mut service) = load(c, &key)? else { return Ok(()) };
            if change(&mut service) {
                c.prepare_cached("UPDATE services SET status = ?4 WHERE project = ?1 AND region = ?2 AND service = ?3")?.execute(
                    params![
                        key.project.as_str(),
                        key.region.as_str(),
                        key.service.as_str(),
                        row::json(&service.status)?
                    ],
                )?;
            }
            if let Some((generation, outcome)) = outcome {
                operation::record(c, &service.meta.uid, generation, &outcome)?;
            }
            Ok(())
        })
        .await
    }

    /// Records what became of earlier generations. The first record of each stands; without the row nothing is written.
    ///
    /// # Errors
    /// What SQLite says.
    pub async fn record_outcomes(
        &self,
        key: &ServiceKey,
        outcomes: Vec<(u64, GenerationOutcome)>,
    ) -> Result<(), StoreError> {
        let key = key.clone();
        self.write(move |c| {
            let Some(service) = load(c, &key)? else {
                return Ok(());
            };
            for (generation, outcome) in &outcomes {
                operation::record(c, &service.meta.uid, *generation, outcome)?;
            }
            Ok(())
        })
        .await
    }

    /// Removes the row with its policy, host names and user ids. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Referenced`] while revisions of it exist.
    pub async fn remove_service(&self, key: &ServiceKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.write(move |c| {
            let Some(service) = load(c, &key)? else { return Ok(()) };
            let names = params![key.project.as_str(), key.region.as_str(), key.service.as_str()];
            let children: i64 = c
                .prepare_cached("SELECT count(*) FROM revisions WHERE project = ? AND region = ? AND service = ?")?
                .query_row(names, |r| r.get(0))?;
            if children > 0 {
                let children = format!("{children} revisions");
                return Err(StoreError::Referenced { what: key.service.to_string(), children });
            }
            for table in ["services", "hosts", "policies"] {
                c.prepare_cached(&format!("DELETE FROM {table} WHERE project = ? AND region = ? AND service = ?"))?
                    .execute(names)?;
            }
            uid::free(c, &key)?;
            operation::removed(c, &service.meta.uid)?;
            c.touch(&key);
            Ok(())
        })
        .await
    }
}

/// The row of `key`.
pub(crate) fn load(
    connection: &Connection,
    key: &ServiceKey,
) -> Result<Option<Service>, StoreError> {
    let mut statement = connection.prepare_cached(&format!(
        "SELECT {COLUMNS} FROM services WHERE project = ? AND region = ? AND service = ?"
    ))?;
    let mut rows = statement.query(params![
        key.project.as_str(),
        key.region.as_str(),
        key.service.as_str()
    ])?;
    rows.next()?.map(parse).transpose()
}

pub(crate) fn not_found(key: &ServiceKey) -> StoreError {
    StoreError::NotFound {
        what: key.service.to_string(),
    }
}

fn key(row: &Row<'_>) -> Result<ServiceKey, StoreError> {
    let text = |i: usize| row.get_ref(i).map_err(StoreError::from);
    let project = text(0)?
        .as_str()
        .map_err(|e| StoreError::unreadable("a project", &e))?;
    let region = text(1)?
        .as_str()
        .map_err(|e| StoreError::unreadable("a region", &e))?;
    let service = text(2)?
        .as_str()
        .map_err(|e| StoreError::unreadable("a service", &e))?;
    Ok(ServiceKey {
        project: row::name(project)?,
        region: row::name(region)?,
        service: row::name(service)?,
    })
}

fn parse(row: &Row<'_>) -> Result<Service, StoreError> {
    let key = key(row)?;
    let column = |i: usize| row.get::<_, String>(i).map_err(StoreError::from);
    let what = format!("row of service {key}");
    Ok(Service {
        meta: row::parse(&column(3)?, &what)?,
        spec: row::parse(&column(4)?, &what)?,
        status: row::parse(&column(5)?, &what)?,
        key,
    })
}
