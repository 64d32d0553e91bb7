//! Manifests, indexes and configurations as registries send them (OCI 1.x and Docker schema 2).
//!
//! Parsed by hand-made shapes with every field optional: real registries leave out much that the specification demands.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use utsuwa_model::image::ImageConfig;

use super::digest::Digest;
use super::error::PullError;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// What we say we understand.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// Content named by another document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    #[serde(rename = "mediaType", default)]
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// An image for one platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageManifest {
    pub(crate) media_type: String,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
}

/// One choice of an index.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct IndexEntry {
    #[serde(flatten)]
    pub(crate) descriptor: Descriptor,
    #[serde(default)]
    pub(crate) platform: Option<Platform>,
    #[serde(default, deserialize_with = "null_as_default")]
    pub(crate) annotations: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub(crate) struct Platform {
    #[serde(default)]
    pub(crate) architecture: String,
    #[serde(default)]
    pub(crate) os: String,
    #[serde(default)]
    pub(crate) variant: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Manifest {
    Image(ImageManifest),
    Index {
        media_type: String,
        entries: Vec<IndexEntry>,
    },
}

#[derive(Deserialize)]
struct RawManifest {
    #[serde(rename = "schemaVersion", default)]
    schema_version: u32,
    #[serde(rename = "mediaType", default)]
    media_type: Option<String>,
    #[serde(default)]
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Option<Vec<Descriptor>>,
    #[serde(default)]
    manifests: Option<Vec<IndexEntry>>,
}

/// What the server runs on, in the words of image formats.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Manifest {
    /// Parses the document of `image`; `declared` is the media type it came with.
    pub(crate) fn parse(image: &str, document: &[u8], declared: &str) -> Result<Self, PullError> {
        let unsupported = |why: String| PullError::Unsupported {
            image: image.to_owned(),
            why,
        };
        let raw: RawManifest = serde_json::from_slice(document)
            .map_err(|error| unsupported(format!("its manifest can't be understood ({error})")))?;
        if raw.schema_version == 1 || declared.contains("distribution.manifest.v1") {
            return Err(unsupported(
                "it is stored in Docker's manifest schema 1, which is out of use since 2017; push it again with a current docker, podman or skopeo".to_owned(),
            ));
        }
        let media_type = raw.media_type.unwrap_or_else(|| {
            declared
                .split(';')
                .next()
                .unwrap_or_default()
                .trim()
                .to_owned()
        });
        match (raw.manifests, raw.config, raw.layers) {
            (Some(entries), None, _) => {
                let media_type = if media_type == DOCKER_LIST {
                    media_type
                } else {
                    OCI_INDEX.to_owned()
                };
                Ok(Self::Index {
                    media_type,
                    entries,
                })
            }
            (None, Some(config), Some(layers)) => {
                if !config.media_type.is_empty()
                    && config.media_type != OCI_CONFIG
                    && config.media_type != DOCKER_CONFIG
                {
                    return Err(unsupported(format!(
                        "it is not a container image but an artifact of type '{}'",
                        config.media_type
                    )));
                }
                for layer in &layers {
                    if layer.media_type.contains("foreign")
                        || layer.media_type.contains("nondistributable")
                    {
                        return Err(unsupported(format!(
                            "its layer {} is not kept in the registry",
                            layer.digest
                        )));
                    }
                    if layer.media_type.ends_with("+encrypted") {
                        return Err(unsupported(format!(
                            "its layer {} is encrypted",
                            layer.digest
                        )));
                    }
                }
                let media_type = if media_type == DOCKER_MANIFEST {
                    media_type
                } else {
                    OCI_MANIFEST.to_owned()
                };
                Ok(Self::Image(ImageManifest {
                    media_type,
                    config,
                    layers,
                }))
            }
            _ => Err(unsupported(format!(
                "its manifest of type '{media_type}' names no layers"
            ))),
        }
    }
}

/// The entry of an index for this machine.
pub(crate) fn choose<'a>(
    image: &str,
    media_type: &str,
    entries: &'a [IndexEntry],
) -> Result<&'a IndexEntry, PullError> {
    let wanted = host_architecture();
    let fits = |entry: &&IndexEntry| match &entry.platform {
        Some(platform) => platform.os == "linux" && platform.architecture == wanted,
        // A list of one without a platform: its configuration tells.
        None => entries.len() == 1,
    };
    // The plainest variant runs everywhere: none, then v1 (amd64) or v8 (arm64), then by name.
    let rank = |entry: &&IndexEntry| {
        let variant = entry
            .platform
            .as_ref()
            .and_then(|platform| platform.variant.clone());
        match variant.as_deref() {
            None | Some("") => (0, String::new()),
            Some("v1" | "v8") => (1, String::new()),
            Some(other) => (2, other.to_owned()),
        }
    };
    entries.iter().filter(fits).min_by_key(rank).ok_or_else(|| {
        let mut offered: Vec<String> = entries
            .iter()
            .filter_map(|entry| entry.platform.as_ref())
            // Attestations are listed as `unknown/unknown`.
            .filter(|platform| platform.os != "unknown")
            .map(|platform| format!("{}/{}", platform.architecture, platform.os))
            .collect();
        offered.dedup();
        architecture(image, media_type, &offered.join(", "))
    })
}

fn architecture(image: &str, media_type: &str, offered: &str) -> PullError {
    PullError::Architecture {
        image: image.to_owned(),
        media_type: media_type.to_owned(),
        wanted: format!("{}/linux", host_architecture()),
        offered: if offered.is_empty() {
            "nothing".to_owned()
        } else {
            offered.to_owned()
        },
    }
}

#[derive(Deserialize)]
struct RawImage {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    #[serde(default)]
    config: Option<RawConfig>,
    #[serde(default)]
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize)]
struct RawRootfs {
    #[serde(default, deserialize_with = "null_as_default")]
    diff_ids: Vec<Digest>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct RawConfig {
    #[serde(deserialize_with = "null_as_default")]
    entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    cmd: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    env: Vec<String>,
    #[serde(deserialize_with = "null_as_default")]
    user: String,
    #[serde(deserialize_with = "null_as_default")]
    working_dir: String,
    stop_signal: Option<String>,
    #[serde(deserialize_with = "null_as_default")]
    labels: BTreeMap<String, String>,
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// What starting needs from a configuration, and the uncompressed digests of its `layers` layers.
pub(crate) fn parse_config(
    image: &str,
    manifest: &ImageManifest,
    document: &[u8],
) -> Result<(ImageConfig, Vec<Digest>), PullError> {
    let unsupported = |why: String| PullError::Unsupported {
        image: image.to_owned(),
        why,
    };
    let raw: RawImage = serde_json::from_slice(document)
        .map_err(|error| unsupported(format!("its configuration can't be understood ({error})")))?;
    // Hand-made images leave these out; they mean what runs here.
    let os_fits = raw.os.is_empty() || raw.os == "linux";
    if !os_fits || !(raw.architecture.is_empty() || raw.architecture == host_architecture()) {
        return Err(architecture(
            image,
            &manifest.media_type,
            &format!("{}/{}", raw.architecture, raw.os),
        ));
    }
    let diff_ids = raw.rootfs.map(|rootfs| rootfs.diff_ids).unwrap_or_default();
    if diff_ids.len() != manifest.layers.len() {
        return Err(unsupported(format!(
            "its manifest names {} layers, its configuration {}",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    let raw = raw.config.unwrap_or_default();
    let config = ImageConfig {
        entrypoint: raw.entrypoint,
        cmd: raw.cmd,
        env: raw.env,
        user: raw.user,
        working_dir: raw.working_dir,
        stop_signal: raw.stop_signal.filter(|signal| !signal.is_empty()),
        labels: raw.labels,
    };
    Ok((config, diff_ids))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use super::*;

    fn index(platforms: &[(&str, &str, Option<&str>)]) -> Vec<IndexEntry> {
        platforms
            .iter()
            .enumerate()
            .map(|(number, (os, architecture, variant))| {
                let content = number.to_string();
                IndexEntry {
                    descriptor: Descriptor {
                        media_type: OCI_MANIFEST.into(),
                        digest: Digest::of(content.as_bytes()),
                        size: 1,
                    },
                    platform: Some(Platform {
                        architecture: (*architecture).into(),
                        os: (*os).into(),
                        variant: variant.map(str::to_owned),
                    }),
                    annotations: BTreeMap::new(),
                }
            })
            .collect()
    }

    #[test]
    fn the_plainest_variant_of_this_machine_is_chosen() {
        let ours = host_architecture();
        let entries = index(&[
            ("linux", "s390x", None),
            ("linux", ours, Some("v3")),
            ("windows", ours, None),
            ("linux", ours, None),
        ]);
        assert_eq!(choose("i", OCI_INDEX, &entries).unwrap(), &entries[3]);
    }

    #[test]
    fn a_missing_architecture_names_what_there_is() {
        let entries = index(&[
            ("linux", "s390x", None),
            ("unknown", "unknown", None),
            ("linux", "ppc64le", None),
        ]);
        let text = choose("r/x", OCI_INDEX, &entries).unwrap_err().to_string();
        let wanted = format!(
            "Cloud Run does not support image 'r/x': Container manifest type '{OCI_INDEX}' must support {}/linux. It offers: s390x/linux, ppc64le/linux.",
            host_architecture()
        );
        assert_eq!(text, wanted);
    }

    #[test]
    fn schema_one_and_artifacts_are_refused_by_name() {
        let text = Manifest::parse("i", br#"{"schemaVersion":1,"fsLayers":[]}"#, "")
            .unwrap_err()
            .to_string();
        assert!(text.contains("schema 1"), "{text}");
        let digest = Digest::of(b"");
        let document = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.cncf.helm.config.v1+json","digest":"{digest}","size":2}},"layers":[]}}"#
        );
        let text = Manifest::parse("i", document.as_bytes(), OCI_MANIFEST)
            .unwrap_err()
            .to_string();
        assert!(text.contains("helm"), "{text}");
    }

    #[test]
    fn null_lists_are_empty_lists() {
        let manifest = ImageManifest {
            media_type: OCI_MANIFEST.into(),
            config: Descriptor {
                media_type: OCI_CONFIG.into(),
                digest: Digest::of(b""),
                size: 0,
            },
            layers: vec![],
        };
        let document = br#"{"os":"linux","config":{"Entrypoint":null,"Cmd":["/a"],"Labels":null},"rootfs":{"type":"layers","diff_ids":null}}"#;
        let (config, layers) = parse_config("i", &manifest, document).unwrap();
        assert_eq!(
            (config.cmd, config.entrypoint, layers),
            (vec!["/a".to_owned()], vec![], vec![])
        );
    }
}
