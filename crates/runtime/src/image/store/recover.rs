//! After a power cut: what may not have reached the disk is taken away, then brought again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::index::IndexFile;
use super::{ImageStore, names_in};
use crate::image::digest::Digest;
use crate::image::error::PullError;

impl ImageStore {
    /// Takes away what may not have reached the disk before a power cut, so that nothing can be started from it. Call it after
    /// [`ImageStore::open`], before instances start; costs nothing otherwise.
    ///
    /// # Errors
    /// The first layer that can't be removed: nothing may start then.
    pub async fn quarantine(&self) -> Result<(), PullError> {
        let suspect = self.0.suspect.lock().clone();
        let blobs: BTreeMap<Digest, Digest> = self.0.index.read(|index| {
            let layers = index.images.values().flat_map(|record| &record.layers);
            layers
                .map(|layer| (layer.diff_id, layer.blob.digest))
                .collect()
        });
        for layer in suspect {
            self.0
                .unpacker
                .remove(layer)
                .await
                .map_err(|source| PullError::Unpack {
                    image: "(of before the last stop)".to_owned(),
                    layer,
                    source: Box::new(source),
                })?;
            // Its compressed form may be damaged too, and would be unpacked without another look.
            if let Some(blob) = blobs.get(&layer) {
                self.drop_wrong_blob(*blob).await?;
            }
        }
        Ok(())
    }

    /// Unpacks again what [`ImageStore::quarantine`] took away.
    ///
    /// # Errors
    /// The first image that can't be had again.
    pub async fn recover(&self) -> Result<(), PullError> {
        let suspect = self.0.suspect.lock().clone();
        let damaged: Vec<String> = self.0.index.read(|index| {
            let damaged = index.images.values().filter(|record| {
                record
                    .layers
                    .iter()
                    .any(|layer| suspect.contains(&layer.diff_id))
            });
            damaged.map(|record| record.image.pinned.clone()).collect()
        });
        for pinned in damaged {
            self.ensure(&pinned).await?;
        }
        Ok(())
    }
}

/// Layers on disk that may be damaged: not written out before a reboot, or of no image at all.
pub(super) fn suspect_layers(
    layers: &Path,
    index: &IndexFile,
    boot: &str,
) -> Result<BTreeSet<Digest>, PullError> {
    let safe: BTreeSet<Digest> = index.read(|index| {
        let safe = index
            .images
            .values()
            .filter(|record| record.durable || record.boot == boot);
        safe.flat_map(|record| record.layers.iter().map(|layer| layer.diff_id))
            .collect()
    });
    let there = names_in(layers)?;
    Ok(there
        .iter()
        .filter_map(|name| Digest::from_hex(name).ok())
        .filter(|digest| !safe.contains(digest))
        .collect())
}
