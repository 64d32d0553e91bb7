//! Images made for tests, and a store that unpacks in this process.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tempfile::TempDir;
use utsuwa_runtime::image::{Digest, ImageStore, InProcessUnpacker, Limits, Settings};

pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";

pub fn architecture() -> &'static str {
    if std::env::consts::ARCH == "aarch64" {
        "arm64"
    } else {
        "amd64"
    }
}

/// Unpacking keeps ownership, so it needs root.
pub fn is_root(test: &str) -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        crate::skip::skip(test, "unpacking layers needs root");
    }
    root
}

pub struct Store {
    pub store: ImageStore,
    pub directory: TempDir,
}

impl Store {
    pub fn new(change: impl FnOnce(&mut Settings)) -> Self {
        Self::at(tempfile::tempdir().unwrap(), change)
    }

    pub fn at(directory: TempDir, change: impl FnOnce(&mut Settings)) -> Self {
        let mut settings = Settings::new(directory.path().to_owned());
        settings.reserve_bytes = 0;
        settings.registry.stall = Duration::from_secs(5);
        change(&mut settings);
        let limits = Limits {
            reserve_bytes: 0,
            ..Limits::default()
        };
        let unpacker = InProcessUnpacker::new(directory.path().join("layers"), limits);
        Self {
            store: ImageStore::open(settings, Arc::new(unpacker)).unwrap(),
            directory,
        }
    }

    pub fn layer(&self, diff_id: &str) -> PathBuf {
        self.directory
            .path()
            .join("layers")
            .join(diff_id.strip_prefix("sha256:").unwrap())
    }

    pub fn names(&self, directory: &str) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(self.directory.path().join(directory)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Parts of downloads, by the bytes that are there.
    pub fn parts(&self) -> Vec<u64> {
        let blobs = self.directory.path().join("blobs/sha256");
        let names = self.names("blobs/sha256").into_iter();
        names
            .filter(|name| name.ends_with(".partial"))
            .map(|name| std::fs::metadata(blobs.join(name)).unwrap().len())
            .collect()
    }

    /// Nothing but whole blobs and layers.
    pub fn assert_clean(&self) {
        for name in self
            .names("blobs/sha256")
            .into_iter()
            .chain(self.names("layers"))
        {
            assert!(name.len() == 64, "left behind: {name}");
        }
        assert_eq!(self.names("incoming"), Vec::<String>::new());
    }
}

#[derive(Clone, Copy)]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

/// Documents and layers by digest, and the digest of the top one.
#[derive(Default, Clone)]
pub struct Image {
    pub blobs: BTreeMap<String, Vec<u8>>,
    pub manifest: Vec<u8>,
    pub layers: Vec<String>,
}

pub fn digest(content: &[u8]) -> String {
    Digest::of(content).to_string()
}

pub fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_mtime(1_000_000_000);
        archive.append_data(&mut header, name, *content).unwrap();
    }
    archive.into_inner().unwrap()
}

/// Bytes that don't compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[4]
    };
    std::iter::repeat_with(next).take(length).collect()
}

pub fn image_for(architecture: &str, layers: &[(Vec<u8>, Compression)]) -> Image {
    let mut image = Image::default();
    let mut descriptors = Vec::new();
    let mut diff_ids = Vec::new();
    for (tar, compression) in layers {
        let (content, kind) = match compression {
            Compression::None => (tar.clone(), ""),
            Compression::Gzip => {
                let mut encoder =
                    flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(tar).unwrap();
                (encoder.finish().unwrap(), "+gzip")
            }
            Compression::Zstd => (zstd::encode_all(tar.as_slice(), 1).unwrap(), "+zstd"),
        };
        let name = digest(&content);
        descriptors.push(json!({
            "mediaType": format!("application/vnd.oci.image.layer.v1.tar{kind}"), "digest": name, "size": content.len(),
        }));
        diff_ids.push(digest(tar));
        image.layers.push(name.clone());
        image.blobs.insert(name, content);
    }
    let config = json!({
        "architecture": architecture, "os": "linux",
        "config": { "Entrypoint": ["/bin/app"], "Cmd": ["--serve"], "Env": ["A=1"], "User": "1000:1000", "WorkingDir": "/srv" },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = config.to_string().into_bytes();
    image.manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": digest(&config), "size": config.len() },
        "layers": descriptors,
    })
    .to_string()
    .into_bytes();
    image.blobs.insert(digest(&config), config);
    image
}

pub fn image(layers: &[(Vec<u8>, Compression)]) -> Image {
    image_for(architecture(), layers)
}

/// An index of images by architecture.
pub fn index_of(images: &[(&str, &Image)]) -> Vec<u8> {
    let entries: Vec<serde_json::Value> = images
        .iter()
        .map(|(architecture, image)| {
            json!({ "mediaType": MANIFEST, "digest": digest(&image.manifest), "size": image.manifest.len(),
                "platform": { "os": "linux", "architecture": architecture } })
        })
        .collect();
    json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": entries })
        .to_string()
        .into_bytes()
}

/// Writes an OCI layout with one image, tagged.
pub fn write_layout(directory: &Path, image: &Image, tag: &str) {
    let blobs = directory.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    std::fs::write(
        directory.join("oci-layout"),
        r#"{"imageLayoutVersion":"1.0.0"}"#,
    )
    .unwrap();
    let manifest = (digest(&image.manifest), image.manifest.clone());
    for (name, content) in image.blobs.clone().into_iter().chain([manifest]) {
        std::fs::write(blobs.join(name.strip_prefix("sha256:").unwrap()), content).unwrap();
    }
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": MANIFEST, "digest": digest(&image.manifest), "size": image.manifest.len(),
        "annotations": { "org.opencontainers.image.ref.name": tag },
    }] });
    std::fs::write(directory.join("index.json"), index.to_string()).unwrap();
}
