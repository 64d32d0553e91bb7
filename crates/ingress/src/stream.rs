//! A socket to an instance that lets an early answer through.
//!
//! An app may answer before it has read the request's body (a login that failed, a file that is too large) and close. Our
//! next write then fails while its answer lies in our receive buffer; hyper would report the write and drop the answer. So
//! a write that fails is swallowed, and what is read next (the answer, or the end) decides.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// What both the socket and its user know.
#[derive(Debug, Default)]
pub(crate) struct Fate {
    /// A write failed: the connection must not serve another request.
    pub(crate) broken: AtomicBool,
    /// It left HTTP: failures are told as they come.
    pub(crate) strict: AtomicBool,
}

#[derive(Debug)]
pub(crate) struct InstanceStream {
    stream: TcpStream,
    fate: Arc<Fate>,
}

impl InstanceStream {
    pub(crate) fn new(stream: TcpStream) -> (Self, Arc<Fate>) {
        let fate = Arc::new(Fate::default());
        (
            Self {
                stream,
                fate: Arc::clone(&fate),
            },
            fate,
        )
    }

    fn forgive(&self, written: Poll<io::Result<usize>>, whole: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(_)) if !self.fate.strict.load(Ordering::Relaxed) => {
                self.fate.broken.store(true, Ordering::Relaxed);
                Poll::Ready(Ok(whole))
            }
            other => other,
        }
    }
}

impl AsyncRead for InstanceStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for InstanceStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        self.forgive(written, buffer.len())
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = poll_write_parts(&mut self.stream, context, buffers);
        self.forgive(written, buffers.iter().map(|buffer| buffer.len()).sum())
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

/// Messages up to this are written in one piece.
const SMALL: usize = 1 << 10;

/// Writes the parts of a message to a socket. Most messages are small, and the kernel takes one piece in less time than it
/// looks at a list of two; what is larger isn't copied.
pub(crate) fn poll_write_parts(
    stream: &mut TcpStream,
    context: &mut Context<'_>,
    parts: &[IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let stream = Pin::new(stream);
    match parts {
        [part] => stream.poll_write(context, part),
        _ if parts.iter().map(|part| part.len()).sum::<usize>() <= SMALL => {
            let mut whole = [0; SMALL];
            let mut length = 0;
            for part in parts {
                whole[length..length + part.len()].copy_from_slice(part);
                length += part.len();
            }
            stream.poll_write(context, &whole[..length])
        }
        _ => stream.poll_write_vectored(context, parts),
    }
}
