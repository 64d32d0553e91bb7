//! Bytes that nobody wrote, into the real connection code, with a real app behind it.
//!
//! A few seconds of it run with every `make test`; `UTSUWA_FUZZ_SECONDS=600` makes it a soak. What it finds is shrunk, printed, and
//! kept by hand in `tests/smuggling/found.txt`, which is read by the tests of the corpus.
//!
//! Held each time: the app gets only requests that the strict reader finds in the bytes, whole and in their order; each
//! request that it finds is answered or the connection ends; each answer has one record; nothing panics; the server goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::scene::{PATIENCE, Scene, route};
use super::corpus::{self, Seen};
use super::recorder::{Got, recorder};
use super::{plain, reference, statuses};

/// How long one run goes on when nobody says.
const SECONDS: u64 = 4;

/// What messages are made of. Most of it is nearly right: what is all wrong is refused at its first byte.
const PIECES: &[&str] = &[
    "GET /a HTTP/1.1\r\n",
    "GET /b HTTP/1.1\r\n",
    "POST /c HTTP/1.1\r\n",
    "POST /d HTTP/1.0\r\n",
    "HEAD /e HTTP/1.1\r\n",
    "GET http://hello.localhost/f HTTP/1.1\r\n",
    "OPTIONS * HTTP/1.1\r\n",
    "CONNECT hello.localhost:80 HTTP/1.1\r\n",
    "TRACE / HTTP/1.1\r\n",
    "PRI * HTTP/1.1\r\n",
    "Host: hello.localhost\r\n",
    "Host: hello.localhost\r\n",
    "Host: hello.localhost\r\n",
    "Host: other.localhost\r\n",
    "Host: hello.localhost:80\r\n",
    "\r\n",
    "\r\n",
    "\r\n",
    "\r\n\r\n",
    "\n",
    "\r",
    " ",
    "\t",
    ":",
    ";",
    ",",
    "\0",
    "Content-Length: 0\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 5\r\n",
    "Content-Length: 10\r\n",
    "content-length:5\r\n",
    "Content-Length: +5\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length : 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding: chunked\r\n",
    "transfer-encoding:\tCHUNKED\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding : chunked\r\n",
    " Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding:\r\n chunked\r\n",
    "0\r\n\r\n",
    "0\r\n",
    "5\r\nhello\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;a=b\r\nhello\r\n",
    "5 \r\nhello\r\n",
    "5\nhello\n",
    "a\r\n0123456789\r\n",
    "ffffffffffffffff\r\n",
    "hello",
    "hello",
    "0123456789",
    "X-Sum: 1\r\n",
    "X-A: b\r\n",
    "X-A: b\n",
    "X-A: b\r",
    "Connection: close\r\n",
    "Connection: keep-alive\r\n",
    "Connection: upgrade\r\nUpgrade: websocket\r\n",
    "Upgrade: h2c\r\n",
    "Expect: 100-continue\r\n",
    "X_Forwarded_For: 1\r\n",
    "TE: trailers\r\n",
    "GET /g HTTP/1.1\r\nHost: hello.localhost\r\n\r\n",
    "GET /h HTTP/1.1\r\nHost: hello.localhost\r\n\r\n",
    "POST /i HTTP/1.1\r\nHost: hello.localhost\r\nContent-Length: 5\r\n\r\nhello",
    "POST /j HTTP/1.1\r\nHost: hello.localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
];

/// Bytes that mean something somewhere.
const NASTY: &[u8] = b"\r\n\0 \t:;,0159afAFxX+-_\x0b\x0c\x7f\x80\xff/\\@#?*\"'";

/// A change to a message.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    Insert(usize, u8),
    Replace(usize, u8),
    Remove(usize, usize),
    Repeat(usize, usize),
}

impl Change {
    pub(crate) fn apply(&self, bytes: &mut Vec<u8>) {
        let length = bytes.len();
        match *self {
            Self::Insert(at, byte) => bytes.insert(at % (length + 1), byte),
            _ if bytes.is_empty() => {}
            Self::Replace(at, byte) => bytes[at % length] = byte,
            Self::Remove(at, count) => {
                let at = at % length;
                bytes.drain(at..(at + count).min(length));
            }
            Self::Repeat(at, count) => {
                let at = at % length;
                let some = bytes[at..(at + count).min(length)].to_vec();
                bytes.splice(at..at, some);
            }
        }
    }
}

pub(crate) fn change() -> impl Strategy<Value = Change> {
    let byte = || proptest::sample::select(NASTY);
    prop_oneof![
        (0..4096_usize, byte()).prop_map(|(at, byte)| Change::Insert(at, byte)),
        (0..4096_usize, byte()).prop_map(|(at, byte)| Change::Replace(at, byte)),
        (0..4096_usize, 1..20_usize).prop_map(|(at, count)| Change::Remove(at, count)),
        (0..4096_usize, 1..60_usize).prop_map(|(at, count)| Change::Repeat(at, count)),
    ]
}

/// What one connection sends, and where it is cut into packets.
fn connection() -> impl Strategy<Value = (Vec<u8>, Vec<usize>)> {
    let cases: Vec<Vec<u8>> = corpus::read("http1.txt")
        .into_iter()
        .map(|case| case.bytes)
        .filter(|bytes| bytes.len() < 2_000)
        .collect();
    let pieces =
        || vec(proptest::sample::select(PIECES), 1..16).prop_map(|all| all.concat().into_bytes());
    let message = prop_oneof![
        3 => pieces(),
        2 => proptest::sample::select(cases),
        1 => (proptest::sample::select(&PIECES[PIECES.len() - 4..]), pieces())
            .prop_map(|(first, rest)| [first.as_bytes(), &rest].concat()),
    ];
    let changed = (message, vec(change(), 0..4)).prop_map(|(mut bytes, changes)| {
        changes.iter().for_each(|change| change.apply(&mut bytes));
        bytes
    });
    (
        vec(changed, 1..3).prop_map(|all| all.concat()),
        vec(0..400_usize, 0..4),
    )
}

/// What came of one connection.
struct Outcome {
    answers: usize,
    /// Nothing of the last request was answered, perhaps.
    unfinished: bool,
}

async fn converse(
    scene: &Scene,
    got: &Got,
    bytes: &[u8],
    cuts: &[usize],
) -> Result<Outcome, TestCaseError> {
    got.seen.lock().clear();
    let found = reference::requests(bytes);
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut heard = Vec::new();
    let mut closed = false;
    let talk = async {
        let send = async {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut % (bytes.len() + 1)).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            for pair in cuts.windows(2) {
                if writer.write_all(&bytes[pair[0]..pair[1]]).await.is_err() {
                    return;
                }
                // A packet of its own, mostly: what comes together is one of the cases, too.
                tokio::task::yield_now().await;
            }
        };
        let listen = async {
            while !closed && statuses(&heard).len() < found.len() {
                closed = reader.read_buf(&mut heard).await.unwrap_or(0) == 0;
            }
        };
        tokio::join!(send, listen);
        let _gone = writer.shutdown().await;
        while !closed {
            closed = reader.read_buf(&mut heard).await.unwrap_or(0) == 0;
        }
    };
    if timeout(PATIENCE, talk).await.is_err() {
        return Err(TestCaseError::fail(format!(
            "neither answered nor ended: {} requests, heard {}",
            found.len(),
            String::from_utf8_lossy(&heard)
        )));
    }
    let seen: Vec<Seen> = got.seen.lock().clone();
    let mut left = found.iter();
    for seen in &plain(&seen) {
        let sent =
            left.any(|found| plain(std::slice::from_ref(found)) == std::slice::from_ref(seen));
        if !sent {
            return Err(TestCaseError::fail(format!(
                "the app got {seen:?}, the client sent {found:?}"
            )));
        }
    }
    if let Some(strange) = got.strange.lock().pop() {
        return Err(TestCaseError::fail(format!("the app got {strange:?}")));
    }
    let answers = statuses(&heard).len();
    Ok(Outcome {
        answers,
        unfinished: true,
    })
}

/// How long one fuzzer runs.
#[expect(
    clippy::disallowed_methods,
    reason = "whoever runs it says how long in the environment"
)]
pub(crate) fn seconds() -> u64 {
    std::env::var_os("UTSUWA_FUZZ_SECONDS")
        .and_then(|text| text.to_str()?.parse().ok())
        .unwrap_or(SECONDS)
}

/// Counts panics of all threads from now on.
pub(super) fn count_panics() -> Arc<AtomicUsize> {
    let panics = Arc::new(AtomicUsize::new(0));
    let (counted, before) = (Arc::clone(&panics), std::panic::take_hook());
    std::panic::set_hook(Box::new(move |info| {
        counted.fetch_add(1, Ordering::SeqCst);
        before(info);
    }));
    panics
}

#[test]
fn no_bytes_make_an_app_see_what_was_not_sent() {
    let panics = count_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (mut scene, got, _app) = runtime.block_on(async {
        let scene = Scene::new(route()).await;
        let (app, got, tasks) = recorder().await;
        scene.ready_at(app).await;
        (scene, got, tasks)
    });
    let (answers, unfinished, cases) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicUsize::new(0),
    );
    let end = Instant::now() + Duration::from_secs(seconds());
    let strategy = connection();
    while Instant::now() < end {
        let config = Config {
            cases: 128,
            failure_persistence: None,
            max_shrink_iters: 2_000,
            ..Config::default()
        };
        let outcome = TestRunner::new(config).run(&strategy, |(bytes, cuts)| {
            let outcome = runtime.block_on(converse(&scene, &got, &bytes, &cuts))?;
            answers.fetch_add(outcome.answers, Ordering::Relaxed);
            unfinished.fetch_add(usize::from(outcome.unfinished), Ordering::Relaxed);
            cases.fetch_add(1, Ordering::Relaxed);
            prop_assert_eq!(panics.swap(0, Ordering::SeqCst), 0);
            Ok(())
        });
        if let Err(TestError::Fail(why, (bytes, cuts))) = outcome {
            panic!("{why}\n> {}\ncut at {cuts:?}", bytes.escape_ascii());
        }
    }
    let (answers, most) = (answers.into_inner(), unfinished.into_inner());
    runtime.block_on(async {
        let records = scene.records(answers).await.len();
        assert!(
            records <= answers + most,
            "{records} records of {answers} answers"
        );
        assert_eq!(scene.get("/still-here").await.status, 200);
        scene.close().await;
    });
    println!("{} connections, {answers} answers", cases.into_inner());
}

/// The generator reaches what it is for: messages that are read, and ones that are refused.
#[test]
fn the_strict_reader_reads_the_corpus_as_it_says() {
    for case in corpus::read("http1.txt") {
        let found = reference::requests(&case.bytes);
        let found = plain(&found);
        assert!(
            found.starts_with(&plain(&case.seen)) || case.name.starts_with("options-star"),
            "{}: {found:?}, {:?}",
            case.name,
            case.seen
        );
    }
}
