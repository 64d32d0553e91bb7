//! One client's connection, as its requests see it.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use http::StatusCode;

use crate::answer::Answer;
use crate::budget::Share;
use crate::flaw::Flaw;
use crate::headers::Seen;
use crate::interim::Interim;
use crate::places::Own;
use crate::rest::Rest;
use crate::serve::Scheme;

/// One client connection, as its requests see it.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) remote: IpAddr,
    /// A request was answered before its body was read: read on for a moment when closing.
    pub(crate) unread: AtomicBool,
    /// What is said before the answer.
    pub(crate) interim: Interim,
    /// Requests that were answered, of HTTP/1.1 in their order.
    pub(crate) answered: AtomicU64,
    /// The last answer switched to another protocol.
    pub(crate) switched: AtomicBool,
    /// It will end soon: nothing more should be sent on its connection.
    pub(crate) leaving: AtomicBool,
    /// Its connection goes on with the next server: no further request is read from it.
    pub(crate) goes: AtomicBool,
    /// A part of a head has come.
    pub(crate) part: AtomicBool,
    /// Nothing of a further request was read, nor will be.
    pub(crate) parted: AtomicBool,
    /// While it leaves: bytes had come, when its connection was last read, that the connection did not get yet.
    pub(crate) crossing: AtomicBool,
    /// Over HTTP/2: it has sent something since it was told to end.
    pub(crate) spoke: AtomicBool,
    /// All that was written to it has gone out.
    pub(crate) flushed: AtomicBool,
    /// Where its socket goes when it rests.
    pub(crate) rest: Rest,
    /// Why nothing more is taken from it.
    pub(crate) flaw: OnceLock<Flaw>,
    /// What apps are told of it.
    seen: OnceLock<Seen>,
    /// Where it connected to.
    pub(crate) local: OnceLock<IpAddr>,
    /// What it holds and draws on.
    own: Own,
}

/// Something that keeps a connection from being idle: a request, from its head to the end of its answer, or a part of a head.
/// As long as there is one, the connection has its place among all, even if another task goes on with it.
#[derive(Debug)]
pub(crate) struct UnderWay(Arc<Client>);

impl Client {
    pub(crate) fn new(remote: IpAddr, own: Own) -> Arc<Self> {
        Arc::new(Self {
            remote,
            unread: AtomicBool::new(false),
            interim: Interim::default(),
            answered: AtomicU64::new(0),
            switched: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            goes: AtomicBool::new(false),
            part: AtomicBool::new(false),
            parted: AtomicBool::new(false),
            crossing: AtomicBool::new(false),
            spoke: AtomicBool::new(false),
            flushed: AtomicBool::new(true),
            rest: Rest::default(),
            flaw: OnceLock::new(),
            seen: OnceLock::new(),
            local: OnceLock::new(),
            own,
        })
    }

    /// What its requests under way are counted in.
    pub(crate) fn requests(&self) -> &Arc<Share> {
        &self.own.requests
    }

    /// What apps are told of it; `scheme` is that of its connection.
    pub(crate) fn seen(&self, scheme: Scheme) -> &Seen {
        self.seen.get_or_init(|| Seen::of(self.remote, scheme))
    }

    /// Notes that one more request has its answer.
    pub(crate) fn answered(&self, status: StatusCode) {
        if status == StatusCode::SWITCHING_PROTOCOLS {
            self.switched.store(true, Ordering::Release);
        }
        self.answered.fetch_add(1, Ordering::Release);
    }

    /// Something begins. To be called in the connection's own task. Fails when there are no places left for what isn't idle.
    pub(crate) fn begin(self: &Arc<Self>) -> Result<UnderWay, Answer> {
        if let Some(stay) = &self.own.stay {
            stay.begin()?;
        }
        Ok(UnderWay(Arc::clone(self)))
    }

    /// Of a client from outside.
    pub(crate) const fn is_public(&self) -> bool {
        self.own.stay.is_some()
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.own.stay.as_ref().is_some_and(|stay| stay.is_busy())
    }

    /// Whether nothing but its socket is needed until its next request.
    pub(crate) fn may_rest(&self) -> bool {
        self.own.stay.as_ref().is_some_and(|stay| !stay.is_busy())
            && self.flushed.load(Ordering::Relaxed)
    }

    /// Whether a part of a head is all that keeps it busy.
    pub(crate) fn has_part_alone(&self) -> bool {
        let under_way = self.own.stay.as_ref().map(|stay| stay.under_way());
        self.part.load(Ordering::Relaxed) && under_way.is_some_and(|count| count <= 1)
    }

    /// Whether the next server may have its socket: all answers are with it, and nothing was read since.
    pub(crate) fn may_go(&self) -> bool {
        self.parted.load(Ordering::Relaxed) && self.may_rest()
    }

    /// What serves it is made anew, and counts from the beginning.
    pub(crate) fn begins_anew(&self) {
        self.answered.store(0, Ordering::Release);
        self.switched.store(false, Ordering::Release);
    }

    /// Returns once the connection was asked to close.
    pub(crate) async fn called(&self) {
        match &self.own.stay {
            Some(stay) => stay.called().await,
            None => std::future::pending().await,
        }
    }

    /// Whether it was asked to close, and nothing began since.
    pub(crate) fn is_called(&self) -> bool {
        self.own.stay.as_ref().is_some_and(|stay| stay.is_called())
    }

    /// It was asked to close and does not; `again`: it may be asked another time.
    pub(crate) fn stays(&self, again: bool) {
        if let Some(stay) = &self.own.stay {
            stay.refuse(again);
        }
    }
}

/// Counts those that rest.
#[cfg(test)]
pub(crate) struct Rests(Arc<crate::hall::Hall>);

#[cfg(test)]
impl Client {
    pub(crate) fn rests(&self) -> Option<Rests> {
        let hall = Arc::clone(self.own.stay.as_ref()?.hall());
        hall.resting.fetch_add(1, Ordering::SeqCst);
        Some(Rests(hall))
    }
}

#[cfg(test)]
impl Drop for Rests {
    fn drop(&mut self) {
        self.0.resting.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        if let Some(stay) = &self.0.own.stay {
            stay.end();
        }
    }
}
