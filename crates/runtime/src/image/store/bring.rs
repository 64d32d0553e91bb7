//! From a record to layers on disk: what is missing is downloaded and unpacked.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use futures_util::{StreamExt, TryStreamExt};

use super::index::{Layer, Record};
use super::{ImageStore, blob_turn, download, partial_path};
use crate::image::digest::{Digest, Hasher};
use crate::image::error::PullError;
use crate::image::manifest::Descriptor;
use crate::image::progress::{LayerProgress, LayerState, Reporter};
use crate::image::reference::Reference;

/// Layers of one pull that are on their way at a time: more only share the same line.
const LAYERS_AT_A_TIME: usize = 4;

impl ImageStore {
    /// Brings and unpacks what is missing; true when something was.
    pub(super) async fn make_ready(
        &self,
        source: &Reference,
        record: &Record,
        reporter: &Reporter,
    ) -> Result<bool, PullError> {
        let begin = |layer: &Layer| LayerProgress {
            digest: layer.blob.digest,
            total_bytes: layer.blob.size,
            done_bytes: 0,
            state: LayerState::Waiting,
        };
        reporter.begin(
            &record.image.reference,
            record.layers.iter().map(begin).collect(),
        );
        self.check_space(record)?;
        // Futures are made before the stream borrows them: a closure over references would not be provably `Send`.
        let layers: Vec<_> = record
            .layers
            .iter()
            .enumerate()
            .map(|(index, layer)| self.layer(source, layer, index, reporter))
            .collect();
        futures_util::stream::iter(layers)
            .buffer_unordered(LAYERS_AT_A_TIME)
            .try_fold(false, |any, unpacked| {
                std::future::ready(Ok(any || unpacked))
            })
            .await
    }

    async fn layer(
        &self,
        source: &Reference,
        layer: &Layer,
        index: usize,
        reporter: &Reporter,
    ) -> Result<bool, PullError> {
        let inner = &self.0;
        let _turn = inner.claims.turn(layer.diff_id).await;
        let suspect = inner.suspect.lock().contains(&layer.diff_id);
        let failed = |error| PullError::Unpack {
            image: source.to_string(),
            layer: layer.blob.digest,
            source: Box::new(error),
        };
        if suspect {
            tracing::info!(layer = %layer.diff_id, "unpack a layer again: it may not have reached the disk before the last stop");
            inner.unpacker.remove(layer.diff_id).await.map_err(failed)?;
            self.drop_wrong_blob(layer.blob.digest).await?;
            inner.suspect.lock().remove(&layer.diff_id);
        } else if self.layer_path(layer.diff_id).exists() {
            reporter.layer(index, |progress| {
                progress.done_bytes = progress.total_bytes;
                progress.state = LayerState::Ready;
            });
            return Ok(false);
        }
        let blob = self.blob(source, &layer.blob, index, reporter).await?;
        reporter.layer(index, |progress| {
            progress.done_bytes = progress.total_bytes;
            progress.state = LayerState::Unpacking;
        });
        let _permit = inner
            .unpacks
            .acquire()
            .await
            .map_err(|error| PullError::Interrupted(error.to_string()))?;
        let report = inner
            .unpacker
            .unpack(layer.diff_id, layer.blob.media_type.clone(), blob)
            .await
            .map_err(failed)?;
        let left_out = report.left_out();
        tracing::info!(
            image = %source, layer = %layer.diff_id, entries = report.entries, bytes = report.bytes, ?left_out, "unpacked a layer"
        );
        inner.left_out.lock().insert(layer.diff_id, left_out);
        reporter.layer(index, |progress| progress.state = LayerState::Ready);
        Ok(true)
    }

    /// A blob from before a power cut may be anything.
    pub(super) async fn drop_wrong_blob(&self, digest: Digest) -> Result<(), PullError> {
        let _turn = self.0.claims.turn(blob_turn(digest)).await;
        let path = self.blob_path(digest);
        let check = tokio::task::spawn_blocking(move || {
            let Ok(mut file) = File::open(&path) else {
                return Ok(());
            };
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; 128 << 10];
            loop {
                let bytes = file
                    .read(&mut buffer)
                    .map_err(PullError::disk("read a layer", &path))?;
                if bytes == 0 {
                    break;
                }
                hasher.update(&buffer[..bytes]);
            }
            if hasher.finish() != digest {
                std::fs::remove_file(&path)
                    .map_err(PullError::disk("remove a damaged layer", &path))?;
            }
            Ok(())
        });
        check
            .await
            .map_err(|error| PullError::Interrupted(error.to_string()))?
    }

    /// The compressed layer, downloaded unless it is here.
    async fn blob(
        &self,
        source: &Reference,
        blob: &Descriptor,
        index: usize,
        reporter: &Reporter,
    ) -> Result<OwnedFd, PullError> {
        let path = self.blob_path(blob.digest);
        // Another layer may be the same blob; its own turn is another one.
        let _turn = self.0.claims.turn(blob_turn(blob.digest)).await;
        if !path.exists() {
            if source.is_local() {
                return Err(PullError::NotLoaded {
                    image: source.to_string(),
                });
            }
            let _permit = self
                .0
                .downloads
                .acquire()
                .await
                .map_err(|error| PullError::Interrupted(error.to_string()))?;
            reporter.layer(index, |progress| progress.state = LayerState::Downloading);
            let progress = |bytes| reporter.layer(index, |progress| progress.done_bytes = bytes);
            download::download(&self.0.registry, source, blob, &path, &progress).await?;
        }
        File::open(&path)
            .map(OwnedFd::from)
            .map_err(PullError::disk("open a layer", &path))
    }

    /// Refuses a pull that would eat the reserve, before it starts. Unpacking looks again while it writes.
    fn check_space(&self, record: &Record) -> Result<(), PullError> {
        let directory = &self.0.settings.directory;
        let needed_bytes = record
            .layers
            .iter()
            .filter(|layer| {
                !self.layer_path(layer.diff_id).exists()
                    && !self.blob_path(layer.blob.digest).exists()
            })
            .fold(0_u64, |sum, layer| {
                let partial = partial_path(&self.blob_path(layer.blob.digest));
                let here = std::fs::metadata(partial).map_or(0, |metadata| metadata.len());
                sum.saturating_add(layer.blob.size.saturating_sub(here))
            });
        let stat = rustix::fs::statvfs(directory)
            .map_err(|errno| PullError::disk("look at the free space", directory)(errno.into()))?;
        let available_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
        let reserve_bytes = self.0.settings.reserve_bytes;
        let nothing_to_do = record
            .layers
            .iter()
            .all(|layer| self.layer_path(layer.diff_id).exists());
        if !nothing_to_do && available_bytes < needed_bytes.saturating_add(reserve_bytes) {
            let path = directory.clone();
            return Err(PullError::DiskReserve {
                path,
                needed_bytes,
                available_bytes,
                reserve_bytes,
            });
        }
        Ok(())
    }
}
