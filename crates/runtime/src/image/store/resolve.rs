//! From a reference to a record: what an image is, before anything of it is here.
//!
//! Asks this store first where the answer can't change (digests, images of our own), registries otherwise.

use utsuwa_model::image::ResolvedImage;

use super::index::{Layer, Record};
use super::{ImageStore, now};
use crate::image::digest::Digest;
use crate::image::error::PullError;
use crate::image::hello;
use crate::image::manifest::{self, ImageManifest, Manifest};
use crate::image::reference::{HELLO, Reference};

/// Indexes of indexes exist; deeper ones don't.
const MAX_INDEX_DEPTH: usize = 3;

impl ImageStore {
    /// Finds out what `target` is, from this store or from its registry, and under which names to remember it.
    pub(super) async fn resolve(
        &self,
        reference: &str,
        target: &Reference,
    ) -> Result<(Record, Vec<String>), PullError> {
        if target.is_local() {
            return self.resolve_local(target).await;
        }
        if let Some(digest) = target.digest
            && let Some(record) = self.known(&target.pinned(digest))
        {
            return Ok((record, Vec::new()));
        }
        let image = target.to_string();
        let named = |error: PullError| match error {
            // In the user's words, not in those of a rewrite rule.
            PullError::NotFound { .. } => PullError::NotFound {
                image: reference.to_owned(),
            },
            other => other,
        };
        let mut document = self
            .0
            .registry
            .manifest(target, &target.at())
            .await
            .map_err(named)?;
        let named_digest = document.digest;
        let mut manifest = Manifest::parse(&image, &document.content, &document.media_type)?;
        let mut depth = 0;
        let found = loop {
            match manifest {
                Manifest::Image(found) => break found,
                Manifest::Index { .. } if depth >= MAX_INDEX_DEPTH => {
                    return Err(PullError::Unsupported {
                        image,
                        why: "its manifest lists are nested too deeply".to_owned(),
                    });
                }
                Manifest::Index {
                    media_type,
                    entries,
                } => {
                    depth += 1;
                    let entry = manifest::choose(&image, &media_type, &entries)?;
                    document = self
                        .0
                        .registry
                        .manifest(target, &entry.descriptor.digest.to_string())
                        .await
                        .map_err(named)?;
                    manifest = Manifest::parse(&image, &document.content, &document.media_type)?;
                }
            }
        };
        let names = vec![target.pinned(named_digest), target.pinned(document.digest)];
        if let Some(mut record) = self
            .0
            .index
            .read(|index| index.images.get(&document.digest).cloned())
        {
            record.image.pinned = target.pinned(named_digest);
            return Ok((record, names));
        }
        let config = self
            .0
            .registry
            .document(target, found.config.digest)
            .await
            .map_err(named)?;
        let record = self.record(
            &image,
            target.pinned(named_digest),
            document.digest,
            &found,
            &config,
        )?;
        self.put_document(document.digest, &document.content)?;
        self.put_document(found.config.digest, &config)?;
        Ok((record, names))
    }

    async fn resolve_local(&self, target: &Reference) -> Result<(Record, Vec<String>), PullError> {
        let name = match target.digest {
            Some(digest) => target.pinned(digest),
            None => target.to_string(),
        };
        if target.name() != HELLO || target.digest.is_some() {
            let known = self.known(&name);
            if target.name() != HELLO || known.is_some() {
                return known
                    .map(|record| (record, Vec::new()))
                    .ok_or(PullError::NotLoaded { image: name });
            }
        }
        // Hashing a megabyte and writing it once: too long for the threads that serve.
        let this = self.clone();
        let built = tokio::task::spawn_blocking(move || {
            let built = hello::build()?;
            let manifest_digest = Digest::of(&built.manifest);
            this.put_document(manifest_digest, &built.manifest)?;
            this.put_document(Digest::of(&built.config), &built.config)?;
            let diff_id = Digest::of(&built.layer);
            if !this.layer_path(diff_id).exists() {
                this.put_document(diff_id, &built.layer)?;
            }
            Ok::<_, PullError>((manifest_digest, built))
        });
        let (digest, built) = built
            .await
            .map_err(|error| PullError::Interrupted(error.to_string()))??;
        let pinned = format!("{HELLO}@{digest}");
        if target.digest.is_some_and(|wanted| wanted != digest) {
            // A digest of another build of the server.
            return Err(PullError::NotFound { image: name });
        }
        let Manifest::Image(manifest) =
            Manifest::parse(HELLO, &built.manifest, manifest::OCI_MANIFEST)?
        else {
            return Err(PullError::NotFound { image: name });
        };
        let record = self.record(HELLO, pinned.clone(), digest, &manifest, &built.config)?;
        Ok((record, vec![pinned]))
    }

    pub(super) fn record(
        &self,
        image: &str,
        pinned: String,
        manifest_digest: Digest,
        manifest: &ImageManifest,
        config: &[u8],
    ) -> Result<Record, PullError> {
        let (parsed, diff_ids) = manifest::parse_config(image, manifest, config)?;
        let resolved = ResolvedImage {
            reference: image.to_owned(),
            pinned,
            manifest: manifest_digest.to_string(),
            layers: diff_ids.iter().map(Digest::to_string).collect(),
            config: parsed,
            size_bytes: manifest
                .layers
                .iter()
                .fold(0, |sum, layer| sum.saturating_add(layer.size)),
        };
        let layers = diff_ids
            .iter()
            .zip(&manifest.layers)
            .map(|(diff_id, blob)| Layer {
                diff_id: *diff_id,
                blob: blob.clone(),
            });
        Ok(Record {
            image: resolved,
            config: manifest.config.digest,
            layers: layers.collect(),
            used: now(),
            durable: false,
            boot: self.0.boot.clone(),
        })
    }

    pub(super) fn known(&self, name: &str) -> Option<Record> {
        self.0.index.read(|index| {
            let manifest = index.names.get(name)?;
            let mut record = index.images.get(manifest)?.clone();
            name.clone_into(&mut record.image.pinned);
            Some(record)
        })
    }
}
