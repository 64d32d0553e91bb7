//! The chunks and trailers of an answer (RFC 9112 §7.1), taken out of what was read without copying the data.
//!
//! As lenient with apps as hyper is: blanks after a size and extensions pass, a bare line feed does not. `tests/answers.rs`
//! compares the two.
//!
//! Invariant: whatever an app sends, what is remembered of it is bounded.

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue};

use super::fault::Fault;

/// Bytes of extensions that one answer may have. Nobody uses them.
const EXTENSION_BYTES: u32 = 16 << 10;
/// Leading zeros and blanks that one size may have: some servers fill it up to eight characters.
const PADDING: u32 = 64;
/// Bytes that all trailers of an answer may have, and how many they may be: hyper's limits.
const TRAILER_BYTES: usize = 16 << 10;
const TRAILER_FIELDS: usize = 100;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Size {
        digits: bool,
    },
    Blank,
    Extension,
    SizeEnd,
    Data,
    DataReturn,
    DataEnd,
    /// At the beginning of a trailer line, or of the last, empty one.
    Line,
    Trailer,
    TrailerEnd,
    LastEnd,
    Over,
}

/// Where in a chunked body one is.
#[derive(Debug)]
pub(super) struct Chunks {
    state: State,
    left: u64,
    extensions: u32,
    /// Leading zeros and blanks of this chunk's size.
    padding: u32,
    /// The trailers' lines, with the last, empty one.
    trailers: Vec<u8>,
    fields: usize,
}

/// A piece of a body.
#[derive(Debug)]
pub(super) enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
    End,
}

impl Chunks {
    pub(super) const fn new() -> Self {
        Self {
            state: State::Size { digits: false },
            left: 0,
            extensions: 0,
            padding: 0,
            trailers: Vec::new(),
            fields: 0,
        }
    }

    /// The next piece of what was read; `None`: more must be read.
    pub(super) fn next(&mut self, read: &mut BytesMut) -> Result<Option<Piece>, Fault> {
        while let Some(&byte) = read.first() {
            if self.state == State::Data {
                let taken =
                    usize::try_from(self.left).map_or(read.len(), |left| left.min(read.len()));
                self.left -= taken as u64;
                if self.left == 0 {
                    self.state = State::DataReturn;
                }
                return Ok(Some(Piece::Data(read.split_to(taken).freeze())));
            }
            self.step(byte)?;
            read.advance(1);
            if self.state == State::Over {
                if self.trailers.is_empty() {
                    return Ok(Some(Piece::End));
                }
                return self.fields().map(|fields| Some(Piece::Trailers(fields)));
            }
        }
        Ok(None)
    }

    fn step(&mut self, byte: u8) -> Result<(), Fault> {
        let wrong = |what| Err(Fault::Chunk(what));
        self.state = match (self.state, byte) {
            (State::Size { .. }, b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = char::from(byte).to_digit(16).unwrap_or(0);
                let Some(size) = self.left.checked_mul(16) else {
                    return wrong("its size is too large");
                };
                self.left = size + u64::from(digit);
                if self.left == 0 {
                    self.pad()?;
                }
                State::Size { digits: true }
            }
            (State::Size { digits: false }, _) => return wrong("it has no size"),
            (State::Size { .. } | State::Blank, b' ' | b'\t') => {
                self.pad()?;
                State::Blank
            }
            (State::Size { .. } | State::Blank, b';') => State::Extension,
            (State::Size { .. } | State::Blank | State::Extension, b'\r') => State::SizeEnd,
            (State::Size { .. } | State::Blank, _) => return wrong("its size is no number"),
            (State::Extension, b'\n') => return wrong("its extension has a line feed"),
            (State::Extension, _) => {
                self.extensions += 1;
                if self.extensions >= EXTENSION_BYTES {
                    return wrong("there are too many extensions");
                }
                State::Extension
            }
            (State::SizeEnd, b'\n') if self.left == 0 => State::Line,
            (State::SizeEnd, b'\n') => State::Data,
            (State::DataReturn, b'\r') => State::DataEnd,
            (State::DataEnd, b'\n') => {
                self.padding = 0;
                State::Size { digits: false }
            }
            (State::Line, b'\r') => {
                if !self.trailers.is_empty() {
                    self.trailer(byte)?;
                }
                State::LastEnd
            }
            (State::Line | State::Trailer, _) => {
                self.trailer(byte)?;
                if byte == b'\r' {
                    State::TrailerEnd
                } else {
                    State::Trailer
                }
            }
            (State::TrailerEnd, b'\n') => {
                self.fields += 1;
                if self.fields > TRAILER_FIELDS {
                    return wrong("there are too many trailers");
                }
                self.trailer(byte)?;
                State::Line
            }
            (State::LastEnd, b'\n') => {
                if !self.trailers.is_empty() {
                    self.trailer(byte)?;
                }
                State::Over
            }
            (State::SizeEnd | State::DataReturn | State::DataEnd, _) => {
                return wrong("it does not end in CR and LF");
            }
            (State::TrailerEnd | State::LastEnd, _) => {
                return wrong("a trailer does not end in CR and LF");
            }
            // Data is taken as a whole, and nothing is read after the end.
            (state @ (State::Data | State::Over), _) => state,
        };
        Ok(())
    }

    /// One more character of a size that says nothing. Without an end they would keep a task from everything but reading.
    fn pad(&mut self) -> Result<(), Fault> {
        self.padding += 1;
        if self.padding > PADDING {
            return Err(Fault::Chunk("its size has too many zeros or blanks"));
        }
        Ok(())
    }

    fn trailer(&mut self, byte: u8) -> Result<(), Fault> {
        self.trailers.push(byte);
        if self.trailers.len() >= TRAILER_BYTES {
            return Err(Fault::Chunk("its trailers are too large"));
        }
        Ok(())
    }

    /// The trailers, each on a line of its own.
    fn fields(&self) -> Result<HeaderMap, Fault> {
        let mut space = [httparse::EMPTY_HEADER; TRAILER_FIELDS];
        // Fewer than there are, if a bare line feed ends one: refused as too many.
        let space = &mut space[..self.fields];
        let fields =
            match httparse::parse_headers(&self.trailers, space).map_err(Fault::Trailers)? {
                httparse::Status::Complete((_, fields)) => fields,
                httparse::Status::Partial => return Err(Fault::Chunk("its trailers have no end")),
            };
        let mut trailers = HeaderMap::with_capacity(fields.len());
        for field in fields {
            let name = HeaderName::try_from(field.name);
            let value = HeaderValue::from_bytes(field.value);
            let (Ok(name), Ok(value)) = (name, value) else {
                return Err(Fault::Chunk(
                    "a trailer has no name or value that can be sent on",
                ));
            };
            trailers.append(name, value);
        }
        Ok(trailers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The data of a body, or what is wrong with it.
    fn read(body: &str) -> Result<String, String> {
        let (mut chunks, mut read) = (Chunks::new(), BytesMut::from(body));
        let mut data = String::new();
        loop {
            match chunks.next(&mut read).map_err(|fault| fault.to_string())? {
                Some(Piece::Data(piece)) => data.push_str(std::str::from_utf8(&piece).unwrap()),
                Some(Piece::End) => return Ok(data),
                Some(Piece::Trailers(_)) | None => return Err("no end".to_owned()),
            }
        }
    }

    #[test]
    fn sizes_may_be_filled_up_but_not_without_end() {
        let filled = "00000002      \r\nok\r\n".repeat(100);
        assert_eq!(
            read(&format!("{filled}0\r\n\r\n")).unwrap(),
            "ok".repeat(100)
        );
        for endless in ["0".repeat(100), format!("2{}", " \t".repeat(50))] {
            let wrong = read(&format!("{endless}\r\n")).unwrap_err();
            assert!(wrong.contains("too many zeros or blanks"), "{wrong}");
        }
    }
}
