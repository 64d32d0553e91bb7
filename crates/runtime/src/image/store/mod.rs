//! The image store: from a reference to layers on disk.
//!
//! Owns three folders of `images/` in the data directory: `index/` (see [`index`]), `blobs/sha256/HEX` (manifests,
//! configurations, and compressed layers until they are safely unpacked), `incoming/` (uploads). `layers/HEX` is made and
//! removed by a [`LayerUnpacker`] only. Doesn't: write in `images/` itself, which may be root's; decide which images are
//! needed (callers pin them); mount anything.
//!
//! Invariants:
//! 1. What stands in `blobs` or `layers` under a digest was checked against it.
//! 2. An answer of [`ImageStore::ensure`] means: all layers are there, and stay for [`Settings::grace`] or as long as pinned.
//! 3. The same content wanted twice at a time is brought once.
//! 4. A compressed layer is deleted only after the unpacked one was written to the disk (`syncfs`); until then a reboot makes
//!    the layer suspect, and it is unpacked again. Manifests and configurations stay as long as their image.
//!
//! Fails with [`PullError`]. A failed call leaves complete blobs and layers (the next try uses them), and of a broken download
//! the part that arrived, with which the next one begins.

mod bring;
mod claims;
mod collect;
mod download;
mod index;
mod pulls;
mod recover;
mod resolve;
mod upload;

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use utsuwa_model::image::ResolvedImage;

pub use collect::Collected;

use self::claims::Claims;
use self::index::{IndexFile, Record};
use self::pulls::Pulls;
use super::digest::Digest;
use super::error::PullError;
use super::layers::LayerUnpacker;
use super::progress::{PullProgress, Reporter};
use super::reference::{Reference, RewriteRule, rewrite};
use super::registry::{Registry, RegistrySettings};

/// Downloads of all pulls together.
const DOWNLOADS_AT_A_TIME: usize = 6;
/// Unpacking costs a CPU; deploys must not starve what serves.
const UNPACKS_AT_A_TIME: usize = 2;

/// How an image store works.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `images/` in the data directory.
    pub directory: PathBuf,
    pub rewrites: Vec<RewriteRule>,
    pub registry: RegistrySettings,
    /// Free bytes that pulls leave on the disk (decision 25).
    pub reserve_bytes: u64,
    /// Keep compressed layers after they were unpacked.
    pub keep_blobs: bool,
    /// How long an image that nobody pins stays after it was last wanted, and part of a download after its last byte.
    pub grace: Duration,
    /// The longest a pull may take.
    pub pull_limit: Duration,
}

impl Settings {
    /// The defaults, for `images/` at `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self {
            directory,
            rewrites: RewriteRule::defaults(),
            registry: RegistrySettings::default(),
            reserve_bytes: 512 << 20,
            keep_blobs: false,
            grace: Duration::from_secs(3600),
            // 20 GiB at 10 Mbit/s take 5 hours.
            pull_limit: Duration::from_secs(6 * 3600),
        }
    }
}

/// One image of the store, for listings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredImage {
    pub image: ResolvedImage,
    /// The names it can be had by without a registry.
    pub names: Vec<String>,
    /// Seconds since 1970 of the last call that wanted it.
    pub last_used: u64,
    /// What of its layers is not as their archives say (device nodes, for example), in words.
    pub left_out: Vec<String>,
}

/// A cheap handle to the store; clones are the same store.
#[derive(Debug, Clone)]
pub struct ImageStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    settings: Settings,
    registry: Registry,
    unpacker: Arc<dyn LayerUnpacker>,
    index: IndexFile,
    claims: Arc<Claims>,
    /// Layers written before the last reboot that may not have reached the disk.
    suspect: Mutex<BTreeSet<Digest>>,
    downloads: Semaphore,
    unpacks: Semaphore,
    /// Of layers unpacked just now, until the index has it.
    left_out: Mutex<BTreeMap<Digest, Vec<String>>>,
    pulls: Pulls,
    background: TaskTracker,
    /// Pulls are to end.
    closing: CancellationToken,
    boot: String,
}

impl ImageStore {
    /// Opens the store, makes its directories, and removes what an interrupted server left half done. Blocks on the disk.
    ///
    /// # Errors
    /// [`PullError::Disk`] or [`PullError::Index`] naming the file.
    pub fn open(settings: Settings, unpacker: Arc<dyn LayerUnpacker>) -> Result<Self, PullError> {
        let blobs = settings.directory.join("blobs/sha256");
        let incoming = settings.directory.join("incoming");
        let index = settings.directory.join("index");
        for directory in [&blobs, &incoming, &index] {
            std::fs::create_dir_all(directory)
                .map_err(PullError::disk("make the directory", directory))?;
        }
        // What is in it, not the folder: that may stand in one where this process can't write.
        for name in names_in(&incoming)? {
            let upload = incoming.join(name);
            std::fs::remove_dir_all(&upload)
                .map_err(PullError::disk("remove an interrupted upload", &upload))?;
        }
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .unwrap_or_default()
            .trim()
            .to_owned();
        let index = IndexFile::open(index.join("index.json"))?;
        let known: BTreeSet<Digest> =
            index.read(|index| index.images.values().flat_map(Record::digests).collect());
        for name in names_in(&blobs)? {
            // Blobs of pulls that never ended: after a power cut nobody knows what is in them. Parts of downloads are gone on
            // with; should a part be damaged, its digest will tell.
            if Digest::from_hex(&name).is_ok_and(|digest| known.contains(&digest)) {
                continue;
            }
            let path = blobs.join(&name);
            if partial_of(&name).is_some() && is_younger(&path, settings.grace) {
                continue;
            }
            std::fs::remove_file(&path)
                .map_err(PullError::disk("remove an interrupted download", &path))?;
        }
        let suspect = recover::suspect_layers(&settings.directory.join("layers"), &index, &boot)?;
        Ok(Self(Arc::new(Inner {
            registry: Registry::new(settings.registry.clone()),
            settings,
            unpacker,
            index,
            claims: Arc::default(),
            suspect: Mutex::new(suspect),
            downloads: Semaphore::new(DOWNLOADS_AT_A_TIME),
            unpacks: Semaphore::new(UNPACKS_AT_A_TIME),
            left_out: Mutex::default(),
            pulls: Pulls::default(),
            background: TaskTracker::new(),
            closing: CancellationToken::new(),
            boot,
        })))
    }

    /// Makes the image `reference` names ready to run: resolved to its content, pulled, unpacked.
    ///
    /// Who drops the future leaves the pull, which goes on for a while: the next call for the same reference joins it.
    ///
    /// A digest that is here already needs no registry. A tag is always asked for: it may have moved.
    ///
    /// # Errors
    /// [`PullError`]; its text is for the user.
    pub async fn ensure(&self, reference: &str) -> Result<ResolvedImage, PullError> {
        self.join(reference, None).await
    }

    /// How far the pull of `reference` is, whoever waits for it. Without layers: its registry is being asked.
    #[must_use]
    pub fn pulling(&self, reference: &str) -> Option<PullProgress> {
        self.0.pulls.progress_of(reference)
    }

    /// [`ImageStore::ensure`], reporting how far it is.
    ///
    /// # Errors
    /// As [`ImageStore::ensure`].
    pub async fn ensure_reporting(
        &self,
        reference: &str,
        progress: watch::Sender<PullProgress>,
    ) -> Result<ResolvedImage, PullError> {
        self.join(reference, Some(progress)).await
    }

    /// One pull, from the reference to layers on disk.
    async fn pull(&self, reference: &str, reporter: Reporter) -> Result<ResolvedImage, PullError> {
        let target = rewrite(&Reference::parse(reference)?, &self.0.settings.rewrites)?;
        let (mut record, names) = self.resolve(reference, &target).await?;
        reference.clone_into(&mut record.image.reference);
        let claim = self.0.claims.claim(record.digests());
        let unpacked = self.make_ready(&target, &record, &reporter).await?;
        let image = record.image.clone();
        self.remember(record, names, unpacked).await?;
        // Not before: the index names the content from here on.
        drop(claim);
        self.settle();
        Ok(image)
    }

    /// All images, by reference.
    pub fn list(&self) -> Vec<StoredImage> {
        self.0.index.read(|index| {
            let mut names: BTreeMap<Digest, Vec<String>> = BTreeMap::new();
            for (name, manifest) in &index.names {
                names.entry(*manifest).or_default().push(name.clone());
            }
            let stored = |(manifest, record): (&Digest, &Record)| StoredImage {
                image: record.image.clone(),
                names: names.remove(manifest).unwrap_or_default(),
                last_used: record.used,
                left_out: index.left_out_of(record),
            };
            let mut images: Vec<StoredImage> = index.images.iter().map(stored).collect();
            images.sort_by(|a, b| a.image.reference.cmp(&b.image.reference));
            images
        })
    }

    /// Ends pulls and waits for what goes on in the background. Call it before the process ends; not needed for correctness.
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.0.background.close();
        self.0.background.wait().await;
    }

    async fn remember(
        &self,
        mut record: Record,
        names: Vec<String>,
        unpacked: bool,
    ) -> Result<(), PullError> {
        let Ok(manifest) = record.image.manifest.parse::<Digest>() else {
            return Ok(());
        };
        record.used = now();
        let this = self.clone();
        let fresh = self.0.index.read(|index| {
            let same_names = names
                .iter()
                .all(|name| index.names.get(name) == Some(&manifest));
            // Once a minute is enough to know what is in use.
            index
                .images
                .get(&manifest)
                .is_some_and(|old| same_names && record.used < old.used + 60)
        });
        if fresh && !unpacked {
            return Ok(());
        }
        tokio::task::spawn_blocking(move || {
            this.0.index.change(|index| {
                match index.images.get(&manifest) {
                    Some(old) if !unpacked => {
                        record.durable = old.durable;
                        record.boot.clone_from(&old.boot);
                    }
                    _ => {
                        record.durable = false;
                        record.boot.clone_from(&this.0.boot);
                    }
                }
                for layer in &record.layers {
                    if let Some(words) = this.0.left_out.lock().remove(&layer.diff_id) {
                        index.left_out.insert(layer.diff_id, words);
                    }
                }
                index.images.insert(manifest, record);
                index
                    .names
                    .extend(names.into_iter().map(|name| (name, manifest)));
            })
        })
        .await
        .map_err(|error| PullError::Interrupted(error.to_string()))?
    }

    /// Writes a small document under its digest. Blocks on the disk.
    fn put_document(&self, digest: Digest, content: &[u8]) -> Result<(), PullError> {
        let path = self.blob_path(digest);
        if path.exists() {
            return Ok(());
        }
        index::write_whole(&path, content)
            .map_err(PullError::disk("write a document of an image", &path))
    }

    fn blob_path(&self, digest: Digest) -> PathBuf {
        self.0
            .settings
            .directory
            .join("blobs/sha256")
            .join(digest.hex())
    }

    fn layer_path(&self, diff_id: Digest) -> PathBuf {
        self.layers_path().join(diff_id.hex())
    }

    fn layers_path(&self) -> PathBuf {
        self.0.settings.directory.join("layers")
    }

    fn directory(&self) -> &Path {
        &self.0.settings.directory
    }
}

/// Names in a directory that may be missing.
fn names_in(directory: &Path) -> Result<Vec<String>, PullError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(PullError::disk("read the directory", directory))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(PullError::disk("read the directory", directory))?;
        names.extend(entry.file_name().into_string());
    }
    Ok(names)
}

/// Where a download is kept until it is whole.
fn partial_path(blob: &Path) -> PathBuf {
    blob.with_extension("partial")
}

/// The blob that a file called `name` is a part of.
fn partial_of(name: &str) -> Option<Digest> {
    Digest::from_hex(name.strip_suffix(".partial")?).ok()
}

/// Whether the file was written to less than `age` ago; one of an unknown age was.
fn is_younger(path: &Path, age: Duration) -> bool {
    std::fs::metadata(path)
        .and_then(|metadata| metadata.modified())
        .ok()
        .and_then(|time| time.elapsed().ok())
        .is_none_or(|elapsed| elapsed < age)
}

/// A blob's own turn, different from that of an uncompressed layer with the same digest (plain tar layers).
fn blob_turn(digest: Digest) -> Digest {
    Digest::of(digest.hex().as_bytes())
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
