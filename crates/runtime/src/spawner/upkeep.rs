//! The housekeeper's work on disk: which trees come and go. How they do is in `chores`.

use std::path::PathBuf;

use utsuwa_model::instance::RootfsSpec;

use super::chores::{self, Chore};
use super::housekeeper::Housekeeper;
use super::protocol::{Channel, Reply, SpawnError};
use super::respond;
use crate::sandbox::layers::{self, Method};

impl Housekeeper {
    /// Deletes, with nobody waiting for it.
    pub(super) fn throw_away(&mut self, trees: &[PathBuf]) {
        match Chore::remove(None, trees) {
            Ok(chore) => self.chores.extend(chore),
            Err(error) => tracing::warn!(%error, "the next start tries again"),
        }
    }

    /// The trees that one deletion takes away.
    pub(super) fn layer_and_copies(&self, diff_id: &str) -> Result<Vec<PathBuf>, SpawnError> {
        let hex = layers::digest_hex(diff_id)?;
        let mut trees = vec![self.images.join("layers").join(hex)];
        trees.extend(chores::copies_of(&self.images, hex));
        Ok(trees)
    }

    pub(super) fn removed_logs(&self) -> Vec<PathBuf> {
        self.logs
            .as_ref()
            .map(|logs| crate::logs::layout::removed(logs))
            .unwrap_or_default()
    }

    pub(super) fn prepare(
        &self,
        request: u64,
        rootfs: &RootfsSpec,
    ) -> Result<Option<Chore>, SpawnError> {
        match self.method {
            Method::Idmap | Method::AsTheyAre => Ok(None),
            Method::Copy => Chore::copy(request, &self.images, rootfs, self.disk_reserve),
        }
    }

    /// Answers now if there is nothing to do.
    pub(super) fn begin(
        &mut self,
        channel: &Channel,
        request: u64,
        chore: Result<Option<Chore>, SpawnError>,
    ) {
        match chore {
            Ok(Some(chore)) => self.chores.push(chore),
            Ok(None) => respond(channel, request, Ok(Reply::Done), &[]),
            Err(error) => respond(channel, request, Err(error), &[]),
        }
    }
}
