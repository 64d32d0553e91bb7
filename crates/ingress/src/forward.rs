//! One request inside an instance: which connection, what to do when it breaks, and upgrades.
//!
//! Invariants:
//! 1. A request is sent again only if the instance can't have seen it: nothing of it was written, or it is a safe one
//!    without a body on a kept-alive connection that closed before a single byte of an answer came.
//! 2. It is sent again once, and on a new connection.
//!
//! Fails with an [`Answer`]: 503 or 500 (out of memory) when the instance broke, 413/400 when the client's body did, 504.

use std::error::Error as StdError;
use std::future::{Future, poll_fn};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
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
use crate::interim::Listener;
use crate::record::Exchange;
use crate::serve::Door;
use crate::slot::Slot;
use crate::source::Source;
use crate::upstream::{Unanswered, Upstream};

/// How long a broken connection's cause may take to arrive: an instance that ran out of memory is reported a moment later.
const CAUSE: Duration = Duration::from_millis(200);

/// A request ready to be sent.
pub(crate) struct Asked<'c> {
    pub(crate) request: Request<RequestBody>,
    /// Who is told what is said before the answer.
    pub(crate) listener: Option<Listener<'c>>,
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
    Plain(Response<Source>),
    Upgraded {
        response: Response<()>,
        tunnel: Tunnel,
    },
}

/// A connection that has left HTTP.
pub(crate) struct Tunnel {
    client: OnUpgrade,
    upstream: Upstream,
    cut: CancellationToken,
    tasks: TaskTracker,
}

/// Why there is no answer.
enum Failure {
    Timeout,
    Ended,
    /// Sent, or partly so.
    Broken(Box<dyn StdError + Send + Sync>),
    /// Never left, and was tried again already.
    Unsent(Box<dyn StdError + Send + Sync>),
    Connect(ConnectFailure),
}

/// Sends `asked` to `instance` and waits for the head of its answer.
pub(crate) async fn ask(
    shared: &Shared,
    door: &Door,
    instance: &Arc<Instance>,
    protocol: Protocol,
    asked: Asked<'_>,
    deadline: &mut Deadline,
) -> Result<Answered, Answer> {
    let Asked {
        request,
        listener,
        early,
        upgrade,
        meter,
        limit,
    } = asked;
    let head = *request.method() == Method::HEAD;
    let sent = match protocol {
        Protocol::Http1 => ask_http1(shared, instance, (request, early), listener, deadline)
            .await
            .map(|(answer, upstream)| answer.map(|()| Source::Http1(upstream))),
        Protocol::H2c => Box::pin(ask_http2(instance, (request, early), deadline))
            .await
            .map(|answer| answer.map(Source::Http2)),
    };
    let response = match sent {
        Ok(sent) => sent,
        Err(failure) => {
            let why = explain(instance, meter.as_deref(), limit, failure);
            return Err(Box::pin(why).await);
        }
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let (parts, source) = response.into_parts();
        let (Some(client), Source::Http1(upstream)) = (upgrade, source) else {
            return Err(Answer::Broken {
                message: "It switched protocols without being asked.".to_owned(),
            });
        };
        let tunnel = Tunnel {
            client,
            upstream,
            cut: door.cut.clone(),
            tasks: door.tasks.clone(),
        };
        let response = Response::from_parts(parts, ());
        return Ok(Answered::Upgraded { response, tunnel });
    }
    if !head
        && let Some(bytes) = content_length(response.headers())
        && bytes > limit
    {
        return Err(Answer::ResponseTooLarge { bytes });
    }
    Ok(Answered::Plain(response))
}

async fn ask_http1(
    shared: &Shared,
    instance: &Arc<Instance>,
    (mut request, early): (Request<RequestBody>, TaskTrackerToken),
    listener: Option<Listener<'_>>,
    deadline: &mut Deadline,
) -> Result<(Response<()>, Upstream), Failure> {
    let (mut again, mut early) = (false, Some(early));
    // How the first attempt ended, where an app may have seen it.
    let mut silent = None;
    let may_repeat = may_repeat(&request);
    loop {
        let kept = if again { None } else { instance.idle() };
        let was_kept = kept.is_some();
        let mut upstream = match kept {
            Some(upstream) => upstream,
            None => {
                // Boxed, since it is large and seldom.
                let dial = Box::pin(instance.dial(instance.port));
                let stream = bounded(instance, deadline, dial).await?;
                let stream = stream.map_err(|error| match silent.take() {
                    Some(fault) => Failure::Broken(Box::new(fault)),
                    None => Failure::Connect(ConnectFailure::Dial(error)),
                })?;
                Upstream::new(stream, shared.outside.settings.max_header_bytes)
            }
        };
        drop(early.take());
        let answer = poll_fn(|context| {
            let heard = |status, headers: &_| {
                if let Some(listener) = &listener {
                    listener.hear(status, headers);
                }
            };
            if let Poll::Ready(answer) = upstream.poll_answer(&mut request, heard, context) {
                return Poll::Ready(Ok(answer));
            }
            if Pin::new(&mut *deadline).poll(context).is_ready() {
                return Poll::Ready(Err(Failure::Timeout));
            }
            let dead = upstream.poll_dead(&instance.dead, context);
            dead.map(|()| Err(Failure::Ended))
        })
        .await?;
        match answer {
            Ok(response) => return Ok((response, upstream)),
            Err(Unanswered::Unsent(_)) if was_kept => {}
            Err(Unanswered::Silent(fault)) if may_repeat && upstream.was_used() => {
                silent = Some(fault);
            }
            Err(Unanswered::Unsent(fault)) => return Err(Failure::Unsent(Box::new(fault))),
            Err(Unanswered::Silent(fault) | Unanswered::Broken(fault)) => {
                return Err(Failure::Broken(Box::new(fault)));
            }
        }
        again = true;
    }
}

/// Whether a request may be sent a second time, though an app may have seen it.
fn may_repeat(request: &Request<RequestBody>) -> bool {
    let safe = matches!(
        *request.method(),
        Method::GET | Method::HEAD | Method::OPTIONS
    );
    safe && matches!(request.body(), RequestBody::Empty)
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
            Some(_) => return Err(Failure::Unsent(Box::new(error.into_error()))),
            None => return Err(Failure::Broken(Box::new(error.into_error()))),
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
            if let Some(BodyError::Client(client)) = cause::<BodyError>(error.as_ref()) {
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
            format!("({})", chain(error.as_ref()))
        }
        Failure::Connect(error) => format!("({})", chain(error)),
    };
    let message = match instance.greeting.advice() {
        Some(advice) => format!("{advice} {message}"),
        None => message,
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
            upstream,
            cut,
            tasks,
        } = self;
        tasks.spawn(async move {
            let dead = slot.instance().dead.clone();
            let copy = async {
                let (instance, client) = tokio::join!(upstream.leave(), client);
                let (stream, first) = instance?;
                let mut client = TokioIo::new(client?);
                let (from, to) = stream.into_split();
                let mut instance = tokio::io::join(io::Cursor::new(first).chain(from), to);
                let copied = tokio::io::copy_bidirectional(&mut client, &mut instance).await;
                Ok::<_, Box<dyn StdError + Send + Sync>>(copied)
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
                    Err(error) => Some(format!("the WebSocket connection could not be set up: {}", chain(error.as_ref()))),
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
