//! `utsuwa images …`: archives belong to the command line, which uploads them (decision 15).

use std::io::Seek;
use std::path::Path;

use clap::Subcommand;
use futures_util::TryStreamExt;
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::io::ReaderStream;
use utsuwa_wire::path::percent_encode;

use super::ClientArgs;
use super::progress::Progress;
use crate::client::{Api, Failure};
use crate::output::{Format, items, line, note, size, text_at, value};

#[derive(Debug, Subcommand)]
pub(crate) enum ImagesCommand {
    /// Load an image and print the reference to deploy it by.
    Load {
        /// oci:DIR[:TAG], oci-archive:FILE[:REFERENCE] or docker-archive:FILE[:REFERENCE]; the reference (or only its tag)
        /// chooses among several images
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
                let hinted = path_hint(archive, Path::new(archive));
                return Err(hinted.unwrap_or_else(|| {
                    Failure::usage(format!(
                        "{archive:?}: must be oci:DIR, oci-archive:FILE or docker-archive:FILE"
                    ))
                }));
            }
            let progress = Progress::new();
            let loaded = upload(&api, archive, &progress).await?;
            drop(progress);
            if client.format == Format::Table {
                line(&text_at(&loaded, "reference"));
                Ok(())
            } else {
                value(&client.format, &loaded)
            }
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

fn is_local(reference: &str) -> bool {
    ["oci:", "oci-archive:", "docker-archive:"]
        .iter()
        .any(|prefix| reference.starts_with(prefix))
}

/// The failure for a reference that is meant as a path: an archive's name, a path as shells write it, or something that lies
/// there. A name such as `team/api` may be a folder here by chance, so a folder counts only when it is an image.
fn path_hint(reference: &str, path: &Path) -> Option<Failure> {
    let ends = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".oci"];
    let written = ["./", "../", "/", "~/"]
        .iter()
        .any(|p| reference.starts_with(p))
        || ends.iter().any(|end| reference.ends_with(end));
    let image = path.join("index.json").is_file();
    if !(written || path.is_file() || image) {
        return None;
    }
    let failure = |why: &str| Failure::usage(format!("{reference}: {why}"));
    Some(if image {
        failure("is a directory with an image, and must be named as one")
            .hint(format!("write oci:{reference}"))
    } else if path.is_file() {
        failure("is a file, and must be named as an archive").hint(format!(
            "write docker-archive:{reference} for what `docker save` writes, oci-archive:{reference} for an OCI archive"
        ))
    } else {
        failure("reads like a path, and there is no such file or image directory here").hint(
            "archives are named oci-archive:FILE or docker-archive:FILE, image directories oci:DIR, anything else is a reference \
             such as registry.example.com/team/api:1.4",
        )
    })
}

/// An OCI image directory as one archive in an unnamed temporary file.
fn pack(dir: &Path, tag: Option<&str>) -> std::io::Result<std::fs::File> {
    let mut file = tempfile::tempfile()?;
    utsuwa_runtime::image::pack_oci_directory(dir, tag, &mut file)?;
    file.rewind()?;
    Ok(file)
}

/// Uploads a local archive and answers its reference; any other reference is answered as it is.
pub(crate) async fn upload_if_local(
    api: &Api,
    reference: &str,
    progress: &Progress,
) -> Result<String, Failure> {
    if !is_local(reference) {
        return match path_hint(reference, Path::new(reference)) {
            Some(failure) => Err(failure),
            None => Ok(reference.to_owned()),
        };
    }
    let loaded = upload(api, reference, progress).await?;
    Ok(text_at(&loaded, "reference"))
}

/// Divides `PATH[:REFERENCE]`. Both may hold colons: the longest beginning that is there is the path, and without any, what comes
/// before the first colon is.
fn divide(text: &str, is_there: impl Fn(&Path) -> bool) -> (&str, Option<&str>) {
    if is_there(Path::new(text)) {
        return (text, None);
    }
    let divided = text
        .rmatch_indices(':')
        .map(|(at, colon)| (&text[..at], Some(&text[at + colon.len()..])))
        .find(|(path, _)| is_there(Path::new(path)));
    let first = || text.split_once(':').map(|(path, name)| (path, Some(name)));
    divided.or_else(first).unwrap_or((text, None))
}

/// Uploads a local archive; answers its reference and digest.
async fn upload(api: &Api, archive: &str, progress: &Progress) -> Result<Value, Failure> {
    let (kind, rest) = archive.split_once(':').unwrap_or((archive, ""));
    // The image of a directory is chosen here: only that one is packed.
    let (file, wanted) = if kind == "oci" {
        let (dir, tag) = divide(rest, |dir| dir.join("index.json").is_file());
        let dir = Path::new(dir);
        if !dir.join("index.json").is_file() {
            return Err(Failure::failed(format!(
                "{}: is no OCI image directory (it has no index.json)",
                dir.display()
            ))
            .hint("a file is named with oci-archive:FILE or docker-archive:FILE"));
        }
        progress.show("pack", &format!("Packing {}", dir.display()));
        let file = pack(dir, tag)
            .map_err(|e| Failure::failed(format!("{}: pack the image: {e}", dir.display())))?;
        (file, None)
    } else {
        let (path, wanted) = divide(rest, Path::is_file);
        let file = std::fs::File::open(path).map_err(|e| {
            Failure::failed(format!("{path}: open the archive: {e}"))
                .hint("files are looked for on the machine where this command runs")
        })?;
        (file, wanted)
    };
    let total = file.metadata().map_or(0, |m| m.len());
    let (counter, sent) = watch::channel(0);
    let pieces = ReaderStream::new(tokio::fs::File::from_std(file)).inspect_ok(move |piece| {
        counter.send_modify(|sent| *sent += piece.len() as u64);
    });
    let mut path = "/utsuwa/v1/images:load".to_owned();
    if let Some(wanted) = wanted {
        path.push_str("?image=");
        path.push_str(&percent_encode(wanted));
    }
    tokio::select! {
        loaded = api.upload(&path, reqwest::Body::wrap_stream(pieces)) => {
            loaded.map_err(|failure| {
                let hint = failure.is_invalid().then(|| hint(&failure.message, wanted)).flatten();
                let failure = failure.about(rest);
                match hint {
                    Some(hint) => failure.hint(hint),
                    None => failure,
                }
            })
        }
        never = show_upload(sent, total, progress) => match never {},
    }
}

/// What to do about an archive that was refused, whose image `wanted` was asked for.
fn hint(message: &str, wanted: Option<&str>) -> Option<String> {
    // Cloud Run's own words, which don't change: `must support amd64/linux.`
    let lacking = message.split_once("must support ").and_then(|(_, rest)| {
        let wanted = rest.split(|c: char| c == '.' || c.is_whitespace()).next()?;
        wanted.split_once('/')
    });
    let archive =
        "an archive is what `docker save`, or `skopeo copy docker://REF oci-archive:FILE`, writes";
    match lacking {
        Some((architecture, os)) => Some(format!(
            "build it for {os}/{architecture} (`docker build --platform {os}/{architecture}`)"
        )),
        None => wanted.is_none().then(|| archive.to_owned()),
    }
}

/// Shows how much was sent, then that the server works on it.
async fn show_upload(
    mut sent: watch::Receiver<u64>,
    total: u64,
    progress: &Progress,
) -> std::convert::Infallible {
    loop {
        let done = *sent.borrow_and_update();
        if done < total {
            let text = format!("Uploading the image: {} of {}", size(done), size(total));
            progress.show("upload", &text);
        } else {
            progress.show("unpack", "Checking and unpacking the image");
        }
        if sent.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_divided_from_the_reference_behind_it() {
        let there = |path: &Path| ["a.tar", "b:c.tar"].contains(&path.to_str().unwrap());
        for (text, divided) in [
            ("a.tar", ("a.tar", None)),
            ("a.tar:v1", ("a.tar", Some("v1"))),
            (
                "a.tar:r.example:5000/x:v1",
                ("a.tar", Some("r.example:5000/x:v1")),
            ),
            ("b:c.tar", ("b:c.tar", None)),
            ("b:c.tar:v1", ("b:c.tar", Some("v1"))),
            (
                "none.tar:r.example/x:v1",
                ("none.tar", Some("r.example/x:v1")),
            ),
            ("none.tar", ("none.tar", None)),
        ] {
            assert_eq!(divide(text, there), divided, "{text}");
        }
    }

    #[test]
    fn a_path_is_told_from_a_reference() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        std::fs::write(&file, "").unwrap();
        let image = dir.path().join("image");
        std::fs::create_dir(&image).unwrap();
        std::fs::write(image.join("index.json"), "{}").unwrap();
        let hint = |reference: &str, path: &Path| {
            let failure = path_hint(reference, path)?;
            Some((failure.status, failure.hint.unwrap_or_default()))
        };
        let (status, archive) = hint("x", &file).unwrap();
        assert_eq!(status, 2);
        assert!(archive.contains("docker-archive:x") && archive.contains("oci-archive:x"));
        assert_eq!(hint("image", &image).unwrap().1, "write oci:image");
        let nowhere = dir.path().join("none");
        for written in ["./x.tar", "x.tar", "../x", "/tmp/x", "x.tgz"] {
            let (_, hint) = hint(written, &nowhere).unwrap();
            assert!(hint.contains("oci-archive:FILE"), "{written}: {hint}");
        }
        // A folder that only happens to have the name.
        assert_eq!(hint("team/api", dir.path()), None);
        assert_eq!(hint("registry.example.com/team/api:1.4", &nowhere), None);
    }
    #[test]
    fn an_archive_for_another_machine_is_to_be_built_anew() {
        let message = "Cloud Run does not support image 'a': Container manifest type 'm' must support amd64/linux. It offers: arm64/linux.";
        for wanted in [None, Some("v1")] {
            let hint = hint(message, wanted).unwrap();
            assert!(
                hint.contains("docker build --platform linux/amd64"),
                "{hint}"
            );
        }
        assert!(hint("no archive", None).unwrap().contains("docker save"));
        assert_eq!(hint("no such image", Some("v1")), None);
    }
}
