//! An HTTP/1.1 connection that has been idle for a while: its socket alone, without all that reads and answers.
//!
//! What serves a connection takes some 20 KiB, mostly buffers. While nothing comes it is of no use, and is made anew in some
//! microseconds once something does. HTTP/2 has state that can't be made anew, and stays as it is.
//!
//! Owns: the way of the socket out of what serves it, and waiting for more. Deliberately not here: when a connection may rest
//! (`ending`).
//!
//! Invariants:
//! 1. A connection rests only when every answer has been written whole and nothing of a request was read (`ending`).
//! 2. What comes while it rests is left in the socket.

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use crate::client::Client;
use crate::deadline::Deadline;
use crate::ending::{Ending, Step};
use crate::tls::Wire;

/// How long a client may take to make room for the word that TLS says last.
const LAST: Duration = Duration::from_secs(1);

/// Where the socket goes when what serves it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Rest {
    wanted: AtomicBool,
    wire: Mutex<Option<Wire>>,
}

impl Rest {
    /// What serves the connection is dropped next.
    pub(crate) fn prepare(&self) {
        self.wanted.store(true, Ordering::Relaxed);
    }

    /// Leaves the socket, if it is wanted.
    pub(crate) fn leave(&self, wire: &mut Wire) {
        if self.wanted.swap(false, Ordering::Relaxed) {
            *self.wire.lock() = Some(std::mem::replace(wire, Wire::Gone));
        }
    }

    /// The socket that was left.
    pub(crate) fn take(&self) -> Option<Wire> {
        self.wire.lock().take()
    }
}

/// What became of a connection that rested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rested {
    /// Something has come.
    More,
    Closed,
    /// It goes on with the next server.
    Goes,
}

/// Waits until something has come, until `until` at most; then the connection is closed. Only an answer makes that
/// `patience` from now on: an empty line and a TLS record without content give no more time.
pub(crate) async fn until_more(
    wire: &mut Wire,
    client: &Arc<Client>,
    ending: &mut Ending<'_>,
    (until, patience): (&mut Instant, Duration),
) -> Rested {
    if client.answered.load(Ordering::Acquire) > 0 {
        *until = Instant::now() + patience;
    }
    client.begins_anew();
    #[cfg(test)]
    let _rests = client.rests();
    let mut until = Deadline::new(*until);
    loop {
        let more = poll_fn(|context| {
            if client.goes.load(Ordering::Relaxed) {
                // What has come is for the next server to read.
                client.parted.store(true, Ordering::Relaxed);
                return Poll::Pending;
            }
            let more = wire.poll_readable(context);
            if more.is_pending() && client.leaving.load(Ordering::Acquire) {
                client.crossing.store(wire.has_unread(), Ordering::Release);
            }
            more
        });
        tokio::select! {
            biased;
            more = more => {
                ending.goes_on();
                return if more.is_ok() { Rested::More } else { Rested::Closed };
            }
            step = ending.next() => match step {
                Step::Poll | Step::Rest => {}
                Step::Go => return Rested::Goes,
                Step::Shut | Step::Cut => break,
            },
            () = &mut until => break,
        }
    }
    // It is closed, whatever its client says to that.
    let _gone: Result<io::Result<()>, _> = tokio::time::timeout(LAST, wire.shutdown()).await;
    Rested::Closed
}
