//! Layers are made by the keeper's housekeeper; the image store in the server only says which.

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::os::fd::OwnedFd;

use futures_util::future::BoxFuture;
use utsuwa_runtime::DriverError;
use utsuwa_runtime::client::SandboxDriver;
use utsuwa_runtime::image::{Digest, LayerUnpacker, UnpackError, UnpackReport};

#[derive(Debug, Clone)]
pub(super) struct KeeperUnpacker(pub(super) SandboxDriver);

fn told(error: DriverError) -> UnpackError {
    match error {
        DriverError::Refused(why) => UnpackError::Refused { why },
        DriverError::Exhausted(why) => UnpackError::Exhausted { why },
        other => UnpackError::Unavailable {
            why: other.to_string(),
        },
    }
}

impl LayerUnpacker for KeeperUnpacker {
    fn unpack(
        &self,
        diff_id: Digest,
        media_type: String,
        blob: OwnedFd,
    ) -> BoxFuture<'_, Result<UnpackReport, UnpackError>> {
        Box::pin(async move {
            let failed = |error: std::io::Error| UnpackError::Unavailable {
                why: error.to_string(),
            };
            let mut again = File::from(blob.try_clone().map_err(failed)?);
            let begin = again.stream_position().map_err(failed)?;
            let layer = diff_id.to_string();
            let mut done = self.0.unpack(&layer, &media_type, blob).await;
            // Not the layer's fault: its process was killed, say for memory. Nothing of it is left, and whoever waits need not know.
            if let Err(DriverError::Internal(why)) = &done {
                tracing::warn!(layer, why, "unpack a layer again");
                again.seek(SeekFrom::Start(begin)).map_err(failed)?;
                done = self.0.unpack(&layer, &media_type, again.into()).await;
            }
            let done = done.map_err(told)?;
            Ok(UnpackReport {
                entries: done.entries,
                bytes: done.bytes,
                told: done.skipped,
                ..UnpackReport::default()
            })
        })
    }

    fn remove(&self, diff_id: Digest) -> BoxFuture<'_, Result<(), UnpackError>> {
        Box::pin(async move {
            self.0
                .remove_layer(&diff_id.to_string())
                .await
                .map_err(told)
        })
    }
}
