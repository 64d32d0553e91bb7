//! How far pulls are, for people.

use tokio::sync::watch;

use super::digest::Digest;

/// The state of one pull.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PullProgress {
    pub image: String,
    pub layers: Vec<LayerProgress>,
}

/// The state of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerProgress {
    /// Of the compressed layer.
    pub digest: Digest,
    pub total_bytes: u64,
    pub done_bytes: u64,
    pub state: LayerState,
}

/// Where a layer is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerState {
    Waiting,
    Downloading,
    Unpacking,
    /// On disk and checked.
    Ready,
}

impl PullProgress {
    /// Bytes that are here, of all there are.
    #[must_use]
    pub fn bytes(&self) -> (u64, u64) {
        self.layers.iter().fold((0, 0), |(done, total), layer| {
            (
                done + layer.done_bytes.min(layer.total_bytes),
                total + layer.total_bytes,
            )
        })
    }
}

/// Where to report to, if anybody wants to know.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reporter(Option<watch::Sender<PullProgress>>);

impl Reporter {
    pub(crate) fn new(sender: Option<watch::Sender<PullProgress>>) -> Self {
        Self(sender)
    }

    pub(crate) fn begin(&self, image: &str, layers: Vec<LayerProgress>) {
        if let Some(sender) = &self.0 {
            sender.send_replace(PullProgress {
                image: image.to_owned(),
                layers,
            });
        }
    }

    pub(crate) fn layer(&self, index: usize, change: impl FnOnce(&mut LayerProgress)) {
        if let Some(sender) = &self.0 {
            sender.send_modify(|progress| {
                if let Some(layer) = progress.layers.get_mut(index) {
                    change(layer);
                }
            });
        }
    }
}
