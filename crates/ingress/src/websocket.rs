//! WebSocket over HTTP/2 (RFC 8441): the client's extended CONNECT is an HTTP/1.1 upgrade towards the app, which need not know.

use http::header::{
    CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use hyper::ext::Protocol;

/// Makes an extended CONNECT for a WebSocket the request that HTTP/1.1 would have had. `false`: it is none.
pub(crate) fn from_http2<B>(request: &mut Request<B>, dice: impl Fn() -> u64) -> bool {
    if *request.method() != Method::CONNECT {
        return false;
    }
    let websocket = request
        .extensions_mut()
        .remove::<Protocol>()
        .is_some_and(|protocol| protocol.as_str().eq_ignore_ascii_case("websocket"));
    if !websocket {
        return false;
    }
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    // HTTP/2 has no use for it, HTTP/1.1 demands it: its answer proves nothing to us that the status doesn't.
    if let Ok(key) = HeaderValue::try_from(key(dice(), dice())) {
        headers.insert(SEC_WEBSOCKET_KEY, key);
    }
    if !headers.contains_key(SEC_WEBSOCKET_VERSION) {
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    }
    true
}

/// Whether it was made by [`from_http2`]: HTTP/2 itself knows no `Upgrade`, and hyper refuses it there.
pub(crate) fn is_bridged<B>(request: &Request<B>) -> bool {
    request.version() == Version::HTTP_2 && request.headers().contains_key(UPGRADE)
}

/// Makes the answer to such a request one for HTTP/2.
pub(crate) fn to_http2<B>(response: &mut Response<B>) {
    let status = response.status_mut();
    if *status == StatusCode::SWITCHING_PROTOCOLS {
        *status = StatusCode::OK;
        for name in [CONNECTION, UPGRADE, SEC_WEBSOCKET_ACCEPT] {
            response.headers_mut().remove(name);
        }
    } else if status.is_success() {
        // The app answered as to an ordinary GET: over HTTP/2 that would say that the WebSocket is open.
        *status = StatusCode::BAD_GATEWAY;
    }
}

/// Sixteen bytes in base64.
fn key(high: u64, low: u64) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut bits = (u128::from(high) << 64) | u128::from(low);
    let mut text = String::with_capacity(24);
    // 21 characters of six bits, the last with the two that are left.
    for _ in 0..21 {
        text.push(char::from(
            ALPHABET[usize::try_from(bits >> 122).unwrap_or(0)],
        ));
        bits <<= 6;
    }
    text.push(char::from(
        ALPHABET[usize::try_from(bits >> 122).unwrap_or(0)],
    ));
    text.push_str("==");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_base64_of_sixteen_bytes() {
        assert_eq!(key(0, 0), "AAAAAAAAAAAAAAAAAAAAAA==");
        assert_eq!(key(u64::MAX, u64::MAX), "/////////////////////w==");
        assert_eq!(
            key(0x0001_0203_0405_0607, 0x0809_0a0b_0c0d_0e0f),
            "AAECAwQFBgcICQoLDA0ODw=="
        );
    }

    #[test]
    fn only_a_websocket_becomes_an_upgrade() {
        let connect = || Request::builder().method("CONNECT").body(()).unwrap();
        let mut plain = connect();
        assert!(!from_http2(&mut plain, || 0));
        assert_eq!(plain.method(), Method::CONNECT);
        let mut other = connect();
        other
            .extensions_mut()
            .insert(Protocol::from_static("connect-udp"));
        assert!(!from_http2(&mut other, || 0));
        let mut websocket = connect();
        websocket
            .extensions_mut()
            .insert(Protocol::from_static("websocket"));
        assert!(from_http2(&mut websocket, || 0));
        assert_eq!(websocket.method(), Method::GET);
        assert!(crate::headers::asks_websocket(websocket.headers()));
    }
}
