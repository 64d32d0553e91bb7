//! What a request that can be read may still not say: two hosts, a user in front of the host, a target that is no path, a
//! header that apps take for one of ours.
//!
//! Looked at once for each request, before its host is looked up: nothing is woken for a request that is refused here. HTTP/2 is
//! held to the same rules, since its requests become HTTP/1.1 messages on their way to most apps.
//!
//! Invariant: nothing is allocated, whatever the request says.

use http::header::{CONTENT_LENGTH, HOST};
use http::{HeaderName, Method, Request, Version};
use memchr::{memchr, memchr2};

use crate::client::Client;
use crate::flaw::Flaw;
use crate::gate::number;
use crate::gated::REFUSED_METHOD;

/// Headers that this server sets or judges by, and beginnings of such. An underscore in their place is the same letter to CGI
/// and WSGI: `X_Forwarded_For` would speak for us there.
const OURS: [&str; 8] = [
    "content-length",
    "transfer-encoding",
    "forwarded",
    "traceparent",
    "x-cloud-trace-context",
    "x-forwarded-",
    "x-goog-",
    "x-serverless-authorization",
];

/// The host that `request` is for, as written; `None`: it is HTTP/1.0 and names none.
pub(crate) fn host<'r, B>(
    request: &'r Request<B>,
    client: &Client,
) -> Result<Option<&'r str>, Flaw> {
    let method = request.method();
    if method.as_str() == REFUSED_METHOD {
        return Err(client.flaw.get().copied().unwrap_or(Flaw::Other));
    }
    let mut hosts = request.headers().get_all(HOST).iter();
    let header = match hosts.next() {
        Some(value) => Some(value.to_str().map_err(|_| Flaw::HostName)?),
        None => None,
    };
    if hosts.next().is_some() {
        return Err(Flaw::HostTwice);
    }
    for name in request.headers().keys() {
        match memchr2(b'_', b'"', name.as_str().as_bytes()) {
            None => {}
            // No name has a quotation mark (RFC 9110 §5.6.2); over HTTP/2 the library lets it through.
            Some(_) if name.as_str().contains('"') => return Err(Flaw::FieldLine),
            Some(_) if is_disguised(name) => return Err(Flaw::Disguised),
            Some(_) => {}
        }
    }
    // Over HTTP/1.1 the gate has seen to it.
    if request.version() == Version::HTTP_2 {
        let mut lengths = request.headers().get_all(CONTENT_LENGTH).iter();
        let length = lengths.next();
        if lengths.next().is_some() {
            return Err(Flaw::LengthTwice);
        }
        if length.is_some_and(|length| number(length.as_bytes()).is_none()) {
            return Err(Flaw::LengthNotNumber);
        }
    }
    let uri = request.uri();
    let connect = *method == Method::CONNECT;
    let named = match (uri.authority(), header) {
        (Some(authority), header) => {
            let authority = authority.as_str();
            if memchr(b'@', authority.as_bytes()).is_some() {
                return Err(Flaw::UserInfo);
            }
            match uri.scheme_str() {
                Some("http" | "https") => {}
                Some(_) => return Err(Flaw::Scheme),
                None if connect => {}
                None => return Err(Flaw::Target),
            }
            // RFC 9112 §3.2.2 lets the target win. Whoever reads the header instead would see another host.
            if header.is_some_and(|header| !header.eq_ignore_ascii_case(authority)) {
                return Err(Flaw::HostDiffers);
            }
            Some(authority)
        }
        (None, Some("")) => return Err(Flaw::HostMissing),
        (None, None) if request.version() > Version::HTTP_10 => return Err(Flaw::HostMissing),
        (None, header) => header,
    };
    if named.is_some_and(|named| !is_host(named)) {
        return Err(Flaw::HostName);
    }
    // As written: `path()` answers "/" for a query alone.
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    if path.starts_with('/') || connect || (path == "*" && *method == Method::OPTIONS) {
        Ok(named)
    } else {
        Err(Flaw::Target)
    }
}

/// A name or address, and a port if there is one.
fn is_host(text: &str) -> bool {
    let (name, port) = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, rest)) = rest.split_once(']') else {
            return false;
        };
        let literal = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
        if !address.bytes().all(literal) {
            return false;
        }
        match rest.strip_prefix(':') {
            Some(port) => (address, port),
            None if rest.is_empty() => (address, ""),
            None => return false,
        }
    } else {
        let (name, port) = text.split_once(':').unwrap_or((text, ""));
        let letter =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if !name.bytes().all(letter) {
            return false;
        }
        (name, port)
    };
    // An empty port is allowed (RFC 3986 §3.2.3). `parse` alone would take "+80".
    !name.is_empty()
        && (port.is_empty()
            || (port.bytes().all(|digit| digit.is_ascii_digit()) && port.parse::<u16>().is_ok()))
}

/// Whether an app may take it for one of [`OURS`].
fn is_disguised(name: &HeaderName) -> bool {
    let name = name.as_str().as_bytes();
    memchr(b'_', name).is_some()
        && OURS.iter().any(|ours| {
            let whole = ours.ends_with('-') || name.len() == ours.len();
            let same =
                |(ours, given): (u8, &u8)| ours == *given || (ours == b'-' && *given == b'_');
            whole && name.len() >= ours.len() && ours.bytes().zip(name).all(same)
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_or_addresses_with_a_port() {
        for good in [
            "a",
            "A.b-c_d~",
            "a:",
            "a:80",
            "a:65535",
            "a.",
            "127.0.0.1:8080",
            "[::1]",
            "[::1]:80",
            "[::ffff:1.2.3.4]:",
        ] {
            assert!(is_host(good), "{good}");
        }
        for bad in [
            "", ":80", "a:80:80", "a:+80", "a:65536", "a:8o", "a b", "a,b", "a/b", "a%20", "a@b",
            "a\\b", "a?b", "a#b", "[::1", "[::1]80", "[]", "[a:b]g", "[g::]", "::1", "a:80 ",
            "\"a\"", "a;b", "a'b", "ä",
        ] {
            assert!(!is_host(bad), "{bad}");
        }
    }

    #[test]
    fn underscores_don_t_hide_our_headers() {
        let name = |text: &'static str| HeaderName::from_static(text);
        for bad in [
            "x_forwarded_for",
            "x-forwarded_for",
            "x_forwarded-proto",
            "content_length",
            "transfer_encoding",
            "x_goog_iap",
            "x_serverless_authorization",
            "x_cloud-trace-context",
        ] {
            assert!(is_disguised(&name(bad)), "{bad}");
        }
        for good in [
            "x-forwarded-for",
            "content-length",
            "my_header",
            "x_forwarder",
            "content_lengths",
            "content_",
            "trace_parent",
        ] {
            assert!(!is_disguised(&name(good)), "{good}");
        }
    }
}
