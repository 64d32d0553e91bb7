//! Why there is no answer, or no whole one.

use std::io;

use crate::body::BodyError;

/// What is wrong with a connection to an instance, or with what came over it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    /// The app closed before its message was complete.
    #[error("connection closed before message completed")]
    Closed,
    #[error("connection error: {0}")]
    Socket(#[source] io::Error),
    #[error("malformed head of the answer: {0}")]
    Head(httparse::Error),
    #[error("message head is too large")]
    HeadTooLarge,
    #[error("malformed head of the answer: {0}")]
    Field(&'static str),
    #[error("malformed chunk of the answer: {0}")]
    Chunk(&'static str),
    #[error("malformed trailers of the answer: {0}")]
    Trailers(httparse::Error),
    /// Something was said before anything was asked, or after an answer's end.
    #[error("received unexpected message from connection")]
    Unasked,
    /// The client's side.
    #[error("{0}")]
    Request(#[source] BodyError),
}
