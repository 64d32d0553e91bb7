//! The log stream: one JSON object per line, sent as lines come.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, Stream, StreamExt};
use utsuwa_model::service::Service;

use super::json;
use crate::ApiState;
use crate::seam::LogLine;

/// Lines of the past when the client names no number, and at most.
pub(super) const TAIL: usize = 200;
pub(super) const LARGEST_TAIL: usize = 1_000_000;

/// Lines that are ready at once travel in one chunk, up to this many.
const BATCH: usize = 256;

/// After the service is gone, what was still on its way comes within this time.
const LAST_LINES: Duration = Duration::from_millis(300);

/// `lines` until the service of that uid is gone, or the server ends: a reader who wants more asks the next one.
pub(super) fn until_gone(
    state: &ApiState,
    service: &Service,
    lines: BoxStream<'static, LogLine>,
) -> BoxStream<'static, LogLine> {
    let (key, uid) = (service.key.clone(), service.meta.uid.clone());
    let (store, closing) = (state.store.clone(), state.closing.clone());
    let gone = async move {
        let mut changes = store.changes();
        loop {
            changes.borrow_and_update();
            // A store that can't be read says nothing.
            if let Ok(found) = store.service(&key)
                && found.is_none_or(|found| found.meta.uid != uid)
            {
                return;
            }
            tokio::select! {
                () = closing.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    };
    let first = (lines, Some(gone.boxed()));
    futures_util::stream::unfold(first, |(mut lines, mut gone)| async move {
        if let Some(waiting) = &mut gone {
            tokio::select! {
                biased;
                line = lines.next() => return line.map(|line| (line, (lines, gone))),
                () = waiting => {}
            }
        }
        let line = tokio::time::timeout(LAST_LINES, lines.next()).await;
        line.ok().flatten().map(|line| (line, (lines, None)))
    })
    .boxed()
}

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
