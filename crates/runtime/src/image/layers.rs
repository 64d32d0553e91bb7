//! The seam between the store, which knows which layers are needed, and whoever has the right to make them.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use futures_util::future::BoxFuture;

use super::digest::Digest;
use super::unpack::{self, Limits, UnpackError, UnpackReport, UnpackSpec};

/// Makes and removes `images/layers/<hex of the diff id>`. Both calls may be repeated: a layer that is there is not unpacked
/// again, and removing one that is gone is no error. A layer's directory appears whole or not at all.
pub trait LayerUnpacker: fmt::Debug + Send + Sync + 'static {
    /// Unpacks `blob` (read from its beginning) and checks that its uncompressed form has the digest `diff_id`.
    fn unpack(
        &self,
        diff_id: Digest,
        media_type: String,
        blob: OwnedFd,
    ) -> BoxFuture<'_, Result<UnpackReport, UnpackError>>;

    /// Removes the layer. The store makes sure that no image needs it; the implementation that nothing has it mounted.
    fn remove(&self, diff_id: Digest) -> BoxFuture<'_, Result<(), UnpackError>>;
}

/// Unpacks in this process, with the ownership of the archive: for tests and for tools that run as root and trust the image.
/// The server uses the keeper instead, whose child has no rights outside its user namespace.
#[derive(Debug, Clone)]
pub struct InProcessUnpacker {
    layers: PathBuf,
    limits: Limits,
}

impl InProcessUnpacker {
    /// `layers` is the directory `images/layers`.
    pub fn new(layers: PathBuf, limits: Limits) -> Self {
        Self { layers, limits }
    }

    fn unpack_now(
        &self,
        diff_id: Digest,
        media_type: String,
        blob: OwnedFd,
    ) -> Result<UnpackReport, UnpackError> {
        let sys = |call: &str, error: io::Error| UnpackError::Sys {
            call: call.to_owned(),
            name: diff_id.hex(),
            errno: error.raw_os_error().unwrap_or(libc::EIO),
        };
        let target = self.layers.join(diff_id.hex());
        if target.exists() {
            return Ok(UnpackReport::default());
        }
        let partial = self.layers.join(format!("{}.partial", diff_id.hex()));
        if partial.exists() {
            std::fs::remove_dir_all(&partial)
                .map_err(|error| sys("remove what is left of", error))?;
        }
        std::fs::create_dir_all(&partial).map_err(|error| sys("make the directory of", error))?;
        let directory =
            File::open(&partial).map_err(|error| sys("open the directory of", error))?;
        let spec = UnpackSpec {
            diff_id,
            media_type,
            limits: self.limits,
        };
        let outcome =
            unpack::unpack_layer(File::from(blob), directory.as_fd(), &spec).and_then(|report| {
                if rustix::process::geteuid().is_root() {
                    unpack::mark_opaque(directory.as_fd(), &report.opaque)?;
                }
                std::fs::rename(&partial, &target)
                    .map_err(|error| sys("name the directory of", error))?;
                Ok(report)
            });
        if outcome.is_err() {
            // The error that counts is the first one.
            let _left_behind = std::fs::remove_dir_all(&partial);
        }
        outcome
    }
}

impl LayerUnpacker for InProcessUnpacker {
    fn unpack(
        &self,
        diff_id: Digest,
        media_type: String,
        blob: OwnedFd,
    ) -> BoxFuture<'_, Result<UnpackReport, UnpackError>> {
        let this = self.clone();
        Box::pin(async move {
            tokio::task::spawn_blocking(move || this.unpack_now(diff_id, media_type, blob))
                .await
                .map_err(|error| UnpackError::Unavailable {
                    why: error.to_string(),
                })?
        })
    }

    fn remove(&self, diff_id: Digest) -> BoxFuture<'_, Result<(), UnpackError>> {
        let path = self.layers.join(diff_id.hex());
        Box::pin(async move {
            match tokio::fs::remove_dir_all(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(UnpackError::Sys {
                    call: "remove".to_owned(),
                    name: diff_id.hex(),
                    errno: error.raw_os_error().unwrap_or(libc::EIO),
                }),
                _ => Ok(()),
            }
        })
    }
}
