//! The lines and data of a chunked body (RFC 9112 §7.1), byte by byte, as strictly as the [`Gate`](crate::gate::Gate) reads heads.

use crate::flaw::Flaw;

/// Bytes of extensions that one chunk may have. Nobody uses them.
const EXTENSION_BYTES: u32 = 256;
/// Bytes that all trailers of a message may have; hyper's own limit.
const TRAILER_BYTES: u32 = 16 << 10;
/// Hexadecimal digits of a chunk size: 15 can't overflow.
const SIZE_DIGITS: u32 = 15;
/// A place in a chunked body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Chunk {
    Size {
        size: u64,
        digits: u32,
    },
    Extension {
        size: u64,
        bytes: u32,
    },
    SizeEnd {
        size: u64,
    },
    Data {
        left: u64,
    },
    DataReturn,
    DataEnd,
    /// At the beginning of a trailer line, or of the last, empty one.
    Line {
        bytes: u32,
    },
    Trailer {
        bytes: u32,
    },
    TrailerEnd {
        bytes: u32,
    },
    LastEnd,
    /// The message has ended.
    Over,
}

impl Chunk {
    /// Before the first chunk.
    pub(crate) const FIRST: Self = Self::Size { size: 0, digits: 0 };

    /// Goes over `bytes` until they or the message end; answers how many were good.
    pub(crate) fn advance(&mut self, bytes: &[u8]) -> (usize, Result<(), Flaw>) {
        let mut at = 0;
        while at < bytes.len() && *self != Self::Over {
            if let Self::Data { left } = self {
                let rest = bytes.len() - at;
                let taken = usize::try_from(*left).map_or(rest, |left| left.min(rest));
                at += taken;
                *self = match *left - taken as u64 {
                    0 => Self::DataReturn,
                    left => Self::Data { left },
                };
                continue;
            }
            match self.step(bytes[at]) {
                Ok(next) => *self = next,
                Err(flaw) => return (at, Err(flaw)),
            }
            at += 1;
        }
        (at, Ok(()))
    }

    /// The place after one more byte of a line.
    fn step(self, byte: u8) -> Result<Self, Flaw> {
        Ok(match (self, byte) {
            (Self::Size { size, digits }, byte) if byte.is_ascii_hexdigit() => {
                if digits == SIZE_DIGITS {
                    return Err(Flaw::ChunkSize);
                }
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                Self::Size {
                    size: size * 16 + u64::from(digit),
                    digits: digits + 1,
                }
            }
            (Self::Size { digits: 0, .. }, _) => return Err(Flaw::ChunkSize),
            (Self::Size { size, .. } | Self::Extension { size, .. }, b'\r') => {
                Self::SizeEnd { size }
            }
            (Self::Size { size, .. }, b';') => Self::Extension { size, bytes: 0 },
            (Self::Size { .. }, _) => return Err(Flaw::ChunkSize),
            (Self::Extension { size, bytes }, b'\t' | b' '..=b'~') if bytes < EXTENSION_BYTES => {
                let bytes = bytes + 1;
                Self::Extension { size, bytes }
            }
            (Self::Extension { .. }, _) => return Err(Flaw::ChunkExtension),
            (Self::SizeEnd { size: 0 }, b'\n') => Self::Line { bytes: 0 },
            (Self::SizeEnd { size }, b'\n') => Self::Data { left: size },
            (Self::SizeEnd { .. }, _) => return Err(Flaw::ChunkSize),
            (Self::DataReturn, b'\r') => Self::DataEnd,
            (Self::DataEnd, b'\n') => Self::Size { size: 0, digits: 0 },
            (Self::DataReturn | Self::DataEnd, _) => return Err(Flaw::ChunkEnd),
            (Self::Line { .. }, b'\r') => Self::LastEnd,
            (Self::LastEnd, b'\n') => Self::Over,
            (Self::Line { bytes } | Self::Trailer { bytes }, _) if bytes >= TRAILER_BYTES => {
                return Err(Flaw::TrailerTooLarge);
            }
            (Self::Line { .. }, b' ' | b'\t') => return Err(Flaw::Folded),
            (Self::Trailer { bytes }, b'\r') => Self::TrailerEnd { bytes },
            (Self::Line { bytes } | Self::Trailer { bytes }, b'\t' | b' '..=b'~' | 0x80..) => {
                let bytes = bytes + 1;
                Self::Trailer { bytes }
            }
            (Self::TrailerEnd { bytes }, b'\n') => Self::Line { bytes },
            (
                Self::Line { .. } | Self::Trailer { .. } | Self::TrailerEnd { .. } | Self::LastEnd,
                _,
            ) => {
                return Err(Flaw::Trailer);
            }
            (Self::Data { .. } | Self::Over, _) => self,
        })
    }
}
