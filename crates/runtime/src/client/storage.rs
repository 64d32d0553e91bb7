//! Layers and logs, as the keeper keeps them.

use std::os::fd::OwnedFd;

use utsuwa_model::{ServiceKey, Timestamp};

use super::driver::SandboxDriver;
use super::shared::{Unpacked, unexpected};
use crate::driver::DriverError;
use crate::keeper::protocol::{Op, Reply};

impl SandboxDriver {
    /// Unpacks a layer into the image store. `blob` is read from its current position.
    ///
    /// # Errors
    /// [`DriverError::Refused`] for a layer that is not what its digest promises.
    pub async fn unpack(
        &self,
        diff_id: &str,
        media_type: &str,
        blob: OwnedFd,
    ) -> Result<Unpacked, DriverError> {
        let op = Op::Unpack {
            diff_id: diff_id.to_owned(),
            media_type: media_type.to_owned(),
        };
        match self.call(op, vec![blob]).await? {
            (
                Reply::Unpacked {
                    entries,
                    bytes,
                    skipped,
                },
                _,
            ) => Ok(Unpacked {
                entries,
                bytes,
                skipped,
            }),
            // There already.
            (Reply::Done, _) => Ok(Unpacked::default()),
            other => Err(unexpected(&other.0)),
        }
    }

    /// Deletes an unpacked layer that no revision needs.
    ///
    /// # Errors
    /// [`DriverError`].
    pub async fn remove_layer(&self, diff_id: &str) -> Result<(), DriverError> {
        self.call(
            Op::RemoveLayer {
                diff_id: diff_id.to_owned(),
            },
            Vec::new(),
        )
        .await
        .map(|_| ())
    }

    /// Deletes all that instances of a service wrote, if the last of it was written before `before`.
    ///
    /// # Errors
    /// [`DriverError::Exhausted`] while an instance may still write.
    pub async fn remove_logs(
        &self,
        service: &ServiceKey,
        before: Option<Timestamp>,
    ) -> Result<(), DriverError> {
        let service = service.clone();
        self.call(Op::RemoveLogs { service, before }, Vec::new())
            .await
            .map(|_| ())
    }
}
