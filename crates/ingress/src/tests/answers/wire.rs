//! A socket and a request body that do what a test says, one step per poll, and what comes of it without a runtime.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::body::BodyError;

/// The other end of a connection: it says its pieces once it has heard something.
#[derive(Debug)]
pub(super) struct Wire {
    says: VecDeque<Bytes>,
    /// Then it closes.
    closes: bool,
    /// One piece at a time.
    breath: bool,
    /// No time passes between them.
    pub(super) hurries: bool,
    /// Bytes that it takes at once.
    grain: usize,
    waits: bool,
    /// After so many polls nothing more can come of it.
    pub(super) polls: usize,
    pub(super) heard: Vec<u8>,
}

impl Wire {
    pub(super) fn new(says: Vec<Bytes>, closes: bool, grain: usize) -> Self {
        let says = says.into_iter().filter(|piece| !piece.is_empty());
        let says: VecDeque<Bytes> = says.collect();
        Self {
            polls: 64 + 3 * says.len(),
            says,
            closes,
            breath: false,
            hurries: false,
            grain,
            waits: false,
            heard: Vec::new(),
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.waits = !self.waits && self.grain < 1000;
        if self.waits {
            return Poll::Pending;
        }
        let taken = bytes.len().min(self.grain);
        self.heard.extend_from_slice(&bytes[..taken]);
        Poll::Ready(Ok(taken))
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.heard.is_empty() || !(self.breath || self.hurries) {
            self.breath = !self.heard.is_empty();
            return Poll::Pending;
        }
        self.breath = false;
        let Some(piece) = self.says.front_mut() else {
            return if self.closes {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            };
        };
        let now = piece.split_to(piece.len().min(buffer.remaining()));
        if piece.is_empty() {
            self.says.pop_front();
        } else {
            // The rest of it is there already.
            self.breath = true;
        }
        buffer.put_slice(&now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.take(bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let all: Vec<u8> = parts.iter().flat_map(|part| part.to_vec()).collect();
        self.take(&all)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A request body: `None` is a pause.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(super) frames: VecDeque<Option<Bytes>>,
    pub(super) trailers: Option<HeaderMap>,
    /// Its length is known.
    pub(super) sized: bool,
    /// Its end is known with its last frame.
    pub(super) foresees: bool,
}

impl Script {
    pub(crate) fn poll_frame(
        &mut self,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.frames.pop_front() {
            Some(Some(data)) => Poll::Ready(Some(Ok(Frame::data(data)))),
            Some(None) => Poll::Pending,
            None => Poll::Ready(
                self.trailers
                    .take()
                    .map(|trailers| Ok(Frame::trailers(trailers))),
            ),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.foresees && self.trailers.is_none() && self.frames.is_empty()
    }

    pub(crate) fn left(&self) -> SizeHint {
        let left = self
            .frames
            .iter()
            .flatten()
            .map(|data| data.len() as u64)
            .sum();
        if self.sized {
            SizeHint::with_exact(left)
        } else {
            SizeHint::default()
        }
    }
}

/// Polls until it is ready, or until nothing more can come of it.
pub(super) fn until<T>(
    polls: usize,
    mut poll: impl FnMut(&mut Context<'_>) -> Poll<T>,
) -> Option<T> {
    let context = &mut Context::from_waker(Waker::noop());
    (0..polls).find_map(|_| match poll(context) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    })
}
