//! The trace of a request (`cloud-run-spec.md` §2.4): the client's, in W3C's or Google's header, or a new one.
//!
//! Invariant: an id of zeros, or one that isn't written as the standard says, is never passed on.

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
            context: Text::new()
                .push(id.as_str().as_bytes())
                .push(b"/")
                .push_decimal(span)
                .push(b";o=")
                .push(flag(sampled))
                .value(),
        }
    }

    /// As `traceparent` has it.
    pub(crate) fn parent(&self) -> Option<HeaderValue> {
        Text::new()
            .push(b"00-")
            .push(self.id.as_str().as_bytes())
            .push(b"-")
            .push(&digits(self.span))
            .push(b"-0")
            .push(flag(self.sampled))
            .value()
    }
}

/// A header value that is being put together. Formatting it would take as long as parsing the request.
struct Text {
    /// More than any value here has: an id, a number of twenty digits, and what is between.
    bytes: [u8; 64],
    length: usize,
}

impl Text {
    const fn new() -> Self {
        Self {
            bytes: [0; 64],
            length: 0,
        }
    }

    fn push(mut self, more: &[u8]) -> Self {
        let end = self.length + more.len();
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(more);
            self.length = end;
        }
        self
    }

    fn push_decimal(self, mut number: u64) -> Self {
        let mut digits = [0; 20];
        let mut from = digits.len();
        loop {
            from -= 1;
            digits[from] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                break self.push(&digits[from..]);
            }
        }
    }

    /// It is another one for each request: HTTP/2 must not keep it in its table of headers that come again, where each would
    /// throw out one that does.
    fn value(self) -> Option<HeaderValue> {
        let mut value = HeaderValue::from_bytes(&self.bytes[..self.length]).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

const fn flag(sampled: bool) -> &'static [u8] {
    if sampled { b"1" } else { b"0" }
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
