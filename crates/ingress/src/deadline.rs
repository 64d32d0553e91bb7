//! When the answer that a task sends must have ended, known to the task even while nobody asks for the answer's body.
//!
//! hyper asks a body for its next frame only when it can write. While a client doesn't read, nobody asks, and a deadline that
//! only the body knows never strikes: the slot stays taken as long as the client likes. So the body leaves its deadline with
//! the task, and whatever the task waits for instead of the body ends at it: over HTTP/1.1 the write to the socket
//! (`serve`'s stream), over HTTP/2 the whole stream ([`Streams`]), since its window may be closed while the socket is not.
//!
//! Owns: the deadline per task. Deliberately not here: what is done with the request (`body` frees its slot when dropped).
//!
//! Invariants:
//! 1. Leaving and looking up a deadline takes no lock and no memory.
//! 2. A task answers one request at a time: HTTP/1.1 has one per connection, HTTP/2 a task per stream.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::time::{Instant, Sleep, sleep_until};

tokio::task_local! {
    static UNTIL: Cell<Option<Instant>>;
}

/// Runs `work` as a task that can be left a deadline.
pub(crate) async fn with_one<T>(work: impl Future<Output = T>) -> T {
    UNTIL.scope(Cell::new(None), work).await
}

/// Leaves the deadline of an answer with this task, or takes it back. Outside of [`with_one`] it does nothing.
pub(crate) fn leave(until: Option<Instant>) {
    // Outside there is nobody who would look.
    let _nobody = UNTIL.try_with(|place| place.set(until));
}

/// The deadline that was left with this task.
pub(crate) fn left() -> Option<Instant> {
    UNTIL.try_with(Cell::get).ok().flatten()
}

/// Runs the streams of HTTP/2 connections; one whose answer has reached its deadline is dropped, which resets it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Streams;

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, stream: F) {
        TokioExecutor::new().execute(with_one(bounded(stream)));
    }
}

/// `stream`, until it ends or the deadline that it left has passed.
async fn bounded<F: Future>(stream: F) {
    let mut stream = pin!(stream);
    let mut timer = pin!(None::<Sleep>);
    poll_fn(|context| {
        if stream.as_mut().poll(context).is_ready() {
            return Poll::Ready(());
        }
        let Some(until) = left() else {
            return Poll::Pending;
        };
        // One that is set too early is set anew when it strikes: with each frame the deadline may move away.
        let set = timer.as_ref().as_pin_ref().map(|timer| timer.deadline());
        if set.is_none_or(|set| set > until) {
            timer.set(Some(sleep_until(until)));
        }
        while let Some(mut set) = timer.as_mut().as_pin_mut() {
            if set.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            if set.deadline() >= until {
                return Poll::Ready(());
            }
            set.reset(until);
        }
        Poll::Pending
    })
    .await;
}
