//! How one client's connection comes to its end: because the server leaves, or because its open file is wanted.
//!
//! Owns: the steps and their times, and when a connection may rest until its next request. Deliberately not here: driving the connection (`connection`), who is asked to close (`hall`).
//!
//! The server leaves: HTTP/2 says so at once (`farewell`) and takes what crosses that; HTTP/1.1 says so with its next answer.
//! After the last words the connection ends as soon as nothing is under way. Asked to close while idle it is the same, but that
//! HTTP/1.1, which has no word for it, closes as it does when it was idle for too long. What turns out not to be idle stays.
//! Where the next server can have the socket, HTTP/1.1 isn't closed when the server leaves, but goes on there once it is idle.
//!
//! Invariants:
//! 1. Nothing that has begun is cut off by a wish for room, as long as its client is there: who still has something to take
//!    after [`GRACE`] gets a place among the busy ones. If there is none, its client lets the last piece of an answer lie while
//!    nobody can be let in.
//! 2. Bytes that have reached the kernel are read before a connection is closed over them.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep};
use tokio_util::sync::WaitForCancellationFuture;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::client::{Client, UnderWay};
use crate::deadline::Deadline;
use crate::seldom::Seldom;
use crate::serve::{Door, FIRST_BYTES};

/// After the shutdown a client that keeps a connection may have a request on its way: it is answered, as the last one. Whoever
/// sends more seldom is not likely to send just when its connection is closed.
const LAST_WORDS: Duration = Duration::from_millis(250);

/// What has come at the end of the last words is waited for in steps of this: it is read at once.
const CROSSING: Duration = Duration::from_millis(1);

/// An idle connection closes in one round trip of its client. One that takes longer has something left to say, or its client is
/// gone.
const GRACE: Duration = Duration::from_secs(2);

/// A connection is looked at so often, and rests when it had nothing to do since the last time. Who asks several times a second
/// isn't made to pay for it; browsers keep connections for minutes.
const LOOK: Duration = Duration::from_secs(1);

/// What is to be done with the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It is polled once more: what it does now is another thing.
    Poll,
    /// It ends once nothing is under way.
    Shut,
    /// It ends now.
    Cut,
    /// It goes on, and has been idle for so long that it should cost nothing but its socket.
    Rest,
    /// It goes on with the next server.
    Go,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    /// It says that it will end, or listens for what crosses that.
    Said,
    /// It was told to end.
    Shut,
}

enum Event {
    Leaves,
    Called,
    Strikes,
    Rests,
    Parted,
}

/// The end of one connection.
pub(crate) struct Ending<'a> {
    door: &'a Door,
    client: &'a Arc<Client>,
    http2: bool,
    /// When the server leaves, the next one may have its socket.
    goes: bool,
    closing: Seldom<WaitForCancellationFuture<'a>>,
    cut: Seldom<WaitForCancellationFuture<'a>>,
    /// Given back when no request can come any more.
    early: Option<TaskTrackerToken>,
    stage: Stage,
    leaves: bool,
    called: bool,
    /// A head that has come in part when the server left has had its time.
    waited: bool,
    timer: Option<Pin<Box<Sleep>>>,
    /// It was asked to close and can't yet.
    stays: Option<UnderWay>,
    /// When to look whether it may rest; none while it does, or never may.
    look: Option<Deadline>,
    /// How many requests it had been answered at the last look.
    answered: u64,
}

impl<'a> Ending<'a> {
    pub(crate) fn new(
        door: &'a Door,
        client: &'a Arc<Client>,
        http2: bool,
        early: TaskTrackerToken,
    ) -> Self {
        Self {
            door,
            client,
            http2,
            goes: !http2 && door.hands_over,
            closing: Seldom::new(door.closing.cancelled()),
            cut: Seldom::new(door.cut.cancelled()),
            early: Some(early),
            stage: Stage::Open,
            leaves: false,
            called: false,
            waited: false,
            timer: None,
            stays: None,
            look: (!http2 && client.is_public()).then(look),
            answered: 0,
        }
    }

    /// It rested until something came.
    pub(crate) fn goes_on(&mut self) {
        self.look = Some(look());
        self.answered = 0;
    }

    /// Waits for what is to be done next. The connection must have been polled in the same poll before.
    pub(crate) async fn next(&mut self) -> Step {
        loop {
            let event = tokio::select! {
                biased;
                () = &mut self.closing, if !self.leaves => Event::Leaves,
                () = self.client.called(), if self.stage == Stage::Open => Event::Called,
                () = may_go(self.client), if self.leaves && self.goes => Event::Parted,
                () = strikes(&mut self.timer) => Event::Strikes,
                () = strikes(&mut self.look), if self.stage == Stage::Open => Event::Rests,
                () = &mut self.cut => return Step::Cut,
            };
            if let Some(step) = self.take(event) {
                return step;
            }
        }
    }

    fn take(&mut self, event: Event) -> Option<Step> {
        match (event, self.stage) {
            // open → said, because the server leaves
            (Event::Leaves, stage) => {
                self.leaves = true;
                self.door.is_closing.store(true, Ordering::Relaxed);
                self.client.goes.store(self.goes, Ordering::Relaxed);
                if stage == Stage::Open {
                    return Some(self.say(LAST_WORDS));
                }
            }
            // open → said, because somebody needs its open file
            (Event::Called, _) => {
                self.called = true;
                // A moment, so that the connection is polled once more with an eye on what crosses.
                return Some(self.say(if self.http2 { LAST_WORDS } else { CROSSING }));
            }
            (Event::Parted, _) => return Some(Step::Go),
            (Event::Strikes, Stage::Open) => self.timer = None,
            (Event::Rests, _) => {
                self.look = Some(look());
                let answered = self.client.answered.load(Ordering::Acquire);
                if std::mem::replace(&mut self.answered, answered) == answered
                    && self.client.may_rest()
                {
                    self.look = None;
                    return Some(Step::Rest);
                }
            }
            (Event::Strikes, Stage::Said) => {
                // The connection has just been polled: if its next request is in the kernel already, it is answered.
                if self.client.crossing.swap(false, Ordering::AcqRel) {
                    self.strike_in(CROSSING);
                } else if self.goes && !self.waited && self.client.has_part_alone() {
                    // The rest of its head is on its way: as long as first bytes are waited for.
                    self.waited = true;
                    self.strike_in(FIRST_BYTES.saturating_sub(LAST_WORDS));
                } else if self.called && !self.leaves && !self.http2 && !self.client.is_called() {
                    // said → open, because its next request came first
                    self.client.leaving.store(false, Ordering::Release);
                    self.client.stays(true);
                    (self.stage, self.called, self.timer) = (Stage::Open, false, None);
                } else {
                    // said → shut
                    self.early = None;
                    self.stage = Stage::Shut;
                    self.client.spoke.store(false, Ordering::Relaxed);
                    if self.called {
                        // It may be deaf: from here on nobody counts on its open file, and others are asked in its stead.
                        self.client.stays(false);
                        self.strike_in(GRACE);
                    } else {
                        self.timer = None;
                        if self.goes && !self.client.has_part_alone() {
                            // Its answer ends first, or it is cut.
                            return None;
                        }
                    }
                    return Some(Step::Shut);
                }
            }
            (Event::Strikes, Stage::Shut) if self.client.is_busy() => {
                self.client.stays(false);
                self.strike_in(GRACE);
            }
            // Not even a PING was answered: nobody waits for the rest of anything there.
            (Event::Strikes, Stage::Shut)
                if self.http2 && !self.client.spoke.load(Ordering::Relaxed) =>
            {
                return Some(Step::Cut);
            }
            (Event::Strikes, Stage::Shut) => {
                self.timer = None;
                match self.client.begin() {
                    Ok(stays) => {
                        self.client.stays(false);
                        self.stays = Some(stays);
                    }
                    Err(_) => return Some(Step::Cut),
                }
            }
        }
        None
    }

    fn say(&mut self, wait: Duration) -> Step {
        self.client.leaving.store(true, Ordering::Release);
        self.stage = Stage::Said;
        self.strike_in(wait);
        Step::Poll
    }

    fn strike_in(&mut self, wait: Duration) {
        self.timer = Some(Box::pin(tokio::time::sleep_until(Instant::now() + wait)));
    }
}

fn look() -> Deadline {
    Deadline::new(Instant::now() + LOOK)
}

/// Looks whenever the connection was polled: it is only then that this changes.
async fn may_go(client: &Client) {
    poll_fn(|_| match client.may_go() {
        true => Poll::Ready(()),
        false => Poll::Pending,
    })
    .await;
}

async fn strikes<F: Future<Output = ()> + Unpin>(timer: &mut Option<F>) {
    match timer {
        Some(timer) => timer.await,
        None => std::future::pending().await,
    }
}
