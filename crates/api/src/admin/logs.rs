//! The log stream: one JSON object per line, sent as lines come.

use std::convert::Infallible;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{Stream, StreamExt};

use super::json;
use crate::seam::LogLine;

/// Lines of the past when the client names no number, and at most.
pub(super) const TAIL: usize = 200;
pub(super) const LARGEST_TAIL: usize = 1_000_000;

/// Lines that are ready at once travel in one chunk, up to this many.
const BATCH: usize = 256;

pub(super) fn stream(
    lines: BoxStream<'static, LogLine>,
) -> impl Stream<Item = Result<Bytes, Infallible>> {
    lines.ready_chunks(BATCH).map(|batch| {
        let mut text = Vec::with_capacity(batch.len() * 160);
        for line in &batch {
            text.extend_from_slice(json::of_line(line).to_string().as_bytes());
            text.push(b'\n');
        }
        Ok(Bytes::from(text))
    })
}
