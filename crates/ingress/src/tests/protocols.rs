//! HTTP/2 on either side, gRPC, WebSocket, probes that speak.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use http::{HeaderMap, Request, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use utsuwa_model::demand::Reach;
use utsuwa_model::route::{Protocol, RevisionRoute, StartupCheck, StartupProbe};

use super::app::*;
use super::scene::*;

pub(super) async fn http2_call<B>(scene: &Scene, request: Request<B>) -> Reply
where
    B: hyper::body::Body<Data = Bytes> + Send + Unpin + 'static,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stream = TcpStream::connect(scene.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let response = tokio::time::timeout(PATIENCE, sender.send_request(request))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(response.version(), Version::HTTP_2);
    reply(response).await
}

#[tokio::test]
async fn http2_clients_are_served_by_http1_apps() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let request = Request::get(format!("http://{HOST}/headers"))
        .body(Full::<Bytes>::default())
        .unwrap();
    let reply = http2_call(&scene, request).await;
    assert_eq!(
        (reply.status, reply.seen("host").unwrap().as_str()),
        (200, HOST)
    );
    assert_eq!(reply.seen(":uri").unwrap(), "/headers");
    let frames = futures_util::stream::iter([Ok::<_, std::convert::Infallible>(Frame::data(
        Bytes::from_static(b"12345"),
    ))]);
    let request = Request::post(format!("http://{HOST}/count"))
        .body(StreamBody::new(frames))
        .unwrap();
    assert_eq!(http2_call(&scene, request).await.text(), "5");
}

#[tokio::test]
async fn grpc_trailers_cross_h2c_end_to_end() {
    let scene = Scene::new(RevisionRoute {
        protocol: Protocol::H2c,
        ..route()
    })
    .await;
    let app = App::new().await;
    scene.ready(&app).await;
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let frames = futures_util::stream::iter([
        Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from_static(b"\0\0\0\0\x02hi"))),
        Ok(Frame::trailers(trailers)),
    ]);
    let request = Request::post(format!("http://{HOST}/echo"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(StreamBody::new(frames))
        .unwrap();
    let reply = http2_call(&scene, request).await;
    assert_eq!(
        (reply.status, &reply.body[..]),
        (200, &b"\0\0\0\0\x02hi"[..])
    );
    assert_eq!(reply.trailers.unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn http1_clients_are_served_by_h2c_apps_over_one_connection() {
    let scene = Scene::new(RevisionRoute {
        protocol: Protocol::H2c,
        ..route()
    })
    .await;
    let app = App::new().await;
    scene.ready(&app).await;
    for _ in 0..3 {
        let reply = scene.get("/headers").await;
        assert_eq!(reply.status, 200);
        assert_eq!(
            reply.seen(":uri").unwrap(),
            format!("http://{HOST}/headers")
        );
    }
    assert_eq!(
        app.life
            .connections
            .load(std::sync::atomic::Ordering::SeqCst),
        1
    );
}

/// A WebSocket app by hand: upgrades, then echoes frames.
pub(super) async fn websocket_app() -> (std::net::SocketAddr, JoinSet<()>) {
    raw_app(|_, stream| async move {
        // The probe's connection is the first; one that says nothing is left alone.
        let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else {
            return;
        };
        while let Some(Ok(message)) = socket.next().await {
            if message.is_close() || socket.send(message).await.is_err() {
                break;
            }
        }
    })
    .await
}

pub(super) async fn websocket(scene: &Scene) -> tokio_tungstenite::WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(scene.address).await.unwrap();
    let request = format!("ws://{HOST}/ws").into_client_request().unwrap();
    let (socket, response) =
        tokio::time::timeout(PATIENCE, tokio_tungstenite::client_async(request, stream))
            .await
            .unwrap()
            .unwrap();
    assert_eq!(response.status(), 101);
    socket
}

#[tokio::test]
async fn a_websocket_is_one_long_request() {
    let (address, _app) = websocket_app().await;
    let scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    let mut socket = websocket(&scene).await;
    for text in ["one", "two"] {
        socket.send(Message::text(text)).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, socket.next())
            .await
            .unwrap()
            .unwrap()
            .unwrap();
        assert_eq!(answer, Message::text(text));
    }
    assert_eq!(scene.demand().in_flight, 1);
    drop(socket);
    scene.until(|demand| demand.in_flight == 0).await;
    let record = &scene.records(1).await[0];
    assert_eq!(record.status, 101);
    assert!(
        record.request_bytes > 0 && record.response_bytes > 0,
        "{record:?}"
    );
}

#[tokio::test]
async fn a_websocket_ends_at_the_timeout_and_with_its_instance() {
    for timeout in [Duration::from_millis(100), Duration::from_secs(300)] {
        let (address, _app) = websocket_app().await;
        let scene = Scene::new(RevisionRoute { timeout, ..route() }).await;
        let id = scene.admit();
        scene.listen(&id, address);
        let mut socket = websocket(&scene).await;
        if timeout > Duration::from_secs(1) {
            scene.ingress.forget(&id, false);
        }
        let end = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap();
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
        scene.until(|demand| demand.in_flight == 0).await;
    }
}

#[tokio::test]
async fn other_upgrades_are_not_passed_on() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let request = Request::get("/headers")
        .header("connection", "upgrade")
        .header("upgrade", "h2c");
    let reply = scene.send(request).await;
    assert_eq!(
        (
            reply.status,
            reply.seen("upgrade"),
            reply.seen("connection")
        ),
        (200, None, None)
    );
}

fn probe(check: StartupCheck) -> StartupProbe {
    StartupProbe {
        initial_delay: Duration::ZERO,
        timeout: Duration::from_secs(1),
        // Three of them are the deadline for a first connection too.
        period: Duration::from_millis(400),
        failure_threshold: 3,
        check,
    }
}

#[tokio::test]
async fn http_probes() {
    for (path, ready) in [("/hello", true), ("/teapot", false)] {
        let check = StartupCheck::Http {
            port: 8080,
            path: path.to_owned(),
            headers: vec![("x-probe".to_owned(), "1".to_owned())],
        };
        let scene = Scene::new(RevisionRoute {
            startup: probe(check),
            ..route()
        })
        .await;
        let app = App::new().await;
        let id = scene.admit();
        scene.listen(&id, app.address);
        let demand = scene
            .until(|demand| demand.instances[0].reach != Reach::Starting)
            .await;
        match &demand.instances[0].reach {
            Reach::Ready => assert!(ready, "{path}"),
            Reach::Failed { message } => {
                assert!(!ready, "{path}");
                assert!(
                    message
                        .contains("GET /teapot on port 8080, 3 times; the last: HTTP status 418"),
                    "{message}"
                );
                assert!(
                    message.contains("failed the configured startup probe checks"),
                    "{message}"
                );
            }
            other => panic!("{other:?}"),
        }
    }
}

/// Paused time. It may be busy with what it was given before the server was replaced.
#[tokio::test(start_paused = true)]
async fn one_found_running_gets_as_many_checks_as_a_new_one() {
    let check = StartupCheck::Http {
        port: 8080,
        path: "/teapot".to_owned(),
        headers: Vec::new(),
    };
    let startup = StartupProbe {
        timeout: Duration::from_secs(10),
        period: Duration::from_secs(10),
        failure_threshold: 5,
        ..probe(check)
    };
    let scene = Scene::new(RevisionRoute { startup, ..route() }).await;
    let app = App::new().await;
    let id = scene.admit_aged(Duration::from_secs(100_000));
    scene.listen(&id, app.address);
    // `until` has less patience than a probe.
    let failed = loop {
        if let Reach::Failed { message } = &scene.demand().instances[0].reach {
            break message.clone();
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert!(failed.contains("5 times; the last: HTTP"), "{failed}");
}

/// An app that answers health checks of the service `a.B` with `status`.
pub(super) async fn grpc_health(status: Arc<AtomicU8>) -> (std::net::SocketAddr, JoinSet<()>) {
    raw_app(move |_, stream| {
        let status = Arc::clone(&status);
        async move {
            let service =
                hyper::service::service_fn(move |request: Request<hyper::body::Incoming>| {
                    let status = status.load(Ordering::SeqCst);
                    async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        let asked = request.into_body().collect().await.unwrap().to_bytes();
                        assert_eq!(&asked[..], b"\0\0\0\0\x05\x0a\x03a.B");
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        let frames = vec![
                            Ok::<_, std::convert::Infallible>(Frame::data(Bytes::from(vec![
                                0, 0, 0, 0, 2, 8, status,
                            ]))),
                            Ok(Frame::trailers(trailers)),
                        ];
                        let body = StreamBody::new(futures_util::stream::iter(frames));
                        Ok::<_, std::convert::Infallible>(http::Response::new(body))
                    }
                });
            drop(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service)
                    .await,
            );
        }
    })
    .await
}

#[tokio::test]
async fn grpc_probes() {
    for (status, ready) in [(1_u8, true), (2, false)] {
        let (address, _app) = grpc_health(Arc::new(AtomicU8::new(status))).await;
        let check = StartupCheck::Grpc {
            port: 8080,
            service: "a.B".to_owned(),
        };
        let scene = Scene::new(RevisionRoute {
            startup: probe(check),
            protocol: Protocol::H2c,
            ..route()
        })
        .await;
        let id = scene.admit();
        scene.listen(&id, address);
        let demand = scene
            .until(|demand| demand.instances[0].reach != Reach::Starting)
            .await;
        match &demand.instances[0].reach {
            Reach::Ready => assert!(ready),
            Reach::Failed { message } => assert!(
                !ready && message.contains("status NOT_SERVING"),
                "{message}"
            ),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let one = |path: &str, end: &str| format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n{end}\r\n");
    let text = one("/gate", "") + &one("/teapot", "") + &one("/hello", "connection: close\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    scene.until(|demand| demand.in_flight == 1).await;
    app.gate.add_permits(1);
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer))
        .await
        .unwrap()
        .unwrap();
    let order: Vec<_> = ["through", "short and stout", "hello"]
        .iter()
        .map(|body| answer.find(body).unwrap())
        .collect();
    assert!(order.is_sorted(), "{answer}");
}
