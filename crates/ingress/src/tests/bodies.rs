//! Bodies in both directions: limits, streaming, clients that leave.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use utsuwa_model::route::{Protocol, RevisionRoute};

use super::app::*;
use super::scene::*;
use crate::seam::AnsweredBy;

const MIB: usize = 1 << 20;

async fn scene() -> (Scene, App) {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    (scene, app)
}

fn chunks(
    count: usize,
) -> StreamBody<impl futures_util::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>>> {
    StreamBody::new(futures_util::stream::iter(
        (0..count).map(|_| Ok(Frame::data(Bytes::from(vec![b'y'; MIB])))),
    ))
}

#[tokio::test]
async fn request_bodies_up_to_the_limit_pass_and_larger_ones_are_413() {
    let (scene, app) = scene().await;
    let reply = scene
        .send_body(Request::post("/count"), Bytes::from(vec![b'x'; 32 * MIB]))
        .await;
    assert_eq!((reply.status, reply.text()), (200, "33554432"));

    // Of known length: refused before anything is sent on.
    let before = app.life.served.load(Ordering::SeqCst);
    let answer = scene
        .raw(&format!("POST /count HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 33554433\r\nconnection: close\r\n\r\nabc"))
        .await;
    assert!(
        answer.starts_with("HTTP/1.1 413") && answer.contains("reason=request_too_large"),
        "{answer}"
    );
    assert_eq!(app.life.served.load(Ordering::SeqCst), before);

    // Of unknown length: counted on the way.
    let request = Request::post("/count")
        .header("host", HOST)
        .body(chunks(33))
        .unwrap();
    let reply = call(scene.address, request).await;
    assert_eq!((reply.status, reply.reason()), (413, "request_too_large"));
    let request = Request::post("/count")
        .header("host", HOST)
        .body(chunks(31))
        .unwrap();
    assert_eq!(
        call(scene.address, request).await.text(),
        (31 * MIB).to_string()
    );
    let records = scene.records(4).await;
    assert_eq!(
        (records[0].request_bytes, records[3].request_bytes),
        (32 << 20, 31 << 20)
    );
}

#[tokio::test]
async fn a_get_may_have_a_body_and_its_end_is_kept() {
    let (scene, _app) = scene().await;
    let reply = scene
        .send_body(Request::get("/count"), Bytes::from_static(b"four"))
        .await;
    assert_eq!(reply.text(), "4");
    let answer = scene
        .raw(&format!(
            "GET /count HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n4\r\nfour\r\n0\r\n\r\n\
             GET /hello HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"
        ))
        .await;
    assert!(
        answer.contains("\r\n\r\n4HTTP/1.1 200 OK") && answer.ends_with("hello"),
        "pipelined, in order: {answer}"
    );
}

#[tokio::test]
async fn large_answers_of_known_length_are_refused_and_streamed_ones_pass() {
    let (scene, _app) = scene().await;
    let reply = scene.get("/big").await;
    assert_eq!((reply.status, reply.reason()), (500, "response_too_large"));
    assert_eq!(
        reply.text(),
        "Response size was too large. Please consider reducing response size."
    );
    let reply = scene.get("/big-stream").await;
    assert_eq!((reply.status, reply.body.len()), (200, 33 * MIB));
    assert_eq!(scene.records(2).await[1].response_bytes, 33 << 20);
    scene.until(|demand| demand.in_flight == 0).await;
}

#[tokio::test]
async fn h2c_revisions_know_no_such_limits() {
    let scene = Scene::new(RevisionRoute {
        protocol: Protocol::H2c,
        ..route()
    })
    .await;
    let app = App::new().await;
    scene.ready(&app).await;
    let reply = scene
        .send_body(Request::post("/count"), Bytes::from(vec![b'x'; 33 * MIB]))
        .await;
    assert_eq!(
        (reply.status, reply.text()),
        (200, (33 * MIB).to_string().as_str())
    );
    assert_eq!(scene.get("/big").await.body.len(), 32 * MIB + 1);
}

#[tokio::test]
async fn heads_have_lengths_and_no_bodies() {
    let (scene, app) = scene().await;
    for _ in 0..3 {
        let reply = scene.send(Request::head("/hello")).await;
        assert_eq!(
            (
                reply.status,
                reply.header("content-length"),
                reply.body.len()
            ),
            (200, "5", 0)
        );
    }
    assert_eq!(
        app.life.connections.load(Ordering::SeqCst),
        1,
        "the connection is kept"
    );
    let records = scene.records(3).await;
    assert!(
        records
            .iter()
            .all(|record| record.answered_by == AnsweredBy::App),
        "{records:?}"
    );
}

#[tokio::test]
async fn what_the_app_writes_arrives_at_once_and_leaving_frees_the_slot() {
    let (scene, app) = scene().await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream
        .write_all(format!("GET /ticks HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 4096];
    for tick in 1..=5 {
        while seen.matches("1\r\n.\r\n").count() < tick {
            let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer))
                .await
                .unwrap()
                .unwrap();
            seen.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
        }
        app.gate.add_permits(1);
    }
    assert_eq!(scene.demand().in_flight, 1);
    drop(stream);
    scene.until(|demand| demand.in_flight == 0).await;
    let left = || app.life.inside.load(Ordering::SeqCst);
    eventually(
        || (left() == 0).then_some(()),
        || format!("{} inside the app", left()),
    )
    .await;
    let record = &scene.records(1).await[0];
    assert_eq!(record.status, 200);
    assert!(
        matches!(&record.answered_by, AnsweredBy::Utsuwa { why } if why.contains("client closed")),
        "{record:?}"
    );
}

#[tokio::test]
async fn both_directions_flow_at_the_same_time() {
    let (scene, _app) = scene().await;
    let (mut sender, body) = http_body_util::channel::Channel::<Bytes, std::io::Error>::new(1);
    let stream = TcpStream::connect(scene.address).await.unwrap();
    let (mut client, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = Request::post("/echo")
        .header("host", HOST)
        .body(body)
        .unwrap();
    sender.send_data(Bytes::from_static(b"one")).await.unwrap();
    let mut response = tokio::time::timeout(PATIENCE, client.send_request(request))
        .await
        .unwrap()
        .unwrap();
    for word in ["one", "two", "three"] {
        if word != "one" {
            sender.send_data(Bytes::from(word)).await.unwrap();
        }
        let frame = tokio::time::timeout(PATIENCE, response.frame())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(frame.into_data().unwrap(), word);
    }
    drop(sender);
    assert!(response.frame().await.is_none());
}

#[tokio::test]
async fn a_client_that_waits_for_100_gets_it_once_an_instance_reads() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let head = format!(
        "POST /count HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 5\r\nexpect: 100-continue\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    scene.until(|demand| demand.queued == 1).await;
    let mut buffer = [0; 256];
    let early = tokio::time::timeout(Duration::from_millis(30), stream.read(&mut buffer)).await;
    assert!(early.is_err(), "nothing is promised while nobody reads");
    scene.ready(&app).await;
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer))
        .await
        .unwrap()
        .unwrap();
    assert!(
        buffer[..read].starts_with(b"HTTP/1.1 100"),
        "{:?}",
        std::str::from_utf8(&buffer[..read])
    );
    stream.write_all(b"12345").await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert!(
        rest.starts_with("HTTP/1.1 200") && rest.ends_with("\r\n5"),
        "{rest}"
    );
}

#[tokio::test]
async fn a_client_that_breaks_off_its_upload_frees_the_slot() {
    let (scene, app) = scene().await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let head = format!("POST /count HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 1000\r\n\r\nabc");
    stream.write_all(head.as_bytes()).await.unwrap();
    eventually(
        || (app.life.inside.load(Ordering::SeqCst) == 1).then_some(()),
        || "not inside".to_owned(),
    )
    .await;
    drop(stream);
    scene.until(|demand| demand.in_flight == 0).await;
    eventually(
        || (app.life.inside.load(Ordering::SeqCst) == 0).then_some(()),
        || "still inside".to_owned(),
    )
    .await;
    assert_eq!(scene.records(1).await[0].status, 499);
}

#[tokio::test]
async fn trailers_cross_http1() {
    let (scene, _app) = scene().await;
    let mut trailers = http::HeaderMap::new();
    trailers.insert("x-sum", "42".parse().unwrap());
    let frames = vec![
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"abc"))),
        Ok(Frame::trailers(trailers)),
    ];
    let request = Request::post("/echo")
        .header("host", HOST)
        .header("te", "trailers")
        .header("trailer", "x-sum")
        .body(StreamBody::new(futures_util::stream::iter(frames)))
        .unwrap();
    let reply = call(scene.address, request).await;
    assert_eq!((reply.status, reply.text()), (200, "abc"));
    assert_eq!(reply.trailers.unwrap()["x-sum"], "42");
}

#[tokio::test]
async fn header_rules_hold_end_to_end() {
    let (scene, _app) = scene().await;
    let request = Request::get("/headers?a=%41")
        .header("host", HOST)
        .header("x-forwarded-for", "203.0.113.7")
        .header("connection", "x-private")
        .header("x-private", "1")
        .header("x-own", "kept")
        .body(Full::<Bytes>::default())
        .unwrap();
    let reply = call(scene.address, request).await;
    assert_eq!(reply.seen(":uri").unwrap(), "/headers?a=%41");
    assert_eq!(reply.seen("host").unwrap(), HOST);
    assert_eq!(
        reply.seen("x-forwarded-for").unwrap(),
        "203.0.113.7, 127.0.0.1"
    );
    assert_eq!(reply.seen("x-forwarded-proto").unwrap(), "http");
    assert_eq!(
        reply.seen("forwarded").unwrap(),
        "for=\"127.0.0.1\";proto=http"
    );
    assert_eq!(reply.seen("x-own").unwrap(), "kept");
    assert_eq!(reply.seen("x-private"), None);
    let trace = reply.seen("traceparent").unwrap();
    assert!(
        reply
            .header("x-cloud-trace-context")
            .starts_with(trace.split('-').nth(1).unwrap())
    );
    assert!(!reply.header("date").is_empty());
    let reply = scene.get("/cookie").await;
    assert_eq!(
        (
            reply.header("cache-control"),
            reply.header("server"),
            reply.reason()
        ),
        ("private", "utsuwa", "")
    );
}

#[tokio::test]
async fn a_body_that_breaks_the_protocol_is_the_client_s_fault() {
    let (scene, _app) = scene().await;
    let text = format!(
        "POST /count HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\nnonsense\r\n"
    );
    let answer = scene.raw(&text).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("bad_request_body"),
        "{answer}"
    );
    scene.until(|demand| demand.in_flight == 0).await;
}

/// Answers `bytes` to whatever comes first, then closes.
async fn canned(bytes: &'static [u8]) -> (Scene, JoinSet<()>) {
    let (address, app) = raw_app(move |_, mut stream| async move {
        let mut buffer = [0; 4096];
        if stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
            drop(stream.write_all(bytes).await);
        }
    })
    .await;
    let scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    (scene, app)
}

#[tokio::test]
async fn answers_that_end_with_the_connection_are_whole() {
    let (scene, _app) =
        canned(b"HTTP/1.0 200 OK\r\ncontent-type: text/plain\r\n\r\nold but good").await;
    for _ in 0..3 {
        let reply = scene.get("/").await;
        assert_eq!((reply.status, reply.text()), (200, "old but good"));
    }
    let records = scene.records(3).await;
    assert!(
        records
            .iter()
            .all(|record| record.answered_by == AnsweredBy::App),
        "{records:?}"
    );
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_passed_on_as_whole() {
    let (scene, _app) = canned(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345").await;
    let answer = scene
        .raw(&format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"))
        .await;
    // How much of it got out before the connection was cut is a matter of timing.
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    assert!(
        answer.is_empty() || answer.contains("content-length: 10"),
        "{answer}"
    );
    assert!(body.len() < 10, "{answer}");
    let record = &scene.records(1).await[0];
    assert!(
        matches!(&record.answered_by, AnsweredBy::Utsuwa { why } if why.contains("from the instance")),
        "{record:?}"
    );
}

#[tokio::test]
async fn an_answer_that_an_instance_dies_over_is_cut() {
    let (scene, _app) = scene().await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream
        .write_all(format!("GET /ticks HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    let id = scene.demand().instances[0].id.clone();
    scene.ingress.forget(&id, false);
    let mut rest = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(!rest.contains("0\r\n\r\n"), "no clean end: {rest}");
    assert!(matches!(
        &scene.records(1).await[0].answered_by,
        AnsweredBy::Utsuwa { .. }
    ));
}

/// The app answers before it has read the body, and never reads it.
#[tokio::test]
async fn an_early_answer_arrives_though_the_body_was_not_taken() {
    let (scene, _app) = scene().await;
    for _ in 0..5 {
        let reply = scene
            .send_body(Request::post("/teapot"), Bytes::from(vec![b'x'; 10 * MIB]))
            .await;
        assert_eq!((reply.status, reply.text()), (418, "short and stout"));
    }
    scene.until(|demand| demand.in_flight == 0).await;
}

/// Many requests in one write: the task budget runs out in the middle.
#[tokio::test]
async fn a_long_pipeline_does_not_stall() {
    let (scene, _app) = scene().await;
    let mut text = format!("GET /hello HTTP/1.1\r\nhost: {HOST}\r\n\r\n").repeat(400);
    text.push_str(&format!(
        "GET /hello HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n"
    ));
    let answer = scene.raw(&text).await;
    assert_eq!(answer.matches("HTTP/1.1 200 OK").count(), 401);
}

/// An endless answer to a client that takes it too slowly, or not at all: the request ends at its timeout, whoever is slow.
#[tokio::test]
async fn the_timeout_strikes_while_the_client_is_slow() {
    let scene = Scene::new(RevisionRoute {
        timeout: Duration::from_millis(300),
        ..route()
    })
    .await;
    let app = App::new().await;
    scene.ready(&app).await;
    let ask = format!("GET /flood HTTP/1.1\r\nhost: {HOST}\r\n\r\n");

    // One that reads nothing: the answer's body isn't even asked.
    let mut deaf = TcpStream::connect(scene.address).await.unwrap();
    deaf.write_all(ask.as_bytes()).await.unwrap();
    scene.until(|demand| demand.in_flight == 1).await;
    scene.until(|demand| demand.in_flight == 0).await;

    // One that always reads a little: there is always a next frame.
    let mut slow = TcpStream::connect(scene.address).await.unwrap();
    slow.write_all(ask.as_bytes()).await.unwrap();
    let mut little = [0_u8; 4096];
    let read = async { while matches!(slow.read(&mut little).await, Ok(1..)) {} };
    tokio::time::timeout(PATIENCE, read)
        .await
        .expect("cut at the timeout");

    // The same as one stream of several over HTTP/2: the others go on.
    let stream = TcpStream::connect(scene.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let request = |path: &str| {
        Request::get(format!("http://{HOST}{path}"))
            .body(Full::new(Bytes::new()))
            .unwrap()
    };
    let unread = sender.send_request(request("/flood")).await.unwrap();
    scene.until(|demand| demand.in_flight == 0).await;
    let after = sender.send_request(request("/hello")).await.unwrap();
    assert_eq!(reply(after).await.text(), "hello");
    assert!(
        unread.into_body().collect().await.is_err(),
        "cut, not ended"
    );

    for record in scene.records(3).await.iter().filter(|r| r.path == "/flood") {
        let AnsweredBy::Utsuwa { why } = &record.answered_by else {
            panic!("{record:?}")
        };
        assert!(why.contains("timeout"), "{why}");
        assert!(record.latency >= Duration::from_millis(300), "{record:?}");
    }
}
