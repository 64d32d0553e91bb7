//! Answers of our own: every status of `cloud-run-spec.md` §2.5 and §2.6, its body, and the line for the request log.
//!
//! Invariants:
//! 1. Every answer made here carries [`ANSWERED_BY`], no answer of an app does.
//! 2. Bodies never show internals (ids, addresses, messages of the app); those go to the log.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, SERVER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use crate::Refusal;
use crate::body::ResponseBody;
use crate::flaw::Flaw;
use crate::waiting;

/// Tells that Utsuwa answered and not the app: `utsuwa; reason=…`.
pub(crate) const ANSWERED_BY: HeaderName = HeaderName::from_static("x-utsuwa-answered-by");

const NO_INSTANCE: &str = "The request was aborted because there was no available instance.";
const BROKEN: &str = "The request failed because either the HTTP response was malformed or connection to the instance had an error.";

/// Why the ingress answers itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    Malformed(Flaw),
    UnknownHost,
    /// What an authority wants to see before it issues a certificate for this host.
    Challenge {
        text: String,
    },
    /// Plain HTTP, where the operator wants HTTPS.
    Redirect {
        to: String,
        /// The method is sent again as it was.
        keep: bool,
    },
    Closed,
    Method,
    /// Its path is one that scanners ask for.
    Scanner,
    /// An instance starts; the browser comes back by itself.
    Starting,
    Unauthenticated {
        with_token: bool,
    },
    NotReady {
        message: String,
    },
    BodyTooLarge {
        limit: u64,
    },
    BadBody {
        message: String,
    },
    /// Its client stopped in the middle of its body.
    SlowBody,
    /// It left while its body was read. Nobody gets this answer; the log does.
    ClientGone,
    ResponseTooLarge {
        bytes: u64,
    },
    QueueFull,
    /// Its client has as many requests under way as are left for all others.
    OverShare,
    /// As many requests are under way as there may be.
    NoRoom,
    AtMax,
    NoInstance,
    /// Instances are there, but the readiness probe of each fails.
    Unready {
        message: String,
    },
    Refused(Refusal),
    Timeout,
    Broken {
        message: String,
    },
    OutOfMemory,
    ShuttingDown,
}

impl Answer {
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Malformed(flaw) => flaw.status(),
            Self::BadBody { .. } => StatusCode::BAD_REQUEST,
            Self::ClientGone => {
                StatusCode::from_u16(crate::record::CLIENT_GONE).unwrap_or(StatusCode::BAD_REQUEST)
            }
            Self::SlowBody => StatusCode::REQUEST_TIMEOUT,
            Self::UnknownHost | Self::Closed | Self::Scanner => StatusCode::NOT_FOUND,
            Self::Starting => StatusCode::ACCEPTED,
            Self::Challenge { .. } => StatusCode::OK,
            Self::Redirect { keep: false, .. } => StatusCode::FOUND,
            Self::Redirect { keep: true, .. } => StatusCode::TEMPORARY_REDIRECT,
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Unauthenticated { .. } => StatusCode::FORBIDDEN,
            Self::BodyTooLarge { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::QueueFull | Self::OverShare | Self::AtMax => StatusCode::TOO_MANY_REQUESTS,
            Self::ResponseTooLarge { .. }
            | Self::NoInstance
            | Self::Refused(Refusal::NoCapacity { .. })
            | Self::OutOfMemory => StatusCode::INTERNAL_SERVER_ERROR,
            Self::NotReady { .. }
            | Self::Unready { .. }
            | Self::Refused(Refusal::StartFailed { .. } | Refusal::Disabled)
            | Self::Broken { .. }
            | Self::NoRoom
            | Self::ShuttingDown => StatusCode::SERVICE_UNAVAILABLE,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The word after `reason=`.
    pub(crate) fn reason(&self) -> &'static str {
        match self {
            Self::Malformed(flaw) => flaw.reason(),
            Self::UnknownHost => "unknown_host",
            Self::Challenge { .. } => "acme_challenge",
            Self::Redirect { .. } => "https_only",
            Self::Closed => "ingress_closed",
            Self::Method => "method_not_supported",
            Self::Scanner => "scanner",
            Self::Starting => "starting",
            Self::Unauthenticated { .. } => "not_authenticated",
            Self::NotReady { .. } => "not_ready",
            Self::BodyTooLarge { .. } => "request_too_large",
            Self::BadBody { .. } => "bad_request_body",
            Self::SlowBody => "slow_request_body",
            Self::ClientGone => "client_gone",
            Self::ResponseTooLarge { .. } => "response_too_large",
            Self::QueueFull => "queue_full",
            Self::OverShare | Self::NoRoom => "too_many_requests",
            Self::AtMax => "max_instances",
            Self::NoInstance => "no_instance",
            Self::Unready { .. } => "instances_not_ready",
            Self::Refused(Refusal::NoCapacity { .. }) => "no_capacity",
            Self::Refused(Refusal::StartFailed { .. }) => "start_failed",
            Self::Refused(Refusal::Disabled) => "disabled",
            Self::Timeout => "timeout",
            Self::Broken { .. } => "instance_error",
            Self::OutOfMemory => "out_of_memory",
            Self::ShuttingDown => "shutting_down",
        }
    }

    /// The line of the request log.
    pub(crate) fn log(&self) -> String {
        match self {
            Self::Malformed(flaw) => flaw.text().to_owned(),
            Self::UnknownHost => "No service is served under this host.".to_owned(),
            Self::Challenge { .. } => "The check of a certificate authority was answered.".to_owned(),
            Self::Redirect { to, .. } => format!("Plain HTTP was redirected to {to}"),
            Self::Closed => "The service's ingress setting does not allow this way in.".to_owned(),
            Self::Scanner => "The path is one that scanners ask for, which the service refuses.".to_owned(),
            Self::Starting => "An instance was being started: the browser was shown the waiting page.".to_owned(),
            Self::Method => "The methods TRACE and CONNECT are not supported.".to_owned(),
            Self::Unauthenticated { with_token } => format!(
                "The request was not authenticated. Either allow unauthenticated invocations or set the proper \
                 Authorization header. Read more at https://cloud.google.com/run/docs/securing/authenticating {}",
                if *with_token {
                    "The IAM principal lacks {run.routes.invoke} permission."
                } else {
                    "Empty Authorization header value."
                }
            ),
            Self::NotReady { message } => format!("No revision of the service is ready: {message}"),
            Self::BodyTooLarge { limit } => format!("The request body is larger than {limit} bytes."),
            Self::BadBody { message } => format!("The request body could not be read: {message}"),
            Self::SlowBody => "The client stopped sending its request body.".to_owned(),
            Self::ClientGone => {
                "The client closed the connection before the end of its request.".to_owned()
            }
            Self::ResponseTooLarge { bytes } => format!(
                "Response size was too large. Please consider reducing response size. (Content-Length: {bytes})"
            ),
            Self::QueueFull => format!("{NO_INSTANCE} Too many requests wait for the revision already."),
            Self::OverShare => "The client has as many requests under way as its share of what this server can hold.".to_owned(),
            Self::NoRoom => "As many requests are under way as this server can hold.".to_owned(),
            Self::AtMax => format!("{NO_INSTANCE} All instances are busy and the maximum number is reached."),
            Self::NoInstance => NO_INSTANCE.to_owned(),
            Self::Unready { message } => {
                format!("{NO_INSTANCE} Instances are there, but none is ready: {message}")
            }
            Self::Refused(Refusal::NoCapacity { message }) => format!("{NO_INSTANCE} {message}"),
            Self::Refused(Refusal::StartFailed { message }) => {
                format!("The request failed because the instance could not be started: {message}")
            }
            Self::Refused(Refusal::Disabled) => {
                "The service is disabled: manual scaling gives the revision no instances. Raise the count to serve again."
                    .to_owned()
            }
            Self::Timeout => {
                "The request has been terminated because it has reached the maximum request timeout.".to_owned()
            }
            Self::Broken { message } => format!("{BROKEN} {message}"),
            Self::OutOfMemory => OUT_OF_MEMORY.to_owned(),
            Self::ShuttingDown => "The request waited for an instance while the server was shut down.".to_owned(),
        }
    }

    /// The same for who asked, where no page can be shown.
    pub(crate) fn says(&self) -> String {
        match self {
            // What the app or the machine said stays here.
            Self::NotReady { .. } => {
                "The service has no version that is ready to answer yet.".to_owned()
            }
            Self::Unready { .. } | Self::Refused(_) => NO_INSTANCE.to_owned(),
            Self::Broken { .. } => BROKEN.to_owned(),
            _ => self.log(),
        }
    }

    fn body(&self) -> (&'static str, Bytes) {
        const TEXT: &str = "text/plain; charset=utf-8";
        const HTML: &str = "text/html; charset=utf-8";
        let text = |text: &'static str| (TEXT, Bytes::from_static(text.as_bytes()));
        let html = |title: &str, says: &str| (HTML, page(self.status().as_u16(), title, says));
        match self {
            Self::Malformed(flaw) => html("Bad Request", flaw.text()),
            Self::Starting => (HTML, Bytes::from_static(waiting::PAGE.as_bytes())),
            Self::UnknownHost | Self::Closed | Self::Scanner => html(
                "Page not found",
                "There is nothing under this address on this server.",
            ),
            Self::Challenge { text } => (TEXT, Bytes::from(text.clone())),
            Self::Redirect { .. } => text("This service is reached over HTTPS."),
            Self::Method => html(
                "Method not allowed",
                "This request method is not supported here.",
            ),
            Self::Unauthenticated { .. } => html(
                "Forbidden",
                "Your client does not have permission to get this URL from this server.",
            ),
            Self::NotReady { .. } => html(
                "Service unavailable",
                "The service has no version that is ready to answer yet.",
            ),
            Self::BodyTooLarge { .. } => html(
                "Request too large",
                "The request is larger than this server takes.",
            ),
            Self::BadBody { .. } | Self::ClientGone | Self::SlowBody => {
                html("Bad Request", "The request could not be read to its end.")
            }
            Self::ResponseTooLarge { .. } => {
                text("Response size was too large. Please consider reducing response size.")
            }
            Self::QueueFull | Self::AtMax => text("Rate exceeded."),
            Self::OverShare => text(
                "Rate exceeded. This client has as many requests under way as its share of what this server can hold.",
            ),
            Self::NoRoom => {
                text("As many requests are under way as this server can hold. Please try again.")
            }
            Self::NoInstance | Self::Refused(Refusal::NoCapacity { .. }) => html(
                "Server error",
                "The server encountered an error and could not complete your request. Please try again in 30 seconds.",
            ),
            Self::Refused(Refusal::Disabled) => {
                html("Service unavailable", "The service is disabled.")
            }
            Self::Refused(Refusal::StartFailed { .. })
            | Self::Unready { .. }
            | Self::ShuttingDown => html(
                "Service unavailable",
                "The service can't answer at the moment. Please try again.",
            ),
            Self::Timeout => text("upstream request timeout"),
            Self::Broken { .. } => text(BROKEN),
            Self::OutOfMemory => text(OUT_OF_MEMORY),
        }
    }

    pub(crate) fn response(&self) -> Response<ResponseBody> {
        let (kind, body) = self.body();
        let mut response = Response::new(ResponseBody::Own(Some(body)));
        *response.status_mut() = self.status();
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(SERVER, crate::headers::SERVER_NAME);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Ok(value) = HeaderValue::try_from(format!("utsuwa; reason={}", self.reason())) {
            headers.insert(ANSWERED_BY, value);
        }
        if *self == Self::Starting {
            headers.insert(waiting::REFRESH, waiting::SECONDS);
        }
        if let Self::Redirect { to, .. } = self
            && let Ok(to) = HeaderValue::try_from(to)
        {
            headers.insert(http::header::LOCATION, to);
        }
        if *self == Self::Method {
            headers.insert(
                http::header::ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
        }
        response
    }
}

const OUT_OF_MEMORY: &str = "While handling this request, the container instance was found to be using too much memory \
    and was terminated. This is likely to cause a new container instance to be used for the next request to this revision. \
    If you see this message frequently, the app may leak memory or need more of it: raise it with --memory.";

fn page(status: u16, title: &str, says: &str) -> Bytes {
    Bytes::from(format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>Error {status} ({title})</title>\n\
         <style>body{{font:16px/1.5 system-ui,sans-serif;max-width:34rem;margin:12vh auto;padding:0 1rem;color:#333}}\
         h1{{font-size:1.3rem;font-weight:600}}</style></head>\n\
         <body><h1>Error: {title}</h1><p>{says}</p><p>Code {status}. That is all we know.</p></body>\n</html>\n"
    ))
}
