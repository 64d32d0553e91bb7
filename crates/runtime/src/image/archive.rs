//! Uploaded images: what `oci-archive:` and `docker-archive:` files and packed `oci:` directories hold.
//!
//! Owns: reading such an archive into a directory of numbered files ([`spool`]), finding the image in it ([`find`]), and
//! packing a directory for the way to the server ([`pack_oci_directory`], used by the command line). Doesn't: store or unpack.
//!
//! Invariants: 1. Names of the archive never become paths: files are numbered, names are keys of a map. 2. Every file is hashed
//! while it is written, and compared with the digest that names it before it is used.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::digest::{Digest, Hasher};
use super::error::PullError;
use super::manifest::{
    self, Descriptor, ImageManifest, IndexEntry, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST,
};
use super::unpack::{TarKind, TarReader, printable};

const MAX_FILES: usize = 100_000;
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;
const MAX_LINKS: usize = 8;
const MAX_INDEX_DEPTH: usize = 3;
const SPACE_CHECK_BYTES: u64 = 64 << 20;
/// Written by [`pack_oci_directory`]: a directory's name, for layouts that carry only a tag.
const NAME_ANNOTATION: &str = "utsuwa.local/name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
const CONTAINERD_NAME: &str = "io.containerd.image.name";

#[derive(Debug, Clone)]
enum Item {
    File {
        path: PathBuf,
        digest: Digest,
        size: u64,
    },
    Link {
        target: String,
    },
}

/// The files of an archive by their names in it.
#[derive(Debug, Default)]
pub(crate) struct Spooled(BTreeMap<String, Item>);

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

/// Reads an archive (plain, gzip or zstd tar) into numbered files in `directory`, leaving `reserve_bytes` free.
pub(crate) fn spool(
    mut input: impl BufRead,
    directory: &Path,
    reserve_bytes: u64,
) -> Result<Spooled, PullError> {
    let unreadable = |error: io::Error| bad(error.to_string());
    let magic = input.fill_buf().map_err(unreadable)?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        spool_tar(
            BufReader::with_capacity(128 << 10, flate2::bufread::MultiGzDecoder::new(input)),
            directory,
            reserve_bytes,
        )
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(unreadable)?;
        spool_tar(
            BufReader::with_capacity(128 << 10, decoder),
            directory,
            reserve_bytes,
        )
    } else {
        spool_tar(input, directory, reserve_bytes)
    }
}

fn spool_tar(
    input: impl BufRead,
    directory: &Path,
    reserve_bytes: u64,
) -> Result<Spooled, PullError> {
    let mut reader = TarReader::new(input);
    let mut items = BTreeMap::new();
    let mut unchecked = SPACE_CHECK_BYTES;
    while let Some(entry) = reader
        .next_entry()
        .map_err(|error| bad(error.to_string()))?
    {
        let name = normal(&String::from_utf8_lossy(&entry.path));
        if items.len() >= MAX_FILES {
            return Err(bad(format!("it holds more than {MAX_FILES} files")));
        }
        match entry.kind {
            TarKind::File if entry.sparse.is_some() => {
                return Err(bad(format!(
                    "its file '{}' has holes",
                    printable(&entry.path)
                )));
            }
            TarKind::File => {
                let path = directory.join(items.len().to_string());
                let disk = |error| PullError::disk("write an uploaded file", &path)(error);
                let mut file = File::create_new(&path).map_err(disk)?;
                let mut hasher = Hasher::new();
                loop {
                    let data = reader.data().map_err(|error| bad(error.to_string()))?;
                    if data.is_empty() {
                        break;
                    }
                    hasher.update(data);
                    file.write_all(data).map_err(disk)?;
                    let used = data.len();
                    unchecked += used as u64;
                    reader.consume(used);
                    if unchecked >= SPACE_CHECK_BYTES {
                        unchecked = 0;
                        check_space(directory, reserve_bytes)?;
                    }
                }
                let size = hasher.bytes();
                items.insert(
                    name,
                    Item::File {
                        path,
                        digest: hasher.finish(),
                        size,
                    },
                );
            }
            TarKind::Symlink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _file)| folder);
                let target = normal(&format!(
                    "{folder}/{}",
                    String::from_utf8_lossy(&entry.link)
                ));
                items.insert(name, Item::Link { target });
            }
            TarKind::HardLink => {
                items.insert(
                    name,
                    Item::Link {
                        target: normal(&String::from_utf8_lossy(&entry.link)),
                    },
                );
            }
            _ => {}
        }
    }
    // The sender must be able to finish.
    reader.drain().map_err(|error| bad(error.to_string()))?;
    Ok(Spooled(items))
}

fn check_space(directory: &Path, reserve_bytes: u64) -> Result<(), PullError> {
    let stat = rustix::fs::statvfs(directory)
        .map_err(|errno| PullError::disk("look at the free space", directory)(errno.into()))?;
    let available_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if available_bytes < reserve_bytes.saturating_add(SPACE_CHECK_BYTES) {
        let path = directory.to_owned();
        return Err(PullError::DiskReserve {
            path,
            needed_bytes: SPACE_CHECK_BYTES,
            available_bytes,
            reserve_bytes,
        });
    }
    Ok(())
}

/// `a/./b/../c` → `a/c`. Only ever a key, so leaving the root is harmless.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Spooled {
    fn file(&self, name: &str) -> Option<(&Path, Digest, u64)> {
        let mut name = normal(name);
        for _ in 0..MAX_LINKS {
            match self.0.get(&name)? {
                Item::File { path, digest, size } => return Some((path, *digest, *size)),
                Item::Link { target } => name.clone_from(target),
            }
        }
        None
    }

    fn document(&self, name: &str) -> Result<Vec<u8>, PullError> {
        let (path, _digest, size) = self
            .file(name)
            .ok_or_else(|| bad(format!("it does not hold '{name}', which it names")))?;
        if size > MAX_DOCUMENT_BYTES {
            return Err(bad(format!("its document '{name}' has {size} bytes")));
        }
        std::fs::read(path).map_err(PullError::disk("read an uploaded file", path))
    }

    /// The file of a blob, which must be what its name says.
    fn blob(&self, descriptor: &Descriptor) -> Result<(String, &Path), PullError> {
        let name = format!("blobs/sha256/{}", descriptor.digest.hex());
        let (path, digest, size) = self
            .file(&name)
            .ok_or_else(|| bad(format!("it does not hold '{name}', which it names")))?;
        if digest != descriptor.digest || size != descriptor.size {
            return Err(bad(format!(
                "its file '{name}' has other content than its name says: {digest} ({size} bytes, expected {})",
                descriptor.size
            )));
        }
        Ok((name, path))
    }
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
    if files.0.is_empty() {
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

/// Writes the OCI layout in `directory` as a tar archive that the server's upload takes: the image called `tag` (any, when the
/// layout holds one only), with every blob it needs. Blocks; used by the command line, never by the server.
///
/// # Errors
/// Names the file that can't be read, or the tags there are.
pub fn pack_oci_directory(
    directory: &Path,
    tag: Option<&str>,
    output: impl Write,
) -> io::Result<()> {
    let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidData, why);
    let read = |name: &str| -> io::Result<Vec<u8>> {
        let path = directory.join(name);
        std::fs::read(&path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    };
    let mut index: Value = serde_json::from_slice(&read("index.json")?)
        .map_err(|error| invalid(format!("index.json: {error}")))?;
    let entries = index["manifests"].as_array().cloned().unwrap_or_default();
    let called = |entry: &Value| entry["annotations"][REF_NAME].as_str().map(str::to_owned);
    let wanted: Vec<Value> = entries
        .iter()
        .filter(|entry| tag.is_none_or(|tag| called(entry).as_deref() == Some(tag)))
        .cloned()
        .collect();
    if wanted.is_empty() {
        let tags: Vec<String> = entries.iter().filter_map(called).collect();
        return Err(invalid(format!(
            "no image is called '{}'; there are: {}",
            tag.unwrap_or_default(),
            tags.join(", ")
        )));
    }
    let name = directory
        .canonicalize()?
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    index["manifests"] = wanted
        .into_iter()
        .map(|mut entry| {
            if !entry["annotations"].is_object() {
                entry["annotations"] = json!({});
            }
            entry["annotations"][NAME_ANNOTATION] = json!(name);
            entry
        })
        .collect();
    let mut archive = tar::Builder::new(output);
    let mut add = |name: &str, size: u64, content: &mut dyn Read| {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(size);
        archive.append_data(&mut header, name, content)
    };
    let layout = br#"{"imageLayoutVersion":"1.0.0"}"#;
    add("oci-layout", layout.len() as u64, &mut &layout[..])?;
    let text = index.to_string();
    add("index.json", text.len() as u64, &mut text.as_bytes())?;
    let mut open: Vec<Value> = index["manifests"].as_array().cloned().unwrap_or_default();
    let mut packed = BTreeSet::new();
    while let Some(descriptor) = open.pop() {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        let digest: Digest = digest
            .parse()
            .map_err(|error: super::digest::BadDigest| invalid(error.to_string()))?;
        let blob = format!("blobs/sha256/{}", digest.hex());
        let path = directory.join(&blob);
        if !packed.insert(digest) {
            continue;
        }
        let mut file = match File::open(&path) {
            // Other platforms of a list need not be there; the server says what it misses.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?,
        };
        add(&blob, file.metadata()?.len(), &mut file)?;
        let kind = descriptor["mediaType"].as_str().unwrap_or_default();
        if kind.contains("index") || kind.contains("manifest") {
            let document: Value = serde_json::from_slice(&read(&blob)?)
                .map_err(|error| invalid(format!("{blob}: {error}")))?;
            for key in ["manifests", "layers"] {
                open.extend(document[key].as_array().cloned().unwrap_or_default());
            }
            if document["config"].is_object() {
                open.push(document["config"].clone());
            }
        }
    }
    archive.into_inner()?.flush()
}
