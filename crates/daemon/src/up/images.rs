//! The image store, as the loops and the API see it.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use utsuwa_api::seam::LoadError;
use utsuwa_control::seam::ImageError;
use utsuwa_model::image::ResolvedImage;
use utsuwa_runtime::client::SandboxDriver;
use utsuwa_runtime::image::{
    Credentials, ErrorClass, ImageStore, LayerProgress, LayerState, PullError, RewriteRule,
    Settings,
};
use utsuwa_store::Store;

use super::prepare::Ground;
use super::unpacker::KeeperUnpacker;
use crate::output::waited;

#[derive(Debug, Clone)]
pub(super) struct Images {
    pub(super) images: ImageStore,
    pub(super) store: Store,
}

/// The store in the data directory, with the registries as configured.
pub(super) fn open(ground: &Ground, driver: &SandboxDriver) -> anyhow::Result<ImageStore> {
    let mut settings = Settings::new(ground.config.data_dir.join("images"));
    settings.reserve_bytes = ground.config.disk_reserve;
    settings
        .registry
        .insecure
        .clone_from(&ground.config.insecure_registries);
    settings
        .registry
        .certificate_authorities
        .clone_from(&ground.config.registries.authorities);
    settings.registry.credentials = Credentials {
        configured: ground.config.registries.credentials.clone(),
        docker: ground.docker.clone(),
    };
    settings.rewrites.extend(
        ground
            .config
            .image_rewrites
            .iter()
            .map(|(from, to)| RewriteRule {
                from: from.clone(),
                to: to.clone(),
            }),
    );
    ImageStore::open(settings, Arc::new(KeeperUnpacker(driver.clone())))
        .context("open the image store")
}

/// A power cut may have left layers half written: nothing may start from them, however early its request comes. What can't be
/// mended now is mended, or told, when its revision needs it.
pub(super) async fn trust_layers(images: &ImageStore) -> anyhow::Result<()> {
    let checked = images.quarantine();
    waited("layers to be checked after the last stop", checked)
        .await
        .context("take away layers that may not have reached the disk before the last stop")?;
    if let Err(error) = images.recover().await {
        tracing::warn!(%error, "check the image store after the last end");
    }
    Ok(())
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

/// Why an uploaded archive was not taken.
fn refused(error: &PullError) -> LoadError {
    let why = error.to_string();
    match error.class() {
        ErrorClass::Exhausted => LoadError::NoRoom(why),
        ErrorClass::Unavailable | ErrorClass::Internal => LoadError::Unavailable(why),
        ErrorClass::NotFound | ErrorClass::Unauthorized | ErrorClass::Caller => {
            LoadError::Wrong(why)
        }
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
        wanted: Option<String>,
    ) -> BoxFuture<'_, Result<utsuwa_api::seam::LoadedImage, LoadError>> {
        Box::pin(async move {
            let loaded = self
                .images
                .load_archive(archive, wanted.as_deref())
                .await
                .map_err(|error| refused(&error))?;
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
