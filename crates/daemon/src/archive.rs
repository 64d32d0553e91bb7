//! Packs an OCI image directory into one tar stream for upload: what `oci:DIR` means on the command line (decision 15).

use std::fs::File;
use std::io::{Seek, SeekFrom};
use std::path::Path;

/// Writes `dir` as an OCI archive into an unnamed temporary file, which is answered from its beginning. With `tag`, only the image of
/// that name is kept in the index.
///
/// # Errors
/// The directory can't be read, its index is not JSON or has no such tag, or the temporary disk is full.
pub(crate) fn pack_oci_dir(dir: &Path, tag: Option<&str>) -> std::io::Result<File> {
    let index = std::fs::read(dir.join("index.json"))?;
    let mut index: serde_json::Value = serde_json::from_slice(&index).map_err(std::io::Error::other)?;
    if let (Some(tag), Some(manifests)) = (tag, index["manifests"].as_array_mut()) {
        manifests.retain(|m| m["annotations"]["org.opencontainers.image.ref.name"] == serde_json::json!(tag));
        if manifests.is_empty() {
            return Err(std::io::Error::other(format!("index.json names no image {tag:?}")));
        }
    }
    let mut tar = tar::Builder::new(tempfile::tempfile()?);
    tar.follow_symlinks(true);
    let text = index.to_string();
    let mut header = tar::Header::new_gnu();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    // The index first: the server then knows which blobs to expect.
    tar.append_data(&mut header, "index.json", text.as_bytes())?;
    tar.append_path_with_name(dir.join("oci-layout"), "oci-layout")?;
    tar.append_dir_all("blobs", dir.join("blobs"))?;
    let mut file = tar.into_inner()?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}
