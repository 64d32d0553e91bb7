//! Domain mappings: rows by domain name, which only one mapping can have, in whatever project or region.

use rusqlite::{Connection, Row, params};
use utsuwa_model::domain::{DomainMapping, DomainName, DomainStatus};
use utsuwa_model::{ProjectId, Region, ServiceKey};

use crate::{Store, StoreError, host, row};

const COLUMNS: &str = "name, project, region, meta, spec, status";

impl Store {
    /// The mapping of `name`, if there is one.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::Sqlite`].
    pub fn domain(&self, name: &DomainName) -> Result<Option<DomainMapping>, StoreError> {
        self.read(|c| load(c, name))
    }

    /// Mappings of a project, in one region or in all, by name.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::Sqlite`].
    pub fn domains(
        &self,
        project: &ProjectId,
        region: Option<&Region>,
    ) -> Result<Vec<DomainMapping>, StoreError> {
        self.read(|c| {
            let sql = format!(
                "SELECT {COLUMNS} FROM domains WHERE project = ?1 AND (?2 IS NULL OR region = ?2) ORDER BY name"
            );
            let mut statement = c.prepare_cached(&sql)?;
            let mut rows = statement.query(params![project.as_str(), region.map(Region::as_str)])?;
            all(&mut rows)
        })
    }

    /// Mappings that lead to a service, whether it exists or not, by name.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`], [`StoreError::Sqlite`].
    pub fn domains_of(&self, key: &ServiceKey) -> Result<Vec<DomainMapping>, StoreError> {
        self.read(|c| {
            let sql = format!(
                "SELECT {COLUMNS} FROM domains WHERE project = ? AND region = ? AND service = ? ORDER BY name"
            );
            let mut statement = c.prepare_cached(&sql)?;
            let mut rows = statement.query(params![
                key.project.as_str(),
                key.region.as_str(),
                key.service.as_str()
            ])?;
            all(&mut rows)
        })
    }

    /// Names of all mappings, sorted.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn all_domains(&self) -> Result<Vec<DomainName>, StoreError> {
        self.read(|c| {
            let mut statement = c.prepare_cached("SELECT name FROM domains ORDER BY name")?;
            let names = statement
                .query_map([], |r| r.get::<_, String>(0))?
                .collect::<Result<Vec<_>, _>>()?;
            names.iter().map(|name| row::name(name)).collect()
        })
    }

    /// Writes a new mapping. With `force_override` it takes the domain from the mapping that has it.
    ///
    /// # Errors
    /// [`StoreError::AlreadyExists`] naming the mapping, [`StoreError::OwnAddress`] the service whose host it is.
    pub async fn create_domain(&self, mapping: DomainMapping) -> Result<DomainMapping, StoreError> {
        self.write(move |c| {
            let name = &mapping.name;
            if let Some(owner) = host::host_owner(c, name.as_str())? {
                return Err(StoreError::OwnAddress {
                    host: name.to_string(),
                    of: Box::new(owner),
                });
            }
            if let Some(old) = load(c, name)? {
                if !mapping.spec.force_override {
                    return Err(StoreError::AlreadyExists {
                        what: format!("domain mapping {name} (to service {})", old.service()),
                    });
                }
                c.touch(&old.service());
            }
            c.prepare_cached(
                "INSERT OR REPLACE INTO domains (name, project, region, service, create_time, meta, spec, status)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            )?
            .execute(params![
                name.as_str(),
                mapping.project.as_str(),
                mapping.region.as_str(),
                mapping.spec.route.as_str(),
                mapping.meta.create_time.0,
                row::json(&mapping.meta)?,
                row::json(&mapping.spec)?,
                row::json(&mapping.status)?
            ])?;
            c.touch(&mapping.service());
            Ok(mapping)
        })
        .await
    }

    /// Removes the mapping of `name` if it is the one with this uid. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub async fn remove_domain(&self, name: &DomainName, uid: &str) -> Result<(), StoreError> {
        let (name, uid) = (name.clone(), uid.to_owned());
        self.write(move |c| {
            let Some(old) = load(c, &name)?.filter(|old| old.meta.uid == uid) else {
                return Ok(());
            };
            c.prepare_cached("DELETE FROM domains WHERE name = ?")?
                .execute([name.as_str()])?;
            c.touch(&old.service());
            Ok(())
        })
        .await
    }

    /// Writes the status of the mapping with this uid; without it nothing is written.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub async fn write_domain_status(
        &self,
        name: &DomainName,
        uid: &str,
        status: DomainStatus,
    ) -> Result<(), StoreError> {
        let (name, uid) = (name.clone(), uid.to_owned());
        self.write(move |c| {
            if load(c, &name)?.is_some_and(|old| old.meta.uid == uid && old.status != status) {
                c.prepare_cached("UPDATE domains SET status = ?2 WHERE name = ?1")?
                    .execute(params![name.as_str(), row::json(&status)?])?;
            }
            Ok(())
        })
        .await
    }
}

/// The service that the mapping of this host leads to, if there is one.
pub(crate) fn leads_to(
    connection: &Connection,
    host: &str,
) -> Result<Option<ServiceKey>, StoreError> {
    host::service_by(
        connection,
        "SELECT project, region, service FROM domains WHERE name = ?",
        host,
    )
}

fn load(connection: &Connection, name: &DomainName) -> Result<Option<DomainMapping>, StoreError> {
    let sql = format!("SELECT {COLUMNS} FROM domains WHERE name = ?");
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query([name.as_str()])?;
    rows.next()?.map(parse).transpose()
}

fn all(rows: &mut rusqlite::Rows<'_>) -> Result<Vec<DomainMapping>, StoreError> {
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(parse(row)?);
    }
    Ok(found)
}

fn parse(row: &Row<'_>) -> Result<DomainMapping, StoreError> {
    let column = |i: usize| row.get::<_, String>(i).map_err(StoreError::from);
    let name = column(0)?;
    let what = format!("row of domain {name}");
    Ok(DomainMapping {
        name: row::name(&name)?,
        project: row::name(&column(1)?)?,
        region: row::name(&column(2)?)?,
        meta: row::parse(&column(3)?, &what)?,
        spec: row::parse(&column(4)?, &what)?,
        status: row::parse(&column(5)?, &what)?,
    })
}
