//! Header rules of `cloud-run-spec.md` §2.4, applied in place: the header map that came in is the one that goes out.
//!
//! Invariants:
//! 1. No hop-by-hop header crosses, except the upgrade of a WebSocket handshake and `TE: trailers`.
//! 2. What the app sees in `X-Forwarded-*` and `Forwarded` ends with what we saw ourselves.

use std::net::IpAddr;

use http::header::{
    CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, HOST, HeaderMap, SERVER, SET_COOKIE, TE,
    TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderName, HeaderValue};

use crate::serve::Scheme;
use crate::trace::Trace;

/// What `server:` says on every answer. The app's own is replaced, as Google's front end does.
pub(crate) const SERVER_NAME: HeaderValue = HeaderValue::from_static("utsuwa");
pub(crate) const TRACE_CONTEXT: HeaderName = HeaderName::from_static("x-cloud-trace-context");
/// Asks for the phases of a cold start.
pub(crate) const ASK_TIMING: HeaderName = HeaderName::from_static("x-utsuwa-timing");
pub(crate) const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(crate) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
/// What concerns one connection alone, beside `Connection` and what it names.
const HOP_BY_HOP: [&str; 6] = [
    "keep-alive",
    "proxy-connection",
    "te",
    "transfer-encoding",
    "upgrade",
    "http2-settings",
];

/// Whether the client asks to speak WebSocket.
pub(crate) fn asks_websocket(headers: &HeaderMap) -> bool {
    let named = |name: &HeaderName, word: &str| {
        headers.get_all(name).iter().any(|value| {
            value.to_str().is_ok_and(|text| {
                text.split(',')
                    .any(|token| token.trim().eq_ignore_ascii_case(word))
            })
        })
    };
    headers.contains_key(UPGRADE) && named(&UPGRADE, "websocket") && named(&CONNECTION, "upgrade")
}

/// Makes the client's headers those the app gets. `streams`: the body has no length known beforehand.
pub(crate) fn for_app(
    headers: &mut HeaderMap,
    seen: &Seen,
    trace: &Trace,
    websocket: bool,
    streams: bool,
) {
    let trailers = headers.get(TE).is_some_and(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',')
                .any(|word| word.trim().eq_ignore_ascii_case("trailers"))
        })
    });
    let chunked = streams && !headers.contains_key(CONTENT_LENGTH);
    strip_hop_by_hop(headers);
    if trailers {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    if chunked {
        // Said outright, or hyper would send a GET without its body.
        headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    append(headers, FORWARDED_FOR, &seen.forwarded_for);
    append(headers, FORWARDED, &seen.forwarded);
    headers.insert(FORWARDED_PROTO, seen.proto.clone());
    if !trace.keep_parent
        && let Some(parent) = trace.parent()
    {
        headers.insert(TRACEPARENT, parent);
    }
    if !trace.keep_context
        && let Some(context) = &trace.context
    {
        headers.insert(TRACE_CONTEXT, context.clone());
    }
}

/// What we saw of a client, as an app is told: the same for all requests of a connection.
#[derive(Debug)]
pub(crate) struct Seen {
    forwarded_for: HeaderValue,
    forwarded: HeaderValue,
    proto: HeaderValue,
}

impl Seen {
    pub(crate) fn of(peer: IpAddr, scheme: Scheme) -> Self {
        // Addresses and schemes are made of letters that a header may have.
        let value = |text: String| HeaderValue::try_from(text).unwrap_or(SERVER_NAME);
        Self {
            forwarded_for: value(peer.to_string()),
            forwarded: value(match peer {
                IpAddr::V4(peer) => format!("for=\"{peer}\";proto={}", scheme.as_str()),
                IpAddr::V6(peer) => format!("for=\"[{peer}]\";proto={}", scheme.as_str()),
            }),
            proto: HeaderValue::from_static(scheme.as_str()),
        }
    }
}

/// Appends to a list header, joining what came in several lines. What is not text is replaced.
fn append(headers: &mut HeaderMap, name: HeaderName, own: &HeaderValue) {
    if !headers.contains_key(&name) {
        headers.insert(name, own.clone());
        return;
    }
    let mut text = String::with_capacity(64);
    for value in headers.get_all(&name) {
        if let Ok(value) = value.to_str()
            && !value.trim().is_empty()
        {
            text.push_str(value);
            text.push_str(", ");
        }
    }
    text.push_str(own.to_str().unwrap_or_default());
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(name, value);
    }
}

/// Makes the app's headers those the client gets.
pub(crate) fn for_client(headers: &mut HeaderMap, trace: &Trace, websocket: bool) {
    strip_hop_by_hop(headers);
    if websocket {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    // Only we may say that we answered.
    headers.remove(crate::answer::ANSWERED_BY);
    if headers.contains_key(SET_COOKIE) {
        // A cookie is for one client: no cache on the way may keep it.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
    }
    headers.insert(SERVER, SERVER_NAME);
    if let Some(context) = &trace.context {
        headers.insert(TRACE_CONTEXT, context.clone());
    }
}

fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let named: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|text| text.split(','))
            .map(str::trim)
            .filter(|token| {
                !token.eq_ignore_ascii_case("close") && !token.eq_ignore_ascii_case("keep-alive")
            })
            .filter_map(|token| HeaderName::try_from(token).ok())
            // These say where a message goes and where it ends; a client can't have them removed.
            .filter(|name| name != HOST && name != CONTENT_LENGTH)
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    // Looking through the few headers there are takes less than looking each of these up, and mostly none is there.
    if headers
        .keys()
        .any(|name| HOP_BY_HOP.contains(&name.as_str()))
    {
        for name in HOP_BY_HOP {
            headers.remove(name);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, HeaderValue::from_static(value));
        }
        headers
    }

    fn applied(pairs: &[(&'static str, &'static str)], peer: &str) -> HeaderMap {
        let mut headers = map(pairs);
        let trace = Trace::of(&headers, || 7);
        for_app(
            &mut headers,
            &Seen::of(peer.parse().unwrap(), Scheme::Http),
            &trace,
            false,
            false,
        );
        headers
    }

    #[test]
    fn hop_by_hop_headers_stay_here() {
        let got = applied(
            &[
                ("host", "a"),
                ("connection", "close, X-Private, content-length, host"),
                ("x-private", "1"),
                ("keep-alive", "5"),
                ("te", "gzip, trailers"),
                ("transfer-encoding", "chunked"),
                ("upgrade", "h2c"),
                ("http2-settings", "x"),
                ("proxy-connection", "close"),
                ("content-length", "3"),
                ("authorization", "Bearer x"),
            ],
            "10.0.0.1",
        );
        for gone in [
            "connection",
            "x-private",
            "keep-alive",
            "transfer-encoding",
            "upgrade",
            "http2-settings",
            "proxy-connection",
        ] {
            assert!(!got.contains_key(gone), "{gone}");
        }
        for (kept, value) in [
            ("host", "a"),
            ("te", "trailers"),
            ("content-length", "3"),
            ("authorization", "Bearer x"),
        ] {
            assert_eq!(got[kept], value);
        }
    }

    #[test]
    fn our_view_of_the_client_is_appended() {
        let got = applied(
            &[
                ("x-forwarded-for", "1.1.1.1"),
                ("x-forwarded-for", "2.2.2.2"),
                ("x-forwarded-proto", "gopher"),
            ],
            "fd00::1",
        );
        assert_eq!(got["x-forwarded-for"], "1.1.1.1, 2.2.2.2, fd00::1");
        assert_eq!(got.get_all("x-forwarded-for").iter().count(), 1);
        assert_eq!(got["x-forwarded-proto"], "http");
        assert_eq!(got["forwarded"], "for=\"[fd00::1]\";proto=http");
    }

    #[test]
    fn a_valid_trace_is_kept_and_an_invalid_one_replaced() {
        let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        let got = applied(&[("traceparent", parent)], "10.0.0.1");
        assert_eq!(got["traceparent"], parent);
        assert_eq!(
            got["x-cloud-trace-context"],
            "0af7651916cd43dd8448eb211c80319c/13235353014750950193;o=1"
        );

        let got = applied(
            &[(
                "x-cloud-trace-context",
                "0AF7651916CD43DD8448EB211C80319C/255;o=1",
            )],
            "10.0.0.1",
        );
        assert_eq!(
            got["traceparent"],
            "00-0af7651916cd43dd8448eb211c80319c-00000000000000ff-01"
        );

        for bad in [
            "",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-x",
        ] {
            let got = applied(&[("traceparent", bad)], "10.0.0.1");
            assert_eq!(
                got["traceparent"], "00-00000000000000070000000000000007-0000000000000007-01",
                "{bad}"
            );
        }
    }

    #[test]
    fn a_cookie_is_never_cached_and_only_we_say_who_answered() {
        let mut headers = map(&[
            ("set-cookie", "a=b"),
            ("cache-control", "public"),
            ("server", "gunicorn"),
            ("x-utsuwa-answered-by", "app"),
        ]);
        let trace = Trace::of(&HeaderMap::new(), || 9);
        for_client(&mut headers, &trace, false);
        assert_eq!(headers["cache-control"], "private");
        assert_eq!(headers["server"], "utsuwa");
        assert!(!headers.contains_key("x-utsuwa-answered-by"));
        assert!(
            headers["x-cloud-trace-context"]
                .to_str()
                .unwrap()
                .ends_with(";o=1")
        );
    }
}
