//! Reads a tar stream, one entry at a time, without trusting it.
//!
//! Owns: headers (v7, ustar, GNU, PAX), long names, numbers in base 256, extended attributes, maps of holes.
//! Doesn't: touch a file system, judge names, decompress. (The `tar` crate is used for writing only: it reads extension
//! headers into memory whatever their size.)
//!
//! Invariants: 1. Memory is bounded by [`MAX_EXTENSION_BYTES`] whatever the stream says. 2. Data is never copied: a caller sees
//! the buffer of the reader. 3. An entry's unread data is skipped by [`TarReader::next`].
//!
//! Fails with [`UnpackError::Format`]; input errors are passed on as `Format` too, with their text.

mod fields;
mod sparse;

use std::io::BufRead;

use super::error::UnpackError;
use fields::{decimal, decimal_time, number, parse_pax, signed_number, until_nul};
use sparse::PaxHoles;

const BLOCK: usize = 512;
/// Extension headers of real layers are a few hundred bytes; capabilities and ACLs a few thousand.
pub(crate) const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// Key and value of an extended header.
pub(crate) type Record = (Vec<u8>, Vec<u8>);

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    Symlink,
    HardLink,
    Fifo,
    Device,
    /// Volume labels and types nobody uses.
    Other,
}

/// One entry as its headers describe it; nothing is checked but the format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) link: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) mode: u32,
    pub(crate) uid: u64,
    pub(crate) gid: u64,
    /// Seconds and nanoseconds.
    pub(crate) mtime: (i64, i64),
    /// Size of the file; with holes it is more than the data that follows.
    pub(crate) size: u64,
    /// `(offset, length)` of the parts that are not holes, when there is a map.
    pub(crate) sparse: Option<Vec<(u64, u64)>>,
    pub(crate) xattrs: Vec<Record>,
}

#[derive(Debug)]
pub(crate) struct TarReader<R> {
    input: R,
    /// Data of the current entry not read yet.
    remaining: u64,
    /// Filling after the data up to a whole block.
    padding: u64,
    global: Vec<Record>,
    ended: bool,
}

impl<R: BufRead> TarReader<R> {
    pub(crate) fn new(input: R) -> Self {
        Self {
            input,
            remaining: 0,
            padding: 0,
            global: Vec::new(),
            ended: false,
        }
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next_entry(&mut self) -> Result<Option<Entry>, UnpackError> {
        if self.ended {
            return Ok(None);
        }
        let mut long_name: Option<Vec<u8>> = None;
        let mut long_link: Option<Vec<u8>> = None;
        let mut pax: Vec<Record> = Vec::new();
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                self.ended = true;
                return Ok(None);
            };
            let size = number(&header[124..136])?;
            match header[156] {
                b'L' => long_name = Some(self.extension(size, true)?),
                b'K' => long_link = Some(self.extension(size, true)?),
                b'x' => pax = parse_pax(&self.extension(size, false)?)?,
                b'g' => self.global = parse_pax(&self.extension(size, false)?)?,
                b'M' => {
                    return Err(UnpackError::format(
                        "it continues an archive of several volumes",
                    ));
                }
                _ => return self.entry(&header, long_name, long_link, &pax).map(Some),
            }
        }
    }

    /// The next piece of the current entry's data; empty at its end. Say with [`TarReader::consume`] how much was used.
    pub(crate) fn data(&mut self) -> Result<&[u8], UnpackError> {
        if self.remaining == 0 {
            return Ok(&[]);
        }
        let remaining = usize::try_from(self.remaining).unwrap_or(usize::MAX);
        let buffer = self.input.fill_buf().map_err(UnpackError::format)?;
        if buffer.is_empty() {
            return Err(UnpackError::format("it ends in the middle of a file"));
        }
        Ok(&buffer[..buffer.len().min(remaining)])
    }

    pub(crate) fn consume(&mut self, bytes: usize) {
        self.input.consume(bytes);
        self.remaining = self.remaining.saturating_sub(bytes as u64);
    }

    /// Reads to the end of the stream, so that its digest covers everything.
    pub(crate) fn drain(mut self) -> Result<R, UnpackError> {
        loop {
            let bytes = self.input.fill_buf().map_err(UnpackError::format)?.len();
            if bytes == 0 {
                return Ok(self.input);
            }
            self.input.consume(bytes);
        }
    }

    fn entry(
        &mut self,
        header: &[u8; BLOCK],
        long_name: Option<Vec<u8>>,
        long_link: Option<Vec<u8>>,
        local: &[Record],
    ) -> Result<Entry, UnpackError> {
        let ustar = &header[257..263] == b"ustar\0";
        let mut path = long_name.unwrap_or_else(|| {
            let mut path = Vec::new();
            if ustar && header[345] != 0 {
                path.extend_from_slice(until_nul(&header[345..500]));
                path.push(b'/');
            }
            path.extend_from_slice(until_nul(&header[..100]));
            path
        });
        let mut link = long_link.unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        let mut size = number(&header[124..136])?;
        let mut uid = number(&header[108..116])?;
        let mut gid = number(&header[116..124])?;
        let mode = u32::try_from(number(&header[100..108])? & 0o7777).unwrap_or(0);
        let mut mtime = (signed_number(&header[136..148])?, 0);
        let mut xattrs = Vec::new();
        let mut holes = PaxHoles::default();
        for (key, value) in self.global.iter().chain(local) {
            match key.as_slice() {
                b"path" => path.clone_from(value),
                b"linkpath" => link.clone_from(value),
                b"size" => size = decimal(value)?,
                b"uid" => uid = decimal(value)?,
                b"gid" => gid = decimal(value)?,
                b"mtime" => mtime = decimal_time(value)?,
                other => {
                    if let Some(name) = other.strip_prefix(b"SCHILY.xattr.") {
                        xattrs.push((name.to_vec(), value.clone()));
                    } else if let Some(name) = other.strip_prefix(b"GNU.sparse.") {
                        holes.note(name, value)?;
                    }
                }
            }
        }
        let kind = match header[156] {
            b'0' | 0 | b'7' if path.ends_with(b"/") => Kind::Directory,
            b'0' | 0 | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' | b'D' => Kind::Directory,
            b'6' => Kind::Fifo,
            _ => Kind::Other,
        };
        // Only these carry data; writers leave sizes in the headers of links.
        let data = if matches!(kind, Kind::File | Kind::Other) {
            size
        } else {
            0
        };
        if data > i64::MAX.cast_unsigned() {
            return Err(UnpackError::format("a file has an impossible size"));
        }
        self.remaining = data;
        self.padding = data.next_multiple_of(BLOCK as u64) - data;
        let mut real_size = data;
        let mut sparse = None;
        if header[156] == b'S' {
            let (map, size) = self.gnu_map(header)?;
            sparse = Some(map);
            real_size = size;
        } else if kind == Kind::File && holes.used {
            if let Some(name) = holes.name.take() {
                path = name;
            }
            real_size = holes.real_size.unwrap_or(data);
            sparse = Some(if holes.in_data {
                self.map_in_data()?
            } else {
                holes.pairs()?
            });
        }
        Ok(Entry {
            path,
            link,
            kind,
            mode,
            uid,
            gid,
            mtime,
            size: real_size,
            sparse,
            xattrs,
        })
    }

    fn skip_rest(&mut self) -> Result<(), UnpackError> {
        let mut left = self.remaining + self.padding;
        self.remaining = 0;
        self.padding = 0;
        while left > 0 {
            let bytes = self.input.fill_buf().map_err(UnpackError::format)?.len();
            if bytes == 0 {
                return Err(UnpackError::format("it ends in the middle of a file"));
            }
            let bytes = bytes.min(usize::try_from(left).unwrap_or(usize::MAX));
            self.input.consume(bytes);
            left -= bytes as u64;
        }
        Ok(())
    }

    /// The next header; `None` at a block of zeros or at the end of the stream.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, UnpackError> {
        if self
            .input
            .fill_buf()
            .map_err(UnpackError::format)?
            .is_empty()
        {
            return Ok(None);
        }
        let mut header = [0; BLOCK];
        self.exact(&mut header)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let wrong = || UnpackError::format("a header has a wrong checksum");
        let written = number(&header[148..156]).map_err(|_error| wrong())?;
        let (mut unsigned, mut signed) = (0_u64, 0_i64);
        for (index, byte) in header.iter().enumerate() {
            let byte = if (148..156).contains(&index) {
                b' '
            } else {
                *byte
            };
            unsigned += u64::from(byte);
            signed += i64::from(byte.cast_signed());
        }
        if written != unsigned && i64::try_from(written).ok() != Some(signed) {
            return Err(wrong());
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64, name: bool) -> Result<Vec<u8>, UnpackError> {
        if size > MAX_EXTENSION_BYTES {
            return Err(UnpackError::format(format!(
                "an extended header has {size} bytes, more than {MAX_EXTENSION_BYTES}"
            )));
        }
        let mut content = vec![0; usize::try_from(size).unwrap_or(0)];
        self.exact(&mut content)?;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        if name && let Some(end) = content.iter().position(|byte| *byte == 0) {
            content.truncate(end);
        }
        Ok(content)
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), UnpackError> {
        self.input
            .read_exact(buffer)
            .map_err(|error| match error.kind() {
                std::io::ErrorKind::UnexpectedEof => {
                    UnpackError::format("it ends in the middle of a header")
                }
                _ => UnpackError::format(error),
            })
    }
}

#[cfg(test)]
mod tests;
