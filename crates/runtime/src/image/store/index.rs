//! What the store remembers: which images it knows, under which names, and what they are made of.
//!
//! One JSON file, replaced whole. It is a cache of what registries said: losing it means pulling again (uploaded images must be
//! uploaded again).

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use utsuwa_model::image::ResolvedImage;

use crate::image::digest::Digest;
use crate::image::error::PullError;
use crate::image::manifest::Descriptor;

/// One layer: compressed in the blobs, uncompressed in the layers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Layer {
    pub(super) diff_id: Digest,
    pub(super) blob: Descriptor,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) image: ResolvedImage,
    pub(super) config: Digest,
    pub(super) layers: Vec<Layer>,
    /// Seconds since 1970 of the last call that wanted it: what was wanted lately is not collected.
    pub(super) used: u64,
    /// False while its layers may be in memory only: a power cut could leave files of zeros. See `settle`.
    pub(super) durable: bool,
    /// The boot in which its layers were written.
    pub(super) boot: String,
}

impl Record {
    /// Everything under which content of this image is kept.
    pub(super) fn digests(&self) -> impl Iterator<Item = Digest> + '_ {
        let manifest = self.image.manifest.parse::<Digest>().ok();
        manifest.into_iter().chain([self.config]).chain(
            self.layers
                .iter()
                .flat_map(|layer| [layer.diff_id, layer.blob.digest]),
        )
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Index {
    version: u32,
    /// By digest of the image's own manifest.
    pub(super) images: BTreeMap<Digest, Record>,
    /// `REPOSITORY@sha256:…`, and `REPOSITORY:TAG` of this server's own images, to the manifest.
    pub(super) names: BTreeMap<String, Digest>,
    /// By layer: what of it is not as its archive says, in words.
    #[serde(default)]
    pub(super) left_out: BTreeMap<Digest, Vec<String>>,
}

const VERSION: u32 = 1;

impl Index {
    /// What is left out of the layers of `record`, in their order.
    pub(super) fn left_out_of(&self, record: &Record) -> Vec<String> {
        let layers = record.layers.iter();
        layers
            .filter_map(|layer| Some((layer, self.left_out.get(&layer.diff_id)?)))
            .flat_map(|(layer, words)| {
                words
                    .iter()
                    .map(|what| format!("layer {}: {what}", layer.blob.digest))
            })
            .collect()
    }

    /// Drops names that lead nowhere, and words about layers of no image.
    pub(super) fn tidy(&mut self) {
        let known: BTreeSet<Digest> = self.images.keys().copied().collect();
        self.names
            .retain(|_name, manifest| known.contains(manifest));
        let layers: BTreeSet<Digest> = self
            .images
            .values()
            .flat_map(|record| record.layers.iter().map(|layer| layer.diff_id))
            .collect();
        self.left_out.retain(|diff_id, _| layers.contains(diff_id));
    }
}

/// The index in memory and on disk, always the same.
#[derive(Debug)]
pub(super) struct IndexFile {
    path: PathBuf,
    index: Mutex<Index>,
}

impl IndexFile {
    pub(super) fn open(path: PathBuf) -> Result<Self, PullError> {
        let index = match std::fs::read(&path) {
            Ok(text) => {
                let index: Index =
                    serde_json::from_slice(&text).map_err(|error| PullError::Index {
                        path: path.clone(),
                        why: error.to_string(),
                    })?;
                if index.version > VERSION {
                    let why = format!(
                        "it has version {}, this server knows up to {VERSION}",
                        index.version
                    );
                    return Err(PullError::Index { path, why });
                }
                index
            }
            Err(error) if error.kind() == ErrorKind::NotFound => Index {
                version: VERSION,
                ..Index::default()
            },
            Err(error) => return Err(PullError::disk("read the index of images", &path)(error)),
        };
        Ok(Self {
            path,
            index: Mutex::new(index),
        })
    }

    pub(super) fn read<T>(&self, look: impl FnOnce(&Index) -> T) -> T {
        look(&self.index.lock())
    }

    /// Changes the index in both places, or in none. Blocks on the disk.
    pub(super) fn change<T>(&self, change: impl FnOnce(&mut Index) -> T) -> Result<T, PullError> {
        let mut index = self.index.lock();
        let mut next = index.clone();
        let answer = change(&mut next);
        let text = serde_json::to_vec(&next).map_err(|error| PullError::Index {
            path: self.path.clone(),
            why: error.to_string(),
        })?;
        write_whole(&self.path, &text)
            .map_err(PullError::disk("write the index of images", &self.path))?;
        *index = next;
        Ok(answer)
    }
}

/// Replaces the file at `path`: after a crash it is the old one or the new one.
pub(super) fn write_whole(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("partial");
    let mut file = std::fs::File::create(&partial)?;
    file.write_all(content)?;
    file.sync_data()?;
    std::fs::rename(&partial, path)?;
    if let Some(directory) = path.parent() {
        std::fs::File::open(directory)?.sync_all()?;
    }
    Ok(())
}
