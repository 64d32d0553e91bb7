//! Uploaded images: what `oci-archive:` and `docker-archive:` files and packed `oci:` directories hold.
//!
//! Owns: reading such an archive into a directory of numbered files ([`spool`]), finding the image in it ([`find`]), and
//! packing a directory for the way to the server ([`pack_oci_directory`], used by the command line). Doesn't: store or unpack.
//!
//! Invariants: 1. Names of the archive never become paths: files are numbered, names are keys of a map. 2. Every file is hashed
//! while it is written, and compared with the digest that names it before it is used.

mod pack;
mod spool;

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::json;

use super::digest::Digest;
use super::error::PullError;
use super::manifest::{
    self, Descriptor, ImageManifest, IndexEntry, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
};

pub use pack::pack_oci_directory;
pub(crate) use spool::{Spooled, spool};

const MAX_INDEX_DEPTH: usize = 3;
/// Written by [`pack_oci_directory`]: a directory's name, for layouts that carry only a tag.
const NAME_ANNOTATION: &str = "utsuwa.local/name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// An image found in an archive.
#[derive(Debug)]
pub(crate) struct Found {
    /// `REPOSITORY[:TAG]` as far as the archive says.
    pub(crate) name: Option<String>,
    pub(crate) manifest_document: Vec<u8>,
    pub(crate) manifest: ImageManifest,
    pub(crate) config: Vec<u8>,
    /// In the order of the manifest.
    pub(crate) layers: Vec<PathBuf>,
}

fn bad(why: impl Into<String>) -> PullError {
    PullError::Archive { why: why.into() }
}

/// Finds the one image of an archive.
pub(crate) fn find(files: &Spooled) -> Result<Found, PullError> {
    let docker = files.file("manifest.json").is_some();
    if files.file("index.json").is_some() {
        match find_oci(files) {
            // Newer docker writes both, and its index names platforms that are not in the file.
            Err(PullError::Archive { .. }) if docker => {}
            other => return other,
        }
    }
    if docker {
        return find_docker(files);
    }
    if files.is_empty() {
        return Err(bad("it is empty"));
    }
    Err(bad(
        "it is neither an OCI archive (it has no index.json) nor a docker archive (no manifest.json)",
    ))
}

#[derive(Deserialize)]
struct Layout {
    #[serde(default)]
    manifests: Vec<IndexEntry>,
}

fn find_oci(files: &Spooled) -> Result<Found, PullError> {
    let image = "the uploaded image";
    let layout: Layout = serde_json::from_slice(&files.document("index.json")?)
        .map_err(|error| bad(format!("index.json: {error}")))?;
    let mut seen = BTreeSet::new();
    let entries: Vec<IndexEntry> = layout
        .manifests
        .into_iter()
        .filter(|entry| seen.insert(entry.descriptor.digest))
        .collect();
    let names = || -> Vec<&str> {
        entries
            .iter()
            .filter_map(|entry| name_of(entry).map(|(_key, name)| name))
            .collect()
    };
    let entry = match entries.as_slice() {
        [] => return Err(bad("its index.json names no image")),
        [one] => one,
        many => {
            let here = |entry: &&IndexEntry| {
                entry.platform.as_ref().is_some_and(|p| {
                    p.os == "linux" && p.architecture == manifest::host_architecture()
                })
            };
            let mut fitting = many.iter().filter(here);
            match (fitting.next(), fitting.next()) {
                (Some(one), None) => one,
                _ => {
                    return Err(bad(format!(
                        "it holds several images ({}); upload one at a time",
                        names().join(", ")
                    )));
                }
            }
        }
    };
    let name = match (entry.annotations.get(NAME_ANNOTATION), name_of(entry)) {
        (Some(name), Some((REF_NAME, tag))) if !tag.contains(['/', ':']) => {
            Some(format!("{name}:{tag}"))
        }
        (_, Some((_key, name))) if name.contains(['/', ':']) => Some(name.to_owned()),
        (Some(name), _) => Some(name.clone()),
        (None, Some((_key, tag))) => Some(format!("image:{tag}")),
        (None, None) => None,
    };
    let mut descriptor = entry.descriptor.clone();
    for _ in 0..=MAX_INDEX_DEPTH {
        let (blob_name, _path) = files.blob(&descriptor)?;
        let document = files.document(&blob_name)?;
        match Manifest::parse(image, &document, &descriptor.media_type)? {
            Manifest::Image(manifest) => {
                let config_name = files.blob(&manifest.config)?.0;
                let config = files.document(&config_name)?;
                let layers = manifest
                    .layers
                    .iter()
                    .map(|layer| files.blob(layer).map(|(_name, path)| path.to_owned()));
                let layers = layers.collect::<Result<_, _>>()?;
                return Ok(Found {
                    name,
                    manifest_document: document,
                    manifest,
                    config,
                    layers,
                });
            }
            Manifest::Index {
                media_type,
                entries,
            } => {
                descriptor = manifest::choose(image, &media_type, &entries)?
                    .descriptor
                    .clone();
            }
        }
    }
    Err(bad("its manifest lists are nested too deeply"))
}

fn name_of(entry: &IndexEntry) -> Option<(&'static str, &str)> {
    [CONTAINERD_NAME, REF_NAME]
        .into_iter()
        .find_map(|key| entry.annotations.get(key).map(|name| (key, name.as_str())))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn find_docker(files: &Spooled) -> Result<Found, PullError> {
    let images: Vec<DockerImage> = serde_json::from_slice(&files.document("manifest.json")?)
        .map_err(|error| bad(format!("manifest.json: {error}")))?;
    let [image] = images.as_slice() else {
        let names: Vec<&str> = images
            .iter()
            .flat_map(|image| image.repo_tags.iter().flatten())
            .map(String::as_str)
            .collect();
        return Err(bad(format!(
            "it holds {} images ({}); upload one at a time",
            images.len(),
            names.join(", ")
        )));
    };
    let config = files.document(&image.config)?;
    let mut layers = Vec::new();
    let mut descriptors = Vec::new();
    for name in &image.layers {
        let (path, digest, size) = files
            .file(name)
            .ok_or_else(|| bad(format!("it does not hold its layer '{name}'")))?;
        layers.push(path.to_owned());
        descriptors.push(Descriptor {
            media_type: OCI_LAYER.to_owned(),
            digest,
            size,
        });
    }
    let manifest = ImageManifest {
        media_type: OCI_MANIFEST.to_owned(),
        config: Descriptor {
            media_type: OCI_CONFIG.to_owned(),
            digest: Digest::of(&config),
            size: config.len() as u64,
        },
        layers: descriptors,
    };
    let manifest_document = json!({ "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": manifest.config, "layers": manifest.layers });
    Ok(Found {
        name: image.repo_tags.iter().flatten().next().cloned(),
        manifest_document: manifest_document.to_string().into_bytes(),
        manifest,
        config,
        layers,
    })
}
