//! Answers of random pieces, cut at random places. What it finds becomes a case of its own in the list beside it.

use std::time::{Duration, Instant};

use http::Method;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};

use super::super::smuggling::fuzz::{change, seconds};
use super::read::End;
use super::{cases, compare, reference};

/// What answers are made of. Most of it is nearly right: what is all wrong is refused at its first byte.
const PIECES: &[&str] = &[
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 200 OK\r\n",
    "HTTP/1.1 404 Not Found\r\n",
    "HTTP/1.0 200 OK\r\n",
    "HTTP/1.1 204 No Content\r\n",
    "HTTP/1.1 304 Not Modified\r\n",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n",
    "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 5\r\n",
    "content-length:10\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length : 5\r\n",
    "Content-Length: +5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:\tCHUNKED\r\n",
    "Transfer-Encoding: gzip\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    " Transfer-Encoding: chunked\r\n",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Connection: keep-alive, x\r\n",
    "X-A: b\r\n",
    "X-A: b\n",
    "X-A: b\r",
    "X-A:\r\n b\r\n",
    "\r\n",
    "\r\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\n\n",
    "\r",
    " ",
    "\t",
    ":",
    ";",
    "\0",
    "hello",
    "hello",
    "0123456789",
    "5\r\nhello\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;a=b\r\nhello\r\n",
    "5 \r\nhello\r\n",
    "5\nhello\n",
    "a\r\n0123456789\r\n",
    "ffffffffffffffff\r\n",
    "0\r\n",
    "0\r\n\r\n",
    "X-Sum: 1\r\n",
    "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
];

fn answers() -> impl Strategy<Value = (Method, Vec<u8>, Vec<usize>, bool)> {
    let known: Vec<Vec<u8>> = cases()
        .into_iter()
        .map(|case| case.says)
        .filter(|says| says.len() < 1000)
        .collect();
    let pieces = || vec(proptest::sample::select(PIECES), 1..12).prop_map(|all| all.concat());
    let begun = (proptest::sample::select(&PIECES[..8]), pieces())
        .prop_map(|(first, rest)| [first, &rest].concat());
    let message = prop_oneof![
        1 => pieces().prop_map(String::into_bytes),
        4 => begun.prop_map(String::into_bytes),
        2 => proptest::sample::select(known),
        1 => (proptest::sample::select(&PIECES[PIECES.len() - 2..]), pieces())
            .prop_map(|(first, rest)| [first, &rest].concat().into_bytes()),
    ];
    let changed = (message, vec(change(), 0..3)).prop_map(|(mut bytes, changes)| {
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    });
    let method = prop_oneof![5 => Just(Method::GET), 1 => Just(Method::HEAD)];
    (method, changed, vec(0..400_usize, 0..5), any::<bool>())
}

#[test]
fn no_bytes_of_an_app_are_read_in_another_way_than_by_hyper() {
    let end = Instant::now() + Duration::from_secs(seconds());
    let strategy = answers();
    let (mut cases, whole, broken) = (0, std::cell::Cell::new(0), std::cell::Cell::new(0));
    while Instant::now() < end {
        let config = Config {
            cases: 256,
            failure_persistence: None,
            max_shrink_iters: 5_000,
            ..Config::default()
        };
        let outcome = TestRunner::new(config).run(&strategy, |(method, bytes, cuts, closes)| {
            let other = reference(&method, &bytes, closes);
            let read = compare((&method, &bytes), (&cuts, closes), &other);
            let read = read.map_err(TestCaseError::fail)?;
            let count = match read.end {
                End::Whole { .. } => &whole,
                End::Broken | End::Waits => &broken,
            };
            count.set(count.get() + 1);
            Ok(())
        });
        if let Err(TestError::Fail(why, _)) = outcome {
            panic!("{why}");
        }
        cases += 256;
    }
    // The generator reaches what it is for.
    assert!(
        whole.get() * 10 > cases && broken.get() * 10 > cases,
        "{whole:?} {broken:?}"
    );
    println!("{cases} answers, {} whole", whole.get());
}
