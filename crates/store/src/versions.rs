//! Which services changed, cheaply: for loops that were only told that something did.

use std::collections::BTreeMap;

use utsuwa_model::{ServiceKey, Timestamp};

use crate::{Store, StoreError, row};

impl Store {
    /// Version of every service, with a stamp of its policy and of its revisions that shall go. Two answers that agree on a
    /// service mean that no user changed it between them; what loops write (status) doesn't count.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`].
    pub fn service_versions(
        &self,
    ) -> Result<BTreeMap<ServiceKey, (Timestamp, String)>, StoreError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT s.project, s.region, s.service, s.version, coalesce(p.etag, '')
                 FROM services s LEFT JOIN policies p
                   ON p.project = s.project AND p.region = s.region AND p.service = s.service",
            )?;
            let mut rows = statement.query([])?;
            let mut found: BTreeMap<ServiceKey, (Timestamp, String)> = BTreeMap::new();
            while let Some(row) = rows.next()? {
                let (project, region, service): (String, String, String) =
                    (row.get(0)?, row.get(1)?, row.get(2)?);
                let key = ServiceKey {
                    project: row::name(&project)?,
                    region: row::name(&region)?,
                    service: row::name(&service)?,
                };
                found.insert(key, (Timestamp(row.get(3)?), row.get::<_, String>(4)?));
            }
            let mut statement = c.prepare_cached(
                "SELECT project, region, service, count(*) FROM revisions
                 WHERE delete_time IS NOT NULL GROUP BY project, region, service",
            )?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (project, region, service): (String, String, String) =
                    (row.get(0)?, row.get(1)?, row.get(2)?);
                let key = ServiceKey {
                    project: row::name(&project)?,
                    region: row::name(&region)?,
                    service: row::name(&service)?,
                };
                if let Some((_, stamp)) = found.get_mut(&key) {
                    stamp.push_str(&format!(" -{}", row.get::<_, i64>(3)?));
                }
            }
            Ok(found)
        })
    }
}
