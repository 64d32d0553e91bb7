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

use std::io::BufRead;

use super::error::UnpackError;

const BLOCK: usize = 512;
/// Extension headers of real layers are a few hundred bytes; capabilities and ACLs a few thousand.
pub(crate) const MAX_EXTENSION_BYTES: u64 = 1 << 20;
/// A map with more holes than this is no honest file.
const MAX_SPARSE_ENTRIES: usize = 65_536;

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

    /// GNU's old form: four parts in the header, more in blocks after it. These blocks do not count as data.
    fn gnu_map(&mut self, header: &[u8; BLOCK]) -> Result<(Vec<(u64, u64)>, u64), UnpackError> {
        let mut map = Vec::new();
        parts(&header[386..482], &mut map)?;
        let real_size = number(&header[483..495])?;
        let mut more = header[482] != 0;
        while more {
            let mut block = [0; BLOCK];
            self.exact(&mut block)?;
            parts(&block[..504], &mut map)?;
            if map.len() > MAX_SPARSE_ENTRIES {
                return Err(UnpackError::format("a file has too many holes"));
            }
            more = block[504] != 0;
        }
        Ok((map, real_size))
    }

    /// PAX form 1.0: the map stands as decimal lines before the data, filled up to whole blocks.
    fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>, UnpackError> {
        let mut used = 0_u64;
        let mut line = |reader: &mut Self| -> Result<u64, UnpackError> {
            let mut value = 0_u64;
            loop {
                let byte = *reader
                    .data()?
                    .first()
                    .ok_or_else(|| UnpackError::format("a map of holes ends early"))?;
                reader.consume(1);
                used += 1;
                match byte {
                    b'\n' => return Ok(value),
                    b'0'..=b'9' => {
                        value = value
                            .checked_mul(10)
                            .and_then(|value| value.checked_add(u64::from(byte - b'0')))
                            .ok_or_else(|| {
                                UnpackError::format("a map of holes has a number that is too large")
                            })?;
                    }
                    _ => return Err(UnpackError::format("a map of holes is not made of numbers")),
                }
            }
        };
        let count = line(self)?;
        if count > MAX_SPARSE_ENTRIES as u64 {
            return Err(UnpackError::format("a file has too many holes"));
        }
        let mut map = Vec::new();
        for _ in 0..count {
            let offset = line(self)?;
            map.push((offset, line(self)?));
        }
        let mut fill = used.next_multiple_of(BLOCK as u64) - used;
        while fill > 0 {
            let bytes = self
                .data()?
                .len()
                .min(usize::try_from(fill).unwrap_or(BLOCK));
            if bytes == 0 {
                return Err(UnpackError::format("a map of holes ends early"));
            }
            self.consume(bytes);
            fill -= bytes as u64;
        }
        Ok(map)
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

/// What PAX headers say about holes (GNU forms 0.0, 0.1 and 1.0).
#[derive(Debug, Default)]
struct PaxHoles {
    used: bool,
    in_data: bool,
    name: Option<Vec<u8>>,
    real_size: Option<u64>,
    numbers: Vec<u64>,
}

impl PaxHoles {
    fn note(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
        self.used = true;
        match key {
            b"major" => self.in_data = value == b"1",
            b"name" => self.name = Some(value.to_vec()),
            b"size" | b"realsize" => self.real_size = Some(decimal(value)?),
            b"offset" | b"numbytes" => self.numbers.push(decimal(value)?),
            b"map" => {
                for part in value.split(|byte| *byte == b',') {
                    self.numbers.push(decimal(part)?);
                }
            }
            _ => {}
        }
        if self.numbers.len() > MAX_SPARSE_ENTRIES * 2 {
            return Err(UnpackError::format("a file has too many holes"));
        }
        Ok(())
    }

    fn pairs(&self) -> Result<Vec<(u64, u64)>, UnpackError> {
        let (pairs, rest) = self.numbers.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(UnpackError::format(
                "a map of holes has an odd number of values",
            ));
        }
        Ok(pairs.iter().map(|pair| (pair[0], pair[1])).collect())
    }
}

fn parts(area: &[u8], map: &mut Vec<(u64, u64)>) -> Result<(), UnpackError> {
    for part in area.as_chunks::<24>().0 {
        if part[0] == 0 {
            break;
        }
        map.push((number(&part[..12])?, number(&part[12..])?));
    }
    Ok(())
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or(field)
}

fn number(field: &[u8]) -> Result<u64, UnpackError> {
    u64::try_from(signed_number(field)?)
        .map_err(|_error| UnpackError::format("a header has a negative number"))
}

/// Octal digits, or base 256 when the first bit is set.
fn signed_number(field: &[u8]) -> Result<i64, UnpackError> {
    let bad = || UnpackError::format("a header has a field that is no number");
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i128 = if negative { -1 } else { 0 };
        for (index, byte) in field.iter().enumerate() {
            let byte = if index == 0 && !negative {
                byte & 0x7f
            } else {
                *byte
            };
            value = (value << 8) | i128::from(byte);
            if index >= 12 {
                return Err(bad());
            }
        }
        return i64::try_from(value).map_err(|_error| bad());
    }
    let text: Vec<u8> = field
        .iter()
        .copied()
        .skip_while(|byte| *byte == b' ')
        .take_while(|byte| !matches!(byte, 0 | b' '))
        .collect();
    let mut value = 0_i64;
    for digit in text {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(bad());
        }
        value = value
            .checked_mul(8)
            .and_then(|value| value.checked_add(i64::from(digit - b'0')))
            .ok_or_else(bad)?;
    }
    Ok(value)
}

fn decimal(value: &[u8]) -> Result<u64, UnpackError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| UnpackError::format("an extended header has a value that is no number"))
}

/// `[-]SECONDS[.FRACTION]`.
fn decimal_time(value: &[u8]) -> Result<(i64, i64), UnpackError> {
    let bad = || UnpackError::format("an extended header has a time that is no number");
    let text = std::str::from_utf8(value).map_err(|_error| bad())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut whole: i64 = seconds.parse().map_err(|_error| bad())?;
    let digits: String = fraction.chars().take(9).collect();
    if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(bad());
    }
    let mut nanos: i64 = if digits.is_empty() {
        0
    } else {
        format!("{digits:0<9}").parse().map_err(|_error| bad())?
    };
    if seconds.starts_with('-') && nanos > 0 {
        whole = whole.checked_sub(1).ok_or_else(bad)?;
        nanos = 1_000_000_000 - nanos;
    }
    Ok((whole, nanos))
}

/// Records of the form `LENGTH KEY=VALUE\n`, where the length counts the whole record.
fn parse_pax(mut content: &[u8]) -> Result<Vec<Record>, UnpackError> {
    let bad = || UnpackError::format("an extended header is not made of records");
    let mut records = Vec::new();
    while !content.is_empty() {
        let space = content
            .iter()
            .take(20)
            .position(|byte| *byte == b' ')
            .ok_or_else(bad)?;
        let length = usize::try_from(decimal(&content[..space])?).map_err(|_error| bad())?;
        let record = content.get(space + 1..length).ok_or_else(bad)?;
        let record = record.strip_suffix(b"\n").ok_or_else(bad)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(bad)?;
        records.push((record[..equals].to_vec(), record[equals + 1..].to_vec()));
        content = &content[length..];
    }
    Ok(records)
}

#[cfg(test)]
#[path = "tar_tests.rs"]
mod tests;
