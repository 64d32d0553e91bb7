//! What references were resolved to, so that a restart needs no registry.

use rusqlite::{OptionalExtension, params};
use utsuwa_model::image::ResolvedImage;

use crate::{Store, StoreError, row};

impl Store {
    /// Remembers (or replaces) an image under its pinned name.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::Sqlite`].
    pub async fn save_image(&self, image: ResolvedImage) -> Result<(), StoreError> {
        self.write(move |c| {
            c.prepare_cached(
                "INSERT INTO images (pinned, body) VALUES (?, ?)
                 ON CONFLICT (pinned) DO UPDATE SET body = excluded.body WHERE body <> excluded.body",
            )?
            .execute(params![image.pinned, row::json(&image)?])?;
            Ok(())
        })
        .await
    }

    /// The image pinned as `REPOSITORY@sha256:…`.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub fn image(&self, pinned: &str) -> Result<Option<ResolvedImage>, StoreError> {
        self.read(|c| {
            let body: Option<String> = c
                .prepare_cached("SELECT body FROM images WHERE pinned = ?")?
                .query_row([pinned], |r| r.get(0))
                .optional()?;
            body.map(|b| row::parse(&b, &format!("image {pinned}")))
                .transpose()
        })
    }

    /// Everything that was resolved, sorted by pinned name.
    ///
    /// # Errors
    /// [`StoreError::Sqlite`], [`StoreError::Corrupt`].
    pub fn images(&self) -> Result<Vec<ResolvedImage>, StoreError> {
        self.read(|c| {
            let mut statement = c.prepare_cached("SELECT body FROM images ORDER BY pinned")?;
            let bodies = statement
                .query_map([], |r| r.get::<_, String>(0))?
                .collect::<Result<Vec<_>, _>>()?;
            bodies.iter().map(|b| row::parse(b, "an image")).collect()
        })
    }

    /// Forgets an image. Repeating it changes nothing.
    ///
    /// # Errors
    /// [`StoreError::DiskFull`], [`StoreError::Sqlite`].
    pub async fn remove_image(&self, pinned: &str) -> Result<(), StoreError> {
        let pinned = pinned.to_owned();
        self.write(move |c| {
            c.prepare_cached("DELETE FROM images WHERE pinned = ?")?
                .execute([pinned])?;
            Ok(())
        })
        .await
    }
}
