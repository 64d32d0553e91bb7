//! The request line that an instance gets: as the protocol spoken with it wants it.

use http::header::{COOKIE, HOST};
use http::{HeaderMap, HeaderValue, Version};
use utsuwa_model::route::{Protocol, RevisionRoute};

/// Makes the request line fit the protocol spoken with the instance; the host stays the one asked for.
pub(crate) fn address(parts: &mut http::request::Parts, settings: &RevisionRoute) {
    let authority = parts.uri.authority().cloned();
    let mut uri = http::uri::Parts::default();
    uri.path_and_query = parts.uri.path_and_query().cloned();
    match settings.protocol {
        Protocol::Http1 => {
            parts.version = Version::HTTP_11;
            if let Some(authority) = authority
                && let Ok(value) = HeaderValue::try_from(authority.as_str())
            {
                parts.headers.insert(HOST, value);
            }
            join_cookies(&mut parts.headers);
        }
        Protocol::H2c => {
            parts.version = Version::HTTP_2;
            let host = parts.headers.remove(HOST);
            uri.authority = authority.or_else(|| {
                host.and_then(|host| http::uri::Authority::try_from(host.as_bytes()).ok())
            });
            uri.scheme = uri.authority.is_some().then_some(http::uri::Scheme::HTTP);
            parts.headers.remove(http::header::TRANSFER_ENCODING);
        }
    }
    if uri.path_and_query.is_none() {
        uri.path_and_query = Some(http::uri::PathAndQuery::from_static("/"));
    }
    if let Ok(uri) = http::Uri::from_parts(uri) {
        parts.uri = uri;
    }
}

/// HTTP/2 may bring a line for each cookie; HTTP/1.1 knows one line (RFC 9113 §8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(COOKIE).iter();
    let (Some(first), Some(second)) = (all.next(), all.next()) else {
        return;
    };
    let mut text = first.as_bytes().to_vec();
    for more in std::iter::once(second).chain(all) {
        text.extend_from_slice(b"; ");
        text.extend_from_slice(more.as_bytes());
    }
    if let Ok(value) = HeaderValue::from_bytes(&text) {
        headers.insert(COOKIE, value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cookies_come_in_one_line() {
        let mut headers = HeaderMap::new();
        for cookie in ["a=1", "session=x", "b=2"] {
            headers.append(COOKIE, HeaderValue::from_static(cookie));
        }
        join_cookies(&mut headers);
        let all: Vec<_> = headers.get_all(COOKIE).iter().collect();
        assert_eq!(all, ["a=1; session=x; b=2"]);
        join_cookies(&mut headers);
        assert_eq!(headers[COOKIE], "a=1; session=x; b=2");
    }
}
