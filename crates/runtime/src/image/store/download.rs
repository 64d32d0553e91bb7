//! Brings one blob to disk: streamed, hashed on the way, resumed when the connection breaks.
//!
//! Invariants: 1. A file named by its digest has that content: it gets its name only after the hash of every byte matched.
//! 2. A download that ends in any other way, also by being dropped, leaves no file. 3. Resuming is bounded: [`MAX_BREAKS`]
//! breaks in a row without [`PROGRESS_BYTES`] in between, and never more than [`MAX_BREAKS_IN_ALL`].

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::image::digest::{Digest, Hasher};
use crate::image::error::PullError;
use crate::image::manifest::Descriptor;
use crate::image::reference::Reference;
use crate::image::registry::Registry;

const MAX_BREAKS: u32 = 4;
const MAX_BREAKS_IN_ALL: u32 = 50;
const PROGRESS_BYTES: u64 = 1 << 20;
/// Pieces between network and disk; a piece is at most some 64 KiB.
const PIECES: usize = 64;
const PAUSE: Duration = Duration::from_millis(300);

/// Digest and length of what was written.
type Written = Result<(Digest, u64), PullError>;

enum Piece {
    Data(Bytes),
    /// The registry can't resume: forget everything.
    Restart,
}

/// A file that goes away unless it is kept.
#[derive(Debug)]
struct Partial(Option<PathBuf>);

impl Drop for Partial {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            // Removed at the next start otherwise.
            let _gone = std::fs::remove_file(path);
        }
    }
}

/// Downloads `blob` of `image` to `target`. `progress` is told how many bytes are there.
pub(super) async fn download(
    registry: &Registry,
    image: &Reference,
    blob: &Descriptor,
    target: &Path,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), PullError> {
    let path = target.with_extension("partial");
    let file = File::create(&path).map_err(PullError::disk("make a file for a layer", &path))?;
    let mut partial = Partial(Some(path.clone()));
    let (pieces, writer) = writer(file, path.clone());
    let outcome = transfer(registry, image, blob, &pieces, progress).await;
    drop(pieces);
    let (found, bytes) = writer
        .await
        .map_err(|error| PullError::Interrupted(error.to_string()))??;
    outcome?;
    if found != blob.digest || bytes != blob.size {
        return Err(PullError::Corrupt {
            registry: image.registry.clone(),
            what: "a layer".to_owned(),
            expected: format!("{} ({} bytes)", blob.digest, blob.size),
            found: format!("{found} ({bytes} bytes)"),
        });
    }
    std::fs::rename(&path, target).map_err(PullError::disk("name the file of a layer", target))?;
    partial.0 = None;
    Ok(())
}

async fn transfer(
    registry: &Registry,
    image: &Reference,
    blob: &Descriptor,
    pieces: &mpsc::Sender<Piece>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), PullError> {
    let mut position = 0;
    let (mut breaks, mut breaks_in_all, mut last_break) = (0, 0, 0);
    'connect: loop {
        let mut stream = registry.blob(image, blob.digest, position).await?;
        if stream.offset != position {
            position = 0;
            if pieces.send(Piece::Restart).await.is_err() {
                return Ok(());
            }
        }
        let broken = loop {
            match registry.next(image, blob.digest, &mut stream).await {
                Ok(Some(data)) => {
                    position += data.len() as u64;
                    if position > blob.size {
                        return Err(PullError::Corrupt {
                            registry: image.registry.clone(),
                            what: "a layer".to_owned(),
                            expected: format!("{} ({} bytes)", blob.digest, blob.size),
                            found: "more bytes".to_owned(),
                        });
                    }
                    // The writer ends early only with an error of its own, which the caller gets from it.
                    if pieces.send(Piece::Data(data)).await.is_err() {
                        return Ok(());
                    }
                    progress(position);
                }
                Ok(None) if position == blob.size => return Ok(()),
                Ok(None) => {
                    break PullError::Registry {
                        registry: image.registry.clone(),
                        doing: format!("pull layer {}", blob.digest),
                        why: format!("it ends the layer after {position} of {} bytes", blob.size),
                    };
                }
                Err(error) => break error,
            }
        };
        breaks = if position >= last_break + PROGRESS_BYTES {
            1
        } else {
            breaks + 1
        };
        breaks_in_all += 1;
        last_break = position;
        if breaks >= MAX_BREAKS || breaks_in_all >= MAX_BREAKS_IN_ALL {
            return Err(broken);
        }
        tracing::info!(image = %image, layer = %blob.digest, position, error = %broken, "resume a broken download");
        tokio::time::sleep(PAUSE * breaks).await;
        continue 'connect;
    }
}

/// A thread that hashes and writes, so that neither holds up the network.
fn writer(mut file: File, path: PathBuf) -> (mpsc::Sender<Piece>, JoinHandle<Written>) {
    let (sender, mut pieces) = mpsc::channel::<Piece>(PIECES);
    let handle = tokio::task::spawn_blocking(move || {
        let mut hasher = Hasher::new();
        while let Some(piece) = pieces.blocking_recv() {
            match piece {
                Piece::Data(data) => {
                    hasher.update(&data);
                    file.write_all(&data)
                        .map_err(PullError::disk("write a layer", &path))?;
                }
                Piece::Restart => {
                    hasher = Hasher::new();
                    file.set_len(0)
                        .map_err(PullError::disk("write a layer", &path))?;
                    file.rewind()
                        .map_err(PullError::disk("write a layer", &path))?;
                }
            }
        }
        let bytes = hasher.bytes();
        Ok((hasher.finish(), bytes))
    });
    (sender, handle)
}
