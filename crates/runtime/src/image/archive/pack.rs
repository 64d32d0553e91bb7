//! A directory, packed for the way to the server.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::{NAME_ANNOTATION, REF_NAME};
use crate::image::digest::{BadDigest, Digest};

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
            .map_err(|error: BadDigest| invalid(error.to_string()))?;
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
