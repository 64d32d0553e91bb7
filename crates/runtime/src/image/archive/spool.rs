//! An archive, read into numbered files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use super::bad;
use crate::image::digest::{Digest, Hasher};
use crate::image::error::PullError;
use crate::image::manifest::Descriptor;
use crate::image::unpack::{TarKind, TarReader, printable};

const MAX_FILES: usize = 100_000;
const MAX_LINKS: usize = 8;
const SPACE_CHECK_BYTES: u64 = 64 << 20;
const MAX_DOCUMENT_BYTES: u64 = 8 << 20;

#[derive(Debug, Clone)]
enum Item {
    File {
        path: PathBuf,
        digest: Digest,
        size: u64,
    },
    Link {
        target: String,
    },
}

/// The files of an archive by their names in it.
#[derive(Debug, Default)]
pub(crate) struct Spooled(BTreeMap<String, Item>);

/// Reads an archive (plain, gzip or zstd tar) into numbered files in `directory`, leaving `reserve_bytes` free.
pub(crate) fn spool(
    mut input: impl BufRead,
    directory: &Path,
    reserve_bytes: u64,
) -> Result<Spooled, PullError> {
    let unreadable = |error: io::Error| bad(error.to_string());
    let magic = input.fill_buf().map_err(unreadable)?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        spool_tar(
            BufReader::with_capacity(128 << 10, flate2::bufread::MultiGzDecoder::new(input)),
            directory,
            reserve_bytes,
        )
    } else if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let decoder = zstd::stream::read::Decoder::with_buffer(input).map_err(unreadable)?;
        spool_tar(
            BufReader::with_capacity(128 << 10, decoder),
            directory,
            reserve_bytes,
        )
    } else {
        spool_tar(input, directory, reserve_bytes)
    }
}

fn spool_tar(
    input: impl BufRead,
    directory: &Path,
    reserve_bytes: u64,
) -> Result<Spooled, PullError> {
    let mut reader = TarReader::new(input);
    let mut items = BTreeMap::new();
    let mut unchecked = SPACE_CHECK_BYTES;
    while let Some(entry) = reader
        .next_entry()
        .map_err(|error| bad(error.to_string()))?
    {
        let name = normal(&String::from_utf8_lossy(&entry.path));
        if items.len() >= MAX_FILES {
            return Err(bad(format!("it holds more than {MAX_FILES} files")));
        }
        match entry.kind {
            TarKind::File if entry.sparse.is_some() => {
                return Err(bad(format!(
                    "its file '{}' has holes",
                    printable(&entry.path)
                )));
            }
            TarKind::File => {
                let path = directory.join(items.len().to_string());
                let disk = |error| PullError::disk("write an uploaded file", &path)(error);
                let mut file = File::create_new(&path).map_err(disk)?;
                let mut hasher = Hasher::new();
                loop {
                    let data = reader.data().map_err(|error| bad(error.to_string()))?;
                    if data.is_empty() {
                        break;
                    }
                    hasher.update(data);
                    file.write_all(data).map_err(disk)?;
                    let used = data.len();
                    unchecked += used as u64;
                    reader.consume(used);
                    if unchecked >= SPACE_CHECK_BYTES {
                        unchecked = 0;
                        check_space(directory, reserve_bytes)?;
                    }
                }
                let size = hasher.bytes();
                items.insert(
                    name,
                    Item::File {
                        path,
                        digest: hasher.finish(),
                        size,
                    },
                );
            }
            TarKind::Symlink => {
                let folder = name.rsplit_once('/').map_or("", |(folder, _file)| folder);
                let target = normal(&format!(
                    "{folder}/{}",
                    String::from_utf8_lossy(&entry.link)
                ));
                items.insert(name, Item::Link { target });
            }
            TarKind::HardLink => {
                items.insert(
                    name,
                    Item::Link {
                        target: normal(&String::from_utf8_lossy(&entry.link)),
                    },
                );
            }
            _ => {}
        }
    }
    // The sender must be able to finish.
    reader.drain().map_err(|error| bad(error.to_string()))?;
    Ok(Spooled(items))
}

fn check_space(directory: &Path, reserve_bytes: u64) -> Result<(), PullError> {
    let stat = rustix::fs::statvfs(directory)
        .map_err(|errno| PullError::disk("look at the free space", directory)(errno.into()))?;
    let available_bytes = stat.f_bavail.saturating_mul(stat.f_frsize);
    if available_bytes < reserve_bytes.saturating_add(SPACE_CHECK_BYTES) {
        let path = directory.to_owned();
        return Err(PullError::DiskReserve {
            path,
            needed_bytes: SPACE_CHECK_BYTES,
            available_bytes,
            reserve_bytes,
        });
    }
    Ok(())
}

/// `a/./b/../c` → `a/c`. Only ever a key, so leaving the root is harmless.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join("/")
}

impl Spooled {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn file(&self, name: &str) -> Option<(&Path, Digest, u64)> {
        let mut name = normal(name);
        for _ in 0..MAX_LINKS {
            match self.0.get(&name)? {
                Item::File { path, digest, size } => return Some((path, *digest, *size)),
                Item::Link { target } => name.clone_from(target),
            }
        }
        None
    }

    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, PullError> {
        let (path, _digest, size) = self
            .file(name)
            .ok_or_else(|| bad(format!("it does not hold '{name}', which it names")))?;
        if size > MAX_DOCUMENT_BYTES {
            return Err(bad(format!("its document '{name}' has {size} bytes")));
        }
        std::fs::read(path).map_err(PullError::disk("read an uploaded file", path))
    }

    /// The file of a blob, which must be what its name says.
    pub(super) fn blob(&self, descriptor: &Descriptor) -> Result<(String, &Path), PullError> {
        let name = format!("blobs/sha256/{}", descriptor.digest.hex());
        let (path, digest, size) = self
            .file(&name)
            .ok_or_else(|| bad(format!("it does not hold '{name}', which it names")))?;
        if digest != descriptor.digest || size != descriptor.size {
            return Err(bad(format!(
                "its file '{name}' has other content than its name says: {digest} ({size} bytes, expected {})",
                descriptor.size
            )));
        }
        Ok((name, path))
    }
}
