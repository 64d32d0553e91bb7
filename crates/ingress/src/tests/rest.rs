//! Instances that may be frozen: only while nothing is inside, and the next request says so before it goes in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::{SinkExt, StreamExt};
use http::Request;
use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;

use super::app::*;
use super::protocols::{websocket, websocket_app};
use super::scene::*;

#[tokio::test]
async fn nothing_rests_with_a_request_inside_and_the_next_one_asks_for_a_thaw() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let starting = scene.admit();
    assert!(!scene.ingress.rest(&starting), "it isn't reached yet");
    scene.ingress.forget(&starting, false);
    let id = scene.ready(&app).await;
    let mut inside = JoinSet::new();
    let address = scene.address;
    inside.spawn(async move {
        let request = Request::get("/gate").header("host", HOST);
        call(address, request.body(Empty::new()).unwrap()).await
    });
    scene.until(|demand| demand.in_flight == 1).await;
    assert!(!scene.ingress.rest(&id), "one is inside");
    app.gate.add_permits(1);
    inside.join_next().await.unwrap().unwrap();
    scene.until(|demand| demand.in_flight == 0).await;

    assert!(scene.ingress.rest(&id) && scene.ingress.rest(&id));
    assert!(scene.loops.thaws.lock().is_empty());
    let before = app.life.connections.load(Ordering::SeqCst);
    for _ in 0..3 {
        assert_eq!(scene.get("/hello").await.text(), "hello");
    }
    assert_eq!(
        scene.loops.thaws.lock().as_slice(),
        std::slice::from_ref(&id),
        "once"
    );
    let after = app.life.connections.load(Ordering::SeqCst);
    assert_eq!(after, before + 1, "on a connection that never slept");

    scene.until(|demand| demand.in_flight == 0).await;
    drop(scene.ingress.retire(&id, PATIENCE));
    assert!(!scene.ingress.rest(&id), "it leaves");
}

#[tokio::test]
async fn a_websocket_keeps_its_instance_awake() {
    let (address, _app) = websocket_app().await;
    let scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    scene
        .until(|demand| demand.instances[0].idle_since.is_some())
        .await;
    let mut socket = websocket(&scene).await;
    socket.send(Message::text("one")).await.unwrap();
    assert!(socket.next().await.unwrap().is_ok());
    assert!(!scene.ingress.rest(&id));
    drop(socket);
    scene.until(|demand| demand.in_flight == 0).await;
    assert!(scene.ingress.rest(&id));
}

/// In an instance that is frozen whenever the ingress allows it, and thawed when it asks for it, every request is answered,
/// and none is frozen while it is worked on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_is_frozen_or_left_in_a_frozen_instance() {
    let scene = Scene::new(route()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    // Frozen while as many thaws were asked for as when it was frozen.
    let frozen_at = Arc::new(AtomicUsize::new(usize::MAX));
    let (seen, loops) = (Arc::clone(&frozen_at), Arc::clone(&scene.loops));
    let mut app = JoinSet::new();
    app.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            let (seen, loops) = (Arc::clone(&seen), Arc::clone(&loops));
            connections.spawn(async move {
                let mut bytes = [0; 4096];
                while stream.read(&mut bytes).await.is_ok_and(|count| count > 0) {
                    let asleep = || seen.load(Ordering::SeqCst) == loops.thaws.lock().len();
                    // Of two requests the second may be here before the first has asked for the thaw.
                    while asleep() {
                        tokio::task::yield_now().await;
                    }
                    for _ in 0..5 {
                        tokio::task::yield_now().await;
                    }
                    let status = if asleep() { "500 Frozen" } else { "200 OK" };
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    let id = scene.admit();
    scene.listen(&id, address);
    scene
        .until(|demand| demand.instances[0].idle_since.is_some())
        .await;
    let done = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for _ in 0..2 {
        let (done, address) = (Arc::clone(&done), scene.address);
        clients.spawn(async move {
            while !done.load(Ordering::SeqCst) {
                let request = Request::get("/").header("host", HOST);
                let reply = call(address, request.body(Empty::new()).unwrap()).await;
                assert_eq!(reply.status, 200);
            }
        });
    }
    let thaws = || scene.loops.thaws.lock().len();
    let end = tokio::time::Instant::now() + PATIENCE;
    while thaws() < 25 && tokio::time::Instant::now() < end {
        let before = thaws();
        if scene.ingress.rest(&id) {
            frozen_at.store(before, Ordering::SeqCst);
        }
        tokio::task::yield_now().await;
    }
    done.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    assert!(thaws() >= 25, "idle and called often enough: {}", thaws());
}
