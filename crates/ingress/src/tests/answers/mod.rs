//! Every answer as our connection to an instance reads it and as hyper's client does: the same head, body, trailers and end, however
//! the bytes are cut, and the same decision whether the connection may serve another request. And requests: the same bytes.
//!
//! Known and wanted differences are in [`differs`].

mod fuzz;
mod read;
mod requests;
mod wire;

use bytes::Bytes;
use http::{Method, Request};

use self::read::{End, Read, ours, theirs};
use self::wire::Wire;
use crate::body::RequestBody;

pub(crate) use self::wire::Script;

/// Bytes that a head may have here.
const MOST: usize = 64 << 10;

/// An answer and what is to come of it.
struct Case {
    method: Method,
    says: Vec<u8>,
    expects: Expects,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expects {
    /// A status, a body, and whether the connection stays.
    Whole(u16, &'static str, bool),
    /// Its head is not read.
    NoHead,
    /// Its head is, its body isn't.
    NoBody(u16),
}
use Expects::{NoBody, NoHead, Whole};

fn case(says: impl Into<Vec<u8>>, expects: Expects) -> Case {
    Case {
        method: Method::GET,
        says: says.into(),
        expects,
    }
}

fn to(method: Method, says: &str, expects: Expects) -> Case {
    Case {
        method,
        ..case(says, expects)
    }
}

fn ok(rest: &str, expects: Expects) -> Case {
    case(format!("HTTP/1.1 200 OK\r\n{rest}"), expects)
}

fn chunked(body: &str, expects: Expects) -> Case {
    ok(
        &format!("Transfer-Encoding: chunked\r\n\r\n{body}"),
        expects,
    )
}

/// Whether an answer is refused by us and read by hyper, on purpose: nginx refuses it, too, since it can be read in two ways.
fn has_both_lengths(read: &Read) -> bool {
    read.head.as_ref().is_some_and(|(_, fields)| {
        ["content-length", "transfer-encoding"]
            .iter()
            .all(|name| fields.iter().any(|(field, _)| field == name))
    })
}

/// What is wrong with `mine`, where `other` is what hyper made of the same bytes in one piece.
fn differs(mine: &Read, other: &Read, says: &[u8]) -> Option<&'static str> {
    if mine.before != other.before && mine.end != End::Waits && other.end != End::Waits {
        return Some("other words before the answer");
    }
    // Refused by us alone.
    if mine.head.is_none() && mine.end == End::Broken && has_both_lengths(other) {
        return None;
    }
    // hyper's limit is as large as the memory that it happens to have.
    if mine.head.is_none() && mine.end == End::Broken && says.len() > MOST {
        return None;
    }
    // While its end isn't there, a head is looked at only where it may be whole: hyper does so from the second piece on.
    if mine.end == End::Waits && other.end == End::Broken && other.head.is_none() {
        return None;
    }
    if mine.head != other.head {
        return Some("another head");
    }
    if mine.body != other.body || mine.trailers != other.trailers {
        return Some("another body");
    }
    match (mine.end, other.end) {
        // HTTP/1.0 is never asked twice: we don't ask it to stay, either.
        (End::Whole { again: false }, End::Whole { again: true }) => {
            let old = says.windows(8).any(|word| word == b"HTTP/1.0");
            (!old).then_some("it may serve another request")
        }
        (mine, other) => (mine != other).then_some("another end"),
    }
}

fn asked(method: &Method) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::Empty);
    *request.method_mut() = method.clone();
    request
}

fn pieces(bytes: &[u8], cuts: &[usize]) -> Vec<Bytes> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
    cuts.extend([0, bytes.len()]);
    cuts.sort_unstable();
    let piece = |pair: &[usize]| Bytes::copy_from_slice(&bytes[pair[0]..pair[1]]);
    cuts.windows(2).map(piece).collect()
}

/// As hyper reads it in one piece.
fn reference(method: &Method, says: &[u8], closes: bool) -> Read {
    let wire = Wire::new(pieces(says, &[]), closes, usize::MAX);
    theirs(wire, asked(method), MOST)
}

/// Reads `says` in pieces and compares with what hyper made of it; what came of it.
fn compare(
    (method, says): (&Method, &[u8]),
    (cuts, closes): (&[usize], bool),
    other: &Read,
) -> Result<Read, String> {
    let wire = Wire::new(pieces(says, cuts), closes, usize::MAX);
    let mine = ours(wire, asked(method), MOST);
    match differs(&mine, other, says) {
        None => Ok(mine),
        Some(why) => Err(format!(
            "{why}: to {method}, cut at {cuts:?}, closes: {closes}\n> {}\n{}\n{}",
            brief(&says.escape_ascii().to_string()),
            brief(&format!("ours: {mine:?}")),
            brief(&format!("hyper's: {other:?}"))
        )),
    }
}

fn brief(text: &str) -> &str {
    text.get(..2_000).unwrap_or(text)
}

fn cases() -> Vec<Case> {
    let many = |count: usize| -> String { (0..count).map(|at| format!("x-{at}: y\r\n")).collect() };
    vec![
        ok("Content-Length: 5\r\n\r\nhello", Whole(200, "hello", true)),
        ok(
            "content-length:5\r\nX-Case: Aé\r\n\r\nhello",
            Whole(200, "hello", true),
        ),
        ok("Content-Length: 0\r\n\r\n", Whole(200, "", true)),
        ok(
            "Content-Length: 5\r\nConnection: close\r\n\r\nhello",
            Whole(200, "hello", false),
        ),
        ok(
            "Connection: x, Close\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n",
            Whole(200, "", false),
        ),
        ok("Content-Length: 5\r\n\r\nhell", NoBody(200)),
        ok(
            "Content-Length: 5\r\n\r\nhello!",
            Whole(200, "hello", false),
        ),
        ok(
            "Content-Length: 5\r\n\r\nhelloHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Whole(200, "hello", false),
        ),
        ok(
            "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
            Whole(200, "hello", true),
        ),
        ok(
            "Content-Length: 5, 5\r\n\r\nhello",
            Whole(200, "hello", true),
        ),
        ok(
            "Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
            NoHead,
        ),
        ok("Content-Length: +5\r\n\r\nhello", NoHead),
        ok("Content-Length: -1\r\n\r\nhello", NoHead),
        ok("Content-Length:\r\n\r\nhello", NoHead),
        ok("Content-Length: 5 5\r\n\r\nhello", NoHead),
        ok("Content-Length: 99999999999999999999\r\n\r\nhello", NoHead),
        ok("Content-Length: 18446744073709551615\r\n\r\nhello", NoHead),
        ok(
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
            NoHead,
        ),
        ok(
            "Transfer-Encoding: identity\r\nContent-Length: 5\r\n\r\nhello",
            NoHead,
        ),
        ok("\r\nuntil the end", Whole(200, "until the end", false)),
        ok(
            "Transfer-Encoding: gzip\r\n\r\nuntil the end",
            Whole(200, "until the end", false),
        ),
        ok(
            "Transfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
            Whole(200, "0\r\n\r\n", false),
        ),
        ok(
            "Transfer-Encoding: gzip, chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            Whole(200, "x", true),
        ),
        ok(
            "Transfer-Encoding: gzip\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
            Whole(200, "x", true),
        ),
        chunked(
            "5\r\nhello\r\n6;a=\"b\"\r\n world\r\n0\r\n\r\n",
            Whole(200, "hello world", true),
        ),
        chunked(
            "A \t\r\n0123456789\r\n000\r\n\r\n",
            Whole(200, "0123456789", true),
        ),
        chunked("0\r\nX-Sum: 1\r\nx-sum:2\r\n\r\n", Whole(200, "", true)),
        chunked("0\r\n\r\n0\r\n\r\n", Whole(200, "", false)),
        chunked("5\r\nhello", NoBody(200)),
        chunked("5\r\nhello\r\n0\r\n", NoBody(200)),
        chunked("5\r\nhello0\r\n\r\n", NoBody(200)),
        chunked("5\nhello\r\n0\r\n\r\n", NoBody(200)),
        chunked("5\r\nhello\n0\r\n\r\n", NoBody(200)),
        chunked("5;x\nhello\r\n0\r\n\r\n", NoBody(200)),
        chunked("+5\r\nhello\r\n0\r\n\r\n", NoBody(200)),
        chunked("0x5\r\nhello\r\n0\r\n\r\n", NoBody(200)),
        chunked("\r\n", NoBody(200)),
        chunked("5 5\r\nhello\r\n0\r\n\r\n", NoBody(200)),
        chunked("10000000000000000\r\nx", NoBody(200)),
        chunked("fffffffffffffffff\r\nx", NoBody(200)),
        chunked("ffffffffffffffff\r\nx", NoBody(200)),
        chunked("0\r\nno colon\r\n\r\n", NoBody(200)),
        chunked("0\r\nx: y\n\r\n", NoBody(200)),
        chunked("0\r\nx: y\nz: w\r\n\r\n", NoBody(200)),
        chunked("0\r\n x: y\r\n\r\n", NoBody(200)),
        chunked(&format!("0\r\n{}\r\n", many(100)), Whole(200, "", true)),
        chunked(&format!("0\r\n{}\r\n", many(101)), NoBody(200)),
        chunked(
            &format!("0\r\nx: {}\r\n\r\n", "y".repeat(17 << 10)),
            NoBody(200),
        ),
        chunked(
            &format!("1;{}\r\nx\r\n0\r\n\r\n", "y".repeat(17 << 10)),
            NoBody(200),
        ),
        ok(&format!("{}\r\n", many(100)), Whole(200, "", false)),
        ok(&format!("{}\r\n", many(101)), NoHead),
        ok(
            &format!("x: {}\r\nContent-Length: 0\r\n\r\n", "y".repeat(60 << 10)),
            Whole(200, "", true),
        ),
        ok(&format!("x: {}\r\n\r\n", "y".repeat(70 << 10)), NoHead),
        ok("x: a\r\n b\r\nContent-Length: 0\r\n\r\n", NoHead),
        ok("Content-Length : 0\r\n\r\n", NoHead),
        ok("a b: c\r\n\r\n", NoHead),
        ok(": c\r\n\r\n", NoHead),
        ok("x: a\0b\r\n\r\n", NoHead),
        ok("x: a\rb\r\n\r\n", NoHead),
        // Apps that print their heads: as hyper, and as nginx.
        case(
            "HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
            Whole(200, "hello", true),
        ),
        case(
            "\r\n\r\nHTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
            Whole(200, "", true),
        ),
        case(
            "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n",
            Whole(200, "", true),
        ),
        case(
            "HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
            Whole(999, "", true),
        ),
        case(
            "HTTP/1.1 204 No\r\nContent-Length: 5\r\n\r\n",
            Whole(204, "", true),
        ),
        case("HTTP/1.1 204 No\r\n\r\nhello", Whole(204, "", false)),
        case(
            "HTTP/1.1 304 Same\r\nTransfer-Encoding: chunked\r\n\r\n",
            Whole(304, "", true),
        ),
        case(
            "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            Whole(200, "hello", false),
        ),
        case(
            "HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhello",
            Whole(200, "hello", false),
        ),
        case("HTTP/1.0 200 OK\r\n\r\nhello", Whole(200, "hello", false)),
        case(
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            NoHead,
        ),
        case(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nLink: </a>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Whole(200, "", true),
        ),
        case(
            "HTTP/1.1 103 Early\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
            Whole(200, "", true),
        ),
        case(
            "HTTP/1.1 101 Switch\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nframes",
            Whole(101, "", false),
        ),
        case("", NoHead),
        case("HTTP/1.1 200", NoHead),
        case("HTTP/1.1 200 OK\r\n", NoHead),
        case("HTTP/1.1 20 OK\r\n\r\n", NoHead),
        case("HTTP/1.1 099 OK\r\n\r\n", NoHead),
        case("HTTP/1.1 2000 OK\r\n\r\n", NoHead),
        case("HTTP/1.2 200 OK\r\n\r\n", NoHead),
        case("HTTP/2 200 OK\r\n\r\n", NoHead),
        case("ICY 200 OK\r\n\r\n", NoHead),
        case("hello, world\r\n\r\n", NoHead),
        to(
            Method::HEAD,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
            Whole(200, "", true),
        ),
        to(
            Method::HEAD,
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            Whole(200, "", true),
        ),
        to(
            Method::HEAD,
            "HTTP/1.1 200 OK\r\n\r\n",
            Whole(200, "", true),
        ),
        to(
            Method::HEAD,
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
            Whole(200, "", false),
        ),
    ]
}

/// Every case in one piece, cut in two at each place, and byte by byte; with its app closing and not.
#[test]
fn answers_are_read_as_by_hyper_however_they_are_cut() {
    for Case {
        method,
        says,
        expects,
    } in cases()
    {
        // Of long ones the ends are what matters.
        let near = |cut: &usize| *cut < 200 || *cut + 200 > says.len();
        let each: Vec<usize> = (0..says.len()).filter(near).collect();
        let mut ways = vec![vec![], each.clone()];
        ways.extend(each.into_iter().map(|cut| vec![cut]));
        let others = [false, true].map(|closes| reference(&method, &says, closes));
        for (cuts, closes) in ways.iter().flat_map(|cuts| [(cuts, true), (cuts, false)]) {
            let read = compare(
                (&method, &says),
                (cuts, closes),
                &others[usize::from(closes)],
            )
            .unwrap_or_else(|why| panic!("{why}"));
            let got = match (&read.head, read.end) {
                (Some((status, _)), End::Whole { again }) => {
                    (*status, read.body.as_slice(), Some(again))
                }
                (Some((status, _)), _) => (*status, b"".as_slice(), None),
                (None, _) => (0, b"".as_slice(), None),
            };
            let expected = match expects {
                // That it would have stayed is seen where the app doesn't close.
                Whole(status, body, stays) => (status, body.as_bytes(), Some(stays && !closes)),
                NoBody(status) => (status, b"".as_slice(), None),
                NoHead => (0, b"".as_slice(), None),
            };
            // What only the end can end waits without it.
            let waits =
                !closes && read.end == End::Waits && (read.head.is_none() || expects != NoHead);
            assert!(
                got == expected || waits,
                "{:?}, not {:?}\n> {}\ncut at {cuts:?}, closes: {closes}",
                (got.0, brief(&String::from_utf8_lossy(got.1)), got.2),
                expects,
                brief(&says.escape_ascii().to_string())
            );
        }
    }
}
