//! A client's byte stream as hyper gets it: through the [`Gate`] over HTTP/1.1, through the [`Meter`](crate::meter::Meter) over HTTP/2.
//!
//! A refused head is answered by our own handler, in its turn after the requests before it, like any other request: hyper is
//! given [`REFUSED`] in its place, which no client can send, and the connection knows the flaw.
//!
//! Invariants:
//! 1. What hyper reads is a prefix of what the client sent, or that and [`REFUSED`].
//! 2. From a connection that goes on with the next server nothing is read between two messages.
//! 3. Bytes wait here only while a head is unfinished or an answer decides what they are; never more than [`WAITING`] and a head.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::client::{Client, UnderWay};
use crate::flaw::Flaw;
use crate::gate::{Gate, Limits, Verdict};

/// Stands for a head that was refused. The gate lets no client's `PRI` through.
const REFUSED: &[u8] = b"PRI * HTTP/1.1\r\nconnection: close\r\n\r\n";
/// The method of [`REFUSED`].
pub(crate) const REFUSED_METHOD: &str = "PRI";

/// Bytes read ahead of the answer to a request that asks to switch protocols. Nobody may send any before it.
const WAITING: usize = 16 << 10;
/// Bytes read at once while a head comes in pieces.
const PIECE: usize = 4 << 10;

/// An HTTP/1.1 client's stream.
#[derive(Debug)]
pub(crate) struct Gated<S> {
    stream: S,
    gate: Gate,
    client: Arc<Client>,
    /// Read, not yet given to hyper.
    held: BytesMut,
    /// So many of them may be.
    good: usize,
    /// After them the body breaks.
    broken: Option<Flaw>,
    refused: bool,
    /// The connection isn't idle while a part of a head is here.
    part: Option<UnderWay>,
}

impl<S> Gated<S> {
    pub(crate) fn new(stream: S, limits: Limits, client: Arc<Client>) -> Self {
        Self {
            stream,
            gate: Gate::new(limits),
            client,
            held: BytesMut::new(),
            good: 0,
            broken: None,
            refused: false,
            part: None,
        }
    }

    /// Gives hyper what it may have of `held`; `None` when that is nothing.
    fn give(&mut self, buffer: &mut ReadBuf<'_>) -> Option<()> {
        let length = self.good.min(buffer.remaining());
        if length == 0 {
            return None;
        }
        buffer.put_slice(&self.held[..length]);
        self.held.advance(length);
        self.good -= length;
        if self.held.is_empty() {
            // A head in pieces is rare; its memory isn't kept for the next one.
            self.held = BytesMut::new();
        }
        Some(())
    }

    /// Notes that nothing more is taken from this client, and why.
    fn refuse(&mut self, flaw: Flaw) {
        // Set once: there is one refusal on a connection.
        let _first = self.client.flaw.set(flaw);
        // So that the answer isn't lost when we close with bytes unread.
        self.client.unread.store(true, Ordering::Release);
        self.refused = true;
    }

    /// Looks at `held`, of which nothing may be given yet.
    fn look(&mut self) {
        if self.gate.is_asking() {
            if self.client.answered.load(Ordering::Acquire) < self.gate.heads() {
                return;
            }
            self.gate
                .answered(self.client.switched.load(Ordering::Acquire));
        }
        match self.gate.look(&self.held) {
            Verdict::Pass(length) => self.good = length,
            Verdict::BadHead(length, flaw) => {
                self.held.truncate(length);
                self.held.extend_from_slice(REFUSED);
                self.good = self.held.len();
                self.refuse(flaw);
            }
            Verdict::BadBody(length, flaw) => {
                self.held.truncate(length);
                self.good = length;
                self.broken = Some(flaw);
                self.refuse(flaw);
            }
        }
    }
}

impl<S: AsyncRead + Unpin> Gated<S> {
    /// Reads straight into hyper's buffer, and takes back what may not pass yet. `None`: nothing may, so there is more to read.
    fn fast(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<Option<()>>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        let read = &buffer.filled()[before..];
        if read.is_empty() {
            return Poll::Ready(Ok(Some(()))); // the end
        }
        let verdict = self.gate.look(read);
        let length = match verdict {
            Verdict::Pass(length) if length == read.len() => return Poll::Ready(Ok(Some(()))),
            Verdict::Pass(length) => {
                self.held.extend_from_slice(&read[length..]);
                length
            }
            Verdict::BadHead(length, flaw) => {
                self.held.extend_from_slice(REFUSED);
                self.good = self.held.len();
                self.refuse(flaw);
                length
            }
            Verdict::BadBody(length, flaw) => {
                self.broken = Some(flaw);
                self.refuse(flaw);
                length
            }
        };
        buffer.set_filled(before + length);
        Poll::Ready(Ok((length > 0).then_some(())))
    }

    /// Reads on behind what is held. The end is told by `true`.
    fn more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if self.held.len() >= WAITING && self.gate.is_asking() {
            // hyper asks again when it has written the answer that decides.
            return Poll::Pending;
        }
        if self.part.is_none() && !self.gate.is_asking() {
            let full = |_| {
                io::Error::other("no more connections than there are may have a part of a head")
            };
            self.part = Some(self.client.begin().map_err(full)?);
            self.client.part.store(true, Ordering::Relaxed);
        }
        let mut piece = [std::mem::MaybeUninit::uninit(); PIECE];
        let mut piece = ReadBuf::uninit(&mut piece);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece))?;
        self.held.extend_from_slice(piece.filled());
        Poll::Ready(Ok(piece.filled().is_empty()))
    }
}

/// Something whose end can be seen without reading what comes before it.
pub(crate) trait Ends {
    /// Ready at the end, if nothing is unread.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>>;
}

impl<S: AsyncRead + Ends + Unpin> AsyncRead for Gated<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if this.held.is_empty() {
            // Only now: the request that was given last time has begun by itself, so that nobody gets its place in between.
            this.part = None;
            this.client.part.store(false, Ordering::Relaxed);
        }
        loop {
            if this.give(buffer).is_some() {
                return Poll::Ready(Ok(()));
            }
            if let Some(flaw) = this.broken {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, flaw.text())));
            }
            if this.refused {
                // Its answer closes the connection; what else the client sends is read, and thrown away, at its end.
                return Poll::Pending;
            }
            if this.held.is_empty() && !this.gate.is_asking() {
                if this.client.goes.load(Ordering::Relaxed) && this.gate.is_between() {
                    // What comes is left in the socket, for the next server. Whoever waits for an answer may still leave.
                    if this.client.is_busy() {
                        return this.stream.poll_end(context);
                    }
                    this.client.parted.store(true, Ordering::Relaxed);
                    return Poll::Pending;
                }
                if ready!(this.fast(context, buffer))?.is_some() {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            this.look();
            if this.good > 0 || this.refused {
                continue;
            }
            if this.held.is_empty() && !this.gate.is_asking() {
                continue;
            }
            if ready!(this.more(context))? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gated<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, buffer)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
