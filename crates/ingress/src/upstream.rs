//! One HTTP/1.1 connection to an instance, driven by the task of the request that uses it.
//!
//! Owns: the connection's two halves and when each is polled. hyper expects its connection to run in a task of its own; doing
//! so costs two task switches per message and moves requests between cores. Here whoever waits for the answer (first the
//! handler, then the response body) polls the connection itself.
//!
//! Invariants:
//! 1. Nothing but [`Upstream`]'s own methods polls the connection, so the halves can be polled with a waker that does
//!    nothing: their state only changes inside such a poll.
//!    tokio's task budget is kept out of such polls: used up, it would ask for a later poll through that idle waker.
//! 2. A connection goes back to the pool only after its last message ended on both sides.
//!
//! Fails: an error of either half ends the connection; a request that never left comes back with it.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::client::conn::{TrySendError, http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::unconstrained;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::body::RequestBody;
use crate::instance::ConnectFailure;
use crate::seldom::Seldom;
use crate::stream::{Fate, InstanceStream};

type Driver = http1::Connection<TokioIo<InstanceStream>, RequestBody>;
type Answer = Result<Response<Incoming>, TrySendError<Request<RequestBody>>>;

pub(crate) struct Upstream {
    sender: http1::SendRequest<RequestBody>,
    fate: Arc<Fate>,
    /// `None` once it has ended.
    driver: Option<Box<dyn Drive>>,
    /// Since when it idles in the pool; `None` for a connection that was never used.
    pub(crate) idle_since: Option<Instant>,
    /// Of its one instance.
    dead: Option<Seldom<WaitForCancellationFutureOwned>>,
}

/// hyper's connection, with upgrades, whose type can't be named.
trait Drive: Future<Output = Result<(), hyper::Error>> + Send + Unpin {}
impl<F: Future<Output = Result<(), hyper::Error>> + Send + Unpin> Drive for F {}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream")
            .field("open", &self.driver.is_some())
            .finish_non_exhaustive()
    }
}

impl Upstream {
    /// Speaks HTTP/1.1 over `stream` from now on. Nothing is sent yet.
    pub(crate) async fn handshake(
        stream: TcpStream,
        max_header_bytes: usize,
    ) -> Result<Self, ConnectFailure> {
        let (stream, fate) = InstanceStream::new(stream);
        let (sender, driver): (_, Driver) = http1::Builder::new()
            .max_buf_size(max_header_bytes.max(64 << 10))
            .handshake(TokioIo::new(stream))
            .await
            .map_err(ConnectFailure::Handshake)?;
        Ok(Self {
            sender,
            fate,
            driver: Some(Box::new(driver.with_upgrades())),
            idle_since: None,
            dead: None,
        })
    }

    /// Whether a request may be sent, as far as is known. A close by the app that was not seen yet is seen before anything is
    /// written, and the request comes back unsent.
    pub(crate) fn is_open(&self) -> bool {
        self.driver.is_some() && !self.sender.is_closed()
    }

    /// Ready when the instance, whose token `dead` is, has died. It costs next to nothing while it lives: a connection keeps
    /// listening from its first request on.
    pub(crate) fn poll_dead(
        &mut self,
        dead: &CancellationToken,
        context: &mut Context<'_>,
    ) -> Poll<()> {
        let listen = || Seldom::new(dead.clone().cancelled_owned());
        Pin::new(self.dead.get_or_insert_with(listen)).poll(context)
    }

    /// Whether its last message is over on both sides, so that it may be kept for another.
    pub(crate) fn is_reusable(&mut self) -> bool {
        if !self.sender.is_ready() {
            self.drive(&mut Context::from_waker(Waker::noop()));
        }
        self.driver.is_some() && self.sender.is_ready() && !self.fate.broken.load(Ordering::Relaxed)
    }

    /// Begins to send. The answer comes from [`Upstream::poll_answer`].
    pub(crate) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Pin<Box<dyn Future<Output = Answer> + Send>> {
        Box::pin(unconstrained(self.sender.try_send_request(request)))
    }

    /// Drives the connection until `answer` is there.
    pub(crate) fn poll_answer(
        &mut self,
        answer: &mut Pin<Box<dyn Future<Output = Answer> + Send>>,
        context: &mut Context<'_>,
    ) -> Poll<Answer> {
        self.drive(context);
        // With the driver gone, what was not sent comes back in an error.
        answer
            .as_mut()
            .poll(&mut Context::from_waker(Waker::noop()))
    }

    /// Drives the connection until `body` has a frame.
    pub(crate) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let look = |body: &mut Incoming| {
            let frame = unconstrained(poll_fn(|context| Pin::new(&mut *body).poll_frame(context)));
            pin!(frame).poll(&mut Context::from_waker(Waker::noop()))
        };
        // The first look says that a frame is wanted; without it the connection would not read on.
        match look(body) {
            Poll::Ready(frame) => Poll::Ready(frame),
            Poll::Pending => {
                self.drive(context);
                look(body)
            }
        }
    }

    /// Drives the connection to its end, as an upgrade needs.
    pub(crate) async fn finish(mut self) {
        self.fate.strict.store(true, Ordering::Relaxed);
        if let Some(driver) = self.driver.take()
            && let Err(error) = driver.await
        {
            tracing::debug!(%error, "connection to an instance ended");
        }
    }

    fn drive(&mut self, context: &mut Context<'_>) {
        if let Some(driver) = self.driver.as_mut()
            && let Poll::Ready(ended) = Pin::new(driver).poll(context)
        {
            if let Err(error) = ended {
                tracing::debug!(%error, "connection to an instance ended");
            }
            // Dropping it hands back a request that was not yet taken up, and fails a body that is not complete.
            self.driver = None;
        }
    }
}
