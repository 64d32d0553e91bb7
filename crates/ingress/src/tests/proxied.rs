//! Connections through a proxy that says whose they are, and what one address may have.

use std::io::ErrorKind;
use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::app::App;
use super::scene::{HOST, PATIENCE, Scene, eventually, route};
use crate::IngressSettings;

/// One connection of a proxy at this machine's address, or of somebody else's.
async fn scene(proxies: &str, max_connections: usize) -> (Scene, App) {
    let settings = IngressSettings {
        proxies_http: vec![proxies.parse().unwrap()],
        max_connections,
        ..IngressSettings::default()
    };
    let scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;
    (scene, app)
}

/// Sends the header and a request; answers the connection and what was heard, nothing when it was closed.
async fn ask(scene: &Scene, header: &[u8], path: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let request =
        format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\nx-forwarded-for: 9.9.9.9\r\n\r\n");
    let _closed = stream
        .write_all(&[header, request.as_bytes()].concat())
        .await;
    let mut answer = vec![0; 8192];
    let length = timeout(PATIENCE, stream.read(&mut answer))
        .await
        .unwrap()
        .unwrap_or(0);
    answer.truncate(length);
    (stream, String::from_utf8(answer).unwrap())
}

#[tokio::test]
async fn the_address_that_a_proxy_names_is_the_client_s() {
    let (mut scene, _app) = scene("127.0.0.0/8", 100).await;
    let second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x05\x06\x07\x08\x7f\0\0\x01\x04\x00\x00\x50";
    for (header, address) in [
        (&b"PROXY TCP4 1.2.3.4 127.0.0.1 5000 80\r\n"[..], "1.2.3.4"),
        (&b"PROXY TCP6 fd00::7 ::1 5000 80\r\n"[..], "fd00::7"),
        (&second[..], "5.6.7.8"),
        (&b"PROXY UNKNOWN\r\n"[..], "127.0.0.1"),
    ] {
        let (_, answer) = ask(&scene, header, "/headers").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains(&format!("9.9.9.9, {address}\"")),
            "{address}: {answer}"
        );
    }
    let remotes: Vec<String> = scene
        .records(4)
        .await
        .into_iter()
        .map(|record| record.remote.to_string())
        .collect();
    assert_eq!(remotes, ["1.2.3.4", "fd00::7", "5.6.7.8", "127.0.0.1"]);
    // Without a header, or with half of one, it isn't served.
    for header in [&b""[..], b"PROXY TCP4 1.2.3.4\r\n", b"\r\n\r\n\0\r\nQUIX\n"] {
        let (_, answer) = ask(&scene, header, "/headers").await;
        assert_eq!(answer, "", "{}", header.escape_ascii());
    }
    assert_eq!(scene.records(4).await.len(), 4);
    scene.close().await;
}

#[tokio::test]
async fn nobody_else_may_name_an_address() {
    let (mut scene, _app) = scene("10.0.0.0/8", 100).await;
    let (_, answer) = ask(
        &scene,
        b"PROXY TCP4 1.2.3.4 127.0.0.1 5000 80\r\n",
        "/headers",
    )
    .await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    let (_, answer) = ask(&scene, b"", "/headers").await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("9.9.9.9, 127.0.0.1\""),
        "{answer}"
    );
    scene.close().await;
}

/// Sends the header and a request that stays under way; answers the connection and whether it was let in.
async fn stay(scene: &Scene, app: &App, header: &[u8]) -> (TcpStream, bool) {
    let inside = || app.life.inside.load(Ordering::SeqCst);
    let before = inside();
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let request = format!("GET /gate HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let _closed = stream
        .write_all(&[header, request.as_bytes()].concat())
        .await;
    let look = || {
        if inside() > before {
            return Some(true);
        }
        let ended = stream.try_read(&mut [0; 1]);
        (!ended.is_err_and(|error| error.kind() == ErrorKind::WouldBlock)).then_some(false)
    };
    let let_in = eventually(look, || "it is let in or closed".to_owned()).await;
    (stream, let_in)
}

#[tokio::test]
async fn one_address_leaves_connections_to_others() {
    let (mut scene, app) = scene("127.0.0.0/8", 16).await;
    let from = |address: &str| {
        let family = if address.contains(':') {
            "TCP6"
        } else {
            "TCP4"
        };
        let to = if address.contains(':') {
            "::1"
        } else {
            "127.0.0.1"
        };
        format!("PROXY {family} {address} {to} 5000 80\r\n").into_bytes()
    };
    let mut kept = Vec::new();
    // Half of sixteen, however many it wants, from whatever address of its /64.
    for number in 0..30 {
        let header = from(&format!("fd00:0:0:1::{number}"));
        let (stream, let_in) = stay(&scene, &app, &header).await;
        assert_eq!(let_in, number < 8, "{number}");
        kept.extend(let_in.then_some(stream));
    }
    // Half of what is left; and others get on.
    for number in 0..10 {
        let (stream, let_in) = stay(&scene, &app, &from("1.2.3.4")).await;
        assert_eq!(let_in, number < 4, "{number}");
        kept.extend(let_in.then_some(stream));
    }
    let (other, let_in) = stay(&scene, &app, &from("1.2.3.5")).await;
    assert!(let_in);
    // They come back with the connections.
    drop((kept, other));
    let free = async {
        while !ask(&scene, &from("fd00:0:0:1::1"), "/hello")
            .await
            .1
            .starts_with("HTTP/1.1 200")
        {}
    };
    timeout(PATIENCE, free).await.unwrap();
    scene.close().await;
}
