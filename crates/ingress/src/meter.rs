//! How much an HTTP/2 client may make us do without asking for anything: the price of frames that carry nothing.
//!
//! A frame of nine bytes can cost us an answer (PING, SETTINGS), a request that is begun and thrown away (HEADERS, RST_STREAM:
//! CVE-2023-44487), or a walk through a table (PRIORITY, empty DATA). None of it shows in requests under way. So each costs one
//! of the connection's tokens; they come back with time, and with what the client takes of answers, so that a connection that
//! does real work never runs out. One that has none left is closed.
//!
//! Owns: counting frames as they are read. Deliberately not here: what a frame means and the size of header blocks
//! (CONTINUATION without end), which h2 limits.
//!
//! Invariant: only headers of frames are looked at, nothing is held back, and nothing is allocated.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use crate::client::Client;
use crate::farewell::Farewell;
use crate::told::Told;

/// `PRI * HTTP/2.0…`, before the first frame.
const PREFACE: usize = 24;
const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Bytes of answers that give a token back: the answer to a PING (17) or to SETTINGS (9) must not pay for the next one, the
/// smallest answer to a request (some 100) should pay for what belongs to it.
const BYTES_PER_TOKEN: usize = 48;
/// Seconds' worth of tokens that a connection can save up.
const SAVED: u32 = 4;

/// An HTTP/2 client's stream, counted.
#[derive(Debug)]
pub(crate) struct Metered<S> {
    stream: S,
    meter: Meter,
    peer: SocketAddr,
    told: Arc<Told>,
    farewell: Farewell,
    /// When its first frame must be there; none once it is.
    begin: Option<Pin<Box<Sleep>>>,
}

/// What one connection has left.
#[derive(Debug)]
pub(crate) struct Meter {
    per_second: u32,
    tokens: u32,
    refilled: Instant,
    /// Bytes written that are not yet worth a token.
    written: usize,
    /// Bytes until the next frame's header.
    skip: usize,
    header: [u8; HEADER],
    have: usize,
    begun: bool,
}

impl Meter {
    pub(crate) fn new(per_second: u32) -> Self {
        Self {
            per_second,
            tokens: per_second.saturating_mul(SAVED),
            refilled: Instant::now(),
            written: 0,
            skip: PREFACE,
            header: [0; HEADER],
            have: 0,
            begun: false,
        }
    }

    /// Counts the frames in what was read; `false` when the client has used up what it had.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let passed = self.skip.min(bytes.len());
            self.skip -= passed;
            bytes = &bytes[passed..];
            if bytes.is_empty() {
                return true;
            }
            let taken = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            if self.have < HEADER {
                return true;
            }
            self.have = 0;
            self.begun = true;
            let [high, middle, low, kind, flags, ..] = self.header;
            self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
            let carries = match kind {
                DATA => self.skip > 0 || flags & END_STREAM != 0,
                HEADERS => true,
                _ => false,
            };
            if !carries && !self.pay() {
                return false;
            }
        }
    }

    /// Whether the preface and the header of a frame were read.
    const fn has_begun(&self) -> bool {
        self.begun
    }

    fn pay(&mut self) -> bool {
        if self.tokens == 0 {
            self.refill();
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }

    /// Only looked at when there are none left: no clock is read for each frame.
    fn refill(&mut self) {
        let now = Instant::now();
        let passed = now.saturating_duration_since(self.refilled).as_millis();
        let earned = passed * u128::from(self.per_second) / 1_000;
        if earned > 0 {
            self.refilled = now;
            let most = self.per_second.saturating_mul(SAVED);
            self.tokens = u32::try_from(earned).unwrap_or(most).min(most);
        }
    }

    /// The client took so many bytes.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.written += bytes;
        let earned = self.written / BYTES_PER_TOKEN;
        self.written %= BYTES_PER_TOKEN;
        let most = self.per_second.saturating_mul(SAVED);
        let earned = u32::try_from(earned).unwrap_or(most);
        self.tokens = self.tokens.saturating_add(earned).min(most);
    }
}

impl<S> Metered<S> {
    /// `peer` and the number of such connections, counted in `told`, go to the log when it is ended for this. Its first frame
    /// must come within `begin`. `client` is told in time when the server leaves.
    pub(crate) fn new(
        stream: S,
        per_second: u32,
        begin: Duration,
        (peer, told): (SocketAddr, Arc<Told>),
        client: Arc<Client>,
    ) -> Self {
        Self {
            stream,
            meter: Meter::new(per_second),
            peer,
            told,
            farewell: Farewell::new(client),
            begin: Some(Box::pin(tokio::time::sleep(begin))),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Metered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(context, buffer);
        if read.is_pending()
            && let Some(begin) = &mut self.begin
            && begin.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        ready!(read)?;
        self.farewell.heard();
        let paid = self.meter.read(&buffer.filled()[before..]);
        if self.meter.has_begun() {
            self.begin = None;
        }
        if paid {
            return Poll::Ready(Ok(()));
        }
        if let Some(count) = self.told.count() {
            tracing::warn!(
                count,
                peer = %self.peer,
                "closed HTTP/2 connections that sent more control frames than they may (max-control-frames)"
            );
        }
        Poll::Ready(Err(io::Error::other(
            "more control frames than the client may send",
        )))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Metered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let Self {
            stream, farewell, ..
        } = &mut *self;
        ready!(farewell.poll_rest(&mut *stream, context))?;
        let written = ready!(Pin::new(stream).poll_write(context, buffer))?;
        self.meter.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let Self {
            stream, farewell, ..
        } = &mut *self;
        ready!(farewell.poll_rest(&mut *stream, context))?;
        let written = ready!(Pin::new(stream).poll_write_vectored(context, buffers))?;
        self.meter.wrote(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self {
            stream, farewell, ..
        } = &mut *self;
        ready!(Pin::new(&mut *stream).poll_flush(context))?;
        farewell.poll(stream, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
