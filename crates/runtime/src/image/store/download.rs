//! Brings one blob to disk: streamed, hashed on the way, resumed when the connection breaks.
//!
//! Invariants: 1. A file named by its digest has that content: it gets its name only after the hash of every byte matched.
//! 2. A download that ends in any other way, also by being dropped, leaves the part that arrived for the next try, unless it
//! was wrong or the disk failed. 3. Resuming is bounded: [`MAX_BREAKS`]
//! breaks in a row without [`PROGRESS_BYTES`] in between, and never more than [`MAX_BREAKS_IN_ALL`].

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::partial_path;
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

/// Downloads `blob` of `image` to `target`, going on from what an earlier try left. `progress` is told how many bytes are there.
pub(super) async fn download(
    registry: &Registry,
    image: &Reference,
    blob: &Descriptor,
    target: &Path,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), PullError> {
    let path = partial_path(target);
    loop {
        let part = Part::open(path.clone(), blob.size).await?;
        let begun = part.hasher.bytes();
        match attempt(registry, image, blob, part, progress).await {
            Ok(()) => {
                return std::fs::rename(&path, target)
                    .map_err(PullError::disk("name the file of a layer", target));
            }
            Err(error @ (PullError::Corrupt { .. } | PullError::Disk { .. })) => {
                // No use to anybody; and on a full disk its place is.
                let _gone = std::fs::remove_file(&path);
                if begun == 0 || matches!(error, PullError::Disk { .. }) {
                    return Err(error);
                }
                // The part from before may have been damaged, by a power cut for example.
                tracing::info!(image = %image, layer = %blob.digest, %error, "download a layer from its beginning");
            }
            Err(error) => return Err(error),
        }
    }
}

/// The file of a download and the hash of what is in it. Locked: a writer that was left may still be at work on it.
struct Part {
    path: PathBuf,
    file: File,
    hasher: Hasher,
}

impl Part {
    async fn open(path: PathBuf, size: u64) -> Result<Self, PullError> {
        let open = move || -> Result<Self, PullError> {
            let disk = |error| PullError::disk("open the file of a layer", &path)(error);
            let mut file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(disk)?;
            file.lock().map_err(disk)?;
            if file.metadata().map_err(disk)?.len() > size {
                file.set_len(0).map_err(disk)?;
            }
            let mut hasher = Hasher::new();
            let mut buffer = vec![0; 128 << 10];
            loop {
                let bytes = file.read(&mut buffer).map_err(disk)?;
                if bytes == 0 {
                    return Ok(Self { path, file, hasher });
                }
                hasher.update(&buffer[..bytes]);
            }
        };
        tokio::task::spawn_blocking(open)
            .await
            .map_err(|error| PullError::Interrupted(error.to_string()))?
    }
}

async fn attempt(
    registry: &Registry,
    image: &Reference,
    blob: &Descriptor,
    part: Part,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), PullError> {
    let begun = part.hasher.bytes();
    progress(begun);
    let (pieces, writer) = writer(part);
    let outcome = transfer(registry, image, blob, begun, &pieces, progress).await;
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
    Ok(())
}

async fn transfer(
    registry: &Registry,
    image: &Reference,
    blob: &Descriptor,
    begun: u64,
    pieces: &mpsc::Sender<Piece>,
    progress: &(dyn Fn(u64) + Send + Sync),
) -> Result<(), PullError> {
    let mut position = begun;
    let (mut breaks, mut breaks_in_all, mut last_break) = (0, 0, begun);
    'connect: loop {
        if position == blob.size && position > 0 {
            return Ok(());
        }
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
fn writer(part: Part) -> (mpsc::Sender<Piece>, JoinHandle<Written>) {
    let (sender, mut pieces) = mpsc::channel::<Piece>(PIECES);
    let handle = tokio::task::spawn_blocking(move || {
        let Part {
            path,
            mut file,
            mut hasher,
        } = part;
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
