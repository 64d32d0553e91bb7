//! IAM policies of services. The etag is base64 of a number that is new for every write in this database, so that not even a
//! service that was deleted and made again can be changed with an old etag.

use rusqlite::{Connection, OptionalExtension, params};
use utsuwa_model::ServiceKey;
use utsuwa_model::iam::Policy;

use crate::{Store, StoreError, row, service};

impl Store {
    /// The policy of a service; empty, with an etag, if none was ever set.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub fn policy(&self, key: &ServiceKey) -> Result<Policy, StoreError> {
        self.read(|c| load(c, key))
    }

    /// Replaces the policy; answers it with its new etag. An absent or empty `expected_etag` replaces whatever is there.
    ///
    /// # Errors
    /// [`StoreError::StaleEtag`] if somebody else wrote meanwhile, [`StoreError::NotFound`] without such a service.
    pub async fn set_policy(
        &self,
        key: &ServiceKey,
        expected_etag: Option<&str>,
        policy: Policy,
    ) -> Result<Policy, StoreError> {
        let key = key.clone();
        let expected = expected_etag.map(normal).filter(|e| !e.is_empty());
        self.write(move |c| {
            if service::load(c, &key)?.is_none() {
                return Err(service::not_found(&key));
            }
            let current = load(c, &key)?;
            if expected.is_some_and(|e| e != normal(&current.etag)) {
                return Err(StoreError::StaleEtag);
            }
            let number: i64 = c
                .prepare_cached(
                    "INSERT INTO counters (name, value) VALUES ('policy', 1)
                     ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
                )?
                .query_row([], |r| r.get(0))?;
            let policy = Policy { etag: etag(number), ..policy };
            c.prepare_cached("INSERT OR REPLACE INTO policies (project, region, service, body, etag) VALUES (?, ?, ?, ?, ?)")?
                .execute(params![key.project.as_str(), key.region.as_str(), key.service.as_str(), row::json(&policy)?, policy.etag])?;
            c.touch(&key);
            Ok(policy)
        })
        .await
    }
}

fn load(connection: &Connection, key: &ServiceKey) -> Result<Policy, StoreError> {
    let body: Option<String> = connection
        .prepare_cached(
            "SELECT body FROM policies WHERE project = ? AND region = ? AND service = ?",
        )?
        .query_row(
            params![
                key.project.as_str(),
                key.region.as_str(),
                key.service.as_str()
            ],
            |r| r.get(0),
        )
        .optional()?;
    match body {
        Some(body) => row::parse(&body, &format!("policy of service {key}")),
        None => Ok(Policy {
            version: 1,
            etag: etag(0),
            bindings: Vec::new(),
        }),
    }
}

/// Nine bytes (a version mark and the number) as base64: a length that needs no padding.
fn etag(number: i64) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bytes = [7_u8; 9];
    bytes[1..].copy_from_slice(&number.to_be_bytes());
    let mut text = String::with_capacity(12);
    for three in bytes.chunks_exact(3) {
        let bits = u32::from(three[0]) << 16 | u32::from(three[1]) << 8 | u32::from(three[2]);
        for shift in [18, 12, 6, 0] {
            text.push(char::from(ALPHABET[(bits >> shift & 63) as usize]));
        }
    }
    text
}

/// Clients send the URL-safe alphabet back, with or without padding.
fn normal(etag: &str) -> String {
    etag.trim_end_matches('=')
        .replace('-', "+")
        .replace('_', "/")
}
