//! Clients and instances that want more connections, or more requests at once, than they may have.

use crate::Scheme;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use utsuwa_model::route::{Access, RouteTable};

use super::app::App;
use super::scene::{HOST, PATIENCE, Reply, Scene, call, eventually, reply, route, table};
use crate::IngressSettings;

/// A listener that only one instance reaches, and what was told of it.
async fn door(scene: &mut Scene) -> (SocketAddr, Arc<Mutex<Vec<u64>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (ingress, shutdown) = (scene.ingress.clone(), scene.shutdown.clone());
    let all = Arc::clone(&told);
    let crowded = Arc::new(move |count| all.lock().push(count));
    scene.serve_also(async move {
        ingress
            .serve_instance(listener, Scheme::Http, crowded, shutdown)
            .await
    });
    (address, told)
}

/// Asks once, and keeps the connection.
async fn ask(address: SocketAddr) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET / HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    // Refused ones may be closed already.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = vec![0; 4096];
    let read = timeout(PATIENCE, stream.read(&mut answer));
    let length = read.await.expect("an answer in time").unwrap_or(0);
    answer.truncate(length);
    (stream, String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn an_instance_that_wants_too_many_connections_is_refused_alone() {
    let settings = IngressSettings {
        max_connections_per_instance: 4,
        max_instance_connections: 6,
        ..IngressSettings::default()
    };
    let mut scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let (greedy, told) = door(&mut scene).await;
    let (other, _) = door(&mut scene).await;

    let mut kept = Vec::new();
    for number in 0..40 {
        let (stream, answer) = ask(greedy).await;
        if number < 4 {
            assert!(answer.starts_with("HTTP/1.1 200"), "{number}: {answer}");
            kept.push(stream);
        } else if !answer.is_empty() {
            assert!(
                answer.starts_with("HTTP/1.1 429")
                    && answer.contains("reason=too_many_connections")
                    && answer.contains("has 4 connections"),
                "{number}: {answer}"
            );
        }
    }
    assert_eq!(*told.lock(), [1], "told once, at the first one");

    // Others have theirs, and the public listener its own.
    for _ in 0..2 {
        let (stream, answer) = ask(other).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        kept.push(stream);
    }
    let (_, answer) = ask(other).await;
    assert!(
        answer.is_empty() || answer.starts_with("HTTP/1.1 503"),
        "all instances together: {answer}"
    );
    for _ in 0..8 {
        let (stream, answer) = ask(scene.address).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        kept.push(stream);
    }

    // Places come back when connections end.
    kept.clear();
    let free = timeout(PATIENCE, async {
        while !ask(greedy).await.1.starts_with("HTTP/1.1 200") {}
    });
    free.await.expect("a place in time");
    scene.close().await;
}

/// One HTTP/2 connection to `address` that asks for `path` `count` times at once. The answers come as they are there.
async fn streams(address: SocketAddr, path: &str, count: usize) -> Streams {
    let stream = TcpStream::connect(address).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .unwrap();
    let mut answers = JoinSet::new();
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    for _ in 0..count {
        let mut sender = sender.clone();
        let request = Request::get(format!("http://{HOST}{path}"))
            .body(Full::<Bytes>::default())
            .unwrap();
        answers.spawn(async move { reply(sender.send_request(request).await.unwrap()).await });
    }
    Streams {
        answers,
        _driver: driver,
    }
}

/// Answers under way over one connection.
struct Streams {
    answers: JoinSet<Reply>,
    _driver: JoinSet<Result<(), hyper::Error>>,
}

impl Streams {
    /// The next `count` answers are refusals with `status`.
    async fn refused(&mut self, count: usize, status: u16) {
        for _ in 0..count {
            let answer = timeout(PATIENCE, self.answers.join_next()).await;
            let answer = answer.expect("a refusal in time").unwrap().unwrap();
            assert_eq!(
                (answer.status, answer.reason()),
                (status, "too_many_requests"),
                "{answer:?}"
            );
        }
    }

    async fn all_are_served(mut self) {
        while let Some(answer) = self.answers.join_next().await {
            assert_eq!(answer.unwrap().status, 200);
        }
    }
}

async fn inside(app: &App, count: u32) {
    let now = || app.life.inside.load(Ordering::SeqCst);
    eventually(|| (now() == count).then_some(()), || format!("{}", now())).await;
}

fn gate() -> Request<Full<Bytes>> {
    Request::get("/gate")
        .header("host", HOST)
        .body(Full::default())
        .unwrap()
}

#[tokio::test]
async fn one_client_with_many_streams_leaves_room_and_sockets_to_others() {
    let settings = IngressSettings {
        max_requests: 12,
        ..IngressSettings::default()
    };
    let mut scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;

    // Half of twelve; the instance would take eighty.
    let mut greedy = streams(scene.address, "/gate", 60).await;
    greedy.refused(54, 429).await;
    inside(&app, 6).await;
    assert_eq!(scene.demand().in_flight, 6, "refused ones hold no slot");
    // A second one like it: half of what is left.
    let mut second = streams(scene.address, "/gate", 60).await;
    second.refused(57, 429).await;
    inside(&app, 9).await;
    // Others have the rest, and only then there is none for anybody.
    let mut others = JoinSet::new();
    for number in 10..=12 {
        others.spawn(call(scene.address, gate()));
        inside(&app, number).await;
    }
    let answer = scene.get("/hello").await;
    assert_eq!(
        (answer.status, answer.reason()),
        (503, "too_many_requests"),
        "{answer:?}"
    );
    assert!(answer.text().contains("Please try again"), "{answer:?}");

    app.gate.add_permits(12);
    greedy.all_are_served().await;
    second.all_are_served().await;
    while let Some(answer) = others.join_next().await {
        assert_eq!(answer.unwrap().status, 200);
    }
    assert_eq!(app.life.most.load(Ordering::SeqCst), 12);
    // All places came back.
    let mut again = streams(scene.address, "/gate", 12).await;
    again.refused(6, 429).await;
    app.gate.add_permits(6);
    again.all_are_served().await;
    scene.close().await;
}

#[tokio::test]
async fn one_instance_with_many_streams_leaves_room_to_others() {
    let settings = IngressSettings {
        max_instance_requests: 8,
        ..IngressSettings::default()
    };
    let mut scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let (greedy, _) = door(&mut scene).await;
    let (other, _) = door(&mut scene).await;

    // Two connections of one instance have one share.
    let mut first = streams(greedy, "/gate", 20).await;
    first.refused(16, 429).await;
    let mut second = streams(greedy, "/gate", 20).await;
    second.refused(20, 429).await;
    inside(&app, 4).await;
    for address in [other, scene.address] {
        let (_, answer) = ask(address).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    app.gate.add_permits(4);
    first.all_are_served().await;
    scene.close().await;
}

#[tokio::test]
async fn idle_connections_are_kept_within_their_budget() {
    let settings = IngressSettings {
        max_idle: 8,
        ..IngressSettings::default()
    };
    let mut scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let connections = || app.life.connections.load(Ordering::SeqCst);
    for dialled in [10, 16] {
        let answers = streams(scene.address, "/gate", 10).await;
        inside(&app, 10).await;
        app.gate.add_permits(10);
        answers.all_are_served().await;
        scene.until(|demand| demand.in_flight == 0).await;
        // The first is the startup probe's. Of ten, four are kept for the next: half of eight.
        assert_eq!(connections(), dialled);
    }
    scene.close().await;
}

#[tokio::test]
async fn an_internal_service_is_open_to_instances_alone() {
    let mut scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let (inside, _) = door(&mut scene).await;
    let mut routes = RouteTable::clone(&table(route(), Access::Public));
    let host = routes.hosts.get_mut(HOST).unwrap();
    Arc::make_mut(host).inside_only = true;
    scene.publish(Arc::new(routes));
    let (_kept, answer) = ask(inside).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    let outside = scene.get("/").await;
    assert_eq!((outside.status, outside.reason()), (404, "ingress_closed"));
    // Who is let in may still have to prove who it is.
    let mut routes = RouteTable::clone(&table(route(), Access::Authenticated));
    let host = routes.hosts.get_mut(HOST).unwrap();
    Arc::make_mut(host).inside_only = true;
    scene.publish(Arc::new(routes));
    let (_kept, answer) = ask(inside).await;
    assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    assert_eq!(scene.get("/").await.status, 404);
}
