//! What lies between protocols: WebSocket over HTTP/2, interim answers, gRPC's statuses and deadlines.

use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{Method, Request};
use http_body_util::{Empty, Full};
use hyper::ext::Protocol as ExtendedProtocol;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::Role;
use utsuwa_model::route::{Access, Protocol, RevisionRoute};

use super::app::*;
use super::protocols::{http2_call, websocket_app};
use super::scene::*;

fn extended_connect() -> Request<Empty<Bytes>> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(format!("http://{HOST}/ws"))
        .header("sec-websocket-version", "13")
        .body(Empty::new())
        .unwrap();
    request
        .extensions_mut()
        .insert(ExtendedProtocol::from_static("websocket"));
    request
}

#[tokio::test]
async fn a_websocket_over_http2_is_an_upgrade_for_the_app() {
    let (address, _app) = websocket_app().await;
    let scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    let stream = TcpStream::connect(scene.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    // The server's settings come with its first answer.
    let first = Request::get("http://nobody.localhost/").body(Empty::new());
    sender.send_request(first.unwrap()).await.unwrap();
    let response = tokio::time::timeout(PATIENCE, sender.send_request(extended_connect()))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(response.status(), 200);
    for name in ["connection", "upgrade", "sec-websocket-accept"] {
        assert!(!response.headers().contains_key(name), "{name}");
    }
    let upgraded = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, socket.next()).await;
        assert_eq!(answer.unwrap().unwrap().unwrap(), Message::text(text));
    }
    assert_eq!(scene.demand().in_flight, 1);
    socket.close(None).await.unwrap();
    drop(socket);
    drop(sender);
    drop(driver);
    scene.until(|demand| demand.in_flight == 0).await;
    let records = scene.records(2).await;
    let record = records.iter().find(|r| r.path == "/ws").unwrap();
    assert_eq!((record.method.as_str(), record.status), ("GET", 101));
}

#[tokio::test]
async fn no_websocket_over_http2_where_the_app_has_none() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    // The app answers 200 as to any GET: passed on, that would say that the WebSocket is open.
    assert_eq!(http2_call(&scene, extended_connect()).await.status, 502);
    let mut other = extended_connect();
    other
        .extensions_mut()
        .insert(ExtendedProtocol::from_static("connect-udp"));
    assert_eq!(http2_call(&scene, other).await.status, 405);
    let h2c = RevisionRoute {
        protocol: Protocol::H2c,
        ..route()
    };
    scene.publish(table(h2c, Access::Public));
    assert_eq!(http2_call(&scene, extended_connect()).await.status, 405);
}

/// What an app says to a request by hand, step by step.
async fn told(stream: &mut TcpStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
}

async fn heard(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.ends_with(end) {
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer))
            .await
            .unwrap()
            .unwrap();
        assert!(read > 0, "ended after {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    text
}

#[tokio::test]
async fn early_hints_arrive_before_the_answer_is_begun() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let waits = std::sync::Arc::clone(&gate);
    let (address, _app) = raw_app(move |_, mut stream| {
        let waits = std::sync::Arc::clone(&waits);
        async move {
            let mut buffer = [0; 4096];
            if stream.read(&mut buffer).await.unwrap_or(0) == 0 {
                return; // the startup probe
            }
            told(
                &mut stream,
                "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n",
            )
            .await;
            waits.acquire().await.unwrap().forget();
            told(
                &mut stream,
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi",
            )
            .await;
        }
    })
    .await;
    let scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    let mut client = TcpStream::connect(scene.address).await.unwrap();
    told(
        &mut client,
        &format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n"),
    )
    .await;
    let hints = heard(&mut client, "\r\n\r\n").await;
    assert_eq!(
        hints,
        "HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n"
    );
    gate.add_permits(1);
    let answer = heard(&mut client, "hi").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    // HTTP/1.0 knows no such thing.
    gate.add_permits(1);
    let old = scene
        .raw(&format!("GET / HTTP/1.0\r\nhost: {HOST}\r\n\r\n"))
        .await;
    assert!(
        old.starts_with("HTTP/1.0 200") || old.starts_with("HTTP/1.1 200"),
        "{old}"
    );
}

#[tokio::test]
async fn a_body_is_asked_for_when_the_app_asks_for_it() {
    let gate = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let waits = std::sync::Arc::clone(&gate);
    let (address, _app) = raw_app(move |_, mut stream| {
        let waits = std::sync::Arc::clone(&waits);
        async move {
            let mut buffer = [0; 4096];
            let read = stream.read(&mut buffer).await.unwrap_or(0);
            if read == 0 {
                return;
            }
            let head = String::from_utf8_lossy(&buffer[..read]).to_lowercase();
            assert!(head.contains("expect: 100-continue"), "{head}");
            if head.starts_with("post /refused") {
                told(
                    &mut stream,
                    "HTTP/1.1 417 Expectation Failed\r\ncontent-length: 0\r\n\r\n",
                )
                .await;
                return;
            }
            waits.acquire().await.unwrap().forget();
            told(&mut stream, "HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(heard(&mut stream, "12345").await, "12345");
            told(
                &mut stream,
                "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok",
            )
            .await;
        }
    })
    .await;
    let scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    let ask = |path: &str| {
        format!(
            "POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 5\r\nexpect: 100-continue\r\n\r\n"
        )
    };
    let mut client = TcpStream::connect(scene.address).await.unwrap();
    told(&mut client, &ask("/taken")).await;
    scene.until(|demand| demand.in_flight == 1).await;
    let early = tokio::time::timeout(Duration::from_millis(100), client.readable()).await;
    assert!(early.is_err(), "the app has not asked yet");
    gate.add_permits(1);
    assert_eq!(
        heard(&mut client, "\r\n\r\n").await,
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    told(&mut client, "12345").await;
    assert!(heard(&mut client, "ok").await.starts_with("HTTP/1.1 200"));
    // Refused without its body, which is never asked for.
    let mut client = TcpStream::connect(scene.address).await.unwrap();
    told(&mut client, &ask("/refused")).await;
    let answer = heard(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 417"), "{answer}");
}

fn grpc_call(path: &str) -> http::request::Builder {
    Request::post(format!("http://{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

#[tokio::test]
async fn grpc_callers_are_refused_in_grpc_s_terms() {
    let scene = Scene::new(RevisionRoute {
        protocol: Protocol::H2c,
        ..route()
    })
    .await;
    let unknown = grpc_call("nobody.localhost/a.B/C").body(Empty::<Bytes>::new());
    let reply = http2_call(&scene, unknown.unwrap()).await;
    assert_eq!((reply.status, reply.header("grpc-status")), (200, "12"));
    assert_eq!(
        reply.header("grpc-message"),
        "No service is served under this host."
    );
    assert_eq!(reply.header("content-type"), "application/grpc");
    assert!(reply.body.is_empty());
    let record = &scene.records(1).await[0];
    assert_eq!((record.status, record.response_bytes), (404, 0));
    // gRPC-Web, and gRPC's content type in an ordinary HTTP/1.1 request, get HTTP's.
    for kind in [
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/json",
    ] {
        let request = Request::post("http://nobody.localhost/a.B/C").header("content-type", kind);
        let reply = http2_call(&scene, request.body(Empty::<Bytes>::new()).unwrap()).await;
        assert_eq!(reply.status, 404, "{kind}");
    }
}

#[tokio::test]
async fn a_grpc_deadline_ends_the_call_and_what_is_left_of_it_is_told() {
    let scene = Scene::new(RevisionRoute {
        protocol: Protocol::H2c,
        ..route()
    })
    .await;
    let app = App::new().await;
    let late = grpc_call(&format!("{HOST}/gate")).header("grpc-timeout", "50m");
    let reply = http2_call(&scene, late.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(
        reply.header("grpc-status"),
        "4",
        "it waited for an instance"
    );
    assert_eq!(scene.records(1).await[0].status, 504);
    let waits = grpc_call(&format!("{HOST}/headers")).header("grpc-timeout", "60S");
    let waiting = http2_call(&scene, waits.body(Full::<Bytes>::default()).unwrap());
    let (reply, _) = tokio::join!(waiting, async {
        scene.until(|demand| demand.queued == 1).await;
        scene.ready(&app).await
    });
    let left = reply.seen("grpc-timeout").unwrap();
    let ms: u64 = left.strip_suffix('m').unwrap().parse().unwrap();
    assert!((1..60_000).contains(&ms), "{left}");
    let inside = grpc_call(&format!("{HOST}/gate")).header("grpc-timeout", "50m");
    let reply = http2_call(&scene, inside.body(Full::<Bytes>::default()).unwrap()).await;
    assert_eq!(
        reply.header("grpc-status"),
        "4",
        "it was inside an instance"
    );
}
