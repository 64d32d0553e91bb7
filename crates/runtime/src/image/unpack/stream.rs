//! From a compressed blob to checked bytes: decompression in one thread, hashing and writing in the other.
//!
//! Invariants: 1. At most [`CHUNKS`] × [`CHUNK_BYTES`] bytes are in flight. 2. Every byte that a reader sees was hashed.
//! 3. The stream ends with an error as soon as it passes the limits, so a bomb costs no more than they allow.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::Limits;
use super::error::UnpackError;
use crate::image::digest::{Digest, Hasher};

const CHUNK_BYTES: usize = 128 << 10;
const CHUNKS: usize = 8;
/// Windows above 128 MiB would let an image choose this process's memory.
const ZSTD_WINDOW_LOG: u32 = 27;

type Chunk = io::Result<Vec<u8>>;

/// The uncompressed bytes of a blob, hashed as they pass.
#[derive(Debug)]
pub(super) struct BlobReader {
    source: Source,
    chunk: Vec<u8>,
    position: usize,
    ended: bool,
    hasher: Hasher,
    /// The limit that was passed, for the caller: `io::Error` can't carry it.
    pub(super) broken: Option<UnpackError>,
    compressed: u64,
    limits: Limits,
}

enum Source {
    Thread {
        chunks: Receiver<Chunk>,
        thread: Option<JoinHandle<()>>,
    },
    Inline(Box<dyn Read>),
}

impl std::fmt::Debug for Source {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Thread { .. } => "Thread",
            Self::Inline(_) => "Inline",
        })
    }
}

impl BlobReader {
    /// Looks at the first bytes to know the compression: what registries say about it is sometimes wrong.
    pub(super) fn open(blob: File, limits: Limits) -> Result<Self, UnpackError> {
        let compressed = blob.metadata().map_err(UnpackError::format)?.len();
        let again = blob.try_clone().map_err(UnpackError::format)?;
        let (sender, chunks) = sync_channel(CHUNKS);
        let spawned = std::thread::Builder::new()
            .name("decompress".to_owned())
            .spawn(move || decompress(blob, &sender));
        let source = match spawned {
            Ok(thread) => Source::Thread {
                chunks,
                thread: Some(thread),
            },
            // A process without room for a second thread works, only slower.
            Err(_error) => Source::Inline(decoder(again).map_err(UnpackError::format)?),
        };
        Ok(Self {
            source,
            chunk: Vec::new(),
            position: 0,
            ended: false,
            hasher: Hasher::new(),
            broken: None,
            compressed,
            limits,
        })
    }

    /// The digest of everything that was read.
    pub(super) fn finish(self) -> Digest {
        self.hasher.finish()
    }

    fn next_chunk(&mut self) -> io::Result<()> {
        self.position = 0;
        match &mut self.source {
            Source::Thread { chunks, thread } => match chunks.recv() {
                Ok(chunk) => self.chunk = chunk?,
                Err(_disconnected) => {
                    self.chunk.clear();
                    if thread.take().is_some_and(|thread| thread.join().is_err()) {
                        return Err(io::Error::other("the decompressing thread died"));
                    }
                }
            },
            Source::Inline(reader) => self.chunk = read_chunk(reader)?,
        }
        self.ended = self.chunk.is_empty();
        self.hasher.update(&self.chunk);
        let total = self.hasher.bytes();
        if total > self.limits.max_bytes {
            self.broken = Some(UnpackError::TooLarge {
                limit: self.limits.max_bytes,
            });
        } else if total > self.limits.ratio_free_bytes
            && total / self.compressed.max(1) > self.limits.max_ratio
        {
            self.broken = Some(UnpackError::Ratio {
                compressed: self.compressed,
                unpacked: total,
            });
        }
        match &self.broken {
            Some(error) => Err(io::Error::other(error.to_string())),
            None => Ok(()),
        }
    }
}

impl BufRead for BlobReader {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.position == self.chunk.len() && !self.ended {
            self.next_chunk()?;
        }
        Ok(&self.chunk[self.position..])
    }

    fn consume(&mut self, bytes: usize) {
        self.position = (self.position + bytes).min(self.chunk.len());
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let available = self.fill_buf()?;
        let bytes = available.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&available[..bytes]);
        self.consume(bytes);
        Ok(bytes)
    }
}

fn decompress(blob: File, chunks: &SyncSender<Chunk>) {
    let mut reader = match decoder(blob) {
        Ok(reader) => reader,
        Err(error) => {
            // The other side is gone only when it has failed already.
            let _gone = chunks.send(Err(error));
            return;
        }
    };
    loop {
        let chunk = read_chunk(&mut reader);
        let last = chunk.as_ref().map_or(true, Vec::is_empty);
        if chunks.send(chunk).is_err() || last {
            return;
        }
    }
}

fn read_chunk(reader: &mut impl Read) -> Chunk {
    let mut chunk = Vec::with_capacity(CHUNK_BYTES);
    reader
        .by_ref()
        .take(CHUNK_BYTES as u64)
        .read_to_end(&mut chunk)?;
    Ok(chunk)
}

fn decoder(blob: File) -> io::Result<Box<dyn Read>> {
    let mut reader = io::BufReader::with_capacity(CHUNK_BYTES, blob);
    let magic = reader.fill_buf()?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(reader)));
    }
    // A frame, or a skippable frame in front of one (as `zstd:chunked` layers may have).
    let skippable =
        magic.len() >= 4 && magic[0] & 0xf0 == 0x50 && magic[1..4] == [0x2a, 0x4d, 0x18];
    if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || skippable {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(reader)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG)?;
        return Ok(Box::new(decoder));
    }
    for (magic_bytes, name) in [(&b"BZh"[..], "bzip2"), (&b"\xfd7zXZ\0"[..], "xz")] {
        if magic.starts_with(magic_bytes) {
            return Err(io::Error::other(format!(
                "it is compressed with {name}; only gzip and zstd are supported"
            )));
        }
    }
    Ok(Box::new(reader))
}
