//! gRPC as its callers see it: our own refusals in its terms, and its deadlines kept.
//!
//! A gRPC client that gets an HTTP status instead of a gRPC one guesses (`UNKNOWN`, `UNAVAILABLE`) and shows none of our words.
//! gRPC-Web is left alone: its messages carry their status in the body, and its proxies and clients read HTTP's.

use std::time::Duration;

use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version};

use crate::body::ResponseBody;

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
pub(crate) const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// Whether it is a gRPC call: over HTTP/2, and of its content type (`application/grpc`, `application/grpc+proto`, …).
pub(crate) fn is_call<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2
        && request.headers().get(CONTENT_TYPE).is_some_and(|kind| {
            let rest = kind.as_bytes().strip_prefix(b"application/grpc");
            rest.is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
        })
}

/// Makes an answer of our own a gRPC one: HTTP's 200 with nothing but headers, in which the status and `why` are.
pub(crate) fn in_its_terms(response: &mut Response<ResponseBody>, why: &str) {
    let code = code(response.status());
    *response.status_mut() = StatusCode::OK;
    *response.body_mut() = ResponseBody::Own(None);
    let headers = response.headers_mut();
    headers.remove(CONTENT_LENGTH);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(STATUS, HeaderValue::from_static(code));
    if let Ok(message) = HeaderValue::try_from(percent(why)) {
        headers.insert(MESSAGE, message);
    }
}

/// The status that clients make of an HTTP status themselves, and closer ones where gRPC has a word for it.
const fn code(status: StatusCode) -> &'static str {
    match status.as_u16() {
        413 => "8",                    // RESOURCE_EXHAUSTED
        504 => "4",                    // DEADLINE_EXCEEDED
        401 => "16",                   // UNAUTHENTICATED
        403 => "7",                    // PERMISSION_DENIED
        404 | 405 => "12",             // UNIMPLEMENTED
        429 | 502 | 503 => "14",       // UNAVAILABLE
        400 | 431 | 499 | 500 => "13", // INTERNAL
        _ => "2",                      // UNKNOWN
    }
}

/// `grpc-message`'s encoding: printable ASCII but `%` stays.
fn percent(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// How long the caller waits, of `grpc-timeout`: at most eight digits and a unit. What isn't well-formed counts as absent; the
/// app says what it thinks of it.
pub(crate) fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let amount: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return None,
    })
}

/// What is left of the caller's time, as `grpc-timeout` says it to the app.
pub(crate) fn left(time: Duration) -> Option<HeaderValue> {
    let ms = time.as_millis();
    let text = match ms {
        0..=99_999_999 => format!("{}m", ms.max(1)),
        _ => format!("{}S", time.as_secs().min(99_999_999)),
    };
    HeaderValue::try_from(text).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deadlines_are_read_and_written_as_the_protocol_says() {
        let read = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(TIMEOUT, HeaderValue::from_static(text));
            timeout(&headers)
        };
        assert_eq!(read("1H"), Some(Duration::from_secs(3600)));
        assert_eq!(read("100m"), Some(Duration::from_millis(100)));
        assert_eq!(read("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "m", "1", "123456789m", "-1S", "1x", "1.5S", "é"] {
            let value = HeaderValue::from_str(bad);
            let mut headers = HeaderMap::new();
            if let Ok(value) = value {
                headers.insert(TIMEOUT, value);
            }
            assert_eq!(timeout(&headers), None, "{bad}");
        }
        assert_eq!(left(Duration::from_micros(5)).unwrap(), "1m");
        assert_eq!(left(Duration::from_millis(1500)).unwrap(), "1500m");
        assert_eq!(left(Duration::from_secs(200_000)).unwrap(), "200000S");
    }

    #[test]
    fn messages_are_percent_encoded() {
        assert_eq!(percent("50% späť\n"), "50%25 sp%C3%A4%C5%A5%0A");
    }
}
