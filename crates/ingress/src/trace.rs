//! The trace of a request (`cloud-run-spec.md` §2.4): the client's, in W3C's or Google's header, or a new one.
//!
//! Invariant: an id of zeros, or one that isn't written as the standard says, is never passed on.

use http::HeaderValue;
use http::header::HeaderMap;

use crate::headers::{TRACE_CONTEXT, TRACEPARENT};

/// Trace of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trace {
    pub(crate) id: String,
    pub(crate) span: u64,
    pub(crate) sampled: bool,
    /// The client's `traceparent` is valid and stays as it is.
    pub(crate) keep_parent: bool,
    pub(crate) keep_context: bool,
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
            (
                format!("{:016x}{:016x}", dice(), dice() | 1),
                dice() | 1,
                true,
            )
        });
        Self {
            id,
            span,
            sampled,
            keep_parent,
            keep_context,
        }
    }

    /// As `X-Cloud-Trace-Context` has it.
    pub(crate) fn context(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(format!(
            "{}/{};o={}",
            self.id,
            self.span,
            u8::from(self.sampled)
        ))
        .ok()
    }

    /// As `traceparent` has it.
    pub(crate) fn parent(&self) -> Option<HeaderValue> {
        HeaderValue::try_from(format!(
            "00-{}-{:016x}-{:02x}",
            self.id,
            self.span,
            u8::from(self.sampled)
        ))
        .ok()
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
fn parse_parent(text: &str) -> Option<(String, u64, bool)> {
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
        id.to_owned(),
        u64::from_str_radix(span, 16).ok()?,
        flags & 1 == 1,
    ))
}

/// Google: `TRACE[/SPAN_DECIMAL][;o=FLAGS]`.
fn parse_context(text: &str) -> Option<(String, u64, bool)> {
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
    Some((id, span, options == "o=1" || options == "o=3"))
}
