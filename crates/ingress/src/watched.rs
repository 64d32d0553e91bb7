//! A client's socket while it is served: one that takes no answer is ended, one that is closed is read for a moment longer.
//!
//! Owns: reading and writing the socket. Deliberately not here: what is read (`gated`, `metered`), connections (`serve`).
//!
//! Fails with `TimedOut` when the client lets an answer lie.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use crate::client::Client;
use crate::deadline;
use crate::gated::Ends;
use crate::serve::STALL;
use crate::tls::Wire;

/// How long and how much we go on reading what a client still sends after we answered and closed: closing at once would
/// make its kernel throw away our answer.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 64 << 20;

/// The client's socket, watched: writing that makes no progress ends it, closing reads on for a moment.
#[derive(Debug)]
pub(crate) struct Watched {
    stream: Wire,
    client: Arc<Client>,
    stalled: Option<Pin<Box<Sleep>>>,
    lingering: Option<Pin<Box<Sleep>>>,
    lingered: usize,
    /// Nothing of an answer waits above to be written.
    clear: bool,
}

impl Watched {
    pub(crate) fn new(stream: Wire, client: Arc<Client>) -> Self {
        Self {
            stream,
            client,
            stalled: None,
            lingering: None,
            lingered: 0,
            clear: true,
        }
    }

    /// Writes what is to be said before the answer, unless the answer before that may be written in part only. hyper flushes when
    /// it has nothing left to write (`flushed`).
    fn interim(&mut self, context: &mut Context<'_>, flushed: bool) -> Poll<io::Result<()>> {
        self.clear |= flushed;
        if !self.clear {
            self.client.interim.forget();
            return Poll::Ready(Ok(()));
        }
        let Self { stream, client, .. } = self;
        std::task::ready!(client.interim.poll_write(&mut *stream, context))?;
        self.clear = flushed;
        Poll::Ready(Ok(()))
    }

    fn watch<T>(
        &mut self,
        progress: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if progress.is_ready() {
            self.stalled = None;
            return progress;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(STALL)));
        // The answer's own end comes first, if it has one: its body isn't asked while nothing can be written.
        if let Some(until) = deadline::left().filter(|until| *until < stalled.deadline()) {
            stalled.as_mut().reset(until);
        }
        if stalled.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "the client does not take its answer",
            )));
        }
        Poll::Pending
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.client.rest.leave(&mut self.stream);
    }
}

impl Ends for Watched {
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.stream.poll_end(context).map(Ok)
    }
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending() && self.client.leaving.load(Ordering::Acquire) {
            let unread = self.stream.has_unread();
            self.client.crossing.store(unread, Ordering::Release);
        }
        read
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.client.flushed.store(false, Ordering::Relaxed);
        let progress = match self.interim(context, false) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_write(context, buffer),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.watch(progress, context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.client.flushed.store(false, Ordering::Relaxed);
        let progress = match self.interim(context, false) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_write_vectored(context, buffers),
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.watch(progress, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let progress = match self.interim(context, true) {
            Poll::Ready(Ok(())) => Pin::new(&mut self.stream).poll_flush(context),
            other => other,
        };
        if let Poll::Ready(Ok(())) = progress {
            self.client.flushed.store(true, Ordering::Relaxed);
        }
        self.watch(progress, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.lingering.is_none() {
            let progress = Pin::new(&mut self.stream).poll_shutdown(context);
            std::task::ready!(self.watch(progress, context))?;
            if !self.client.unread.load(Ordering::Acquire) {
                return Poll::Ready(Ok(()));
            }
            self.lingering = Some(Box::pin(tokio::time::sleep(LINGER)));
        }
        let mut scratch = [std::mem::MaybeUninit::uninit(); 8192];
        while self.lingered < LINGER_BYTES {
            let mut buffer = ReadBuf::uninit(&mut scratch);
            match self.stream.poll_discard(context, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                    self.lingered += buffer.filled().len()
                }
                Poll::Ready(_) => return Poll::Ready(Ok(())),
                Poll::Pending => {
                    return match self.lingering.as_mut() {
                        Some(until) => until.as_mut().poll(context).map(Ok),
                        None => Poll::Ready(Ok(())),
                    };
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}
