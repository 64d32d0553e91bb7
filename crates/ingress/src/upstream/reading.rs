//! The half of a connection that answers come from.
//!
//! Invariants:
//! 1. What is read is never more than one head or one piece of a body may be, however much an app sends.
//! 2. An answer ends where its head says, to the byte; a connection that said more than that serves no other request.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use http_body::{Frame, SizeHint};
use tokio::io::AsyncRead;
use tokio_util::io::poll_read_buf;

use super::chunks::{Chunks, Piece};
use super::fault::Fault;
use super::head::{self, Head, Length};

/// What is asked of the socket at first. It doubles while that is used up, and halves when twice in a row it was far too much.
const FIRST_READ: usize = 8 << 10;

/// Bytes of all heads that may come before the one of an answer: `102 Processing` every second of an hour is a tenth of that. An app
/// that sends nothing else would keep its task from everything but reading.
const INTERIM_BYTES: usize = 1 << 20;

/// What comes next.
#[derive(Debug)]
enum Place {
    /// An answer, or nothing as long as nothing was asked.
    Head,
    Bytes(u64),
    Chunked(Chunks),
    UntilClose,
    /// The answer is over.
    End,
    /// Nothing that makes sense.
    Broken,
}

#[derive(Debug)]
pub(super) struct Reading {
    read: BytesMut,
    place: Place,
    /// Bytes of `read` that had no whole head in them.
    seen: usize,
    /// Bytes of the heads that came before this answer's.
    interim: usize,
    /// Memory for reading heads.
    places: Vec<head::Place>,
    /// Bytes that a head may have, and that are read at once.
    most: usize,
    next: usize,
    shrinks: bool,
    /// The last answer allows another request.
    keeps: bool,
    /// Something came since the last request.
    pub(super) answers: bool,
}

impl Reading {
    pub(super) fn new(most: usize) -> Self {
        Self {
            read: BytesMut::new(),
            place: Place::Head,
            seen: 0,
            interim: 0,
            places: Vec::new(),
            most,
            next: FIRST_READ,
            shrinks: false,
            keeps: true,
            answers: false,
        }
    }

    /// Reads on; ready with the number of bytes, 0 at the end.
    fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<Result<usize, Fault>> {
        let want = self.next.min(self.most.saturating_sub(self.read.len()));
        if self.read.capacity() - self.read.len() < want {
            self.read.reserve(want);
        }
        let mut room = (&mut self.read).limit(want);
        let came = ready!(poll_read_buf(Pin::new(stream), context, &mut room));
        let came = came.map_err(Fault::Socket)?;
        self.answers |= came > 0;
        let less = self.next / 2;
        if came >= self.next {
            self.next = (self.next * 2).min(self.most);
            self.shrinks = false;
        } else if came >= less {
            self.shrinks = false;
        } else if std::mem::replace(&mut self.shrinks, true) {
            self.next = less.max(FIRST_READ);
            self.shrinks = false;
        }
        Poll::Ready(Ok(came))
    }

    /// Before a request is written on a connection that was kept: pending while its app has neither closed it nor said anything.
    pub(super) fn poll_idle<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<Fault> {
        self.poll_read(stream, context).map(|read| match read {
            Ok(0) => Fault::Closed,
            Ok(_) => Fault::Unasked,
            Err(fault) => fault,
        })
    }

    /// A request is written.
    pub(super) fn expect(&mut self) {
        self.place = Place::Head;
        self.answers = false;
        self.interim = 0;
    }

    /// The head of the answer; `heard` is told what comes before it. `to_head`: it answers HEAD. `headers` is where it is put.
    pub(super) fn poll_head<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        (headers, to_head): (&mut HeaderMap, bool),
        mut heard: impl FnMut(StatusCode, &HeaderMap),
        context: &mut Context<'_>,
    ) -> Poll<Result<Head, Fault>> {
        loop {
            if !self.read.is_empty()
                && (self.seen == 0 || head::may_be_whole(&self.read, self.seen))
            {
                let space = (&mut *headers, &mut self.places);
                let before = self.read.len();
                match head::take(&mut self.read, space, to_head)? {
                    Some(head)
                        if head.status.is_informational()
                            && head.status != StatusCode::SWITCHING_PROTOCOLS =>
                    {
                        heard(head.status, &head.headers);
                        *headers = head.headers;
                        self.seen = 0;
                        self.interim += before - self.read.len();
                        if self.interim > INTERIM_BYTES {
                            return Poll::Ready(Err(Fault::HeadTooLarge));
                        }
                        continue;
                    }
                    Some(head) => {
                        self.seen = 0;
                        self.begin(&head);
                        return Poll::Ready(Ok(head));
                    }
                    None => {}
                }
            }
            if self.read.len() >= self.most {
                return Poll::Ready(Err(Fault::HeadTooLarge));
            }
            self.seen = self.read.len();
            if ready!(self.poll_read(stream, context))? == 0 {
                return Poll::Ready(Err(Fault::Closed));
            }
        }
    }

    fn begin(&mut self, head: &Head) {
        self.keeps = head.keeps && head.status != StatusCode::SWITCHING_PROTOCOLS;
        self.place = match head.length {
            Length::Bytes(0) => Place::End,
            Length::Bytes(bytes) => Place::Bytes(bytes),
            Length::Chunked => Place::Chunked(Chunks::new()),
            Length::UntilClose => Place::UntilClose,
        };
    }

    /// The next frame of the answer's body.
    pub(super) fn poll_frame<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Fault>>> {
        loop {
            match self.take() {
                Ok(Some(Piece::Data(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Some(Piece::Trailers(trailers))) => {
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                Ok(Some(Piece::End)) => return Poll::Ready(None),
                Ok(None) => {}
                Err(fault) => return Poll::Ready(Some(Err(self.broken(fault)))),
            }
            match ready!(self.poll_read(stream, context)) {
                Ok(0) if matches!(self.place, Place::UntilClose) => self.place = Place::End,
                Ok(0) => return Poll::Ready(Some(Err(self.broken(Fault::Closed)))),
                Ok(_) => {}
                Err(fault) => return Poll::Ready(Some(Err(self.broken(fault)))),
            }
        }
    }

    fn broken(&mut self, fault: Fault) -> Fault {
        self.place = Place::Broken;
        self.keeps = false;
        fault
    }

    /// What can be taken from what was read.
    fn take(&mut self) -> Result<Option<Piece>, Fault> {
        match &mut self.place {
            Place::End => Ok(Some(Piece::End)),
            Place::Head | Place::Broken => Err(Fault::Closed),
            _ if self.read.is_empty() => Ok(None),
            Place::UntilClose => Ok(Some(Piece::Data(self.read.split().freeze()))),
            Place::Bytes(left) => {
                let taken = usize::try_from(*left)
                    .map_or(self.read.len(), |left| left.min(self.read.len()));
                *left -= taken as u64;
                if *left == 0 {
                    self.place = Place::End;
                }
                Ok(Some(Piece::Data(self.read.split_to(taken).freeze())))
            }
            Place::Chunked(chunks) => {
                let piece = chunks.next(&mut self.read)?;
                if matches!(piece, Some(Piece::End | Piece::Trailers(_))) {
                    self.place = Place::End;
                }
                Ok(piece)
            }
        }
    }

    /// Whether the answer is over.
    pub(super) const fn is_over(&self) -> bool {
        matches!(self.place, Place::End)
    }

    /// What is left of the body, where that is known.
    pub(super) fn left(&self) -> SizeHint {
        match self.place {
            Place::End => SizeHint::with_exact(0),
            Place::Bytes(left) => SizeHint::with_exact(left),
            _ => SizeHint::default(),
        }
    }

    /// While it idles it keeps no more memory than most answers need.
    pub(super) fn rest(&mut self) {
        if self.next > FIRST_READ {
            self.next = FIRST_READ;
            self.read = BytesMut::new();
        }
    }

    /// Whether another answer may follow.
    pub(super) fn is_clean(&self) -> bool {
        self.keeps && self.is_over() && self.read.is_empty()
    }

    /// What was read and is no part of the answer.
    pub(super) fn into_rest(self) -> Bytes {
        self.read.freeze()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    fn head_of(mut said: &[u8]) -> (Poll<Result<StatusCode, String>>, usize) {
        let (mut headers, mut heard) = (HeaderMap::new(), 0);
        let context = &mut Context::from_waker(Waker::noop());
        let mut reading = Reading::new(16 << 10);
        reading.expect();
        let hear = |_, _: &HeaderMap| heard += 1;
        let head = reading.poll_head(&mut said, (&mut headers, false), hear, context);
        let head = head.map(|head| head.map(|head| head.status).map_err(|e| e.to_string()));
        (head, heard)
    }

    #[test]
    fn heads_before_an_answer_are_many_but_not_without_end() {
        const EARLY: &str = "HTTP/1.1 102 Processing\r\n\r\n";
        let said = EARLY.repeat(3_600) + "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n";
        let (head, heard) = head_of(said.as_bytes());
        assert_eq!((head, heard), (Poll::Ready(Ok(StatusCode::OK)), 3_600));
        let (head, _) = head_of(EARLY.repeat(INTERIM_BYTES / EARLY.len() + 1).as_bytes());
        assert_eq!(head, Poll::Ready(Err(Fault::HeadTooLarge.to_string())));
    }
}
