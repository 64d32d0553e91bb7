//! A body that stops coming: a client that sends half of one would hold an instance's slot until the request's timeout.
//!
//! Invariant: no timer is touched while frames keep coming; one that strikes too early is set anew.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// How long may pass between two frames.
#[derive(Debug)]
pub(crate) struct Pace {
    pause: Option<Duration>,
    last: Instant,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    /// `None`: as long as it likes.
    pub(crate) fn new(pause: Option<Duration>) -> Self {
        Self {
            pause,
            last: Instant::now(),
            timer: None,
        }
    }

    /// Passes on what came; `Err(None)` when nothing has come for too long.
    pub(crate) fn watch<F, E>(
        &mut self,
        frame: Poll<Option<Result<F, E>>>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<F, Option<E>>>> {
        let Some(pause) = self.pause else {
            return frame.map(|frame| frame.map(|frame| frame.map_err(Some)));
        };
        if let Poll::Ready(frame) = frame {
            if self.timer.is_some() {
                self.last = Instant::now();
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Some)));
        }
        let timer = self.timer.get_or_insert_with(|| {
            self.last = Instant::now();
            Box::pin(tokio::time::sleep(pause))
        });
        while timer.as_mut().poll(context).is_ready() {
            let until = self.last + pause;
            if timer.deadline() >= until {
                return Poll::Ready(Some(Err(None)));
            }
            timer.as_mut().reset(until);
        }
        Poll::Pending
    }
}
