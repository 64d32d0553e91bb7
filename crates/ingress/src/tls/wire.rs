//! What carries a client's connection: TCP, or TLS over TCP. Above it everything is the same.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use socket2::SockRef;
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::stream::poll_write_parts;

/// HTTP/2's preface begins with this (`PRI * HTTP/2.0`).
const PREFACE: &[u8; 4] = b"PRI ";

#[derive(Debug)]
pub(crate) enum Wire {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
    /// Taken out: nothing comes from here any more.
    Gone,
}

impl Wire {
    /// Whether the client speaks HTTP/2: as it was agreed in the handshake, or as its first bytes say. Waits for these and
    /// leaves them in place.
    pub(crate) async fn is_http2(&mut self) -> io::Result<bool> {
        match self {
            Self::Gone => Err(io::ErrorKind::NotConnected.into()),
            Self::Plain(stream) => {
                let mut head = [0_u8; 4];
                let seen = stream.peek(&mut head).await?;
                begins(&head[..seen])
            }
            Self::Tls(stream) => {
                let first = begins(stream.fill_buf().await?)?;
                Ok(match stream.get_ref().1.alpn_protocol() {
                    Some(agreed) => agreed == b"h2",
                    None => first,
                })
            }
        }
    }

    /// Whether something has come that nobody was woken for yet: asked of the kernel, which knows first.
    pub(crate) fn has_unread(&self) -> bool {
        let mut byte = [MaybeUninit::uninit()];
        let socket = self.socket().map(SockRef::from);
        socket.is_some_and(|socket| socket.peek(&mut byte).is_ok_and(|seen| seen > 0))
    }

    /// Ready when nothing is unread and nothing more will come: the client has closed the connection, or broken it. What is unread
    /// stays; an end behind it isn't seen.
    pub(crate) fn poll_end(&self, context: &mut Context<'_>) -> Poll<()> {
        let Some(socket) = self.socket() else {
            return Poll::Ready(());
        };
        let mut byte = [MaybeUninit::uninit()];
        loop {
            if ready!(socket.poll_read_ready(context)).is_err() {
                return Poll::Ready(());
            }
            let peek = || SockRef::from(socket).peek(&mut byte);
            match socket.try_io(Interest::READABLE, peek) {
                Ok(0) => return Poll::Ready(()),
                Ok(_) => return Poll::Pending,
                // Then it is waited for anew.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return Poll::Ready(()),
            }
        }
    }

    fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(stream) => Some(stream),
            Self::Tls(stream) => Some(stream.get_ref().0),
            Self::Gone => None,
        }
    }

    /// Ready when something can be read from the network, if only its end; it stays there.
    pub(crate) fn poll_readable(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(stream) => stream.poll_read_ready(context),
            Self::Tls(stream) => stream.get_ref().0.poll_read_ready(context),
            Self::Gone => gone(),
        }
    }

    /// Reads bytes that nobody wants any more, as they come from the network.
    pub(crate) fn poll_discard(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let socket = match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_mut().0,
            Self::Gone => return gone(),
        };
        Pin::new(socket).poll_read(context, buffer)
    }
}

fn gone<T>() -> Poll<io::Result<T>> {
    Poll::Ready(Err(io::ErrorKind::NotConnected.into()))
}

/// A client that splits its first four bytes is taken for HTTP/1.1: none that speaks HTTP/2 does.
fn begins(first: &[u8]) -> io::Result<bool> {
    if first.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(first.starts_with(PREFACE))
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Gone => gone(),
        }
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, buffer),
            Self::Gone => gone(),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(stream) => poll_write_parts(stream, context, buffers),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(context, buffers),
            Self::Gone => gone(),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
            Self::Gone => false,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
            Self::Gone => gone(),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Gone => gone(),
        }
    }
}
