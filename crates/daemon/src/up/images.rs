//! The image store, as the loops and the API see it.

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use utsuwa_control::seam::ImageError;
use utsuwa_model::image::ResolvedImage;
use utsuwa_runtime::image::{ErrorClass, ImageStore, LayerProgress, LayerState, PullError};
use utsuwa_store::Store;

#[derive(Debug, Clone)]
pub(super) struct Images {
    pub(super) images: ImageStore,
    pub(super) store: Store,
}

/// The condition reason for what went wrong (`cloud-run-spec.md` §1.8), and whether trying later may help.
fn told(error: &PullError) -> ImageError {
    let (reason, transient) = match error.class() {
        ErrorClass::Unauthorized => ("ContainerImageUnauthorized", false),
        ErrorClass::NotFound | ErrorClass::Caller => ("ContainerMissing", false),
        ErrorClass::Exhausted | ErrorClass::Unavailable | ErrorClass::Internal => {
            ("ContainerMissing", true)
        }
    };
    ImageError {
        reason: reason.to_owned(),
        message: error.to_string(),
        transient,
    }
}

impl utsuwa_control::seam::Images for Images {
    fn ensure(&self, reference: &str) -> BoxFuture<'_, Result<ResolvedImage, ImageError>> {
        let reference = reference.to_owned();
        Box::pin(async move { self.images.ensure(&reference).await.map_err(|e| told(&e)) })
    }

    fn collect(&self, pinned: Vec<String>) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            let pinned: BTreeSet<String> = pinned.into_iter().collect();
            match self.images.collect(&pinned).await {
                Ok(collected) => tracing::debug!(?collected, "images collected"),
                Err(error) => tracing::warn!(%error, "collect images"),
            }
        })
    }
}

impl utsuwa_api::seam::Images for Images {
    fn load(
        &self,
        archive: BoxStream<'static, std::io::Result<Bytes>>,
    ) -> BoxFuture<'_, Result<utsuwa_api::seam::LoadedImage, String>> {
        Box::pin(async move {
            let loaded = self
                .images
                .load_archive(archive)
                .await
                .map_err(|e| e.to_string())?;
            Ok(utsuwa_api::seam::LoadedImage {
                reference: loaded.reference,
                digest: loaded.manifest,
            })
        })
    }

    fn list(&self) -> BoxFuture<'_, Vec<utsuwa_api::seam::ImageInsight>> {
        Box::pin(async move {
            let used: BTreeSet<String> = match self.store.images() {
                Ok(images) => images.into_iter().map(|i| i.manifest).collect(),
                Err(error) => {
                    tracing::warn!(%error, "read which images are in use");
                    BTreeSet::new()
                }
            };
            self.images
                .list()
                .into_iter()
                .map(|stored| utsuwa_api::seam::ImageInsight {
                    reference: stored
                        .names
                        .first()
                        .cloned()
                        .unwrap_or_else(|| stored.image.pinned.clone()),
                    in_use: used.contains(&stored.image.manifest),
                    size_bytes: stored.image.size_bytes,
                    left_out: stored.left_out,
                    digest: stored.image.manifest,
                })
                .collect()
        })
    }

    fn pulling(&self, reference: &str) -> Option<utsuwa_api::seam::PullInsight> {
        let progress = self.images.pulling(reference)?;
        let (done_bytes, total_bytes) = progress.bytes();
        let ready = |layer: &&LayerProgress| layer.state == LayerState::Ready;
        Some(utsuwa_api::seam::PullInsight {
            layers: progress.layers.len(),
            layers_ready: progress.layers.iter().filter(ready).count(),
            total_bytes,
            done_bytes,
        })
    }
}
