//! The way of one request, in the order of `cloud-run-spec.md` §2.5: host, way in, caller, revision, slot, instance, answer.
//!
//! Invariants:
//! 1. Rejections before the slot (404, 403, 405, 413) never wake anything.
//! 2. The timeout runs from arrival, waiting included. When it strikes the client gets 504 (or a cut body), the slot is
//!    free again and the app is left alone: its handler may go on, as on Cloud Run.
//! 3. Nothing is connected to an instance for a request that has no place in the budget of requests under way.
//! 4. Every request ends in one record ([`Exchange`]), whatever way it takes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, CONTENT_LENGTH, EXPECT, HeaderName, REFERER, USER_AGENT};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::Instant;
use utsuwa_decide::admit::pick_revision;
use utsuwa_model::route::{Access, Protocol};

use crate::affinity::Affinity;
use crate::answer::Answer;
use crate::body::{RequestBody, ResponseBody};
use crate::client::{Client, UnderWay};
use crate::deadline::Deadline;
use crate::examine;
use crate::flaw::Flaw;
use crate::forward::{self, Asked};
use crate::headers::{self, ASK_TIMING};
use crate::record::Exchange;
use crate::seam::{AnsweredBy, RequestRecord};
use crate::serve::Door;
use crate::served::{Served, cold_start};
use crate::slot::Admitted;
use crate::table::{self, HostTarget, Named};
use crate::tls;
use crate::trace::Trace;
use crate::waiting;
use crate::{Refusal, Shared, grpc_edge, interim, queued, request_line, websocket};

/// Answers one request.
pub(crate) async fn handle(
    shared: Arc<Shared>,
    door: Arc<Door>,
    client: Arc<Client>,
    (begun, mut request): (Result<UnderWay, Answer>, Request<Incoming>),
) -> Response<ResponseBody> {
    let arrived = Instant::now();
    let bridged = websocket::from_http2(&mut request, || shared.outside.dice());
    let (version, grpc) = (request.version(), grpc_edge::is_call(&request));
    let trace = Trace::of(request.headers(), || shared.outside.dice());
    let written = examine::host(&request, &client);
    let port = written.as_ref().ok().and_then(|host| table::port((*host)?));
    let host = written.map(|host| host.map(|host| shared.table.load().named(host)));
    let mut exchange = Exchange::new(
        Arc::clone(&shared.outside),
        arrived,
        RequestRecord {
            at: shared.outside.clock.wall(),
            host: match &host {
                Ok(Some((name, _))) => Arc::clone(name),
                _ => Arc::default(),
            },
            port,
            method: request.method().clone(),
            path: request
                .uri()
                .path_and_query()
                .map_or("*", |path| path.as_str())
                .to_owned(),
            status: 0,
            answered_by: AnsweredBy::App,
            service: None,
            revision: None,
            instance: None,
            remote: client.remote,
            user_agent: header_text(request.headers(), &USER_AGENT),
            referer: header_text(request.headers(), &REFERER),
            scheme: door.scheme.as_str(),
            protocol: protocol(request.version()),
            server_ip: client.local.get().copied(),
            trace: trace.id,
            span: trace.span,
            sampled: trace.sampled,
            request_bytes: 0,
            response_bytes: 0,
            queued: Duration::ZERO,
            first_byte: Duration::ZERO,
            latency: Duration::ZERO,
            cold: None,
        },
    );
    let unread = !request.body().is_end_stream();
    let answered = match begun {
        Ok(begun) => {
            exchange.under_way = Some(begun);
            let way = (&shared, &door, &client);
            route(way, &trace, host, request, &mut exchange).await
        }
        Err(answer) => Err(answer),
    };
    let mut response = match answered {
        Ok(answered) => answered.into_response(exchange, &trace),
        Err(answer) => {
            // Whoever sent it may mean what follows in another way than it would be read.
            let ends = matches!(answer, Answer::Malformed(_)) && version < Version::HTTP_2;
            if unread {
                client.unread.store(true, Ordering::Release);
            }
            let mut response = answer.response();
            let status = response.status();
            if grpc {
                grpc_edge::in_its_terms(&mut response, &answer.says());
            }
            own(&mut response, status, &answer, exchange, &trace);
            if ends {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
            }
            response
        }
    };
    if bridged {
        websocket::to_http2(&mut response);
    }
    let ends = version < Version::HTTP_2 && response.status() != StatusCode::SWITCHING_PROTOCOLS;
    if ends && door.is_closing() && !door.hands_over {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(CONNECTION, close);
    }
    client.answered(response.status());
    response
}

/// Writes the record of an answer of our own; `status` as the log has it.
fn own(
    response: &mut Response<ResponseBody>,
    status: StatusCode,
    answer: &Answer,
    mut exchange: Exchange,
    trace: &Trace,
) {
    if let Some(context) = &trace.context {
        response
            .headers_mut()
            .insert(headers::TRACE_CONTEXT, context.clone());
    }
    exchange.refused = Some(answer.reason());
    let first_byte = exchange.elapsed();
    exchange.note(|record| {
        record.first_byte = first_byte;
        record.status = status.as_u16();
        record.answered_by = AnsweredBy::Utsuwa { why: answer.log() };
        record.response_bytes = response.body().size_hint().exact().unwrap_or(0);
    });
}

async fn route(
    (shared, door, client): (&Arc<Shared>, &Arc<Door>, &Arc<Client>),
    trace: &Trace,
    host: Result<Option<Named>, Flaw>,
    request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Served, Answer> {
    let early = shared.leaving.early.token();
    let (asked_by, bridged) = (request.version(), websocket::is_bridged(&request));
    let method = matches!(*request.method(), Method::TRACE | Method::CONNECT);
    let (name, found) = match host {
        Ok(Some(named)) => named,
        _ if method => return Err(Answer::Method),
        // HTTP/1.0 knows no Host header: it is not malformed, there is just no service to find.
        Ok(None) => return Err(Answer::UnknownHost),
        Err(flaw) => return Err(Answer::Malformed(flaw)),
    };
    if method {
        exchange.note(|record| record.service = found.map(|host| host.service.clone()));
        return Err(Answer::Method);
    }
    if let Some(answer) = tls::instead(shared, door, &name, found.is_some(), &request) {
        exchange.note(|record| record.service = found.map(|host| host.service.clone()));
        return Err(answer);
    }
    let host = found.ok_or(Answer::UnknownHost)?;
    // Whatever is refused from here on belongs into the log of its service; what is let in names its revision.
    let rejected = |exchange: &mut Exchange, answer: Answer| {
        exchange.note(|record| record.service = Some(host.service.clone()));
        Err(answer)
    };
    if host.inside_only && !door.inside {
        return rejected(exchange, Answer::Closed);
    }
    match host.access {
        Access::Public => {}
        Access::Closed => return rejected(exchange, Answer::Closed),
        Access::Authenticated => {
            let headers = request.headers();
            let with_token = headers.contains_key("x-serverless-authorization")
                || headers
                    .get(http::header::AUTHORIZATION)
                    .is_some_and(|value| !value.is_empty());
            return rejected(exchange, Answer::Unauthenticated { with_token });
        }
    }
    let mut before = None;
    let (revision, settings) = match &host.target {
        HostTarget::NotReady { message } => {
            let message = message.clone();
            return rejected(exchange, Answer::NotReady { message });
        }
        HostTarget::Split { shares, revisions } => {
            let picked = match Affinity::among(request.headers(), revisions) {
                Some((picked, affinity)) => {
                    before = Some(affinity);
                    picked
                }
                None if revisions.len() == 1 => 0,
                None => {
                    let dice = u32::try_from(shared.outside.dice() >> 32).unwrap_or(0);
                    pick_revision(shares, dice)
                }
            };
            revisions.get(picked).ok_or(Answer::UnknownHost)?
        }
    };
    exchange.of(revision);
    if settings.refuse_scanners && shared.outside.scanners.ask_for(request.uri().path()) {
        return Err(Answer::Scanner);
    }
    if bridged && settings.protocol == Protocol::H2c {
        return Err(Answer::Method);
    }
    let limit = match settings.protocol {
        Protocol::Http1 => shared.outside.settings.max_message_bytes,
        Protocol::H2c => u64::MAX,
    };
    if content_length(request.headers()).is_some_and(|length| length > limit) {
        return Err(Answer::BodyTooLarge { limit });
    }

    let patience = match grpc_edge::is_call(&request) {
        true => grpc_edge::timeout(request.headers()),
        false => None,
    };
    let until = exchange.arrived + settings.timeout.min(patience.unwrap_or(Duration::MAX));
    let mut deadline = Deadline::new(until);
    let (mut parts, body) = request.into_parts();
    let body_timeout = shared.outside.settings.body_timeout;
    let body = if body.is_end_stream() || content_length(&parts.headers) != Some(0) {
        body
    } else {
        // Boxed, like whatever is seldom: the future of every request is as large as its largest part, and is moved about.
        Box::pin(empty_as_said(door, body, &mut deadline, body_timeout)).await?
    };
    let (mut body, meter) = RequestBody::client(body, limit, body_timeout);
    exchange.meter = meter;
    let expects = parts.headers.contains_key(EXPECT);
    let instance = before.as_ref().map(|before| &before.instance);
    let admission = revision.admit(exchange.at(), instance, shared.outside.dice());
    let page = settings.waiting_page && waiting::is_for(&parts);
    let (mut slot, waited) = match admission {
        Admitted::Slot(slot) => (slot, false),
        Admitted::QueueFull => return Err(Answer::QueueFull),
        Admitted::Disabled => return Err(Answer::Refused(Refusal::Disabled)),
        Admitted::Wait(ticket) => {
            let until = queued::Until {
                deadline: &mut deadline,
                page,
            };
            let ahead = body.read_ahead(expects);
            let waits = queued::wait(shared, revision, ticket, exchange, until, ahead);
            (Box::pin(waits).await?, true)
        }
    };
    // Only now: who waits holds no socket, and what one service keeps waiting must not be refused to another.
    slot.hold(client.requests().take_or_tell()?);
    let hall = &shared.places.hall;
    if !hall.has_room() {
        Box::pin(in_time(hall.room(), &mut deadline)).await?;
    }
    let queued = if waited {
        exchange.elapsed()
    } else {
        Duration::ZERO
    };
    exchange.note(|record| {
        record.instance = Some(slot.instance().id.clone());
        record.queued = queued;
    });
    let cookie = settings
        .session_affinity
        .then(|| {
            let instance = &slot.instance().id;
            Affinity::cookie(before.as_ref(), &revision.key, instance, door.scheme)
        })
        .flatten();

    let timing = parts
        .headers
        .get(ASK_TIMING)
        .is_some_and(|value| value == "1");
    let websocket = settings.protocol == Protocol::Http1 && headers::asks_websocket(&parts.headers);
    let upgrade = parts.extensions.remove::<OnUpgrade>().filter(|_| websocket);
    parts.extensions.clear();
    let streams = !body.is_end_stream() && body.size_hint().exact().is_none();
    headers::for_app(
        &mut parts.headers,
        client.seen(door.scheme),
        trace,
        websocket,
        streams,
    );
    request_line::address(&mut parts, settings);
    if waited
        && patience.is_some()
        && let Some(left) = grpc_edge::left(until - Instant::now())
    {
        parts.headers.insert(grpc_edge::TIMEOUT, left);
    }
    let mut request = Request::from_parts(parts, body);
    let listener = match settings.protocol {
        Protocol::Http1 => interim::pass_on(&mut request, asked_by, client, expects),
        Protocol::H2c => None,
    };

    let asked = Asked {
        request,
        listener,
        early,
        upgrade,
        meter: exchange.meter.clone(),
        limit,
    };
    let answered = forward::ask(
        shared,
        door,
        slot.instance(),
        settings.protocol,
        asked,
        &mut deadline,
    )
    .await?;
    let cold = waited.then(|| cold_start(&slot, exchange)).flatten();
    Ok(Served {
        answered,
        slot,
        deadline,
        timing,
        cold,
        cookie,
    })
}

/// Waits no longer than the request may last.
async fn in_time(room: impl Future<Output = ()>, deadline: &mut Deadline) -> Result<(), Answer> {
    tokio::select! {
        () = room => Ok(()),
        () = deadline => Err(Answer::Timeout),
    }
}

/// Waits for the end of an HTTP/2 body that says it is empty: the app would have a whole request before it turned out to be a
/// broken one.
async fn empty_as_said(
    door: &Door,
    mut body: Incoming,
    deadline: &mut Deadline,
    patience: Duration,
) -> Result<Incoming, Answer> {
    let frame = tokio::select! {
        frame = body.frame() => frame,
        () = deadline => return Err(Answer::Timeout),
        () = tokio::time::sleep(patience) => return Err(Answer::SlowBody),
        () = door.closed_for_long() => return Err(Answer::SlowBody),
    };
    match frame {
        None => Ok(body),
        Some(Ok(frame)) if frame.data_ref().is_none_or(Bytes::is_empty) => Ok(body),
        Some(_) => Err(Answer::Malformed(Flaw::BodyLonger)),
    }
}

/// As Cloud Logging names them.
fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

/// A header for the log; what isn't text is left out.
fn header_text(headers: &HeaderMap, name: &HeaderName) -> String {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().to_owned()
}

pub(crate) fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
