//! Files with holes: where the parts are that are not.

use std::io::BufRead;

use super::super::error::UnpackError;
use super::fields::{decimal, number};
use super::{BLOCK, TarReader};

/// A map with more holes than this is no honest file.
const MAX_SPARSE_ENTRIES: usize = 65_536;

impl<R: BufRead> TarReader<R> {
    /// GNU's old form: four parts in the header, more in blocks after it. These blocks do not count as data.
    pub(super) fn gnu_map(
        &mut self,
        header: &[u8; BLOCK],
    ) -> Result<(Vec<(u64, u64)>, u64), UnpackError> {
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
    pub(super) fn map_in_data(&mut self) -> Result<Vec<(u64, u64)>, UnpackError> {
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
}

/// What PAX headers say about holes (GNU forms 0.0, 0.1 and 1.0).
#[derive(Debug, Default)]
pub(super) struct PaxHoles {
    pub(super) used: bool,
    pub(super) in_data: bool,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    pub(super) numbers: Vec<u64>,
}

impl PaxHoles {
    pub(super) fn note(&mut self, key: &[u8], value: &[u8]) -> Result<(), UnpackError> {
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

    pub(super) fn pairs(&self) -> Result<Vec<(u64, u64)>, UnpackError> {
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
