//! One request inside an instance: which connection, what to do when it breaks, and upgrades.
//!
//! Invariants:
//! 1. A request is sent again only if the instance can't have seen it: hyper hands it back unsent, or it is a safe one
//!    without a body on a kept-alive connection that closed before a single byte of an answer came.
//! 2. It is sent again once, and on a new connection.
//!
//! Fails with an [`Answer`]: 503 or 500 (out of memory) when the instance broke, 413/400 when the client's body did, 504.

use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use utsuwa_model::route::Protocol;

use crate::Shared;
use crate::answer::Answer;
use crate::body::{BodyError, Meter, RequestBody};
use crate::deadline::Deadline;
use crate::handle::content_length;
use crate::instance::{ConnectFailure, Ending, Instance};
use crate::record::Exchange;
use crate::serve::Door;
use crate::slot::Slot;
use crate::upstream::Upstream;

/// How long a broken connection's cause may take to arrive: an instance that ran out of memory is reported a moment later.
const CAUSE: Duration = Duration::from_millis(200);

/// A connection used within this time has most likely not been closed by the app's own idle timeout, so no copy of the
/// request's head is kept for sending it again. Under load connections idle for microseconds.
const FRESH: Duration = Duration::from_millis(1);

/// A request ready to be sent.
pub(crate) struct Asked {
    pub(crate) request: Request<RequestBody>,
    /// Dropped once it is sent.
    pub(crate) early: TaskTrackerToken,
    /// The client's side, when it asks for WebSocket.
    pub(crate) upgrade: Option<OnUpgrade>,
    pub(crate) meter: Option<Arc<Meter>>,
    /// Bytes a message may have.
    pub(crate) limit: u64,
}

/// What the instance said.
pub(crate) enum Answered {
    Plain {
        response: Response<Incoming>,
        upstream: Option<Upstream>,
    },
    Upgraded {
        response: Response<Incoming>,
        tunnel: Tunnel,
    },
}

/// A connection that has left HTTP.
pub(crate) struct Tunnel {
    client: OnUpgrade,
    instance: OnUpgrade,
    upstream: Upstream,
    cut: CancellationToken,
    tasks: TaskTracker,
}

/// Why there is no answer.
enum Failure {
    Timeout,
    Ended,
    /// Sent, or partly so.
    Broken(hyper::Error),
    /// Never left, and was tried again already.
    Unsent(hyper::Error),
    Connect(ConnectFailure),
}

/// Sends `asked` to `instance` and waits for the head of its answer.
pub(crate) async fn ask(
    shared: &Shared,
    door: &Door,
    instance: &Arc<Instance>,
    protocol: Protocol,
    asked: Asked,
    deadline: &mut Deadline,
) -> Result<Answered, Answer> {
    let Asked {
        request,
        early,
        upgrade,
        meter,
        limit,
    } = asked;
    let head = *request.method() == Method::HEAD;
    let sent = match protocol {
        Protocol::Http1 => ask_http1(shared, instance, (request, early), deadline)
            .await
            .map(|(answer, up)| (answer, Some(up))),
        Protocol::H2c => Box::pin(ask_http2(instance, (request, early), deadline))
            .await
            .map(|answer| (answer, None)),
    };
    let (mut response, upstream) = match sent {
        Ok(sent) => sent,
        Err(failure) => {
            let why = explain(instance, meter.as_deref(), limit, failure);
            return Err(Box::pin(why).await);
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (Some(client), Some(upstream)) = (upgrade, upstream) else {
            return Err(Answer::Broken {
                message: "It switched protocols without being asked.".to_owned(),
            });
        };
        let tunnel = Tunnel {
            client,
            instance: hyper::upgrade::on(&mut response),
            upstream,
            cut: door.cut.clone(),
            tasks: door.tasks.clone(),
        };
        return Ok(Answered::Upgraded { response, tunnel });
    }
    if !head
        && let Some(bytes) = content_length(response.headers())
        && bytes > limit
    {
        return Err(Answer::ResponseTooLarge { bytes });
    }
    Ok(Answered::Plain { response, upstream })
}

async fn ask_http1(
    shared: &Shared,
    instance: &Arc<Instance>,
    (mut request, early): (Request<RequestBody>, TaskTrackerToken),
    deadline: &mut Deadline,
) -> Result<(Response<Incoming>, Upstream), Failure> {
    let (mut again, mut early) = (false, Some(early));
    loop {
        let kept = if again { None } else { kept(instance) };
        let was_kept = kept.is_some();
        let mut upstream = match kept {
            Some(upstream) => upstream,
            None => {
                let dial = async {
                    let stream = instance
                        .dial(instance.port)
                        .await
                        .map_err(ConnectFailure::Dial)?;
                    Upstream::handshake(stream, shared.outside.settings.max_header_bytes).await
                };
                // Boxed, since it is large and seldom.
                bounded(instance, deadline, Box::pin(dial))
                    .await?
                    .map_err(Failure::Connect)?
            }
        };
        let copy = upstream
            .idle_since
            .filter(|since| since.elapsed() >= FRESH)
            .and_then(|_| copy_of(&request));
        let mut answer = upstream.send(request);
        drop(early.take());
        let answer = poll_fn(|context| {
            if let Poll::Ready(answer) = upstream.poll_answer(&mut answer, context) {
                return Poll::Ready(Ok(answer));
            }
            if Pin::new(&mut *deadline).poll(context).is_ready() {
                return Poll::Ready(Err(Failure::Timeout));
            }
            let dead = upstream.poll_dead(&instance.dead, context);
            dead.map(|()| Err(Failure::Ended))
        })
        .await?;
        let mut error = match answer {
            Ok(response) => return Ok((response, upstream)),
            Err(error) => error,
        };
        let unsent = error.take_message();
        let error = error.into_error();
        request = match (unsent, copy) {
            (Some(request), _) if was_kept && !again => request,
            (None, Some(copy)) if !again && closed_unanswered(&error) => *copy,
            (Some(_), _) => return Err(Failure::Unsent(error)),
            (None, _) => return Err(Failure::Broken(error)),
        };
        again = true;
    }
}

/// An idle connection that still stands, as far as is known.
fn kept(instance: &Instance) -> Option<Upstream> {
    std::iter::from_fn(|| instance.idle()).find(Upstream::is_open)
}

/// A second copy of a request that may be sent twice; `None` for one that may not.
fn copy_of(request: &Request<RequestBody>) -> Option<Box<Request<RequestBody>>> {
    let safe = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    if !safe || !matches!(request.body(), RequestBody::Empty) {
        return None;
    }
    let mut copy = Box::new(Request::new(RequestBody::Empty));
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Whether the connection ended before a byte of the answer.
fn closed_unanswered(error: &hyper::Error) -> bool {
    error.is_incomplete_message()
        || error.is_closed()
        || error.is_canceled()
        || cause::<std::io::Error>(error).is_some()
}

async fn ask_http2(
    instance: &Arc<Instance>,
    (mut request, early): (Request<RequestBody>, TaskTrackerToken),
    deadline: &mut Deadline,
) -> Result<Response<Incoming>, Failure> {
    let (mut again, mut early) = (false, Some(early));
    loop {
        let mut sender = bounded(instance, deadline, instance.http2())
            .await?
            .map_err(Failure::Connect)?;
        drop(early.take());
        let error = match bounded(instance, deadline, sender.try_send_request(request)).await? {
            Ok(response) => return Ok(response),
            Err(error) => error,
        };
        let mut error = error;
        match error.take_message() {
            Some(unsent) if !again => request = unsent,
            Some(_) => return Err(Failure::Unsent(error.into_error())),
            None => return Err(Failure::Broken(error.into_error())),
        }
        again = true;
    }
}

/// `work`, unless the deadline passes or the instance ends first.
async fn bounded<T>(
    instance: &Instance,
    deadline: &mut Deadline,
    work: impl Future<Output = T>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        done = work => Ok(done),
        () = deadline => Err(Failure::Timeout),
        () = instance.dead.cancelled() => Err(Failure::Ended),
    }
}

fn cause<'e, E: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// The answer for a request that got none.
async fn explain(
    instance: &Instance,
    meter: Option<&Meter>,
    limit: u64,
    failure: Failure,
) -> Answer {
    if let Failure::Timeout = failure {
        return Answer::Timeout;
    }
    if meter.is_some_and(|meter| meter.too_large.load(Ordering::Acquire)) {
        return Answer::BodyTooLarge { limit };
    }
    if meter.is_some_and(|meter| meter.stalled.load(Ordering::Acquire)) {
        return Answer::SlowBody;
    }
    let message = match &failure {
        Failure::Timeout | Failure::Ended => "The instance ended.".to_owned(),
        Failure::Broken(error) | Failure::Unsent(error) => {
            if let Some(BodyError::Client(client)) = cause::<BodyError>(error) {
                let gone = client.is_incomplete_message()
                    || client.is_closed()
                    || cause::<std::io::Error>(client).is_some_and(|error| {
                        use std::io::ErrorKind::{
                            BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof,
                        };
                        matches!(
                            error.kind(),
                            BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof
                        )
                    });
                return if gone {
                    Answer::ClientGone
                } else {
                    Answer::BadBody {
                        message: chain(client),
                    }
                };
            }
            format!("({})", chain(error))
        }
        Failure::Connect(error) => format!("({})", chain(error)),
    };
    // The connection breaks a moment before we are told how the instance ended.
    drop(tokio::time::timeout(CAUSE, instance.dead.cancelled()).await);
    match instance.ending() {
        Some(Ending::OutOfMemory) => Answer::OutOfMemory,
        Some(Ending::Unhealthy) => Answer::Broken {
            message: "The instance was ended because its liveness probe failed.".to_owned(),
        },
        Some(Ending::Dead) | None => Answer::Broken { message },
    }
}

fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        next = error.source();
    }
    text
}

impl Tunnel {
    /// Passes bytes both ways until one side ends, the timeout strikes or the instance dies. Counts as in flight so long.
    pub(crate) fn start(self, slot: Slot, mut exchange: Exchange, mut deadline: Deadline) {
        let Self {
            client,
            instance,
            upstream,
            cut,
            tasks,
        } = self;
        tasks.spawn(async move {
            let dead = slot.instance().dead.clone();
            let copy = async {
                let ((), client, instance) = tokio::join!(upstream.finish(), client, instance);
                let (mut client, mut instance) = (TokioIo::new(client?), TokioIo::new(instance?));
                let copied = tokio::io::copy_bidirectional(&mut client, &mut instance).await;
                Ok::<_, hyper::Error>(copied)
            };
            let why = tokio::select! {
                copied = copy => match copied {
                    Ok(Ok((up, down))) => {
                        exchange.note(|record| {
                            record.request_bytes = up;
                            record.response_bytes = down;
                        });
                        None
                    }
                    Ok(Err(error)) => Some(format!("the WebSocket connection broke: {error}")),
                    Err(error) => Some(format!("the WebSocket connection could not be set up: {}", chain(&error))),
                },
                () = &mut deadline => Some(Answer::Timeout.log()),
                () = dead.cancelled() => Some("the instance ended while the WebSocket was open".to_owned()),
                () = cut.cancelled() => Some("the server was shut down while the WebSocket was open".to_owned()),
            };
            if let Some(why) = why {
                exchange.cut(&why);
            }
            drop(slot);
            drop(exchange);
        });
    }
}
