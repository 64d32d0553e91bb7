//! Takes uploaded images in.

use std::io::{self, BufRead, Read};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use utsuwa_model::image::ResolvedImage;

use super::{ImageStore, blob_turn};
use crate::image::archive::{self, Found};
use crate::image::digest::Digest;
use crate::image::error::PullError;
use crate::image::progress::Reporter;
use crate::image::reference::{LOCAL_REGISTRY, Reference};

/// Who sends what is refused is listened to for so long: long enough for an image on a bad line, and not for ever.
const HEARD: Duration = Duration::from_secs(60);
/// Pieces of an upload in memory.
const PIECES: usize = 16;
static UPLOADS: AtomicU64 = AtomicU64::new(0);

/// A directory of the upload's own, gone when it is.
#[derive(Debug)]
struct Incoming(PathBuf);

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "remove an upload; the next start does it");
        }
    }
}

impl ImageStore {
    /// Stores the image of an uploaded archive and unpacks it. The archive is a tar (also gzip or zstd) of the kinds
    /// `oci-archive` or `docker-archive`. `wanted`, a reference or a tag, chooses among several images.
    ///
    /// The answer's `reference` is `utsuwa.local/loaded/NAME@sha256:…`; the image can also be had by `…/NAME:TAG` if the
    /// archive names a tag. It stays for the grace period unless a revision pins it.
    ///
    /// # Errors
    /// [`PullError::Archive`] and others; nothing of the upload is left then.
    pub async fn load_archive<S>(
        &self,
        mut content: S,
        wanted: Option<&str>,
    ) -> Result<ResolvedImage, PullError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
    {
        let loaded = self.take_in(&mut content, wanted).await;
        if loaded.is_err() {
            // Who is answered while they still send loses the connection, and the answer with it.
            let to_its_end = async { while matches!(content.next().await, Some(Ok(_))) {} };
            // Too late: answered all the same.
            let _late = tokio::time::timeout(HEARD, to_its_end).await;
        }
        loaded
    }

    async fn take_in<S>(&self, content: S, wanted: Option<&str>) -> Result<ResolvedImage, PullError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
    {
        let interrupted = |error: tokio::task::JoinError| PullError::Interrupted(error.to_string());
        let path = self
            .directory()
            .join("incoming")
            .join(UPLOADS.fetch_add(1, Ordering::Relaxed).to_string());
        std::fs::create_dir(&path)
            .map_err(PullError::disk("make a directory for an upload", &path))?;
        let incoming = Incoming(path.clone());
        let (sender, pieces) = mpsc::channel(PIECES);
        let reserve = self.0.settings.reserve_bytes;
        let wanted = wanted.map(str::to_owned);
        let reading = tokio::task::spawn_blocking(move || {
            let files = archive::spool(
                PieceReader {
                    pieces,
                    piece: Bytes::new(),
                },
                &path,
                reserve,
            )?;
            archive::find(&files, wanted.as_deref())
        });
        forward(content, sender).await;
        let found = reading.await.map_err(interrupted)??;
        let (reference, tag) = local_name(found.name.as_deref());
        let digest = Digest::of(&found.manifest_document);
        let pinned = reference.pinned(digest);
        let record = self.record(
            &pinned,
            pinned.clone(),
            digest,
            &found.manifest,
            &found.config,
        )?;
        // Before anything is moved: from here on a collection leaves it alone.
        let claim = self.0.claims.claim(record.digests());
        self.put_document(digest, &found.manifest_document)?;
        self.put_document(found.manifest.config.digest, &found.config)?;
        self.adopt_layers(&found).await?;
        let unpacked = self
            .make_ready(&reference, &record, &Reporter::default())
            .await?;
        let mut names = vec![pinned];
        names.extend(tag.map(|tag| format!("{}:{tag}", reference.name())));
        let image = record.image.clone();
        self.remember(record, names, unpacked).await?;
        drop(claim);
        drop(incoming);
        self.settle();
        Ok(image)
    }

    /// Moves the files of layers to where blobs are.
    async fn adopt_layers(&self, found: &Found) -> Result<(), PullError> {
        for (layer, file) in found.manifest.layers.iter().zip(&found.layers) {
            let _turn = self.0.claims.turn(blob_turn(layer.digest)).await;
            let target = self.blob_path(layer.digest);
            // The same layer may stand in a manifest twice; then the file has moved already.
            if !target.exists() {
                std::fs::rename(file, &target)
                    .map_err(PullError::disk("name the file of a layer", &target))?;
            }
        }
        Ok(())
    }
}

async fn forward<S>(mut content: S, pieces: mpsc::Sender<io::Result<Bytes>>)
where
    S: Stream<Item = io::Result<Bytes>> + Send + Unpin,
{
    loop {
        let piece = tokio::select! {
            piece = content.next() => piece,
            // Refused: nobody waits for a piece that may never come.
            () = pieces.closed() => return,
        };
        let Some(piece) = piece else {
            return;
        };
        if pieces.send(piece).await.is_err() {
            return;
        }
    }
}

/// A blocking reader of what arrives.
#[derive(Debug)]
struct PieceReader {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    piece: Bytes,
}

impl BufRead for PieceReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => self.piece = piece?,
                None => break,
            }
        }
        Ok(&self.piece)
    }

    fn consume(&mut self, bytes: usize) {
        self.piece.advance(bytes.min(self.piece.len()));
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let bytes = available.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&available[..bytes]);
        self.consume(bytes);
        Ok(bytes)
    }
}

/// Where an image goes that calls itself `name` (a reference of any kind), and its tag.
fn local_name(name: Option<&str>) -> (Reference, Option<String>) {
    let parsed = name
        .map(str::to_lowercase)
        .and_then(|name| Reference::parse(&name).ok());
    let (repository, tag) = match parsed {
        Some(parsed) => {
            let path = parsed
                .repository
                .strip_prefix("library/")
                .unwrap_or(&parsed.repository);
            let path = if parsed.registry == LOCAL_REGISTRY {
                path.strip_prefix("loaded/").unwrap_or(path)
            } else {
                path
            };
            (format!("loaded/{path}"), parsed.tag)
        }
        None => ("loaded/image".to_owned(), None),
    };
    (
        Reference {
            registry: LOCAL_REGISTRY.to_owned(),
            repository,
            tag: None,
            digest: None,
        },
        tag,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archives_are_called_what_they_call_themselves() {
        for (name, repository, tag) in [
            (Some("docker.io/library/app:v1"), "loaded/app", Some("v1")),
            (
                Some("localhost/team/app"),
                "loaded/team/app",
                Some("latest"),
            ),
            (Some("My-Dir:v2"), "loaded/my-dir", Some("v2")),
            (Some("utsuwa.local/loaded/app:v3"), "loaded/app", Some("v3")),
            (Some("not a name"), "loaded/image", None),
            (None, "loaded/image", None),
        ] {
            let (reference, found) = local_name(name);
            assert_eq!(
                (reference.repository.as_str(), found.as_deref()),
                (repository, tag)
            );
        }
    }
}
