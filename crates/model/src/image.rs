//! What an image says about itself, after its reference was resolved.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// An image pinned to its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedImage {
    /// As the user wrote it.
    pub reference: String,
    /// `REPOSITORY@sha256:…` of the manifest for this machine (or of the index it came from).
    pub pinned: String,
    /// `sha256:…` of the image's own manifest: the key under which content is stored.
    pub manifest: String,
    /// Uncompressed layer digests (`sha256:…`), lowest first.
    pub layers: Vec<String>,
    pub config: ImageConfig,
    /// Sum of the compressed layers.
    pub size_bytes: u64,
}

/// The part of the image's configuration that starting needs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=VALUE`, in the image's order.
    pub env: Vec<String>,
    /// `user`, `uid`, `user:group`, `uid:gid` or empty.
    pub user: String,
    pub working_dir: String,
    pub stop_signal: Option<String>,
    pub labels: BTreeMap<String, String>,
}
