//! The startup probe: whether the ingress itself can reach an instance (`cloud-run-spec.md` §2.7).
//!
//! Owns: the pace of attempts and the words of failure. Deliberately not here: liveness and readiness (`health`), which
//! begin when this has succeeded.
//!
//! Invariants:
//! 1. An instance becomes ready only through a connection the ingress made itself, and that connection serves its first
//!    request where it can.
//! 2. A probe ends: at its deadline, at success, or when the instance leaves. The deadline counts from the instance's start,
//!    so that a restart of the server gives no new time, beyond what it takes to look at all ([`StartupProbe::remaining`]).
//!
//! How attempts follow each other while nothing listens: [`pace`].

mod misplaced;
mod pace;

use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::header::{HOST, USER_AGENT};
use http::{HeaderName, HeaderValue, Request};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout, timeout_at};
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{Protocol, RevisionRoute, StartupCheck, StartupProbe};

use crate::body::RequestBody;
use crate::greeting::Greeted;
use crate::health;
use crate::instance::Instance;
use crate::outside::Outside;
use crate::pause::Pause;
use crate::revision::Revision;
use crate::upstream::Upstream;

const STARTUP: &str = "startup";
/// Nothing that listens after so long is worth telling those who look.
const NEWS: Duration = Duration::from_secs(1);

const AGENT: &str = "utsuwa-startup-probe";

/// The shortest time an attempt to connect gets: a first packet that is lost (the interface comes up) must not cost TCP's
/// own second.
const SHORT_ATTEMPT: Duration = Duration::from_millis(50);

/// Probes `instance` and tells the revision how it came out.
pub(crate) async fn run(
    outside: &Outside,
    revision: &Arc<Revision>,
    instance: &Arc<Instance>,
    route: &RevisionRoute,
) {
    let usual = listens_usually(&route.startup.check, revision.usual_start());
    let outcome = tokio::select! {
        () = instance.leaving.cancelled() => return,
        outcome = check(outside, instance, (&route.startup, usual), route.protocol) => outcome,
    };
    match outcome {
        Ok(()) => {
            let reached = Instant::now();
            instance.failing.clear(STARTUP);
            // Set once: a probe runs once.
            instance.reached.get_or_init(|| reached);
            let took = instance.running();
            tracing::info!(revision = %revision.key, instance = %instance.id, took_ms = took.as_millis(), "instance is ready");
            // One that ran before this process began has no phases: its start wasn't seen.
            let seen = (instance.phases != StartPhases::default()).then_some(took);
            revision.set_ready(&instance.id, seen);
            health::watch(outside, revision, instance, route).await;
        }
        Err(tried) => {
            let elsewhere = match instance.greeting.advice() {
                Some(advice) => Some(advice.to_owned()),
                None => misplaced::words(outside, instance, route.port),
            };
            let message = words(route, &tried, elsewhere);
            tracing::info!(revision = %revision.key, instance = %instance.id, %tried, "startup probe failed");
            revision.set_failed(&instance.id, message);
        }
    }
}

/// How long it usually takes until something listens, if a usual start says that: one that ends with the success of a check of its
/// own says how long that takes.
fn listens_usually(check: &StartupCheck, start: Option<Duration>) -> Option<Duration> {
    match check {
        StartupCheck::None | StartupCheck::Tcp { .. } => start,
        StartupCheck::Http { .. } | StartupCheck::Grpc { .. } => None,
    }
}

/// `usual` is how long it takes until something listens, if that is known.
pub(crate) async fn check(
    outside: &Outside,
    instance: &Arc<Instance>,
    (probe, usual): (&StartupProbe, Option<Duration>),
    protocol: Protocol,
) -> Result<(), String> {
    // Not even a sleep of zero where none is asked for: tokio's timers tick in milliseconds, and it would take one.
    let delay = probe.initial_delay.saturating_sub(instance.age);
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let end = instance.admitted + probe.remaining(instance.age);
    let port = match &probe.check {
        StartupCheck::None => return Ok(()),
        StartupCheck::Tcp { port }
        | StartupCheck::Http { port, .. }
        | StartupCheck::Grpc { port, .. } => *port,
    };
    let stream = reach(outside, instance, port, (probe, usual), end).await?;
    let what = match &probe.check {
        StartupCheck::None | StartupCheck::Tcp { .. } => {
            keep(outside, instance, protocol, port, stream).await;
            return match protocol {
                // A start that went well before is not made to wait.
                Protocol::H2c if port == instance.port && usual.is_none() => {
                    greeted(instance, end).await
                }
                _ => Ok(()),
            };
        }
        StartupCheck::Http { path, .. } => format!("GET {path} on port {port}"),
        StartupCheck::Grpc { service, .. } => {
            format!("grpc.health.v1.Health/Check for service {service:?} on port {port}")
        }
    };
    // One check per period, as many as may fail; the first uses the connection that was just made.
    let mut stream = Some(stream);
    let mut times = 0;
    loop {
        let began = Instant::now();
        times += 1;
        let last = match timeout(
            probe.timeout,
            ask(
                outside,
                instance,
                (&probe.check, protocol),
                port,
                stream.take(),
            ),
        )
        .await
        {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => format!("no answer within {:?}", probe.timeout),
        };
        let asks = || what.clone();
        let (most, now) = (probe.failure_threshold, outside.clock.now());
        instance.failing.failed(STARTUP, &last, most, now, asks);
        let next = began + probe.period;
        if times >= probe.failure_threshold.max(1) || next > end {
            return Err(format!("{what}, {times} times; the last: {last}"));
        }
        tokio::time::sleep_until(next).await;
    }
}

/// One HTTP or gRPC check.
async fn ask(
    outside: &Outside,
    instance: &Arc<Instance>,
    (what, protocol): (&StartupCheck, Protocol),
    port: u16,
    stream: Option<TcpStream>,
) -> Result<(), String> {
    let same_port = port == instance.port;
    let stream = match stream {
        Some(stream) => stream,
        None => instance
            .dial(port)
            .await
            .map_err(|error| error.to_string())?,
    };
    match what {
        StartupCheck::None | StartupCheck::Tcp { .. } => Ok(()),
        StartupCheck::Http { path, headers, .. } => {
            let upstream = get(outside, stream, path, headers, AGENT).await?;
            if let Some(upstream) = upstream
                && same_port
                && protocol == Protocol::Http1
            {
                instance.keep(upstream);
            }
            Ok(())
        }
        StartupCheck::Grpc { service, .. } => {
            let sender = if same_port && protocol == Protocol::H2c {
                instance.adopt_http2(stream).await
            } else {
                instance.handshake_http2(stream).await
            };
            crate::grpc::check(sender.map_err(|error| error.to_string())?, service).await
        }
    }
}

/// One accepted connection to `port`.
async fn reach(
    outside: &Outside,
    instance: &Instance,
    port: u16,
    (probe, usual): (&StartupProbe, Option<Duration>),
    end: Instant,
) -> Result<TcpStream, String> {
    let (shortest, longest) = outside.settings.probe_pause;
    let mut pause = Pause::new();
    let began = Instant::now();
    let mut attempts = 0_u64;
    let mut watch = misplaced::Watch::new();
    loop {
        attempts += 1;
        let gone = began.elapsed();
        let left = end.saturating_duration_since(Instant::now());
        let patience = (gone / 2)
            .clamp(SHORT_ATTEMPT, probe.timeout.max(SHORT_ATTEMPT))
            .min(left);
        let last = match timeout(patience, instance.dial(port)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
                return Err(format!(
                    "connecting to port {port}; the instance ended before it listened"
                ));
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {patience:?}"),
        };
        // Not of the first moments, which a wake goes through: there an app that isn't there yet is no news.
        if gone >= NEWS {
            let asks = || format!("connecting to port {port}");
            let now = outside.clock.now();
            instance
                .failing
                .failed(STARTUP, &last, probe.failure_threshold, now, asks);
            watch.look(outside, instance, port);
        }
        if Instant::now() >= end {
            let mut time = format!("{:?}", probe.remaining(instance.age));
            if !instance.age.is_zero() {
                time = format!(
                    "the last {time} (it had been running for {} s when the server began)",
                    instance.age.as_secs()
                );
            }
            return Err(format!(
                "connecting to port {port} of the instance's address for {time}, {attempts} times; the last: {last}"
            ));
        }
        let next = pace::pause(instance.running(), usual).clamp(shortest, longest);
        pause.wait(next).await;
    }
}

/// Keeps the connection that proved the instance for its first request.
async fn keep(
    outside: &Outside,
    instance: &Instance,
    protocol: Protocol,
    port: u16,
    stream: TcpStream,
) {
    if port != instance.port {
        return;
    }
    match protocol {
        Protocol::Http1 => {
            instance.keep(Upstream::new(stream, outside.settings.max_header_bytes));
        }
        // A failure here shows with the first request, which makes its own connection.
        Protocol::H2c => drop(instance.adopt_http2(stream).await),
    }
}

/// How long an app that is to speak HTTP/2 is listened to. One that does greets as soon as it accepts, so only those wait that listen
/// before they can: gunicorn binds before its workers have imported the app.
const GREETING: Duration = Duration::from_secs(10);

/// Whether the app may speak HTTP/2. One that answers in HTTP/1.1 never will, so its revision fails here and not with each request;
/// one that says nothing yet, or closes while it begins, may later. Ends with the probe.
async fn greeted(instance: &Instance, end: Instant) -> Result<(), String> {
    let until = end.min(Instant::now() + GREETING);
    match timeout_at(until, instance.greeting.first()).await {
        Ok(Greeted::Http1) => Err(format!(
            "speaking HTTP/2 on port {}; the answer was in HTTP/1.1",
            instance.port
        )),
        _ => Ok(()),
    }
}

/// GET `path`; success is 2xx and 3xx. Answers the connection if it may be used again.
pub(crate) async fn get(
    outside: &Outside,
    stream: TcpStream,
    path: &str,
    headers: &[(String, String)],
    agent: &'static str,
) -> Result<Option<Upstream>, String> {
    let mut upstream = Upstream::new(stream, outside.settings.max_header_bytes);
    let uri: http::Uri = path
        .parse()
        .map_err(|error| format!("the path {path:?} is not valid: {error}"))?;
    let mut request = Request::new(RequestBody::Empty);
    *request.uri_mut() = uri;
    request
        .headers_mut()
        .insert(HOST, HeaderValue::from_static("localhost"));
    request
        .headers_mut()
        .insert(USER_AGENT, HeaderValue::from_static(agent));
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(name), HeaderValue::try_from(value)) {
            request.headers_mut().insert(name, value);
        }
    }
    let unheard = |_, _: &_| {};
    let answer = poll_fn(|context| upstream.poll_answer(&mut request, unheard, context));
    let response = answer.await.map_err(|error| error.fault().to_string())?;
    let status = response.status();
    if !status.is_success() && !status.is_redirection() {
        return Err(format!("HTTP status {status}"));
    }
    let whole = drain(&mut upstream).await;
    Ok(if whole { upstream.rest() } else { None })
}

/// Reads a body to its end, within reason.
async fn drain(upstream: &mut Upstream) -> bool {
    const ENOUGH: usize = 64 << 10;
    let mut seen = 0;
    loop {
        match poll_fn(|context| upstream.poll_frame(context)).await {
            None => return true,
            Some(Ok(frame)) => seen += frame.data_ref().map_or(0, bytes::Bytes::len),
            Some(Err(_)) => return false,
        }
        if seen > ENOUGH {
            return false;
        }
    }
}

/// What was tried and what to do, then Google's text (§1.8.6), which people and scripts look for. Which revision it is about is
/// said by who shows it.
fn words(route: &RevisionRoute, tried: &str, elsewhere: Option<String>) -> String {
    match &route.startup.check {
        StartupCheck::None | StartupCheck::Tcp { .. } => {
            let port = route.port;
            let cause = elsewhere.unwrap_or_else(|| {
                format!(
                    "Nothing in the container could be reached at port {port}: it must listen on 0.0.0.0:{port}, not on 127.0.0.1."
                )
            });
            format!(
                "{cause} Tried: {tried}.\n\nThe user-provided container failed to start and listen on the port defined provided by the \
                 PORT={port} environment variable within the allocated timeout. This can happen when the container port is \
                 misconfigured or if the timeout is too short. The health check timeout can be extended. Logs for this revision \
                 might contain more information."
            )
        }
        StartupCheck::Http { .. } | StartupCheck::Grpc { .. } => {
            let cause = elsewhere.map_or_else(String::new, |text| format!(" {text}"));
            format!(
                "The startup probe never succeeded: {tried}.{cause}\n\nThe user-provided container failed the configured startup probe \
                 checks. Logs for this revision might contain more information."
            )
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_that_ends_with_a_check_says_nothing_of_when_the_app_listens() {
        let (port, took) = (8080, Some(Duration::from_secs(40)));
        let (path, service) = ("/ready".to_owned(), "ready".to_owned());
        let headers = Vec::new();
        for check in [
            StartupCheck::Http {
                port,
                path,
                headers,
            },
            StartupCheck::Grpc { port, service },
        ] {
            assert_eq!(listens_usually(&check, took), None, "{check:?}");
        }
        assert_eq!(listens_usually(&StartupCheck::Tcp { port }, took), took);
    }
}
