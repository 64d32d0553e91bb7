//! The word that an HTTP/2 connection will soon take nothing more, said a moment before hyper begins to end it.
//!
//! hyper ends a connection in order: GOAWAY that still takes every stream, a PING, and as soon as that is answered GOAWAY with the
//! last stream that was taken. Between the two lies one round trip, which is too little for a client that answers the PING
//! before it sends what its callers have queued, as h2 does: those calls are on their way and nobody takes them. RFC 9113 §6.8
//! asks for "time for any in-flight stream creation (at least one round-trip time)". So the first word is said here, and hyper
//! is asked to end a while later.
//!
//! Invariants:
//! 1. It is written whole, and between two of hyper's frames: hyper flushes only what it has written whole, and before the
//!    first flush comes SETTINGS.
//! 2. It is said once.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use tokio::io::AsyncWrite;

use crate::client::Client;

/// GOAWAY of the connection (stream 0): the last stream is 2³¹ − 1, the largest there can be, and nothing is wrong.
const FRAME: [u8; 17] = [
    0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0,
];

/// What is still to be said to a client.
#[derive(Debug)]
pub(crate) struct Farewell {
    client: Arc<Client>,
    said: usize,
}

impl Farewell {
    pub(crate) const fn new(client: Arc<Client>) -> Self {
        Self { client, said: 0 }
    }

    /// The client has sent something.
    pub(crate) fn heard(&self) {
        self.client.spoke.store(true, Ordering::Relaxed);
    }

    /// After a flush: says it, if it is time to.
    pub(crate) fn poll<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.said == FRAME.len() || !self.client.leaving.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_all(stream, context))?;
        Pin::new(stream).poll_flush(context)
    }

    /// Before anything else is written: the rest of it, if the socket took a part only.
    pub(crate) fn poll_rest<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if self.said == 0 || self.said == FRAME.len() {
            return Poll::Ready(Ok(()));
        }
        self.poll_all(stream, context)
    }

    fn poll_all<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.said < FRAME.len() {
            let rest = &FRAME[self.said..];
            match ready!(Pin::new(&mut *stream).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.said += written,
            }
        }
        Poll::Ready(Ok(()))
    }
}
