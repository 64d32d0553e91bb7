//! The trace of a request (`cloud-run-spec.md` §2.4): the client's, in W3C's or Google's header, or a new one.
//!
//! Invariant: an id of zeros, or one that isn't written as the standard says, is never passed on.

use std::fmt;
use std::io::{self, Cursor, Write};

use http::HeaderValue;
use http::header::HeaderMap;

use crate::headers::{TRACE_CONTEXT, TRACEPARENT};
use crate::seam::trace_id::{TraceId, digits};

/// Trace of one request.
#[derive(Debug, Clone)]
pub(crate) struct Trace {
    pub(crate) id: TraceId,
    pub(crate) span: u64,
    pub(crate) sampled: bool,
    /// The client's `traceparent` is valid and stays as it is.
    pub(crate) keep_parent: bool,
    pub(crate) keep_context: bool,
    /// As `X-Cloud-Trace-Context` has it: the app gets it, and the client with its answer.
    pub(crate) context: Option<HeaderValue>,
}

impl Trace {
    /// From the client's headers, or made of `dice`.
    pub(crate) fn of(headers: &HeaderMap, mut dice: impl FnMut() -> u64) -> Self {
        let context = headers
            .get(TRACE_CONTEXT)
            .and_then(|value| parse_context(value.to_str().ok()?));
        let parent = headers
            .get(TRACEPARENT)
            .and_then(|value| parse_parent(value.to_str().ok()?));
        let keep_context = context.is_some();
        let keep_parent = parent.is_some();
        let (id, span, sampled) = parent.or(context).unwrap_or_else(|| {
            // Never zero: that is the invalid id.
            (TraceId::new(dice(), dice() | 1), dice() | 1, true)
        });
        Self {
            id,
            span,
            sampled,
            keep_parent,
            keep_context,
            context: written(|text| write!(text, "{id}/{span};o={}", u8::from(sampled))),
        }
    }

    /// As `traceparent` has it.
    pub(crate) fn parent(&self) -> Option<HeaderValue> {
        let (id, span, flags) = (self.id, Hex(self.span), u8::from(self.sampled));
        written(|text| write!(text, "00-{id}-{span}-0{flags}"))
    }
}

/// A header value, put together without memory of its own but the value's.
fn written(write: impl FnOnce(&mut Cursor<[u8; 64]>) -> io::Result<()>) -> Option<HeaderValue> {
    let mut text = Cursor::new([0; 64]);
    write(&mut text).ok()?;
    let length = usize::try_from(text.position()).ok()?;
    HeaderValue::from_bytes(&text.get_ref()[..length]).ok()
}

/// Sixteen hexadecimal digits.
struct Hex(u64);

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(str::from_utf8(&digits(self.0)).unwrap_or_default())
    }
}

fn hex(text: &str, length: usize) -> bool {
    text.len() == length
        && text
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn not_zero(text: &str) -> bool {
    text.bytes().any(|byte| byte != b'0')
}

/// W3C: `00-TRACE-SPAN-FLAGS`; later versions may append.
fn parse_parent(text: &str) -> Option<(TraceId, u64, bool)> {
    let mut parts = text.splitn(5, '-');
    let (version, id, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let more = parts.next().is_some();
    let well_formed = hex(version, 2) && version != "ff" && (version != "00" || !more);
    if !(well_formed
        && hex(id, 32)
        && not_zero(id)
        && hex(span, 16)
        && not_zero(span)
        && hex(flags, 2))
    {
        return None;
    }
    let flags = u8::from_str_radix(flags, 16).ok()?;
    Some((
        TraceId::of(id)?,
        u64::from_str_radix(span, 16).ok()?,
        flags & 1 == 1,
    ))
}

/// Google: `TRACE[/SPAN_DECIMAL][;o=FLAGS]`.
fn parse_context(text: &str) -> Option<(TraceId, u64, bool)> {
    let (path, options) = text.split_once(';').unwrap_or((text, ""));
    let (id, span) = path.split_once('/').unwrap_or((path, ""));
    let id = id.to_ascii_lowercase();
    if !hex(&id, 32) || !not_zero(&id) {
        return None;
    }
    let span = if span.is_empty() {
        1
    } else {
        span.parse().ok()?
    };
    Some((
        TraceId::of(&id)?,
        span,
        options == "o=1" || options == "o=3",
    ))
}
