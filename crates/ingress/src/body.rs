//! Bodies on their way through: counted, limited, cut at the deadline; the end of a response body ends the request.
//!
//! Owns: [`RequestBody`] (client → instance) and [`ResponseBody`] (instance or us → client). Nothing is ever buffered here:
//! a frame is taken from one side only when the other side asks for it.
//!
//! Invariants:
//! 1. Dropping a response body frees the slot and writes the record, whatever state it is in.
//! 2. A body that could not be passed on completely ends in an error, never in a clean end.
//! 3. Nothing of an answer is taken from the instance after its deadline, however slowly its client reads.

use std::error::Error as StdError;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::Instant;
use tokio_util::sync::WaitForCancellationFutureOwned;

use crate::deadline::{self, Deadline};
use crate::interim::Gate;
use crate::pace::Pace;
use crate::record::Exchange;
use crate::serve::STALL;
use crate::slot::Slot;
use crate::source::Source;

/// What was seen of a request body, shared between the body and the request's record.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) bytes: AtomicU64,
    pub(crate) too_large: AtomicBool,
    pub(crate) ended: AtomicBool,
    /// Its client stopped sending.
    pub(crate) stalled: AtomicBool,
}

/// Bodies up to this length are read while their request waits: a queue of 10,000 holds 160 MB at the very most.
const AHEAD: u64 = 16 << 10;

/// A request body.
#[derive(Debug)]
pub(crate) enum RequestBody {
    Empty,
    /// Of our own, as in a health check.
    Bytes(Option<Bytes>),
    /// As a test wants it.
    #[cfg(test)]
    Scripted(crate::tests::Script),
    Client {
        incoming: Incoming,
        meter: Arc<Meter>,
        limit: u64,
        /// What was read while the request waited.
        ahead: Option<Bytes>,
        /// Shut until the app asks for the body.
        gate: Option<Gate>,
        pace: Pace,
    },
}

/// A body could not be passed on.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BodyError {
    #[error("the request body is larger than {limit} bytes")]
    TooLarge { limit: u64 },
    #[error("the client stopped sending the request body")]
    Stalled,
    #[error("read the request body from the client: {0}")]
    Client(#[source] hyper::Error),
    #[error("the request body is not as long as was said")]
    Length,
    #[error("read the response body from the instance: {0}")]
    Instance(#[source] Box<dyn StdError + Send + Sync>),
    #[error("the request has reached its timeout")]
    Timeout,
    #[error("the instance ended")]
    InstanceEnded,
}

impl RequestBody {
    /// Wraps what the client sends; `limit` in bytes. A body of known length may `pause` so long between two pieces.
    pub(crate) fn client(
        incoming: Incoming,
        limit: u64,
        pause: Duration,
    ) -> (Self, Option<Arc<Meter>>) {
        if incoming.is_end_stream() {
            return (Self::Empty, None);
        }
        // A body without a length is a stream, which may pause as long as its request may last.
        let pace = Pace::new(incoming.size_hint().exact().map(|_| pause));
        let meter = Arc::new(Meter::default());
        (
            Self::Client {
                incoming,
                meter: Arc::clone(&meter),
                limit,
                ahead: None,
                gate: None,
                pace,
            },
            Some(meter),
        )
    }

    /// Reads a small body of known length while the request waits, and never ends. A client's leaving is only seen once its
    /// body has been read; and a client that waits for `100 Continue` must not be told yet (`expects`).
    pub(crate) async fn read_ahead(&mut self, expects: bool) {
        if let Self::Client {
            incoming,
            meter,
            ahead,
            ..
        } = self
            && !expects
            && incoming
                .size_hint()
                .exact()
                .is_some_and(|length| length <= AHEAD)
        {
            let mut read = BytesMut::new();
            while !incoming.is_end_stream() {
                // The end without its error: sending on meets the error again, and the connection ends anyway.
                let Some(Ok(frame)) = incoming.frame().await else {
                    break;
                };
                if let Some(data) = frame.data_ref() {
                    meter.bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                    read.extend_from_slice(data);
                    // Kept at once: this future is dropped as soon as there is a slot.
                    *ahead = Some(read.clone().freeze());
                }
            }
            meter
                .ended
                .store(incoming.is_end_stream(), Ordering::Release);
        }
        std::future::pending().await
    }

    /// The next frame of the client's, once the app wants it.
    fn take(
        incoming: &mut Incoming,
        gate: &mut Option<Gate>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Some(shut) = gate {
            std::task::ready!(shut.poll_open(context));
            *gate = None;
        }
        Pin::new(incoming).poll_frame(context)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Empty => Poll::Ready(None),
            Self::Bytes(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            #[cfg(test)]
            Self::Scripted(script) => script.poll_frame(context),
            Self::Client { ahead, .. } if ahead.is_some() => {
                Poll::Ready(ahead.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            Self::Client {
                incoming,
                meter,
                limit,
                gate,
                pace,
                ..
            } => {
                match std::task::ready!(pace.watch(Self::take(incoming, gate, context), context)) {
                    None => {
                        meter.ended.store(true, Ordering::Release);
                        Poll::Ready(None)
                    }
                    Some(Err(None)) => {
                        meter.stalled.store(true, Ordering::Release);
                        Poll::Ready(Some(Err(BodyError::Stalled)))
                    }
                    Some(Err(Some(error))) => Poll::Ready(Some(Err(BodyError::Client(error)))),
                    Some(Ok(frame)) => {
                        let length = frame.data_ref().map_or(0, Bytes::len) as u64;
                        let seen = meter.bytes.fetch_add(length, Ordering::Relaxed) + length;
                        if seen > *limit {
                            meter.too_large.store(true, Ordering::Release);
                            return Poll::Ready(Some(Err(BodyError::TooLarge { limit: *limit })));
                        }
                        if incoming.is_end_stream() {
                            meter.ended.store(true, Ordering::Release);
                        }
                        Poll::Ready(Some(Ok(frame)))
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Bytes(bytes) => bytes.is_none(),
            #[cfg(test)]
            Self::Scripted(script) => script.is_over(),
            Self::Client {
                incoming, ahead, ..
            } => ahead.is_none() && incoming.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Bytes(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            #[cfg(test)]
            Self::Scripted(script) => script.left(),
            Self::Client {
                incoming,
                ahead: None,
                ..
            } => incoming.size_hint(),
            // Only bodies of known length are read ahead.
            Self::Client {
                incoming,
                ahead: Some(ahead),
                ..
            } => {
                SizeHint::with_exact(ahead.len() as u64 + incoming.size_hint().exact().unwrap_or(0))
            }
        }
    }
}

/// What goes back to the client.
pub(crate) enum ResponseBody {
    Own(Option<Bytes>),
    App(Box<AppBody>),
}

/// The body of an app's answer, and all that lives as long as the request.
pub(crate) struct AppBody {
    pub(crate) source: Source,
    pub(crate) deadline: Deadline,
    /// Over HTTP/2, whose connection is not this request's.
    pub(crate) dead: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    pub(crate) exchange: Exchange,
    pub(crate) slot: Option<Slot>,
    pub(crate) complete: bool,
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Own(_) => "ResponseBody::Own",
            Self::App(_) => "ResponseBody::App",
        })
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::App(body) => body.poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::App(body) => body.source.is_over(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, Bytes::len) as u64),
            Self::App(body) => body.source.left(),
        }
    }
}

impl AppBody {
    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        // By the clock, not by the timer: while frames keep coming, registering it would cost each of them a lock.
        let now = Instant::now();
        if now >= self.deadline.at() {
            return Poll::Ready(Some(Err(self.cut(BodyError::Timeout))));
        }
        match self.source.poll_frame(context) {
            Poll::Ready(Some(Ok(frame))) => {
                self.exchange.sent(frame.data_ref().map_or(0, Bytes::len));
                if self.source.is_over() {
                    self.finish();
                } else {
                    // From here on it is the client's turn: it is given as long as a socket is that takes nothing.
                    deadline::leave(Some(self.deadline.at().min(now + STALL)));
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(self.cut(error)))),
            Poll::Pending => {
                deadline::leave(Some(self.deadline.at()));
                if Pin::new(&mut self.deadline).poll(context).is_ready() {
                    return Poll::Ready(Some(Err(self.cut(BodyError::Timeout))));
                }
                if self.poll_dead(context).is_ready() {
                    return Poll::Ready(Some(Err(self.cut(BodyError::InstanceEnded))));
                }
                Poll::Pending
            }
        }
    }

    fn poll_dead(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(slot) = &self.slot else {
            return Poll::Pending;
        };
        let token = &slot.instance().dead;
        match &mut self.source {
            Source::Http1(upstream) => upstream.poll_dead(token, context),
            _ => {
                let listen = || Box::pin(token.clone().cancelled_owned());
                self.dead.get_or_insert_with(listen).as_mut().poll(context)
            }
        }
    }

    /// The answer is complete: the connection may serve another request, the slot another client.
    fn finish(&mut self) {
        if self.complete {
            return;
        }
        self.complete = true;
        deadline::leave(None);
        if let Source::Http1(_) = self.source
            && let Source::Http1(upstream) = std::mem::replace(&mut self.source, Source::Over)
            && let Some(slot) = &self.slot
            && let Some(upstream) = upstream.rest()
        {
            slot.instance().keep(upstream);
        }
        self.slot = None;
    }

    /// The answer ends here, incomplete.
    fn cut(&mut self, why: BodyError) -> BodyError {
        self.exchange.cut(&why.to_string());
        self.complete = true;
        deadline::leave(None);
        self.source = Source::Cut;
        self.slot = None;
        why
    }
}

impl Drop for AppBody {
    fn drop(&mut self) {
        if self.complete {
            return;
        }
        if self.source.is_over() {
            self.finish();
        } else if Instant::now() >= self.deadline.at() {
            self.cut(BodyError::Timeout);
        } else {
            let stalled = deadline::left().is_some_and(|until| Instant::now() >= until);
            deadline::leave(None);
            self.exchange.cut(if stalled {
                "the client did not take its response"
            } else {
                "the client closed the connection before the end of the response"
            });
        }
    }
}
