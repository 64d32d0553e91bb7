//! Instances that open more connections than they may.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::app::App;
use super::scene::{HOST, PATIENCE, Scene, route};
use crate::IngressSettings;

/// A listener that only one instance reaches, and what was told of it.
async fn door(scene: &mut Scene) -> (SocketAddr, Arc<Mutex<Vec<u64>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let told = Arc::new(Mutex::new(Vec::new()));
    let (ingress, shutdown) = (scene.ingress.clone(), scene.shutdown.clone());
    let all = Arc::clone(&told);
    let crowded = Arc::new(move |count| all.lock().push(count));
    scene.serve_also(async move { ingress.serve_instance(listener, crowded, shutdown).await });
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
