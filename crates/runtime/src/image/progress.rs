//! How far pulls are, for people.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
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

/// The pulls that are on their way, by the reference that was asked for. Observed, never stored: whoever asks sees what is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pulls(Arc<Mutex<Going>>);

#[derive(Debug, Default)]
struct Going {
    next: u64,
    pulls: BTreeMap<(String, u64), watch::Receiver<PullProgress>>,
}

/// While it lives, the pull can be seen.
#[derive(Debug)]
pub(crate) struct Seen {
    pulls: Pulls,
    key: (String, u64),
}

impl Pulls {
    /// A pull of `reference` begins.
    pub(crate) fn begin(&self, reference: &str) -> (watch::Sender<PullProgress>, Seen) {
        let (sender, receiver) = watch::channel(PullProgress::default());
        let mut going = self.0.lock();
        going.next += 1;
        let key = (reference.to_owned(), going.next);
        going.pulls.insert(key.clone(), receiver);
        let pulls = self.clone();
        (sender, Seen { pulls, key })
    }

    /// How far the pull of `reference` is. Of several for the same the one that has brought most: the others wait for it.
    pub(crate) fn of(&self, reference: &str) -> Option<PullProgress> {
        let going = self.0.lock();
        going
            .pulls
            .range((reference.to_owned(), 0)..)
            .take_while(|((of, _), _)| of == reference)
            .map(|(_, receiver)| receiver.borrow().clone())
            .max_by_key(|progress| progress.bytes().0)
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.pulls.0.lock().pulls.remove(&self.key);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_seen_while_it_goes_on_and_the_furthest_speaks() {
        let pulls = Pulls::default();
        assert_eq!(pulls.of("a/b:1"), None);
        let layer = |done_bytes| LayerProgress {
            digest: Digest::of(b"layer"),
            total_bytes: 10,
            done_bytes,
            state: LayerState::Downloading,
        };
        let (first, seen_first) = pulls.begin("a/b:1");
        let (second, _seen_second) = pulls.begin("a/b:1");
        let (other, _seen_other) = pulls.begin("a/b:10");
        Reporter::new(Some(first)).begin("a/b:1", vec![layer(7)]);
        Reporter::new(Some(second)).begin("a/b:1", vec![layer(2)]);
        Reporter::new(Some(other)).begin("a/b:10", vec![layer(9)]);
        assert_eq!(pulls.of("a/b:1").map(|p| p.bytes()), Some((7, 10)));
        drop(seen_first);
        assert_eq!(pulls.of("a/b:1").map(|p| p.bytes()), Some((2, 10)));
        assert_eq!(pulls.of("a/b"), None);
    }
}
