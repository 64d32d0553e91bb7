//! Whether an app that is to speak HTTP/2 (port name `h2c`, `--use-http2`) does: its first bytes on a connection that we began in it.
//!
//! Why: such a connection begins with words of our own, so it stands whatever listens there. An app that speaks HTTP/1.1 alone
//! answers with an error of HTTP/1.1 or closes, and what h2 makes of that (`frame with invalid size`) helps nobody.
//!
//! Owns: what was heard, and the words about it. Deliberately not here: the connections (`instance`).

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;

/// What an app first said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Greeted {
    Nothing,
    Http2,
    Http1,
    /// It closed without a word, or said something else.
    Otherwise,
}

/// One of an instance; it knows HTTP/2 for good once it spoke it.
#[derive(Debug, Default)]
pub(crate) struct Greeting {
    heard: AtomicU8,
    told: Notify,
}

impl Greeting {
    pub(crate) fn heard(&self) -> Greeted {
        match self.heard.load(Ordering::Acquire) {
            1 => Greeted::Http2,
            2 => Greeted::Http1,
            3 => Greeted::Otherwise,
            _ => Greeted::Nothing,
        }
    }

    /// What the app says first, once it says something.
    pub(crate) async fn first(&self) -> Greeted {
        loop {
            let told = self.told.notified();
            tokio::pin!(told);
            told.as_mut().enable();
            match self.heard() {
                Greeted::Nothing => told.await,
                heard => return heard,
            }
        }
    }

    fn hear(&self, greeted: Greeted) {
        // In one step: two connections may hear at once.
        let known = |heard| (heard != Greeted::Http2 as u8).then_some(greeted as u8);
        let heard = &self.heard;
        if heard
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, known)
            .is_ok()
        {
            self.told.notify_waiters();
        }
    }

    /// The likely cause of what goes wrong between us, and what to do. `None`: it spoke HTTP/2, or there is nothing to go by.
    pub(crate) fn advice(&self) -> Option<&'static str> {
        match self.heard() {
            Greeted::Http1 => Some(
                "The app answers in HTTP/1.1, but its port is named h2c (--use-http2), so it is spoken to in HTTP/2 alone: deploy it with \
                 --no-use-http2, or let it serve HTTP/2 without TLS.",
            ),
            Greeted::Otherwise => Some(
                "The app did not answer in HTTP/2, which its port's name h2c (--use-http2) asks for: if it serves TLS, let it serve \
                 without (TLS ends before the container); if it speaks HTTP/1.1 alone, deploy it with --no-use-http2.",
            ),
            Greeted::Http2 | Greeted::Nothing => None,
        }
    }
}

/// Length, kind: how a frame begins. The first of a server is of the kind SETTINGS.
const HEAD: usize = 4;
const SETTINGS: u8 = 4;

fn judge(first: [u8; HEAD]) -> Greeted {
    match first {
        [b'H', b'T', b'T', b'P'] => Greeted::Http1,
        [.., SETTINGS] => Greeted::Http2,
        _ => Greeted::Otherwise,
    }
}

/// A connection whose first bytes are listened to.
#[derive(Debug)]
pub(crate) struct Listened<S> {
    stream: S,
    first: [u8; HEAD],
    /// How many of them were heard; all once it is judged.
    count: usize,
    greeting: Arc<Greeting>,
}

impl<S> Listened<S> {
    pub(crate) fn new(stream: S, greeting: Arc<Greeting>) -> Self {
        Self {
            stream,
            first: [0; HEAD],
            count: 0,
            greeting,
        }
    }

    /// Empty: the end.
    fn listen(&mut self, bytes: &[u8]) {
        let missing = HEAD - self.count;
        let taken = &bytes[..bytes.len().min(missing)];
        self.first[self.count..self.count + taken.len()].copy_from_slice(taken);
        self.count += taken.len();
        if bytes.is_empty() {
            self.count = HEAD;
            self.greeting.hear(Greeted::Otherwise);
        } else if self.count == HEAD {
            self.greeting.hear(judge(self.first));
        }
    }
}

impl<S: AsyncRead + Unpin> Listened<S> {
    /// Nothing more can be written. What was said before that is still there, and after this nobody reads it.
    fn broke<T>(
        &mut self,
        written: io::Result<T>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_err() && self.count < HEAD {
            let mut bytes = [0; HEAD];
            let mut buffer = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut self.stream).poll_read(context, &mut buffer);
            let said = matches!(read, Poll::Ready(Ok(())));
            self.listen(if said { buffer.filled() } else { &[] });
        }
        Poll::Ready(written)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Listened<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, room) = (buffer.filled().len(), buffer.remaining());
        let result = ready!(Pin::new(&mut this.stream).poll_read(context, buffer));
        if this.count < HEAD && room > 0 {
            // An error is an end, too.
            let heard = if result.is_ok() {
                &buffer.filled()[before..]
            } else {
                &[]
            };
            this.listen(heard);
        }
        Poll::Ready(result)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Listened<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write(context, bytes));
        this.broke(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_write_vectored(context, bytes));
        this.broke(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let written = ready!(Pin::new(&mut this.stream).poll_flush(context));
        this.broke(written, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    #[tokio::test]
    async fn the_first_bytes_say_what_an_app_speaks() {
        for (said, heard) in [
            (&b"\0\0\x12\x04\0\0\0\0\0rest"[..], Greeted::Http2),
            (b"HTTP/1.1 400 Bad Request\r\n\r\n", Greeted::Http1),
            (b"\x15\x03\x01\0", Greeted::Otherwise),
            (b"HT", Greeted::Otherwise),
            (b"", Greeted::Otherwise),
        ] {
            // In one piece, and byte by byte.
            for piece in [64, 1] {
                let greeting = Arc::new(Greeting::default());
                let mut listened = Listened::new(said, Arc::clone(&greeting));
                let mut all = Vec::new();
                let mut bytes = [0; 64];
                while let Ok(read @ 1..) = listened.read(&mut bytes[..piece]).await {
                    all.extend_from_slice(&bytes[..read]);
                }
                assert_eq!((all.as_slice(), greeting.heard()), (said, heard));
                assert_eq!(greeting.advice().is_some(), heard != Greeted::Http2);
                // What answers so may serve TLS, which another protocol would not mend.
                let otherwise = heard == Greeted::Otherwise;
                assert!(!otherwise || greeting.advice().unwrap().contains("if it serves TLS"));
            }
        }
    }

    /// It answers the first words and closes over the next ones, which we are still writing.
    #[tokio::test]
    async fn what_was_said_before_the_connection_broke_is_heard() {
        for (said, heard) in [
            (&b"HTTP/1.1 400"[..], Greeted::Http1),
            (b"", Greeted::Otherwise),
        ] {
            let (near, mut far) = tokio::io::duplex(64);
            far.write_all(said).await.unwrap();
            drop(far);
            let greeting = Arc::new(Greeting::default());
            let mut listened = Listened::new(near, Arc::clone(&greeting));
            listened.write_all(b"PRI").await.unwrap_err();
            assert_eq!(greeting.heard(), heard);
        }
    }

    /// One that closes a connection later has not forgotten it.
    #[tokio::test]
    async fn who_spoke_http2_once_knows_it() {
        let greeting = Greeting::default();
        assert_eq!(greeting.advice(), None);
        greeting.hear(Greeted::Otherwise);
        greeting.hear(Greeted::Http2);
        greeting.hear(Greeted::Otherwise);
        assert_eq!(greeting.first().await, Greeted::Http2);
    }
}
