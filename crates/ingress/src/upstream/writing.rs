//! The half of a connection that requests go to.
//!
//! An app may answer before it has read the request's body (a login that failed, a file that is too large) and close. Our next
//! write then fails while its answer lies in our receive buffer. So a write that fails is passed over, what is left of the body
//! goes nowhere, and what is read next (the answer, or the end) decides.
//!
//! Invariants:
//! 1. A frame of the body is taken only when nothing before it waits to be written, but for what is gathered for one small write.
//! 2. A body that isn't as long as was said is an error, and never fills the place of another message.

use std::io::IoSlice;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE,
    HOST, MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
};
use http::{HeaderMap, HeaderName, HeaderValue, Request};
use http_body::Body as _;
use tokio::io::AsyncWrite;

use super::head;
use crate::body::{BodyError, RequestBody};

/// Data up to this length is copied behind what goes before it: the kernel takes one piece in less time than it looks at a list
/// of two.
const SMALL: usize = 1 << 10;
/// With so much to write nothing more is gathered.
const ENOUGH: usize = 16 << 10;
/// Memory for heads that is kept from request to request.
const KEPT: usize = 4 << 10;

/// How the body's end is told.
#[derive(Debug)]
enum Framing {
    Bytes(u64),
    /// With the trailers that were announced.
    Chunked(Vec<HeaderName>),
}

#[derive(Debug)]
pub(super) struct Writing {
    /// Goes first: heads, sizes, small data.
    small: Vec<u8>,
    /// So much of it has gone.
    gone: usize,
    data: Bytes,
    /// Goes after the data.
    tail: &'static [u8],
    framing: Framing,
    /// `None` once it was taken as a whole.
    body: Option<RequestBody>,
    /// A write failed.
    broken: bool,
}

impl Writing {
    pub(super) const fn new() -> Self {
        Self {
            small: Vec::new(),
            gone: 0,
            data: Bytes::new(),
            tail: b"",
            framing: Framing::Bytes(0),
            body: None,
            broken: false,
        }
    }

    /// Begins with `request`, of which the body is taken, unless it has none.
    pub(super) fn begin(&mut self, request: &mut Request<RequestBody>) {
        let body = request.body();
        let (empty, exact) = (body.is_end_stream(), body.size_hint().exact());
        let headers = request.headers();
        // It was said by `headers`, or is not said at all.
        let coded = headers.contains_key(TRANSFER_ENCODING);
        let announced = head::announced(headers);
        let (framing, says) = match (announced, exact) {
            _ if empty => (Framing::Bytes(0), Says::Nothing),
            (Some(bytes), _) if !coded => (Framing::Bytes(bytes), Says::AsItDoes),
            (None, Some(bytes)) if !coded => (Framing::Bytes(bytes), Says::Length(bytes)),
            _ => (Framing::Chunked(trailers(headers)), Says::Coding),
        };
        self.framing = framing;
        self.gone = 0;
        self.small.clear();
        write_head(&mut self.small, request, says);
        if !empty {
            self.body = Some(std::mem::replace(request.body_mut(), RequestBody::Empty));
        }
    }

    /// Writes what there is; ready when the whole request has gone.
    pub(super) fn poll<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<Result<(), BodyError>> {
        loop {
            self.gather(context)?;
            if self.is_written() {
                if self.body.is_some() {
                    return Poll::Pending;
                }
                self.tidy();
                if self.small.capacity() > KEPT {
                    self.small = Vec::new();
                }
                return Poll::Ready(Ok(()));
            }
            if self.broken {
                self.forget();
                continue;
            }
            match ready!(self.poll_write(stream, context)) {
                Ok(0) | Err(_) => self.broken = true,
                Ok(gone) => self.advance(gone),
            }
        }
    }

    /// Takes of the body what goes into one write.
    fn gather(&mut self, context: &mut Context<'_>) -> Result<(), BodyError> {
        while self.data.is_empty() && self.tail.is_empty() && self.small.len() - self.gone < ENOUGH
        {
            let Some(body) = &mut self.body else {
                return Ok(());
            };
            let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(context) else {
                return Ok(());
            };
            let last = body.is_end_stream();
            let Some(frame) = frame else {
                self.end(&HeaderMap::new())?;
                return Ok(());
            };
            match frame?.into_data() {
                Ok(data) => self.put(data, last)?,
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.end(&trailers)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Puts a piece of the body behind what waits; `last`: nothing comes after it.
    fn put(&mut self, data: Bytes, last: bool) -> Result<(), BodyError> {
        if data.is_empty() {
            return if last {
                self.end(&HeaderMap::new())
            } else {
                Ok(())
            };
        }
        self.tidy();
        let mut tail: &'static [u8] = b"";
        match &mut self.framing {
            Framing::Bytes(left) => {
                *left = left
                    .checked_sub(data.len() as u64)
                    .ok_or(BodyError::Length)?;
            }
            Framing::Chunked(_) => {
                self.small
                    .extend_from_slice(hexadecimal(data.len(), &mut [0; 18]));
                tail = if last { b"\r\n0\r\n\r\n" } else { b"\r\n" };
            }
        }
        if data.len() <= SMALL {
            self.small.extend_from_slice(&data);
            self.small.extend_from_slice(tail);
        } else {
            (self.data, self.tail) = (data, tail);
        }
        match self.framing {
            Framing::Bytes(0) => self.body = None,
            Framing::Bytes(_) if last => return Err(BodyError::Length),
            Framing::Chunked(_) if last => self.body = None,
            _ => {}
        }
        Ok(())
    }

    /// The body is over; only trailers that were announced are sent, as hyper does.
    fn end(&mut self, trailers: &HeaderMap) -> Result<(), BodyError> {
        self.body = None;
        self.tidy();
        match &self.framing {
            Framing::Bytes(0) => Ok(()),
            Framing::Bytes(_) => Err(BodyError::Length),
            Framing::Chunked(announced) => {
                self.small.extend_from_slice(b"0\r\n");
                for (name, value) in trailers {
                    if announced.contains(name) && may_trail(name) {
                        write_field(&mut self.small, name, value);
                    }
                }
                self.small.extend_from_slice(b"\r\n");
                Ok(())
            }
        }
    }

    /// Lets go of what has gone: a body of many small pieces may never be written to its end before there is more of it.
    fn tidy(&mut self) {
        if self.gone == self.small.len() || self.gone >= ENOUGH {
            self.small.drain(..self.gone);
            self.gone = 0;
        }
    }

    fn poll_write<S: AsyncWrite + Unpin>(
        &self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<std::io::Result<usize>> {
        let small = &self.small[self.gone..];
        let stream = Pin::new(stream);
        if self.data.is_empty() && self.tail.is_empty() {
            return stream.poll_write(context, small);
        }
        let parts = [small, &self.data, self.tail].map(IoSlice::new);
        let from = usize::from(small.is_empty());
        stream.poll_write_vectored(context, &parts[from..])
    }

    fn advance(&mut self, mut gone: usize) {
        let small = gone.min(self.small.len() - self.gone);
        self.gone += small;
        gone -= small;
        let data = gone.min(self.data.len());
        self.data.advance(data);
        gone -= data;
        self.tail = &self.tail[gone.min(self.tail.len())..];
    }

    fn forget(&mut self) {
        self.gone = self.small.len();
        self.data = Bytes::new();
        self.tail = b"";
    }

    fn is_written(&self) -> bool {
        self.gone == self.small.len() && self.data.is_empty() && self.tail.is_empty()
    }

    /// Whether the whole request has gone, and arrived as far as is known.
    pub(super) fn is_clean(&self) -> bool {
        self.is_over() && !self.broken
    }

    /// Whether there is nothing more to write.
    pub(super) fn is_over(&self) -> bool {
        self.body.is_none() && self.is_written()
    }
}

/// What a head says of the body that follows.
#[derive(Debug, Clone, Copy)]
enum Says {
    /// There is none, and no length but 0 may say otherwise.
    Nothing,
    /// What its `Content-Length` says.
    AsItDoes,
    Length(u64),
    Coding,
}

fn write_head(into: &mut Vec<u8>, request: &Request<RequestBody>, says: Says) {
    let path = request.uri().path_and_query();
    let path = path.map_or("/", |path| path.as_str());
    into.extend_from_slice(request.method().as_str().as_bytes());
    into.push(b' ');
    if !path.starts_with(['/', '*']) {
        into.push(b'/');
    }
    into.extend_from_slice(path.as_bytes());
    into.extend_from_slice(b" HTTP/1.1\r\n");
    match says {
        Says::Nothing | Says::AsItDoes => {}
        Says::Length(bytes) => write_field(into, &CONTENT_LENGTH, &bytes.into()),
        Says::Coding => {
            let chunked = HeaderValue::from_static("chunked");
            write_field(into, &TRANSFER_ENCODING, &chunked);
        }
    }
    for (name, value) in request.headers() {
        let left_out = match *name {
            TRANSFER_ENCODING => true,
            CONTENT_LENGTH => match says {
                Says::Nothing => value != "0",
                Says::AsItDoes => false,
                Says::Length(_) | Says::Coding => true,
            },
            _ => false,
        };
        if !left_out {
            write_field(into, name, value);
        }
    }
    into.extend_from_slice(b"\r\n");
}

fn write_field(into: &mut Vec<u8>, name: &HeaderName, value: &HeaderValue) {
    let (name, value) = (name.as_str().as_bytes(), value.as_bytes());
    into.reserve(name.len() + value.len() + 4);
    into.extend_from_slice(name);
    into.extend_from_slice(b": ");
    into.extend_from_slice(value);
    into.extend_from_slice(b"\r\n");
}

/// The size of a chunk, with its line's end.
fn hexadecimal(mut size: usize, into: &mut [u8; 18]) -> &[u8] {
    let mut at = into.len() - 2;
    into[at..].copy_from_slice(b"\r\n");
    while size > 0 {
        at -= 1;
        into[at] = b"0123456789ABCDEF"[size & 15];
        size >>= 4;
    }
    &into[at..]
}

/// The trailers that a request announces.
fn trailers(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(TRAILER).iter();
    lines
        .filter_map(|line| line.to_str().ok())
        .flat_map(|line| line.split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect()
}

/// Whether a field may stand behind a body (RFC 9110 §6.5.1): none that says where a message ends, goes to or what it is.
fn may_trail(name: &HeaderName) -> bool {
    ![
        AUTHORIZATION,
        CACHE_CONTROL,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        CONTENT_RANGE,
        CONTENT_TYPE,
        HOST,
        MAX_FORWARDS,
        SET_COOKIE,
        TE,
        TRAILER,
        TRANSFER_ENCODING,
    ]
    .contains(name)
}
