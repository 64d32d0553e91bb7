//! Removes what no image needs, and compressed layers that have served their purpose.

use std::collections::BTreeSet;
use std::fs::File;

use super::{ImageStore, blob_turn, is_younger, names_in, now, partial_of};
use crate::image::digest::Digest;
use crate::image::error::PullError;

/// What a collection removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Collected {
    pub images: usize,
    pub layers: usize,
    pub blobs: usize,
    /// Bytes of the blobs; layers are not measured.
    pub blob_bytes: u64,
}

impl ImageStore {
    /// Removes images that are not in `pinned` (digests of manifests, [`utsuwa_model::image::ResolvedImage::manifest`]) and
    /// were not wanted for the grace period, then every layer and blob no remaining image names. Safe beside running pulls.
    ///
    /// # Errors
    /// The first thing that could not be removed; the rest is removed all the same next time.
    pub async fn collect(&self, pinned: &BTreeSet<String>) -> Result<Collected, PullError> {
        let oldest = now().saturating_sub(self.0.settings.grace.as_secs());
        let (this, pinned) = (self.clone(), pinned.clone());
        let images = tokio::task::spawn_blocking(move || {
            let stays = |manifest: &Digest, used: u64| {
                used > oldest || pinned.contains(&manifest.to_string())
            };
            let before = this.0.index.read(|index| {
                index
                    .images
                    .iter()
                    .filter(|(id, record)| !stays(id, record.used))
                    .count()
            });
            if before == 0 {
                return Ok(0);
            }
            this.0.index.change(|index| {
                let count = index.images.len();
                index
                    .images
                    .retain(|manifest, record| stays(manifest, record.used));
                index.tidy();
                count - index.images.len()
            })
        })
        .await
        .map_err(|error| PullError::Interrupted(error.to_string()))??;
        let mut collected = Collected {
            images,
            ..Collected::default()
        };
        for layer in names_in(&self.layers_path())? {
            let Ok(diff_id) = Digest::from_hex(&layer) else {
                continue;
            };
            // The turn first, the look after it: see `Claims::turn_if_unused`.
            let Some(_turn) = self.0.claims.turn_if_unused(diff_id) else {
                continue;
            };
            if self.is_needed(diff_id) {
                continue;
            }
            self.0
                .unpacker
                .remove(diff_id)
                .await
                .map_err(|source| PullError::Unpack {
                    image: "(none)".to_owned(),
                    layer: diff_id,
                    source: Box::new(source),
                })?;
            collected.layers += 1;
        }
        for blob in names_in(&self.directory().join("blobs/sha256"))? {
            let Some(digest) = Digest::from_hex(&blob).ok().or_else(|| partial_of(&blob)) else {
                continue;
            };
            let path = self.directory().join("blobs/sha256").join(&blob);
            // Indexes are named by no record and cost little; documents of running pulls are not named yet.
            let young = is_younger(&path, self.0.settings.grace);
            let Some(_turn) = self.0.claims.turn_if_unused(digest) else {
                continue;
            };
            let Some(_blob_turn) = self.0.claims.turn_if_unused(blob_turn(digest)) else {
                continue;
            };
            if young || (partial_of(&blob).is_none() && self.is_needed(digest)) {
                continue;
            }
            let bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            std::fs::remove_file(&path).map_err(PullError::disk("remove a blob", &path))?;
            collected.blobs += 1;
            collected.blob_bytes += bytes;
        }
        Ok(collected)
    }

    fn is_needed(&self, digest: Digest) -> bool {
        self.0.index.read(|index| {
            index
                .images
                .values()
                .any(|record| record.digests().any(|named| named == digest))
        })
    }

    /// Writes unpacked layers to the disk in the background, then deletes their compressed form.
    pub(super) fn settle(&self) {
        let waiting = self.0.index.read(|index| {
            index
                .images
                .values()
                .any(|record| !record.durable && record.boot == self.0.boot)
        });
        if !waiting || self.0.background.is_closed() {
            return;
        }
        let this = self.clone();
        self.0.background.spawn_blocking(move || {
            if let Err(error) = this.settle_now() {
                tracing::warn!(%error, "keep compressed layers: the unpacked ones could not be made durable");
            }
        });
    }

    fn settle_now(&self) -> Result<(), PullError> {
        let settled: Vec<(Digest, Vec<Digest>)> = self.0.index.read(|index| {
            // Layers of another boot are beyond saving; they are unpacked again when wanted.
            let waiting = index
                .images
                .iter()
                .filter(|(_manifest, record)| !record.durable && record.boot == self.0.boot);
            waiting
                .map(|(manifest, record)| {
                    (
                        *manifest,
                        record
                            .layers
                            .iter()
                            .map(|layer| layer.blob.digest)
                            .collect(),
                    )
                })
                .collect()
        });
        if settled.is_empty() {
            return Ok(());
        }
        let layers = self.layers_path();
        let directory = File::open(&layers)
            .map_err(PullError::disk("open the directory of layers", &layers))?;
        rustix::fs::syncfs(&directory)
            .map_err(|errno| PullError::disk("write layers to the disk", &layers)(errno.into()))?;
        self.0.index.change(|index| {
            for (manifest, _blobs) in &settled {
                if let Some(record) = index.images.get_mut(manifest) {
                    record.durable = true;
                }
            }
        })?;
        if self.0.settings.keep_blobs {
            return Ok(());
        }
        for blob in settled.into_iter().flat_map(|(_manifest, blobs)| blobs) {
            // A pull that uses it right now leaves it to the next one.
            let Some(_turn) = self.0.claims.turn_if_unused(blob) else {
                continue;
            };
            let Some(_blob_turn) = self.0.claims.turn_if_unused(blob_turn(blob)) else {
                continue;
            };
            let durable = self.0.index.read(|index| {
                let mut users = index
                    .images
                    .values()
                    .filter(|record| record.layers.iter().any(|layer| layer.blob.digest == blob));
                users.all(|record| record.durable)
            });
            let path = self.blob_path(blob);
            if durable && path.exists() {
                std::fs::remove_file(&path)
                    .map_err(PullError::disk("remove a compressed layer", &path))?;
            }
        }
        Ok(())
    }
}
