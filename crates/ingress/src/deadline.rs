//! The times that a task has to keep: a request's deadline, how long a head may take, how long a client may leave an answer lying.
//!
//! A timer of its own for each request costs a lock of all tasks' timers when it is set and another when it is taken away, and
//! hardly any ever strikes. Here a task has one timer, which stays set from request to request: who needs to be woken says so
//! ([`Deadline`]), and one that strikes too early is set anew. So a request that is answered in time costs no timer at all.
//!
//! hyper asks a body for its next frame only when it can write. While a client doesn't read, nobody asks, and a deadline that
//! only the body knows never strikes: the slot stays taken as long as the client likes. So the body leaves its deadline with
//! the task ([`leave`]), and whatever the task waits for instead of the body ends at it: over HTTP/1.1 the write to the socket
//! (`serve`'s stream), over HTTP/2 the whole stream ([`Streams`]), since its window may be closed while the socket is not.
//!
//! Owns: the times per task. Deliberately not here: what is done with the request (`body` frees its slot when dropped).
//!
//! Invariants:
//! 1. Leaving and looking up a deadline takes no lock and no memory.
//! 2. A task answers one request at a time: HTTP/1.1 has one per connection, HTTP/2 a task per stream.
//! 3. A [`Deadline`] that was polled has its task polled again when it has passed, in whatever task that is.

use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::rt::Executor;
use hyper_util::rt::TokioExecutor;
use tokio::task::unconstrained;
use tokio::time::{Instant, Sleep, sleep_until};

tokio::task_local! {
    static TIMES: Times;
}

/// What a task has to keep.
#[derive(Debug, Default)]
struct Times {
    /// The answer that it sends must have ended.
    until: Cell<Option<Instant>>,
    /// It wants to be polled.
    alarm: Cell<Option<Instant>>,
    /// The latest moment that is known to have passed.
    struck: Cell<Option<Instant>>,
}

/// What is due.
enum Due {
    /// Nothing: the timer was set for something that is over.
    Nothing,
    Look,
    End,
}

impl Times {
    /// The next moment at which something is to be done; `ends`: the task ends at what was left with it.
    fn next(&self, ends: bool) -> Option<Instant> {
        let until = self.until.get().filter(|_| ends);
        match (self.alarm.get(), until) {
            (Some(alarm), Some(until)) => Some(alarm.min(until)),
            (alarm, until) => alarm.or(until),
        }
    }

    fn wake_at(&self, at: Instant) {
        if self.alarm.get().is_none_or(|alarm| at < alarm) {
            self.alarm.set(Some(at));
        }
    }

    fn strike(&self, now: Instant, ends: bool) -> Due {
        self.struck.set(Some(now));
        if ends && self.until.get().is_some_and(|until| until <= now) {
            Due::End
        } else if self.alarm.get().is_some_and(|alarm| alarm <= now) {
            // Who still waits for a later moment says so again.
            self.alarm.set(None);
            Due::Look
        } else {
            Due::Nothing
        }
    }

    /// Whether `at` has passed; if not, the task is polled then.
    fn passed(&self, at: Instant) -> bool {
        if self.struck.get().is_some_and(|struck| at <= struck) {
            return true;
        }
        self.wake_at(at);
        false
    }
}

/// Runs `work` as a task that keeps times. It may be moved until it was polled first.
pub(crate) fn with_times<F: Future>(work: F) -> impl Future<Output = ()> + use<F> {
    timed(work, false)
}

fn timed<F: Future>(work: F, ends: bool) -> impl Future<Output = ()> + use<F> {
    let timed = Timed {
        work: Box::pin(work),
        timer: None,
        ends,
    };
    TIMES.scope(Times::default(), timed)
}

/// Leaves the deadline of an answer with this task, or takes it back. Outside of [`with_times`] it does nothing.
pub(crate) fn leave(until: Option<Instant>) {
    // Outside there is nobody who would look.
    let _nobody = TIMES.try_with(|times| times.until.set(until));
}

/// The deadline that was left with this task.
pub(crate) fn left() -> Option<Instant> {
    TIMES.try_with(|times| times.until.get()).ok().flatten()
}

/// A moment that can be waited for. In a task that keeps times it takes no timer.
#[derive(Debug)]
pub(crate) struct Deadline {
    at: Instant,
    /// Outside of such a task.
    own: Option<Pin<Box<Sleep>>>,
}

impl Deadline {
    pub(crate) const fn new(at: Instant) -> Self {
        Self { at, own: None }
    }

    pub(crate) const fn at(&self) -> Instant {
        self.at
    }
}

impl Future for Deadline {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let at = self.at;
        match TIMES.try_with(|times| times.passed(at)) {
            Ok(true) => Poll::Ready(()),
            Ok(false) => Poll::Pending,
            Err(_) => {
                let own = self.own.get_or_insert_with(|| Box::pin(sleep_until(at)));
                own.as_mut().poll(context)
            }
        }
    }
}

impl hyper::rt::Sleep for Deadline {}

/// hyper's timer of heads, kept by the connection's task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Heads;

impl hyper::rt::Timer for Heads {
    fn sleep(&self, time: Duration) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Deadline::new(Instant::now() + time))
    }

    fn sleep_until(&self, at: std::time::Instant) -> Pin<Box<dyn hyper::rt::Sleep>> {
        Box::pin(Deadline::new(Instant::from_std(at)))
    }

    fn now(&self) -> std::time::Instant {
        Instant::now().into_std()
    }
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
        TokioExecutor::new().execute(timed(stream, true));
    }
}

/// Work whose task keeps times.
struct Timed<F> {
    /// Boxed, since it is moved on its way into a task and may be large.
    work: Pin<Box<F>>,
    timer: Option<Pin<Box<Sleep>>>,
    /// It ends at the deadline that it left.
    ends: bool,
}

impl<F: Future> Future for Timed<F> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let Self { work, timer, ends } = &mut *self;
        loop {
            if work.as_mut().poll(context).is_ready() {
                return Poll::Ready(());
            }
            if let Due::End = ready!(due(timer, *ends, context)) {
                return Poll::Ready(());
            }
        }
    }
}

/// Waits until something is to be done.
fn due(timer: &mut Option<Pin<Box<Sleep>>>, ends: bool, context: &mut Context<'_>) -> Poll<Due> {
    loop {
        // Always within the scope.
        let Some(next) = TIMES.try_with(|times| times.next(ends)).ok().flatten() else {
            return Poll::Pending;
        };
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(next)));
        // One that is set too early is set anew when it strikes: until then the moment mostly moves away.
        if timer.deadline() > next || timer.is_elapsed() {
            timer.as_mut().reset(next);
        }
        // tokio's task budget is kept out of it: who used it up by reading would not hear that his time is over.
        ready!(pin!(unconstrained(timer.as_mut())).poll(context));
        let now = Instant::now();
        match TIMES.try_with(|times| times.strike(now, ends)) {
            Ok(Due::Nothing) => {}
            Ok(due) => return Poll::Ready(due),
            Err(_) => return Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, poll_fn};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::task::JoinSet;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn a_deadline_strikes_in_time_whether_or_not_its_task_keeps_times() {
        let began = Instant::now();
        Deadline::new(began + SECOND).await;
        assert_eq!(began.elapsed(), SECOND);
        with_times(async move {
            for second in 2..5 {
                // One that is over meanwhile leaves its alarm behind.
                let soon = Deadline::new(began + second * SECOND - SECOND / 2);
                tokio::select! {
                    biased;
                    () = soon => unreachable!("it is later"),
                    () = std::future::ready(()) => {}
                }
                Deadline::new(began + second * SECOND).await;
                assert_eq!(began.elapsed(), second * SECOND);
            }
            // In the past: at once.
            Deadline::new(began).await;
            assert_eq!(began.elapsed(), 4 * SECOND);
        })
        .await;
        assert_eq!(began.elapsed(), 4 * SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_deadline_that_moves_to_another_task_strikes_there() {
        let began = Instant::now();
        let (give, take) = tokio::sync::oneshot::channel();
        with_times(async move {
            let mut deadline = Deadline::new(began + SECOND);
            poll_fn(|context| {
                assert!(Pin::new(&mut deadline).poll(context).is_pending());
                Poll::Ready(())
            })
            .await;
            give.send(deadline).unwrap();
        })
        .await;
        let mut tasks = JoinSet::new();
        tasks.spawn(take.await.unwrap());
        tasks.join_next().await.unwrap().unwrap();
        assert_eq!(began.elapsed(), SECOND);
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_polled_once_for_many_deadlines() {
        let polls = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&polls);
        let began = Instant::now();
        with_times(async move {
            for request in 1..=100 {
                let deadline = Deadline::new(Instant::now() + 10 * SECOND);
                let answered = tokio::time::sleep(SECOND / 10);
                let (mut deadline, mut answered) = (deadline, Box::pin(answered));
                poll_fn(|context| {
                    counted.fetch_add(1, Ordering::Relaxed);
                    assert!(
                        Pin::new(&mut deadline).poll(context).is_pending(),
                        "{request}"
                    );
                    answered.as_mut().poll(context)
                })
                .await;
            }
        })
        .await;
        assert_eq!(began.elapsed(), 10 * SECOND);
        // Two for each, and hardly any for the alarms left behind.
        assert!(polls.load(Ordering::Relaxed) <= 202, "{polls:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_ends_at_the_deadline_it_left_and_no_connection_does() {
        let began = Instant::now();
        timed(
            async move {
                leave(Some(began + SECOND));
                pending::<()>().await;
            },
            true,
        )
        .await;
        assert_eq!(began.elapsed(), SECOND);
        let connection = with_times(async move {
            leave(Some(began + 2 * SECOND));
            pending::<()>().await;
        });
        let ended = tokio::time::timeout(10 * SECOND, connection).await;
        assert!(ended.is_err(), "its socket ends it");
    }
}
