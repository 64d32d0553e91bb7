//! `utsuwa images …`: archives belong to the command line, which uploads them (decision 15).

use std::io::Seek;
use std::path::Path;

use clap::Subcommand;
use serde_json::Value;

use super::ClientArgs;
use crate::client::{Api, Failure};
use crate::output::{items, line, note, text_at};

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Load an image and print the reference to deploy it by.
    Load {
        /// oci:DIR[:TAG], oci-archive:FILE or docker-archive:FILE
        archive: String,
    },
    /// List the images on this server.
    List,
}

pub(crate) async fn run(command: &ImagesCommand, client: &ClientArgs) -> Result<(), Failure> {
    let api = client.connect().await?;
    match command {
        ImagesCommand::Load { archive } => {
            if !is_local(archive) {
                return Err(Failure::usage(format!(
                    "{archive:?}: must be oci:DIR, oci-archive:FILE or docker-archive:FILE"
                )));
            }
            line(&upload_if_local(&api, archive).await?);
            Ok(())
        }
        ImagesCommand::List => {
            let answer = api.get("/utsuwa/v1/images").await?;
            let all: Vec<Value> = answer["images"].as_array().cloned().unwrap_or_default();
            items(
                &client.format,
                &all,
                &[
                    ("IMAGE", &|i| text_at(i, "reference")),
                    ("DIGEST", &|i| {
                        text_at(i, "digest").chars().take(19).collect()
                    }),
                    ("SIZE", &|i| {
                        size(
                            i["sizeBytes"]
                                .as_u64()
                                .or_else(|| text_at(i, "sizeBytes").parse().ok())
                                .unwrap_or(0),
                        )
                    }),
                    ("IN USE", &|i| {
                        if i["inUse"] == Value::Bool(true) {
                            "yes".to_owned()
                        } else {
                            "no".to_owned()
                        }
                    }),
                ],
            )?;
            for image in &all {
                for what in image["leftOut"].as_array().into_iter().flatten() {
                    note(&format!(
                        "note: {}: {}",
                        text_at(image, "reference"),
                        what.as_str().unwrap_or_default()
                    ));
                }
            }
            Ok(())
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "shown with one decimal")]
fn size(bytes: u64) -> String {
    if bytes < 1 << 20 {
        format!("{} kB", bytes / 1000)
    } else {
        format!("{:.1} MB", bytes as f64 / 1e6)
    }
}

fn is_local(reference: &str) -> bool {
    ["oci:", "oci-archive:", "docker-archive:"]
        .iter()
        .any(|prefix| reference.starts_with(prefix))
}

/// An OCI image directory as one archive in an unnamed temporary file.
fn pack(dir: &Path, tag: Option<&str>) -> std::io::Result<std::fs::File> {
    let mut file = tempfile::tempfile()?;
    utsuwa_runtime::image::pack_oci_directory(dir, tag, &mut file)?;
    file.rewind()?;
    Ok(file)
}

/// Uploads a local archive and answers its reference; any other reference is answered as it is.
pub(crate) async fn upload_if_local(api: &Api, reference: &str) -> Result<String, Failure> {
    if !is_local(reference) {
        return Ok(reference.to_owned());
    }
    let (kind, rest) = reference.split_once(':').unwrap_or((reference, ""));
    note(&format!("Loading {rest}…"));
    let body = if kind == "oci" {
        let (dir, tag) = match rest.rsplit_once(':') {
            Some((dir, tag)) if !tag.contains('/') => (dir, Some(tag)),
            _ => (rest, None),
        };
        let dir = Path::new(dir);
        if !dir.join("index.json").is_file() {
            return Err(Failure::failed(format!(
                "{}: is no OCI image directory (it has no index.json)",
                dir.display()
            )));
        }
        let file = pack(dir, tag)
            .map_err(|e| Failure::failed(format!("{}: pack the image: {e}", dir.display())))?;
        reqwest::Body::from(tokio::fs::File::from_std(file))
    } else {
        let path = rest.rsplit_once(':').map_or(rest, |(path, _)| {
            if Path::new(rest).is_file() {
                rest
            } else {
                path
            }
        });
        let file = tokio::fs::File::open(path)
            .await
            .map_err(|e| Failure::failed(format!("{path}: open the archive: {e}")))?;
        reqwest::Body::from(file)
    };
    let answer = api.upload("/utsuwa/v1/images:load", body).await?;
    answer["reference"]
        .as_str()
        .map(str::to_owned)
        .ok_or_else(|| Failure::failed("the server did not name the loaded image"))
}
