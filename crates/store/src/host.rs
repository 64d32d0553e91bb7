//! Host names: which service has which (decision 13).

use rusqlite::{Connection, OptionalExtension, params};
use utsuwa_model::service::Service;
use utsuwa_model::{ServiceKey, address};

use crate::{StoreError, domain, row, settings};

/// Which service has this host name.
pub(crate) fn host_owner(
    connection: &Connection,
    host: &str,
) -> Result<Option<ServiceKey>, StoreError> {
    service_by(
        connection,
        "SELECT project, region, service FROM hosts WHERE host = ?",
        host,
    )
}

/// The service that `sql` selects by a host: project, region, service.
pub(crate) fn service_by(
    connection: &Connection,
    sql: &str,
    host: &str,
) -> Result<Option<ServiceKey>, StoreError> {
    let found: Option<(String, String, String)> = connection
        .prepare_cached(sql)?
        .query_row([host], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))
        .optional()?;
    found
        .map(|(p, r, s)| {
            Ok(ServiceKey {
                project: row::name(&p)?,
                region: row::name(&r)?,
                service: row::name(&s)?,
            })
        })
        .transpose()
}

/// Makes the host table hold exactly the names of `service` and its tags (decision 13: exact, a clash is an error). Before
/// the domain is frozen (tests) there are no host names to clash.
pub(crate) fn take_hosts(connection: &Connection, service: &Service) -> Result<(), StoreError> {
    let key = &service.key;
    let Some(settings) = settings::frozen(connection)? else {
        return Ok(());
    };
    let names = params![
        key.project.as_str(),
        key.region.as_str(),
        key.service.as_str()
    ];
    connection
        .prepare_cached("DELETE FROM hosts WHERE project = ? AND region = ? AND service = ?")?
        .execute(names)?;
    let host = address::service_host(key, &settings.project, &settings.region, &settings.domain);
    let tags = service
        .spec
        .traffic
        .iter()
        .filter_map(|t| t.tag.as_deref())
        .map(|tag| address::tag_host(tag, &host));
    let mut wanted: Vec<String> = tags.collect();
    wanted.push(host);
    wanted.sort_unstable();
    wanted.dedup();
    for host in wanted {
        if let Some(owner) = host_owner(connection, &host)? {
            return Err(StoreError::AlreadyExists {
                what: format!("host {host} (of service {owner})"),
            });
        }
        if let Some(to) = domain::leads_to(connection, &host)? {
            return Err(StoreError::Mapped {
                host,
                of: Box::new(key.clone()),
                to: Box::new(to),
            });
        }
        connection
            .prepare_cached(
                "INSERT INTO hosts (host, project, region, service) VALUES (?, ?, ?, ?)",
            )?
            .execute(params![
                host,
                key.project.as_str(),
                key.region.as_str(),
                key.service.as_str()
            ])?;
    }
    Ok(())
}
