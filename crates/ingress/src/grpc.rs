//! The one gRPC call the ingress makes itself: `grpc.health.v1.Health/Check`, written by hand (two fields).

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, TE};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use http_body_util::BodyExt;

use crate::body::RequestBody;
use crate::instance::Http2;

/// An answer of this call is a handful of bytes; more is no health check.
const MAX_ANSWER: usize = 4096;
const SERVING: u64 = 1;

/// Asks whether `service` (empty: the whole server) is serving. The error says what came instead.
pub(crate) async fn check(mut sender: Http2, service: &str) -> Result<(), String> {
    let mut request = Request::new(RequestBody::Bytes(Some(frame(service))));
    *request.method_mut() = Method::POST;
    *request.version_mut() = Version::HTTP_2;
    *request.uri_mut() = http::Uri::from_static("http://localhost/grpc.health.v1.Health/Check");
    request
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request
        .headers_mut()
        .insert(TE, HeaderValue::from_static("trailers"));
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| format!("the call failed: {error}"))?;
    if response.status() != http::StatusCode::OK {
        return Err(format!(
            "HTTP status {} instead of a gRPC answer",
            response.status()
        ));
    }
    let (parts, body) = response.into_parts();
    if let Some(status) = refused(&parts.headers) {
        return Err(status);
    }
    let body = http_body_util::Limited::new(body, MAX_ANSWER)
        .collect()
        .await
        .map_err(|error| format!("the answer broke off: {error}"))?;
    if let Some(status) = body.trailers().and_then(refused) {
        return Err(status);
    }
    match serving_status(&body.to_bytes()) {
        Some(SERVING) => Ok(()),
        Some(0) => Err("status UNKNOWN".to_owned()),
        Some(2) => Err("status NOT_SERVING".to_owned()),
        Some(3) => Err("status SERVICE_UNKNOWN".to_owned()),
        Some(other) => Err(format!("status {other}")),
        None => Err("an answer that is no HealthCheckResponse".to_owned()),
    }
}

fn refused(headers: &HeaderMap) -> Option<String> {
    let status = headers.get("grpc-status")?.to_str().ok()?;
    let message = headers
        .get("grpc-message")
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    (status != "0").then(|| {
        format!("gRPC status {status} {message}")
            .trim_end()
            .to_owned()
    })
}

/// Length-prefixed `HealthCheckRequest { service = 1 }`.
fn frame(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.extend_from_slice(&[0x0a]);
        put_varint(&mut message, service.len() as u64);
        message.extend_from_slice(service.as_bytes());
    }
    let mut frame = BytesMut::with_capacity(5 + message.len());
    frame.extend_from_slice(&[0]);
    frame.extend_from_slice(
        &u32::try_from(message.len())
            .unwrap_or(u32::MAX)
            .to_be_bytes(),
    );
    frame.extend_from_slice(&message);
    frame.freeze()
}

/// `status = 1` of a length-prefixed `HealthCheckResponse`; absent means 0. `None`: not that message.
fn serving_status(frame: &[u8]) -> Option<u64> {
    let (head, message) = frame.split_at_checked(5)?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if head[0] != 0 || usize::try_from(length).ok()? != message.len() {
        return None;
    }
    let mut status = 0;
    let mut rest = message;
    while !rest.is_empty() {
        let (tag, after) = take_varint(rest)?;
        rest = match tag & 7 {
            0 => {
                let (value, after) = take_varint(after)?;
                if tag >> 3 == 1 {
                    status = value;
                }
                after
            }
            1 => after.get(8..)?,
            2 => {
                let (length, after) = take_varint(after)?;
                after.get(usize::try_from(length).ok()?..)?
            }
            5 => after.get(4..)?,
            _ => return None,
        };
    }
    Some(status)
}

fn put_varint(to: &mut BytesMut, mut value: u64) {
    loop {
        let low = u8::try_from(value & 0x7f).unwrap_or(0);
        value >>= 7;
        to.extend_from_slice(&[if value == 0 { low } else { low | 0x80 }]);
        if value == 0 {
            return;
        }
    }
}

fn take_varint(from: &[u8]) -> Option<(u64, &[u8])> {
    let mut value = 0_u64;
    for (index, byte) in from.iter().enumerate().take(10) {
        value |= u64::from(byte & 0x7f).checked_shl(u32::try_from(index).ok()? * 7)?;
        if byte & 0x80 == 0 {
            return Some((value, &from[index + 1..]));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_is_what_protobuf_says() {
        assert_eq!(&frame("")[..], b"\0\0\0\0\0");
        assert_eq!(&frame("a.B")[..], b"\0\0\0\0\x05\x0a\x03a.B");
        let long = "s".repeat(300);
        assert_eq!(&frame(&long)[..8], b"\0\0\0\x01\x2f\x0a\xac\x02");
    }

    #[test]
    fn the_status_is_found_among_unknown_fields_and_nonsense_is_refused() {
        for (bytes, want) in [
            (&b"\0\0\0\0\x02\x08\x01"[..], Some(1)),
            (b"\0\0\0\0\x00", Some(0)),
            (b"\0\0\0\0\x02\x08\x02", Some(2)),
            (b"\0\0\0\0\x06\x12\x02hi\x08\x01", Some(1)),
            (b"\0\0\0\0\x02\x08", None),
            (b"\x01\0\0\0\x02\x08\x01", None),
            (b"\0\0\0\0\x01\x08", None),
            (b"\0\0\0", None),
            (b"", None),
        ] {
            assert_eq!(serving_status(bytes), want, "{bytes:?}");
        }
    }
}
