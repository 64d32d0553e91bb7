//! Clients that send more than they ask for, or never take what they asked for: bounded in memory, and nobody else notices.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::app::App;
use super::scene::{HOST, PATIENCE, Scene, eventually, route};
use super::smuggling::h2raw::{
    CONTINUATION, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PRIORITY, RST_STREAM, Raw,
    SETTINGS, block, frame, get,
};
use crate::IngressSettings;

/// What one attack may cost in memory. Most cost none that can be measured.
const MEMORY: usize = 48 << 20;
/// How long a neighbour may wait while an attack goes on. Quiet it is a millisecond; this build is slow, and the machine shared.
const LATENCY: Duration = Duration::from_secs(2);

fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = pages.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

/// A name, and the bytes of each turn.
type Attack = (&'static str, fn(u32) -> Vec<u8>);

async fn scene(settings: IngressSettings) -> (Scene, App) {
    let scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;
    (scene, app)
}

/// Runs the attack beside a neighbour who asks all the time; answers how it ended.
async fn beside<T: Send + 'static>(
    scene: &Scene,
    attack: impl Future<Output = T> + Send + 'static,
) -> T {
    let before = resident();
    let mut attacks = JoinSet::new();
    attacks.spawn(attack);
    let (mut slowest, end) = (Duration::ZERO, Instant::now() + PATIENCE);
    let outcome = loop {
        let asked = Instant::now();
        assert_eq!(scene.get("/hello").await.status, 200);
        slowest = slowest.max(asked.elapsed());
        if let Some(done) = attacks.try_join_next() {
            break done.unwrap();
        }
        assert!(Instant::now() < end, "the attack goes on");
    };
    let grown = resident().saturating_sub(before);
    println!(
        "neighbour's slowest answer {slowest:?}, memory + {} KiB",
        grown >> 10
    );
    assert!(slowest < LATENCY, "{slowest:?}");
    assert!(grown < MEMORY, "{grown}");
    outcome
}

/// Sends `more(n)` again and again until the server ends it; how many times that was.
async fn until_cut(address: SocketAddr, most: u32, more: impl Fn(u32) -> Vec<u8>) -> u32 {
    let mut raw = Raw::connect(address, &[]).await;
    for number in 0..most {
        if !raw.send(&more(number)).await {
            return number;
        }
    }
    // All of it fitted into buffers: now it must end.
    let ended = async {
        while let Some(frame) = raw.next().await {
            if frame.kind == GOAWAY {
                break;
            }
        }
    };
    let ended = timeout(PATIENCE, ended).await;
    assert!(ended.is_ok(), "the server takes {most} and more");
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_ask_for_nothing_end_the_connection() {
    let (mut scene, app) = scene(IngressSettings::default()).await;
    let address = scene.address;
    let attacks: [Attack; 6] = [
        ("PING", |_| frame(PING, 0, 0, &[0; 8])),
        ("SETTINGS", |_| frame(SETTINGS, 0, 0, &[])),
        ("PRIORITY", |number| {
            frame(PRIORITY, 0, number * 2 + 1, &[0, 0, 0, 0, 1])
        }),
        ("rapid reset", |number| {
            let stream = number * 2 + 1;
            let mut bytes = frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                stream,
                &get(HOST, "/hello"),
            );
            bytes.extend(frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]));
            bytes
        }),
        ("empty DATA", |number| match number {
            0 => frame(HEADERS, END_HEADERS, 1, &get(HOST, "/count")),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("unknown frames", |_| frame(0x42, 0, 0, &[1, 2, 3])),
    ];
    for (name, attack) in attacks {
        let taken = beside(&scene, until_cut(address, 100_000, attack)).await;
        println!("{name}: ended after {taken}");
    }
    // Half begun requests are gone, too.
    scene
        .until(|demand| demand.in_flight == 0 && demand.queued == 0)
        .await;
    let inside = || app.life.inside.load(std::sync::atomic::Ordering::SeqCst);
    eventually(|| (inside() == 0).then_some(()), || inside().to_string()).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_head_without_end_is_given_up() {
    let (mut scene, _app) = scene(IngressSettings::default()).await;
    let address = scene.address;
    // CVE-2024-27316 and its kin.
    let taken = beside(
        &scene,
        until_cut(address, 100_000, |number| match number {
            0 => frame(HEADERS, END_STREAM, 1, &get(HOST, "/hello")),
            _ => frame(CONTINUATION, 0, 1, &block(&[("x-a", "b".repeat(1_000))])),
        }),
    )
    .await;
    assert!(taken < 100_000, "{taken}");
    let taken = beside(
        &scene,
        until_cut(address, 100_000, |number| match number {
            0 => frame(HEADERS, END_STREAM, 1, &get(HOST, "/hello")),
            _ => frame(CONTINUATION, 0, 1, &[]),
        }),
    )
    .await;
    println!("empty CONTINUATION: ended after {taken}");
    // The same over HTTP/1.1.
    let answer = beside(&scene, async move {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let mut sent = 0_usize;
        let line = format!("X-A: {}\r\n", "b".repeat(1_000));
        let _ = stream.write_all(b"GET / HTTP/1.1\r\n").await;
        while sent < 64 << 20 && stream.write_all(line.as_bytes()).await.is_ok() {
            sent += line.len();
        }
        let mut answer = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        (sent, String::from_utf8_lossy(&answer).into_owned())
    })
    .await;
    assert!(answer.0 <= 65 << 20, "{answer:?}");
    assert!(
        answer.1.is_empty() || answer.1.starts_with("HTTP/1.1 431"),
        "{answer:?}"
    );
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_headers_are_refused_and_told_of() {
    let (mut scene, _app) = scene(IngressSettings::default()).await;
    let many = "X-A: b\r\n".repeat(150);
    let answer = scene
        .raw(&format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n{many}\r\n"))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 431") && answer.contains("reason=head_too_large"),
        "{answer}"
    );
    let long = "b".repeat(70 << 10);
    let answer = scene
        .raw(&format!(
            "GET / HTTP/1.1\r\nhost: {HOST}\r\nX-A: {long}\r\n\r\n"
        ))
        .await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    assert_eq!(scene.records(2).await.len(), 2);
    scene.close().await;
}

/// Slow heads: each byte in time, the whole not. They cost neither a slot nor a request's place, and end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_and_handshakes_that_never_end_are_ended() {
    let settings = IngressSettings {
        header_timeout: Duration::from_secs(1),
        ..IngressSettings::default()
    };
    let (mut scene, _app) = scene(settings).await;
    let address = scene.address;
    for begin in ["", "G", "GET / HTTP/1.1\r\nX: ", "PRI * HT"] {
        let ended = beside(&scene, async move {
            let mut slow = JoinSet::new();
            for _ in 0..50 {
                slow.spawn(async move {
                    let mut stream = TcpStream::connect(address).await.unwrap();
                    let _ = stream.write_all(begin.as_bytes()).await;
                    let (mut reader, mut writer) = stream.split();
                    let mut answer = Vec::new();
                    let read = timeout(PATIENCE, reader.read_to_end(&mut answer));
                    let drip = async {
                        while !begin.is_empty()
                            && begin != "PRI * HT"
                            && writer.write_all(b"a").await.is_ok()
                        {
                            tokio::time::sleep(Duration::from_millis(50)).await;
                        }
                        std::future::pending::<()>().await;
                    };
                    tokio::select! {
                        read = read => read.is_ok(),
                        () = drip => false,
                    }
                });
            }
            slow.join_all().await
        })
        .await;
        assert!(ended.iter().all(|ended| *ended), "{begin:?}: {ended:?}");
    }
    assert_eq!(scene.demand().in_flight, 0);
    scene.close().await;
}

/// An answer that is never taken: over HTTP/2 with windows of nothing. It is held back at the app, not stored here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_into_closed_windows_are_not_stored() {
    let (mut scene, app) = scene(IngressSettings::default()).await;
    let address = scene.address;
    let streams = 60;
    let raw = beside(&scene, async move {
        // SETTINGS_INITIAL_WINDOW_SIZE 0.
        let mut raw = Raw::connect(address, &[(4, 0)]).await;
        for number in 0..streams {
            raw.send(&frame(
                HEADERS,
                END_HEADERS | END_STREAM,
                number * 2 + 1,
                &get(HOST, "/flood"),
            ))
            .await;
        }
        let mut heads = 0;
        while heads < streams {
            heads += u32::from(raw.next().await.unwrap().kind == HEADERS);
        }
        raw
    })
    .await;
    assert_eq!(scene.demand().in_flight, streams);
    // Who holds them leaves, and they are free.
    drop(raw);
    scene
        .until(|demand| demand.in_flight == 0 && demand.queued == 0)
        .await;
    let inside = || app.life.inside.load(std::sync::atomic::Ordering::SeqCst);
    eventually(|| (inside() == 0).then_some(()), || inside().to_string()).await;
    scene.close().await;
}

/// One that is never taken holds its slot no longer than a socket that takes nothing would.
#[tokio::test(start_paused = true)]
async fn an_answer_that_is_never_taken_is_given_up() {
    let (mut scene, _app) = scene(IngressSettings::default()).await;
    let mut raw = Raw::connect(scene.address, &[(4, 0)]).await;
    raw.send(&frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        1,
        &get(HOST, "/flood"),
    ))
    .await;
    while raw.next().await.unwrap().kind != HEADERS {}
    let began = Instant::now();
    while scene.demand().in_flight > 0 && began.elapsed() < Duration::from_secs(200) {
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let took = began.elapsed();
    assert!((59..70).contains(&took.as_secs()), "{took:?}");
    let records = scene.records(1).await;
    assert!(
        format!("{:?}", records[0].answered_by).contains("did not take"),
        "{records:?}"
    );
    scene.close().await;
}

/// Bodies that stop half way. A stream may pause; a body that has said its length may not for long.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_that_stop_are_given_up() {
    let settings = IngressSettings {
        body_timeout: Duration::from_millis(500),
        ..IngressSettings::default()
    };
    let (mut scene, app) = scene(settings).await;
    let inside = async |count: u32| {
        let now = || app.life.inside.load(std::sync::atomic::Ordering::SeqCst);
        eventually(|| (now() == count).then_some(()), || now().to_string()).await;
    };
    let mut paused = TcpStream::connect(scene.address).await.unwrap();
    let head = format!(
        "POST /count HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n5\r\nhello\r\n"
    );
    paused.write_all(head.as_bytes()).await.unwrap();
    inside(1).await;
    let answer = beside(&scene, {
        let address = scene.address;
        async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let head = format!(
                "POST /count HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 50000\r\n\r\nhello"
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            let mut answer = Vec::new();
            timeout(PATIENCE, stream.read_to_end(&mut answer))
                .await
                .unwrap()
                .unwrap();
            String::from_utf8(answer).unwrap()
        }
    })
    .await;
    assert!(
        answer.starts_with("HTTP/1.1 408") && answer.contains("reason=slow_request_body"),
        "{answer}"
    );
    // The stream has paused for longer than the one that was given up: it goes on.
    inside(1).await;
    paused.write_all(b"0\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    let read = timeout(PATIENCE, paused.read_to_string(&mut answer));
    read.await.unwrap().unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.ends_with('5'),
        "{answer}"
    );
    scene.until(|demand| demand.in_flight == 0).await;
    inside(0).await;
    scene.close().await;
}

/// What is compressed is not ours to look into: it goes through as it came.
#[tokio::test]
async fn nothing_is_decompressed() {
    let (mut scene, _app) = scene(IngressSettings::default()).await;
    // 10 KiB of what inflates without end; it isn't even valid, and nobody notices.
    let body =
        bytes::Bytes::from([&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3][..], &[0x55; 10 << 10]].concat());
    let request = http::Request::post("/echo")
        .header("content-encoding", "gzip")
        .header("accept-encoding", "gzip");
    let answer = scene.send_body(request, body.clone()).await;
    assert_eq!((answer.status, answer.body), (200, body));
    scene.close().await;
}
