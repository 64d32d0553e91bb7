//! The built-in sample image: made here, without a network, always the same bytes for the same build.

use serde_json::json;

use super::digest::Digest;
use super::error::PullError;
use super::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, host_architecture};

/// The compiled sample program; empty where it could not be compiled.
static PROGRAM: &[u8] = include_bytes!(env!("UTSUWA_SAMPLE"));

/// Directories of the image: mount points of the sandbox, and what programs expect.
const DIRECTORIES: &[(&str, u32)] = &[
    ("dev", 0o755),
    ("etc", 0o755),
    ("proc", 0o755),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
];
const FILES: &[(&str, &str)] = &[
    ("etc/group", "root:x:0:\nnogroup:x:65534:\n"),
    (
        "etc/passwd",
        "root:x:0:0:root:/:/hello\nnobody:x:65534:65534:nobody:/:/hello\n",
    ),
];

/// Everything of an image that has one layer.
#[derive(Debug)]
pub(crate) struct BuiltImage {
    pub(crate) manifest: Vec<u8>,
    pub(crate) config: Vec<u8>,
    /// An uncompressed tar archive.
    pub(crate) layer: Vec<u8>,
}

/// Makes the sample image.
pub(crate) fn build() -> Result<BuiltImage, PullError> {
    if PROGRAM.is_empty() {
        return Err(PullError::NoSample {
            target: env!("UTSUWA_SAMPLE_TARGET"),
        });
    }
    let layer = layer().map_err(PullError::disk("make the sample image", "memory"))?;
    let diff_id = Digest::of(&layer);
    let config = json!({
        "architecture": host_architecture(),
        "os": "linux",
        "config": {
            "Entrypoint": ["/hello"],
            "Env": ["PATH=/"],
            "WorkingDir": "/",
            "Labels": { "org.opencontainers.image.title": "hello", "org.opencontainers.image.version": env!("CARGO_PKG_VERSION") },
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id] },
    })
    .to_string()
    .into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": { "mediaType": OCI_CONFIG, "digest": Digest::of(&config), "size": config.len() },
        "layers": [{ "mediaType": OCI_LAYER, "digest": diff_id, "size": layer.len() }],
    })
    .to_string()
    .into_bytes();
    Ok(BuiltImage {
        manifest,
        config,
        layer,
    })
}

/// No names, times or owners of this machine: the archive depends on its content alone.
fn layer() -> std::io::Result<Vec<u8>> {
    let mut archive = tar::Builder::new(Vec::with_capacity(PROGRAM.len() + (32 << 10)));
    let mut add = |path: &str, kind: tar::EntryType, mode: u32, content: &[u8]| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(content.len() as u64);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        archive.append_data(&mut header, path, content)
    };
    for (path, mode) in DIRECTORIES {
        add(&format!("{path}/"), tar::EntryType::Directory, *mode, b"")?;
    }
    for (path, content) in FILES {
        add(path, tar::EntryType::Regular, 0o644, content.as_bytes())?;
    }
    add("hello", tar::EntryType::Regular, 0o755, PROGRAM)?;
    archive.into_inner()
}
