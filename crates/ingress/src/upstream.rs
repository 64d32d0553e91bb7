//! One HTTP/1.1 connection to an instance, owned and driven by whoever holds the request's slot.
//!
//! There is no task behind it and no channel: first the handler, then the body of the response polls the connection, and whatever
//! it reads and writes happens within that poll. A request and its answer go both ways at once: each poll goes on with both. Nobody
//! polls while the client doesn't read its answer: its upload stands still then, and an answer that is over ends it.
//!
//! Owns: the socket, and where in a request and its answer it is (`writing`, `reading`). Deliberately not here: which connection a
//! request gets and whether it is sent again (`forward`), connections that idle (`instance`).
//!
//! Invariants:
//! 1. A request is written only while nothing is known to have come since the answer before: neither the app's close nor bytes nobody
//!    asked for.
//! 2. A connection may serve another request only after its last message ended on both sides, to the byte, and neither side said
//!    that it is the last.
//! 3. Each poll that is pending has left the task's waker with all it waits for.
//!
//! Fails with a [`Fault`]; a connection that had one serves no other request.

mod chunks;
mod fault;
mod head;
mod reading;
mod writing;

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use self::reading::Reading;
use self::writing::Writing;
use crate::body::RequestBody;
use crate::seldom::Seldom;

pub(crate) use self::fault::Fault;

/// Bytes that the head of an answer may always have, and that are read at once at most.
const LEAST_HEAD: usize = 64 << 10;

/// Why there is no answer.
#[derive(Debug)]
pub(crate) enum Unanswered {
    /// Nothing of the request was written.
    Unsent(Fault),
    /// It was, or a part of it, but not a byte has come back.
    Silent(Fault),
    Broken(Fault),
}

impl Unanswered {
    pub(crate) fn fault(self) -> Fault {
        match self {
            Self::Unsent(fault) | Self::Silent(fault) | Self::Broken(fault) => fault,
        }
    }
}

/// Boxed, since it goes from the pool to the request, to the answer's body and back.
pub(crate) struct Upstream<S = TcpStream>(Box<Connection<S>>);

struct Connection<S> {
    stream: S,
    reading: Reading,
    writing: Writing,
    /// The request is written, or is being written.
    begun: bool,
    /// Something went wrong, or the request says that it is the last.
    last: bool,
    /// What broke the request's body, told as soon as nothing of the answer is there any more.
    broken: Option<Fault>,
    /// It has served a request.
    used: bool,
    /// Of its one instance.
    dead: Option<Seldom<WaitForCancellationFutureOwned>>,
}

impl<S> fmt::Debug for Upstream<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("used", &self.0.used)
            .field("begun", &self.0.begun)
            .finish_non_exhaustive()
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Upstream<S> {
    /// Speaks HTTP/1.1 over `stream` from now on. Nothing is sent yet.
    pub(crate) fn new(stream: S, max_header_bytes: usize) -> Self {
        Self(Box::new(Connection {
            stream,
            reading: Reading::new(max_header_bytes.max(LEAST_HEAD)),
            writing: Writing::new(),
            begun: false,
            last: false,
            broken: None,
            used: false,
            dead: None,
        }))
    }

    #[cfg(test)]
    pub(crate) fn socket(&mut self) -> &mut S {
        &mut self.0.stream
    }

    /// Whether it has served a request.
    pub(crate) fn was_used(&self) -> bool {
        self.0.used
    }

    /// Ready when the instance, whose token `dead` is, has died. It costs next to nothing while it lives: a connection keeps
    /// listening from its first request on.
    pub(crate) fn poll_dead(
        &mut self,
        dead: &CancellationToken,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let listen = || Seldom::new(dead.clone().cancelled_owned());
        Pin::new(self.0.dead.get_or_insert_with(listen)).poll(context)
    }

    /// Sends `request` and waits for the head of its answer; `heard` is told what is said before it. To be called with the same
    /// request until it is ready. Unless nothing was sent the body is gone then, and with an answer the headers are.
    pub(crate) fn poll_answer(
        &mut self,
        request: &mut Request<RequestBody>,
        heard: impl FnMut(StatusCode, &HeaderMap),
        context: &mut Context<'_>,
    ) -> Poll<Result<Response<()>, Unanswered>> {
        let connection = &mut *self.0;
        if !connection.begun {
            // An app that closed while it idled is seen before anything is written. The waker stays for the answer.
            // tokio's task budget is kept out of it: used up, it would hide the close.
            let Connection {
                stream, reading, ..
            } = &mut *connection;
            let idle = poll_fn(|context| reading.poll_idle(stream, context));
            if let Poll::Ready(fault) = pin!(unconstrained(idle)).poll(context) {
                connection.last = true;
                return Poll::Ready(Err(Unanswered::Unsent(fault)));
            }
            connection.begun = true;
            connection.last |= head::closes(request.headers());
            connection.reading.expect();
            connection.writing.begin(request);
            return match connection.poll_write(context) {
                Err(fault) => Poll::Ready(Err(connection.unanswered(fault))),
                Ok(()) => Poll::Pending,
            };
        }
        let to_head = *request.method() == Method::HEAD;
        let Connection {
            stream, reading, ..
        } = connection;
        // First what was said: an answer that came is worth more than an upload that broke.
        let head = match reading.poll_head(stream, (request.headers_mut(), to_head), heard, context)
        {
            Poll::Ready(head) => head,
            Poll::Pending => match connection.poll_write(context) {
                Ok(()) => return Poll::Pending,
                Err(fault) => Err(fault),
            },
        };
        Poll::Ready(match head {
            Ok(head) => {
                let mut response = Response::new(());
                *response.status_mut() = head.status;
                *response.headers_mut() = head.headers;
                Ok(response)
            }
            Err(fault) => Err(connection.unanswered(fault)),
        })
    }

    /// The next frame of the answer's body.
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        let connection = &mut *self.0;
        if !connection.reading.is_over() && connection.broken.is_none() {
            connection.broken = connection.poll_write(context).err();
        }
        // What came of the answer is worth more than an upload that broke.
        match connection
            .reading
            .poll_frame(&mut connection.stream, context)
        {
            Poll::Pending => match connection.broken.take() {
                Some(fault) => Poll::Ready(Some(Err(fault))),
                None => Poll::Pending,
            },
            frame => frame,
        }
    }

    /// Whether the answer's body is over.
    pub(crate) fn is_over(&self) -> bool {
        self.0.reading.is_over()
    }

    /// What is left of the answer's body, where that is known.
    pub(crate) fn left(&self) -> SizeHint {
        self.0.reading.left()
    }

    /// Makes it ready for another request. `None`: its last message isn't over on both sides, or was the last one.
    pub(crate) fn rest(mut self) -> Option<Self> {
        let connection = &mut *self.0;
        if connection.last {
            return None;
        }
        if !connection.writing.is_over() {
            // The end of a body that was sent before its answer came may not have been asked for yet.
            let noop = &mut Context::from_waker(Waker::noop());
            connection.poll_write(noop).ok()?;
        }
        let clean = connection.reading.is_clean() && connection.writing.is_clean();
        connection.begun = false;
        connection.used = true;
        connection.reading.rest();
        clean.then_some(self)
    }

    /// Leaves HTTP: the socket, and what came over it behind the answer's head. What is left of the request is written first.
    pub(crate) async fn leave(mut self) -> Result<(S, Bytes), Fault> {
        let connection = &mut *self.0;
        poll_fn(|context| connection.writing.poll(&mut connection.stream, context))
            .await
            .map_err(Fault::Request)?;
        let Connection {
            stream, reading, ..
        } = *self.0;
        Ok((stream, reading.into_rest()))
    }
}

impl<S: AsyncWrite + Unpin> Connection<S> {
    /// Goes on with the request; an error is the body's.
    fn poll_write(&mut self, context: &mut Context<'_>) -> Result<(), Fault> {
        if self.writing.is_over() {
            return Ok(());
        }
        match self.writing.poll(&mut self.stream, context) {
            Poll::Ready(Err(error)) => {
                self.last = true;
                Err(Fault::Request(error))
            }
            Poll::Ready(Ok(())) | Poll::Pending => Ok(()),
        }
    }

    fn unanswered(&mut self, fault: Fault) -> Unanswered {
        self.last = true;
        match fault {
            Fault::Closed | Fault::Socket(_) if !self.reading.answers => Unanswered::Silent(fault),
            fault => Unanswered::Broken(fault),
        }
    }
}
