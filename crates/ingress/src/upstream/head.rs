//! The head of an answer: read by httparse, and what it says of the body's length (RFC 9112 §6.3) and of the connection.
//!
//! Invariants:
//! 1. An answer whose length can be read in two ways is refused: `Content-Length` beside `Transfer-Encoding`, two lengths.
//! 2. What an instance may say before its answer is bounded by the size of one head and the request's deadline.

use std::mem::MaybeUninit;

use bytes::BytesMut;
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};

use super::fault::Fault;

/// Headers that an answer may have: what there is room for without asking for memory.
const MAX_FIELDS: usize = 100;

/// How long the body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Length {
    Bytes(u64),
    Chunked,
    /// It ends with the connection.
    UntilClose,
}

#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) length: Length,
    /// The connection may serve another request after it.
    pub(super) keeps: bool,
}

/// Where a header is: its name from and to, its value from and to.
pub(super) type Place = [usize; 4];

/// Takes the head off the beginning of what was `read`; `None`: its end isn't there yet. `headers` is where its headers go,
/// `places` is empty memory that is kept from head to head.
pub(super) fn take(
    read: &mut BytesMut,
    (headers, places): (&mut HeaderMap, &mut Vec<Place>),
    to_head: bool,
) -> Result<Option<Head>, Fault> {
    let mut space = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default()
        .parse_response_with_uninit_headers(&mut answer, read, &mut space)
        .map_err(|error| match error {
            httparse::Error::TooManyHeaders => Fault::HeadTooLarge,
            error => Fault::Head(error),
        })?;
    let length = match parsed {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial => return Ok(None),
    };
    let status = answer.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(Fault::Field("its status is none"))?;
    let old = answer.version != Some(1);
    // The values become parts of what was read, which can't be made while it is looked at.
    let base = read.as_ptr().addr();
    places.clear();
    places.extend(answer.headers.iter().map(|field| {
        let (name, value) = (
            field.name.as_ptr().addr() - base,
            field.value.as_ptr().addr() - base,
        );
        [
            name,
            name + field.name.len(),
            value,
            value + field.value.len(),
        ]
    }));
    let head = read.split_to(length).freeze();
    headers.clear();
    headers.reserve(places.len());
    for &[name, name_end, value, value_end] in &*places {
        let name = HeaderName::from_bytes(&head[name..name_end]);
        let name = name.map_err(|_| Fault::Field("the name of a header is none"))?;
        let value = HeaderValue::from_maybe_shared(head.slice(value..value_end));
        let value = value.map_err(|_| Fault::Field("the value of a header is none"))?;
        headers.append(name, value);
    }
    let length = of(status, headers, old, to_head)?;
    Ok(Some(Head {
        status,
        length,
        keeps: !old && length != Length::UntilClose && !closes(headers),
        headers: std::mem::take(headers),
    }))
}

/// The length of the body that follows.
fn of(status: StatusCode, headers: &HeaderMap, old: bool, to_head: bool) -> Result<Length, Fault> {
    if status.is_informational() || matches!(status.as_u16(), 204 | 304) || to_head {
        return Ok(Length::Bytes(0));
    }
    let coding = headers.get_all(TRANSFER_ENCODING).iter().next_back();
    let length = headers.contains_key(CONTENT_LENGTH);
    match coding {
        Some(_) if old => Err(Fault::Field("HTTP/1.0 has no Transfer-Encoding")),
        Some(_) if length => Err(Fault::Field(
            "it has both Content-Length and Transfer-Encoding",
        )),
        Some(coding) => {
            let last = coding
                .to_str()
                .ok()
                .and_then(|text| text.rsplit(',').next());
            let chunked = last.is_some_and(|last| last.trim().eq_ignore_ascii_case("chunked"));
            Ok(if chunked {
                Length::Chunked
            } else {
                Length::UntilClose
            })
        }
        None if length => {
            let bytes = announced(headers).ok_or(Fault::Field("its Content-Length is no length"));
            bytes.map(Length::Bytes)
        }
        None => Ok(Length::UntilClose),
    }
}

/// What `Content-Length` says; `None`: nothing, no number, or two.
pub(super) fn announced(headers: &HeaderMap) -> Option<u64> {
    let mut length = None;
    for line in headers.get_all(CONTENT_LENGTH) {
        for word in line.to_str().ok()?.split(',') {
            let word = word.trim();
            // `parse` alone would take "+5".
            if word.is_empty() || !word.bytes().all(|digit| digit.is_ascii_digit()) {
                return None;
            }
            let bytes = word
                .parse::<u64>()
                .ok()
                .filter(|bytes| *bytes < u64::MAX - 1)?;
            if length.replace(bytes).is_some_and(|before| before != bytes) {
                return None;
            }
        }
    }
    length
}

/// Whether a message is the last one of its connection.
pub(super) fn closes(headers: &HeaderMap) -> bool {
    headers.get_all(CONNECTION).iter().any(|line| {
        line.to_str().is_ok_and(|text| {
            text.split(',')
                .any(|word| word.trim().eq_ignore_ascii_case("close"))
        })
    })
}

/// Whether the end of a head is in `read`, of which `seen` bytes had been looked at before: so that one that comes byte by byte
/// isn't read from its beginning each time.
pub(super) fn may_be_whole(read: &[u8], seen: usize) -> bool {
    let fresh = &read[seen.saturating_sub(3).min(read.len())..];
    memchr::memchr_iter(b'\n', fresh)
        .any(|feed| matches!(fresh[feed + 1..], [b'\n', ..] | [b'\r', b'\n', ..]))
}
