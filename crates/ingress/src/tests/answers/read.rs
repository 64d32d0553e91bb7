//! What is made of the bytes that an app sends: by our connection, and by hyper's.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body::{Body as _, Frame};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;

use super::wire::{Wire, until};
use crate::body::RequestBody;
use crate::upstream::{Unanswered, Upstream};

type Fields = Vec<(String, Vec<u8>)>;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With the whole answer; the connection may serve another request, or not.
    Whole {
        again: bool,
    },
    Broken,
    /// More is waited for.
    Waits,
}

/// What was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Read {
    pub(super) before: Vec<(u16, Fields)>,
    pub(super) head: Option<(u16, Fields)>,
    pub(super) body: Vec<u8>,
    pub(super) trailers: Fields,
    pub(super) end: End,
    /// What the app got.
    pub(super) sent: Vec<u8>,
}

impl Read {
    const fn nothing() -> Self {
        Self {
            before: Vec::new(),
            head: None,
            body: Vec::new(),
            trailers: Vec::new(),
            end: End::Waits,
            sent: Vec::new(),
        }
    }

    fn frame(&mut self, frame: Frame<Bytes>) {
        match frame.into_data() {
            Ok(data) => self.body.extend_from_slice(&data),
            Err(frame) => self
                .trailers
                .extend(fields(&frame.into_trailers().unwrap())),
        }
    }
}

fn fields(headers: &HeaderMap) -> Fields {
    let field = |(name, value): (&http::HeaderName, &http::HeaderValue)| {
        (name.to_string(), value.as_bytes().to_vec())
    };
    headers.iter().map(field).collect()
}

/// As our connection reads it.
pub(super) fn ours(wire: Wire, mut request: Request<RequestBody>, most: usize) -> Read {
    let mut read = Read::nothing();
    let polls = wire.polls;
    let mut upstream = Upstream::new(wire, most);
    let mut before = Vec::new();
    let answer = until(polls, |context| {
        let heard = |status: StatusCode, headers: &HeaderMap| {
            before.push((status.as_u16(), fields(headers)));
        };
        upstream.poll_answer(&mut request, heard, context)
    });
    read.before = before;
    match answer {
        None => {}
        Some(Err(_)) => read.end = End::Broken,
        Some(Ok(response)) => {
            read.head = Some((response.status().as_u16(), fields(response.headers())));
            let left = upstream.left().exact();
            loop {
                // What hyper's server asks, too, before it asks for a frame.
                let over = upstream.is_over();
                match until(polls, |context| upstream.poll_frame(context)) {
                    None => break,
                    Some(None) => {
                        read.end = End::Whole { again: false };
                        break;
                    }
                    Some(Some(Err(_))) => {
                        read.end = End::Broken;
                        break;
                    }
                    Some(Some(Ok(frame))) => {
                        assert!(!over, "a frame after the end");
                        read.frame(frame);
                    }
                }
            }
            if let (Some(left), End::Whole { .. }) = (left, read.end) {
                assert_eq!(left, read.body.len() as u64, "said beforehand");
            }
        }
    }
    read.sent = upstream.socket().heard.clone();
    if let End::Whole { again } = &mut read.end
        && let Some(mut rested) = upstream.rest()
    {
        // What the app still has to say has come meanwhile.
        rested.socket().hurries = true;
        let mut next = Request::new(RequestBody::Empty);
        let second = until(polls, |context| {
            rested.poll_answer(&mut next, |_, _| {}, context)
        });
        *again = !matches!(second, Some(Err(Unanswered::Unsent(_))));
    }
    read
}

/// As hyper's client reads it.
pub(super) fn theirs(wire: Wire, mut request: Request<RequestBody>, most: usize) -> Read {
    let mut read = Read::nothing();
    let polls = wire.polls;
    let before = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&before);
    hyper::ext::on_informational(&mut request, move |answer| {
        heard
            .lock()
            .push((answer.status().as_u16(), fields(answer.headers())));
    });
    let sent = Arc::new(Mutex::new(Vec::new()));
    let io = TokioIo::new(Shared(wire, Arc::clone(&sent)));
    let handshake = http1::Builder::new().max_buf_size(most).handshake(io);
    let mut handshake = Box::pin(handshake);
    let (mut sender, connection) = until(polls, |context| handshake.as_mut().poll(context))
        .unwrap()
        .unwrap();
    let mut connection = Some(connection.with_upgrades());
    let mut drive = move |context: &mut std::task::Context<'_>| {
        if let Some(driven) = connection.as_mut()
            && Pin::new(driven).poll(context).is_ready()
        {
            connection = None;
        }
        connection.is_some()
    };
    let mut answer = Box::pin(sender.try_send_request(request));
    let answer = until(polls, |context| {
        drive(context);
        answer.as_mut().poll(context)
    });
    match answer {
        None => {}
        Some(Err(_)) => read.end = End::Broken,
        Some(Ok(mut response)) => {
            read.head = Some((response.status().as_u16(), fields(response.headers())));
            let upgrades = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let body = response.body_mut();
            loop {
                let frame = until(polls, |context| {
                    match Pin::new(&mut *body).poll_frame(context) {
                        Poll::Pending => {
                            drive(context);
                            Poll::Pending
                        }
                        ready => ready,
                    }
                });
                match frame {
                    None => break,
                    Some(None) => {
                        let mut stands = true;
                        for _ in 0..100 {
                            stands = until(polls, |context| Poll::Ready(drive(context))).unwrap();
                        }
                        let again = stands && sender.is_ready() && !upgrades;
                        read.end = End::Whole { again };
                        break;
                    }
                    Some(Some(Err(_))) => {
                        read.end = End::Broken;
                        break;
                    }
                    Some(Some(Ok(frame))) => read.frame(frame),
                }
            }
        }
    }
    read.before = std::mem::take(&mut *before.lock());
    read.sent = std::mem::take(&mut *sent.lock());
    read
}

/// A wire of which is known what it heard after hyper has taken it.
struct Shared(Wire, Arc<Mutex<Vec<u8>>>);

impl tokio::io::AsyncRead for Shared {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        buffer: &mut tokio::io::ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl tokio::io::AsyncWrite for Shared {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        let written = Pin::new(&mut self.0).poll_write(context, bytes);
        let mut heard = self.1.lock();
        let from = heard.len();
        heard.extend_from_slice(&self.0.heard[from..]);
        drop(heard);
        written
    }

    fn poll_flush(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(
        self: Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> Poll<std::io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
