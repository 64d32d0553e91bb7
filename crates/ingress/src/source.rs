//! Where the body of an app's answer comes from, whichever protocol the app speaks.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use crate::body::BodyError;
use crate::upstream::{Fault, Upstream};

/// Where the body of an app's answer comes from.
pub(crate) enum Source {
    /// A connection that is this request's alone.
    Http1(Upstream),
    Http2(Incoming),
    /// It is over: its connection serves another request.
    Over,
    /// It was cut.
    Cut,
}

impl Source {
    pub(crate) fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self {
            Self::Http1(upstream) => upstream.poll_frame(context).map_err(|fault| match fault {
                Fault::Request(error) => error,
                fault => BodyError::Instance(Box::new(fault)),
            }),
            Self::Http2(incoming) => Pin::new(incoming)
                .poll_frame(context)
                .map_err(|error| BodyError::Instance(Box::new(error))),
            Self::Over | Self::Cut => Poll::Ready(None),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        match self {
            Self::Http1(upstream) => upstream.is_over(),
            Self::Http2(incoming) => incoming.is_end_stream(),
            Self::Over => true,
            Self::Cut => false,
        }
    }

    pub(crate) fn left(&self) -> SizeHint {
        match self {
            Self::Http1(upstream) => upstream.left(),
            Self::Http2(incoming) => incoming.size_hint(),
            Self::Over => SizeHint::with_exact(0),
            Self::Cut => SizeHint::default(),
        }
    }
}
