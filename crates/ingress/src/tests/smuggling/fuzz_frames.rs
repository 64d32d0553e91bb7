//! HTTP/2 frames in any order, of any kind, size and flags, into the real connection code with a real app behind it.
//!
//! A few seconds of it run with every `make test`; `UTSUWA_FUZZ_SECONDS=600` makes it a soak. What it finds is shrunk, printed, and
//! kept by hand in `tests/smuggling/found_frames.txt`, each connection a line, which is sent again by a test here.
//!
//! Held each time: what comes back is whole frames of the sizes that the client allows, SETTINGS first; the connection ends once
//! the client has; a connection after it is served; nothing panics; in the end nothing is counted as under way.

use std::cell::Cell;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use proptest::test_runner::{Config, TestCaseError, TestError, TestRunner};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::app::App;
use super::super::scene::{HOST, PATIENCE, Scene, route};
use super::corpus;
use super::fuzz::{count_panics, seconds};
use super::h2raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PREFACE, Raw, SETTINGS, block, frame, get,
};

/// The largest frame that a client takes who says nothing else.
const FRAME: usize = 16_384;
/// A client that hears nothing for so long goes.
const QUIET: Duration = Duration::from_millis(3);

/// Numbers at the edges of windows, sizes and counts.
const EDGES: &[u32] = &[
    0,
    1,
    16_384,
    16_385,
    65_535,
    0x00ff_ffff,
    0x7fff_ffff,
    0x8000_0000,
    u32::MAX,
];

/// The connection, streams of either side, the last there can be, and with the bit that means nothing.
const STREAMS: &[u32] = &[0, 1, 2, 3, 5, 0x7fff_ffff, 0x8000_0001, u32::MAX];

/// Which stream a frame is of.
#[derive(Debug, Clone, Copy)]
enum Of {
    /// One that the client begins.
    New,
    /// The one begun last.
    Last,
    This(u32),
}

/// A frame, or many of the same.
#[derive(Debug, Clone)]
struct Piece {
    kind: u8,
    flags: u8,
    of: Of,
    payload: Vec<u8>,
    /// The length that its header says, where that is another.
    says: Option<u32>,
    times: usize,
}

/// What one connection sends.
#[derive(Debug, Clone)]
struct Talk {
    preface: Vec<u8>,
    /// The client's SETTINGS, if it sends them first.
    settings: Option<Vec<u8>>,
    pieces: Vec<Piece>,
    /// Where it is cut into packets.
    cuts: Vec<usize>,
}

impl Talk {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.preface.clone();
        if let Some(settings) = &self.settings {
            bytes.extend(frame(SETTINGS, 0, 0, settings));
        }
        let mut last = 0_u32;
        for piece in &self.pieces {
            for _ in 0..piece.times {
                let stream = match piece.of {
                    Of::New => {
                        last = if last == 0 { 1 } else { last + 2 };
                        last
                    }
                    Of::Last => last,
                    Of::This(stream) => stream,
                };
                let mut frame = frame(piece.kind, piece.flags, stream, &piece.payload);
                if let Some(says) = piece.says {
                    frame[..3].copy_from_slice(&says.to_be_bytes()[1..]);
                }
                bytes.extend(frame);
            }
        }
        bytes
    }

    /// The largest frame that this client may be sent: what it says of that, whether or not it is heard.
    fn largest(&self) -> usize {
        let pieces = self.pieces.iter().filter(|piece| piece.kind == SETTINGS);
        let payloads = pieces.map(|piece| &piece.payload).chain(&self.settings);
        let sizes = payloads.flat_map(|payload| {
            payload.chunks_exact(6).filter_map(|entry| {
                let value = u32::from_be_bytes(entry[2..].try_into().ok()?);
                (entry[..2] == [0, 5]).then_some(value as usize)
            })
        });
        sizes.max().unwrap_or(0).max(FRAME)
    }
}

fn settings() -> impl Strategy<Value = Vec<u8>> {
    vec((0..10_u16, select(EDGES)), 0..4).prop_map(|entries| {
        let entries = entries.into_iter();
        entries
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect()
    })
}

/// The blocks of headers that make the deeper states, and ones that are wrong in all ways.
fn headers() -> impl Strategy<Value = Vec<u8>> {
    let post = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/count"),
        ("content-length", "5"),
    ]);
    let connect = block(&[
        (":method", "CONNECT"),
        (":protocol", "websocket"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/hello"),
    ]);
    let right = vec![get(HOST, "/hello"), get(HOST, "/count"), post, connect];
    let field = ("[:a-zA-Z-]{0,12}", "[ -~\\r\\n\\x00]{0,20}");
    prop_oneof![
        4 => select(right),
        2 => vec(field, 0..6).prop_map(|fields| block(&fields)),
        // Sizes of the table, references into it, codes of Huffman's that end anywhere.
        2 => vec(any::<u8>(), 0..80),
    ]
}

fn piece() -> impl Strategy<Value = Piece> {
    let new = || {
        select(
            &[
                Of::New,
                Of::New,
                Of::New,
                Of::Last,
                Of::This(1),
                Of::This(0),
            ][..],
        )
    };
    let anywhere = || {
        prop_oneof![
            2 => Just(Of::Last),
            1 => Just(Of::New),
            2 => select(STREAMS).prop_map(Of::This),
        ]
    };
    let ends = || {
        select(
            &[
                END_STREAM | END_HEADERS,
                END_HEADERS,
                END_HEADERS,
                END_STREAM,
                0,
                0xff,
            ][..],
        )
    };
    let request = (ends(), new(), headers())
        .prop_map(move |(flags, of, payload)| whole(HEADERS, flags, of, payload));
    let body = (
        select(&[0, END_STREAM, 8, 9, 0xff][..]),
        anywhere(),
        0..20_000_usize,
    )
        .prop_map(move |(flags, of, length)| whole(DATA, flags, of, vec![b'x'; length]));
    let more = (ends(), anywhere(), headers())
        .prop_map(move |(flags, of, payload)| whole(CONTINUATION, flags, of, payload));
    let terms = (any::<bool>(), anywhere(), settings())
        .prop_map(move |(ack, of, payload)| whole(SETTINGS, u8::from(ack), of, payload));
    // PRIORITY, RST_STREAM, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE and such as nobody knows, of the right size mostly.
    let number = (
        2..12_u8,
        any::<u8>(),
        anywhere(),
        select(EDGES),
        select(&[4, 4, 8, 5, 0, 17][..]),
    )
        .prop_map(move |(kind, flags, of, number, length)| {
            let payload = number.to_be_bytes().into_iter().cycle().take(length);
            whole(kind, flags, of, payload.collect())
        });
    let any = (
        any::<u8>(),
        any::<u8>(),
        anywhere(),
        vec(any::<u8>(), 0..60),
    )
        .prop_map(move |(kind, flags, of, payload)| whole(kind, flags, of, payload));
    let wrong = prop_oneof![5 => request, 3 => body, 1 => more, 1 => terms, 3 => number, 2 => any];
    let says = prop_oneof![
        12 => Just(None),
        1 => select(EDGES).prop_map(|says| Some(says & 0x00ff_ffff)),
        1 => (0..40_u32).prop_map(Some),
    ];
    let times = prop_oneof![8 => Just(1), 1 => 2..40_usize];
    let wrong = (wrong, says, times).prop_map(|(piece, says, times)| Piece {
        says,
        times,
        ..piece
    });
    // Most of it is right: the first that isn't mostly ends the connection, and what lies deep is reached only before that.
    prop_oneof![8 => right(), 1 => wrong]
}

/// One frame that says its true length.
fn whole(kind: u8, flags: u8, of: Of, payload: Vec<u8>) -> Piece {
    Piece {
        kind,
        flags,
        of,
        payload,
        says: None,
        times: 1,
    }
}

/// Frames as clients send them, in an order that is right mostly.
fn right() -> impl Strategy<Value = Piece> {
    let post = block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/count"),
    ]);
    let asks = select(vec![get(HOST, "/hello"), get(HOST, "/headers")]);
    let ends = END_HEADERS | END_STREAM;
    prop_oneof![
        6 => asks.prop_map(move |payload| whole(HEADERS, ends, Of::New, payload)),
        2 => Just(whole(HEADERS, END_HEADERS, Of::New, post)),
        3 => (select(&[0, END_STREAM][..]), 0..3_000_usize)
            .prop_map(move |(flags, length)| whole(DATA, flags, Of::Last, vec![b'x'; length])),
        // WINDOW_UPDATE, RST_STREAM, PRIORITY, PING, and the client's SETTINGS.
        2 => (select(&[Of::This(0), Of::Last][..]), 1..100_000_u32)
            .prop_map(move |(of, more)| whole(8, 0, of, more.to_be_bytes().to_vec())),
        1 => (0..14_u32).prop_map(move |why| whole(3, 0, Of::Last, why.to_be_bytes().to_vec())),
        1 => Just(whole(2, 0, Of::Last, vec![0, 0, 0, 0, 16])),
        1 => (select(&[0, 1_u8][..]), any::<u64>())
            .prop_map(move |(ack, mark)| whole(6, ack, Of::This(0), mark.to_be_bytes().to_vec())),
        1 => (0..200_000_u32).prop_map(move |window| {
            let entry = [&[0, 4][..], &window.to_be_bytes()].concat();
            whole(SETTINGS, 0, Of::This(0), entry)
        }),
    ]
}

fn talk() -> impl Strategy<Value = Talk> {
    let preface = prop_oneof![
        12 => Just(PREFACE.to_vec()),
        1 => (0..PREFACE.len(), any::<u8>()).prop_map(|(at, byte)| {
            let mut bytes = PREFACE.to_vec();
            bytes[at] = byte;
            bytes
        }),
    ];
    let first = prop_oneof![
        4 => settings().prop_map(Some),
        8 => Just(Some(Vec::new())),
        1 => Just(None),
    ];
    (
        preface,
        first,
        vec(piece(), 1..24),
        vec(0..4_000_usize, 0..4),
    )
        .prop_map(|(preface, settings, pieces, cuts)| Talk {
            preface,
            settings,
            pieces,
            cuts,
        })
}

/// Says it all, then ends; answers how many streams were answered.
async fn converse(scene: &Scene, talk: &Talk) -> Result<usize, TestCaseError> {
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut reader, mut writer) = stream.split();
    let (bytes, mut heard, grown) = (talk.bytes(), Vec::new(), Cell::new(0));
    let send = async {
        let mut cuts: Vec<usize> = talk
            .cuts
            .iter()
            .map(|cut| cut % (bytes.len() + 1))
            .collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        for pair in cuts.windows(2) {
            if writer.write_all(&bytes[pair[0]..pair[1]]).await.is_err() {
                return;
            }
            tokio::task::yield_now().await;
        }
        // Its end is the end of all streams: first it hears what there is to hear. On a machine too busy to answer
        // within that time fewer get as far as an app.
        loop {
            let before = grown.get();
            tokio::time::sleep(QUIET).await;
            if grown.get() == before {
                break;
            }
        }
        let _gone = writer.shutdown().await;
    };
    let listen = async {
        while reader.read_buf(&mut heard).await.unwrap_or(0) > 0 {
            grown.set(heard.len());
        }
    };
    let both = timeout(PATIENCE, async { tokio::join!(send, listen) });
    if both.await.is_err() {
        return Err(TestCaseError::fail(format!(
            "it goes on without its client; heard {}",
            heard.escape_ascii()
        )));
    }
    answers(&heard, talk.largest())
}

/// Reads what came back, which may end anywhere: the client has gone by then.
fn answers(heard: &[u8], largest: usize) -> Result<usize, TestCaseError> {
    // Without its preface it is no HTTP/2.
    if heard.starts_with(b"HTTP/1.1 ") {
        return Ok(0);
    }
    let (mut rest, mut first, mut count) = (heard, true, 0);
    while let [high, middle, low, kind, flags, id @ ..] = rest
        && let Some(stream) = id.first_chunk::<4>()
    {
        let length = u32::from_be_bytes([0, *high, *middle, *low]) as usize;
        let stream = u32::from_be_bytes(*stream);
        prop_assert!(!first || *kind == SETTINGS, "{} comes first", kind);
        prop_assert!(*kind <= CONTINUATION, "a frame of kind {}", kind);
        prop_assert!(length <= largest, "a frame of {} bytes", length);
        prop_assert!(stream >> 31 == 0, "stream {}", stream);
        count += usize::from(*kind == HEADERS && flags & END_HEADERS != 0);
        first = false;
        let Some(next) = rest.get(9 + length..) else {
            break;
        };
        rest = next;
    }
    Ok(count)
}

/// What was found once, and one for each end that a connection can come to.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_found_ends_no_more_than_its_connection() {
    let panics = count_panics();
    let mut scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let file = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/smuggling/found_frames.txt"
    );
    let text = std::fs::read_to_string(file).unwrap();
    let mut sent = 0;
    for line in text.lines().filter_map(|line| line.strip_prefix("> ")) {
        let talk = Talk {
            preface: corpus::unescape(line),
            settings: None,
            pieces: Vec::new(),
            cuts: vec![PREFACE.len() + 9],
        };
        let heard = converse(&scene, &talk).await;
        assert!(heard.is_ok(), "{line}: {heard:?}");
        assert_eq!(panics.swap(0, Ordering::SeqCst), 0, "{line}");
        sent += 1;
    }
    assert!(sent > 0);
    scene
        .until(|demand| (demand.in_flight, demand.queued) == (0, 0))
        .await;
    assert_eq!(scene.get("/hello").await.status, 200);
    scene.close().await;
}

#[test]
fn no_frames_end_more_than_their_connection() {
    let panics = count_panics();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let (mut scene, _app) = runtime.block_on(async {
        let scene = Scene::new(route()).await;
        let app = App::new().await;
        scene.ready(&app).await;
        (scene, app)
    });
    let (cases, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let end = Instant::now() + Duration::from_secs(seconds());
    let strategy = talk();
    while Instant::now() < end {
        let config = Config {
            cases: 64,
            failure_persistence: None,
            max_shrink_iters: 2_000,
            ..Config::default()
        };
        let outcome = TestRunner::new(config).run(&strategy, |talk| {
            let count = runtime.block_on(converse(&scene, &talk))?;
            answered.fetch_add(count, Ordering::Relaxed);
            cases.fetch_add(1, Ordering::Relaxed);
            let good = async {
                let mut raw = Raw::connect(scene.address, &[]).await;
                let call = frame(HEADERS, END_HEADERS | END_STREAM, 1, &get(HOST, "/hello"));
                raw.send(&call).await && raw.answered(1).await
            };
            let good = runtime.block_on(async { timeout(PATIENCE, good).await });
            prop_assert!(good.unwrap_or(false), "a good connection is not served");
            // Counted anew for each: what is shrunk must not be blamed for the panic of what it was made of.
            prop_assert_eq!(panics.swap(0, Ordering::SeqCst), 0);
            Ok(())
        });
        if let Err(TestError::Fail(why, talk)) = outcome {
            panic!("{why}\n{talk:?}\n> {}", talk.bytes().escape_ascii());
        }
    }
    runtime.block_on(async {
        scene
            .until(|demand| (demand.in_flight, demand.queued) == (0, 0))
            .await;
        assert_eq!(scene.get("/hello").await.status, 200);
        scene.close().await;
    });
    let (cases, answered) = (cases.into_inner(), answered.into_inner());
    println!("{cases} connections, {answered} answers");
    // Nearly all of them once ended at their first frame, and nothing was tried but that.
    assert!(answered >= cases / 10, "few of them got as far as an app");
}
