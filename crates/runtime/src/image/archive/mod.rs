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
use super::reference::Reference;

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

/// Finds the image of an archive that is called `wanted`; the only one, when nothing is said.
pub(crate) fn find(files: &Spooled, wanted: Option<&str>) -> Result<Found, PullError> {
    let docker = files.file("manifest.json").is_some();
    if files.file("index.json").is_some() {
        match find_oci(files, wanted) {
            // Newer docker writes both, and its index names platforms that are not in the file.
            Err(PullError::Archive { .. }) if docker => {}
            other => return other,
        }
    }
    if docker {
        return find_docker(files, wanted);
    }
    if files.is_empty() {
        return Err(bad("it is empty"));
    }
    Err(bad(
        "it is neither an OCI archive (it has no index.json) nor a docker archive (no manifest.json)",
    ))
}

/// Whether `wanted`, a reference or only a tag, means an image that its archive calls `name`, which may be either, too.
fn is_called(name: &str, wanted: &str) -> bool {
    let whole = |text: &str| Reference::parse(text).ok();
    name == wanted
        || name.rsplit_once(':').is_some_and(|(_, tag)| tag == wanted)
        || whole(wanted).is_some_and(|reference| whole(name) == Some(reference))
}

fn none_such(wanted: &str, names: &[&str]) -> PullError {
    let there = if names.is_empty() {
        "; what it holds has no name: leave the reference out".to_owned()
    } else {
        format!(", only {}", names.join(", "))
    };
    bad(format!("it holds no image called '{wanted}'{there}"))
}

fn several(names: &[&str]) -> PullError {
    bad(format!(
        "it holds several images ({}); write a reference of the wanted one after the file, as in docker-archive:FILE:REFERENCE",
        names.join(", ")
    ))
}

#[derive(Deserialize)]
struct Layout {
    #[serde(default)]
    manifests: Vec<IndexEntry>,
}

fn find_oci(files: &Spooled, wanted: Option<&str>) -> Result<Found, PullError> {
    let image = "the uploaded image";
    let layout: Layout = serde_json::from_slice(&files.document("index.json")?)
        .map_err(|error| bad(format!("index.json: {error}")))?;
    let mut seen = BTreeSet::new();
    // In this order: of an image with two names, the wanted one counts.
    let entries: Vec<&IndexEntry> = layout
        .manifests
        .iter()
        .filter(|entry| {
            wanted.is_none_or(|wanted| names_of(entry).any(|(_key, name)| is_called(name, wanted)))
        })
        .filter(|entry| seen.insert(entry.descriptor.digest))
        .collect();
    let entry = match (entries.as_slice(), wanted) {
        ([], Some(wanted)) => {
            let names: Vec<&str> = layout.manifests.iter().filter_map(shown_name).collect();
            return Err(none_such(wanted, &names));
        }
        ([], None) => return Err(bad("its index.json names no image")),
        ([one], _) => *one,
        (many, _) => {
            let here = |entry: &&&IndexEntry| {
                entry.platform.as_ref().is_some_and(|p| {
                    p.os == "linux" && p.architecture == manifest::host_architecture()
                })
            };
            let mut fitting = many.iter().filter(here);
            match (fitting.next(), fitting.next()) {
                (Some(one), None) => *one,
                _ => {
                    let names: Vec<&str> = many.iter().copied().filter_map(shown_name).collect();
                    return Err(several(&names));
                }
            }
        }
    };
    let name = match (
        entry.annotations.get(NAME_ANNOTATION),
        names_of(entry).next(),
    ) {
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

/// All names of an image with what they are written as: newer docker writes its reference and its tag.
fn names_of(entry: &IndexEntry) -> impl Iterator<Item = (&'static str, &str)> {
    [CONTAINERD_NAME, REF_NAME]
        .into_iter()
        .filter_map(|key| entry.annotations.get(key).map(|name| (key, name.as_str())))
}

fn shown_name(entry: &IndexEntry) -> Option<&str> {
    names_of(entry).next().map(|(_key, name)| name)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl DockerImage {
    fn names(&self) -> impl Iterator<Item = &str> {
        self.repo_tags.iter().flatten().map(String::as_str)
    }
}

fn names_in<'a>(images: impl Iterator<Item = &'a DockerImage>) -> Vec<&'a str> {
    images.flat_map(DockerImage::names).collect()
}

fn find_docker(files: &Spooled, wanted: Option<&str>) -> Result<Found, PullError> {
    let images: Vec<DockerImage> = serde_json::from_slice(&files.document("manifest.json")?)
        .map_err(|error| bad(format!("manifest.json: {error}")))?;
    let fits = |name: &str| wanted.is_none_or(|wanted| is_called(name, wanted));
    let fitting: Vec<&DockerImage> = images
        .iter()
        .filter(|image| wanted.is_none() || image.names().any(fits))
        .collect();
    let image = match (fitting.as_slice(), wanted) {
        ([one], _) => *one,
        ([], Some(wanted)) => return Err(none_such(wanted, &names_in(images.iter()))),
        ([], None) => return Err(bad("its manifest.json names no image")),
        (many, _) => return Err(several(&names_in(many.iter().copied()))),
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
        name: image.names().find(|name| fits(name)).map(str::to_owned),
        manifest_document: manifest_document.to_string().into_bytes(),
        manifest,
        config,
        layers,
    })
}
