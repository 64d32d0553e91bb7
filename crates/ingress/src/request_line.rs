//! The request line that an instance gets: as the protocol spoken with it wants it.

use http::header::HOST;
use http::{HeaderValue, Version};
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
