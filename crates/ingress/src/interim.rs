//! What is said before an answer: `103 Early Hints` passed on, and `100 Continue` said when the app says so.
//!
//! hyper's server has no way to send an interim answer, so it is written beside it: into the client's socket, while hyper
//! itself has nothing to write. That holds from the end of a request's head to the beginning of its answer, on HTTP/1.1 where
//! one request is under way at a time. HTTP/2 clients don't get them: their frames can't be written past hyper.
//!
//! Invariants:
//! 1. An interim answer is written whole, before the first byte of the answer.
//! 2. A client that waits for `100 Continue` is not told to go on before the app was, unless the app is silent for
//!    [`PATIENCE`]: many wait for the body themselves.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use http::header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, StatusCode, Version};
use parking_lot::Mutex;
use tokio::io::AsyncWrite;
use tokio::time::Sleep;

use crate::answer::ANSWERED_BY;
use crate::body::RequestBody;
use crate::client::Client;

/// As long as the most used clients wait for it themselves.
const PATIENCE: Duration = Duration::from_secs(1);
/// An app that says more before its answer is not listened to.
const MAX_BYTES: usize = 64 << 10;

/// Interim answers on their way to a client.
#[derive(Debug, Default)]
pub(crate) struct Interim {
    any: AtomicBool,
    bytes: Mutex<BytesMut>,
}

impl Interim {
    fn push(&self, status: StatusCode, headers: &HeaderMap) {
        let mut bytes = self.bytes.lock();
        if bytes.len() > MAX_BYTES {
            return;
        }
        let reason = status.canonical_reason().unwrap_or("Interim");
        bytes.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_str()).as_bytes());
        for (name, value) in headers {
            let ours = [
                CONNECTION,
                CONTENT_LENGTH,
                TRANSFER_ENCODING,
                UPGRADE,
                ANSWERED_BY,
            ];
            let ours =
                ours.contains(name) || matches!(name.as_str(), "keep-alive" | "proxy-connection");
            if ours {
                continue;
            }
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        }
        bytes.extend_from_slice(b"\r\n");
        self.any.store(true, Ordering::Release);
    }

    /// Where it can't be told whether it would get into the middle of another answer.
    pub(crate) fn forget(&self) {
        if self.any.load(Ordering::Acquire) {
            self.bytes.lock().clear();
            self.any.store(false, Ordering::Release);
        }
    }

    /// Writes what there is.
    pub(crate) fn poll_write<S: AsyncWrite + Unpin>(
        &self,
        mut stream: S,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.any.load(Ordering::Acquire) {
            return Poll::Ready(Ok(()));
        }
        let mut bytes = self.bytes.lock();
        while !bytes.is_empty() {
            let written =
                std::task::ready!(Pin::new(&mut stream).poll_write(context, bytes.chunk()))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            bytes.advance(written);
        }
        self.any.store(false, Ordering::Release);
        Poll::Ready(Ok(()))
    }
}

/// Keeps a request's body back until the app asks for it.
#[derive(Debug)]
pub(crate) struct Gate {
    asked: Arc<AtomicBool>,
    patience: Pin<Box<Sleep>>,
}

impl Gate {
    pub(crate) fn poll_open(&mut self, context: &mut Context<'_>) -> Poll<()> {
        if self.asked.load(Ordering::Acquire) {
            return Poll::Ready(());
        }
        pin!(&mut self.patience).poll(context)
    }
}

/// Passes interim answers on to a client.
#[derive(Debug)]
pub(crate) struct Listener<'c> {
    /// Set when the app asks for the body.
    asked: Option<Arc<AtomicBool>>,
    client: &'c Client,
}

/// Has the interim answers to `request` passed on to `client`, where that can be. `expects`: it waits for `100 Continue`.
pub(crate) fn pass_on<'c>(
    request: &mut http::Request<RequestBody>,
    asked_by: Version,
    client: &'c Client,
    expects: bool,
) -> Option<Listener<'c>> {
    if asked_by != Version::HTTP_11 {
        return None;
    }
    let mut asked = None;
    if expects && let RequestBody::Client { gate, .. } = request.body_mut() {
        let asked = asked.insert(Arc::new(AtomicBool::new(false)));
        *gate = Some(Gate {
            asked: Arc::clone(asked),
            patience: Box::pin(tokio::time::sleep(PATIENCE)),
        });
    }
    Some(Listener { asked, client })
}

impl Listener<'_> {
    /// An interim answer came.
    pub(crate) fn hear(&self, status: StatusCode, headers: &HeaderMap) {
        match status {
            StatusCode::CONTINUE => {
                if let Some(asked) = &self.asked {
                    asked.store(true, Ordering::Release);
                }
            }
            status => self.client.interim.push(status, headers),
        }
    }
}
