//! Requests as our connection writes them and as hyper's client does.

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Uri};

use super::MOST;
use super::read::{End, Read, ours, theirs};
use super::wire::{Script, Wire};
use crate::body::RequestBody;

/// One request, made anew for each who sends it.
#[derive(Debug, Clone)]
struct Sent {
    method: Method,
    headers: &'static [(&'static str, &'static str)],
    /// `None` in it is a pause.
    frames: Vec<Option<Bytes>>,
    trailers: &'static [(&'static str, &'static str)],
    sized: bool,
    foresees: bool,
}

fn map(fields: &[(&'static str, &'static str)]) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(*name, HeaderValue::from_static(value));
    }
    headers
}

impl Sent {
    fn request(&self) -> Request<RequestBody> {
        let body = match &self.frames[..] {
            [] if self.trailers.is_empty() => RequestBody::Empty,
            frames => RequestBody::Scripted(Script {
                frames: frames.iter().cloned().collect(),
                trailers: (!self.trailers.is_empty()).then(|| map(self.trailers)),
                sized: self.sized,
                foresees: self.foresees,
            }),
        };
        let mut request = Request::new(body);
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from_static("/a?b=%20");
        *request.headers_mut() = map(self.headers);
        request
    }

    fn read(&self, grain: usize) -> (Read, Read) {
        // An app that takes it all and says nothing.
        let bytes: usize = self.frames.iter().flatten().map(Bytes::len).sum();
        let wire = |grain| {
            let mut wire = Wire::new(Vec::new(), false, grain);
            wire.polls += 3 * (bytes + 500) / grain;
            wire
        };
        let mine = ours(wire(grain), self.request(), MOST);
        (mine, theirs(wire(usize::MAX), self.request(), MOST))
    }
}

fn data(sizes: &[usize]) -> Vec<Option<Bytes>> {
    let piece = |size: &usize| (*size > 0).then(|| Bytes::from(vec![b'x'; *size]));
    sizes.iter().map(piece).collect()
}

/// A message with the fields of its head in order.
fn lines(message: &[u8]) -> String {
    let text = message.escape_ascii().to_string();
    let (head, body) = text.split_once("\\r\\n\\r\\n").unwrap();
    let mut lines: Vec<&str> = head.split("\\r\\n").collect();
    lines[1..].sort_unstable();
    format!("{lines:?} {body}")
}

const HOST: (&str, &str) = ("host", "a");
const CHUNKED: (&str, &str) = ("transfer-encoding", "chunked");

#[test]
fn requests_are_written_as_by_hyper_however_little_an_app_takes() {
    let bodies = [
        data(&[]),
        data(&[5]),
        data(&[0, 5, 0]),
        data(&[1, 0, 2, 2]),
        data(&[1000, 1000, 24, 1025, 1, 1, 0, 1]),
        data(&[9_000, 1, 5_000, 0, 0, 5_000, 17]),
        // More than is gathered, and never written to its end before there is more of it.
        data(&[1_000; 40]),
        vec![
            Some(Bytes::new()),
            Some(Bytes::from_static(b"x")),
            Some(Bytes::new()),
        ],
    ];
    let headers: [&'static [(&'static str, &'static str)]; 4] = [
        &[HOST],
        &[HOST, CHUNKED],
        &[HOST, CHUNKED, ("trailer", "X-Sum, host, x-two")],
        &[
            HOST,
            ("x-a", "1"),
            ("x-a", "2"),
            CHUNKED,
            ("connection", "close"),
        ],
    ];
    let trailers: [&'static [(&'static str, &'static str)]; 2] = [
        &[],
        &[
            ("x-sum", "1"),
            ("x-sum", "2"),
            ("host", "b"),
            ("x-other", "3"),
        ],
    ];
    let mut compared = 0;
    let mut all = Vec::new();
    for method in [Method::GET, Method::POST, Method::HEAD] {
        for body in &bodies {
            for headers in headers {
                all.extend(trailers.map(|trailers| (method.clone(), body, headers, trailers)));
            }
        }
    }
    for (method, frames, headers, trailers) in all {
        for (sized, foresees) in [(false, false), (false, true), (true, false), (true, true)] {
            let coded = headers.contains(&CHUNKED);
            // A GET whose body nobody announced: hyper leaves it out, the data path always announces it.
            let unheard = !coded && !sized && method != Method::POST;
            // A length has no place for trailers, and the data path has none with it.
            if unheard || (sized && !coded && !trailers.is_empty()) {
                continue;
            }
            let sent = Sent {
                method: method.clone(),
                headers,
                frames: frames.clone(),
                trailers,
                sized,
                foresees,
            };
            for grain in [usize::MAX, 999, 61] {
                let (mine, other) = sent.read(grain);
                assert_eq!(
                    lines(&mine.sent),
                    lines(&other.sent),
                    "{sent:?}, {grain} at once"
                );
                assert_eq!((mine.end, other.end), (End::Waits, End::Waits), "{sent:?}");
                compared += 1;
            }
        }
    }
    assert!(compared > 1000, "{compared}");
}

/// What hyper cuts off or leaves open is an error here: nothing may be read into a message's place.
#[test]
fn a_body_that_is_not_as_long_as_was_said_breaks_the_connection() {
    for length in ["4", "6"] {
        for foresees in [true, false] {
            let wire = Wire::new(Vec::new(), false, usize::MAX);
            let body = RequestBody::Scripted(Script {
                frames: data(&[5]).into(),
                trailers: None,
                sized: false,
                foresees,
            });
            let mut request = Request::new(body);
            let announced = HeaderValue::from_static(length);
            request.headers_mut().insert("content-length", announced);
            let read = ours(wire, request, MOST);
            assert_eq!(read.end, End::Broken, "{length}");
        }
    }
}

/// The data path lets no such request in. Were one made, its length would swallow the next request.
#[test]
fn no_length_is_told_of_a_body_that_is_not_there() {
    for (length, told) in [("0", true), ("5", false), ("00", false)] {
        let mut request = Request::new(RequestBody::Empty);
        let announced = HeaderValue::from_static(length);
        request.headers_mut().insert("content-length", announced);
        let read = ours(Wire::new(Vec::new(), false, usize::MAX), request, MOST);
        let text = String::from_utf8(read.sent).unwrap();
        assert_eq!(text.contains("content-length"), told, "{text}");
    }
}
