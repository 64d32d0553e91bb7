//! A server that makes place: nothing that was begun is lost, and the next one knows what goes on.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::time::Duration;

use futures_util::{FutureExt, SinkExt, StreamExt};
use tokio::io::{AsyncRead as _, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use utsuwa_model::InstanceId;
use utsuwa_model::route::RevisionRoute;

use super::app::*;
use super::protocols::{websocket, websocket_app};
use super::scene::*;
use super::smuggling::h2raw::{
    self, ACK, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, Raw, frame, get,
};
use crate::client::Client;
use crate::places::Own;
use crate::tls::Wire;
use crate::watched::Watched;

/// Reads until the text ends so.
pub(super) async fn read_until(stream: &mut TcpStream, end: &str) -> String {
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
async fn what_waits_is_served_before_the_place_is_given_up() {
    let mut scene = Scene::new(RevisionRoute {
        concurrency: 1,
        ..route()
    })
    .await;
    let app = App::new().await;
    scene.ready(&app).await;
    let mut asked = JoinSet::new();
    for _ in 0..2 {
        let address = scene.address;
        asked.spawn(async move {
            let request = http::Request::get(format!("http://{HOST}/gate"));
            call(
                address,
                request
                    .body(http_body_util::Empty::<bytes::Bytes>::new())
                    .unwrap(),
            )
            .await
        });
    }
    scene
        .until(|demand| (demand.in_flight, demand.queued) == (1, 1))
        .await;
    scene.shutdown.cancel();
    let mut settled = Box::pin(scene.ingress.settled());
    assert!(
        tokio::time::timeout(Duration::from_millis(400), &mut settled)
            .await
            .is_err(),
        "one has not been sent yet"
    );
    app.gate.add_permits(1);
    // The second is sent now, and not yet answered.
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    assert_eq!(scene.demand().in_flight, 1);
    app.gate.add_permits(1);
    while let Some(reply) = asked.join_next().await {
        assert_eq!(reply.unwrap().text(), "through");
    }
    scene.close().await;
}

#[tokio::test]
async fn a_kept_connection_has_its_last_words_and_is_told_to_close() {
    let mut scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let ask = format!("GET /hello HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream.write_all(ask.as_bytes()).await.unwrap();
    let first = read_until(&mut stream, "hello").await;
    assert!(
        !first.to_lowercase().contains("connection: close"),
        "{first}"
    );
    scene.shutdown.cancel();
    tokio::task::yield_now().await;
    stream.write_all(ask.as_bytes()).await.unwrap();
    let last = read_until(&mut stream, "hello").await;
    assert!(last.to_lowercase().contains("connection: close"), "{last}");
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
    scene.close().await;
}

/// What has reached the kernel is known of before anybody was woken for it: a kept connection isn't closed over a request.
#[tokio::test]
async fn what_is_in_the_kernel_already_crosses_the_end() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut sender = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (socket, peer) = listener.accept().unwrap();
    socket.set_nonblocking(true).unwrap();
    let client = Client::new(peer.ip(), Own::none());
    let stream = TcpStream::from_std(socket).unwrap();
    let mut watched = Watched::new(Wire::Plain(stream), Arc::clone(&client));
    let mut crosses = || {
        // Nothing is awaited here, so that nothing is told of.
        let (mut space, waker) = ([0; 16], std::task::Waker::noop());
        let mut context = Context::from_waker(waker);
        let read = Pin::new(&mut watched).poll_read(&mut context, &mut ReadBuf::new(&mut space));
        assert!(read.is_pending());
        client.crossing.swap(false, Ordering::AcqRel)
    };
    assert!(!crosses());
    sender.write_all(b"GET / HTTP/1.1\r\n").unwrap();
    assert!(!crosses(), "nobody leaves");
    client.leaving.store(true, Ordering::Release);
    assert!(crosses());
}

/// The next frame of a kind; `None`: not within `patience`.
async fn next_of(raw: &mut Raw, kind: u8, patience: Duration) -> Option<Frame> {
    let search = async {
        loop {
            let frame = raw.next().await.expect("the connection stands");
            if frame.kind == kind {
                return frame;
            }
        }
    };
    tokio::time::timeout(patience, search).await.ok()
}

/// Libraries answer a PING before they send what their callers have queued; that call must be taken all the same.
#[tokio::test]
async fn a_call_that_crosses_the_goaway_is_answered() {
    let mut scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let mut raw = Raw::connect(scene.address, &[]).await;
    let call = |stream| {
        let flags = END_HEADERS | END_STREAM;
        frame(HEADERS, flags, stream, &get(HOST, "/hello"))
    };
    assert!(raw.send(&call(1)).await && raw.answered(1).await);
    scene.shutdown.cancel();
    let goaway = next_of(&mut raw, GOAWAY, PATIENCE)
        .await
        .expect("it says that it leaves");
    assert_eq!(
        goaway.payload,
        [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0],
        "and takes every stream"
    );
    // A round trip of a slow client: whatever is asked meanwhile is answered first.
    if let Some(ping) = next_of(&mut raw, PING, Duration::from_millis(100)).await {
        assert!(raw.send(&frame(PING, ACK, 0, &ping.payload)).await);
        while next_of(&mut raw, GOAWAY, Duration::from_millis(100))
            .await
            .is_some()
        {}
    }
    assert!(raw.send(&call(3)).await && raw.answered(3).await);
    // Then it ends in order.
    let ping = next_of(&mut raw, PING, PATIENCE).await.unwrap();
    assert!(raw.send(&frame(PING, ACK, 0, &ping.payload)).await);
    let last = next_of(&mut raw, GOAWAY, PATIENCE).await.unwrap();
    assert_eq!(last.payload, [0, 0, 0, 3, 0, 0, 0, 0]);
    assert!(
        tokio::time::timeout(PATIENCE, raw.next())
            .await
            .unwrap()
            .is_none()
    );
    scene.close().await;
}

#[tokio::test]
async fn streams_go_on_after_settling_until_they_end_or_are_cut() {
    let (address, _app) = websocket_app().await;
    let mut scene = Scene::new(route()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    let mut one = websocket(&scene).await;
    let mut two = websocket(&scene).await;
    scene.shutdown.cancel();
    tokio::time::timeout(PATIENCE, scene.ingress.settled())
        .await
        .unwrap();
    assert_eq!(scene.ingress.inside(), BTreeMap::from([(id, 2)]));
    for socket in [&mut one, &mut two] {
        socket.send(Message::text("still there")).await.unwrap();
        let answer = tokio::time::timeout(PATIENCE, socket.next()).await;
        assert_eq!(
            answer.unwrap().unwrap().unwrap(),
            Message::text("still there")
        );
    }
    drop(one);
    scene.until(|demand| demand.in_flight == 1).await;
    assert!(scene.serving.join_next().now_or_never().is_none());
    scene.ingress.cut(Duration::ZERO);
    scene.close().await;
    let ended = tokio::time::timeout(PATIENCE, two.next()).await.unwrap();
    assert!(!matches!(ended, Some(Ok(Message::Text(_)))), "{ended:?}");
    assert!(scene.ingress.inside().is_empty());
}

fn held(id: &InstanceId, count: u32) -> BTreeMap<InstanceId, u32> {
    BTreeMap::from([(id.clone(), count)])
}

#[tokio::test]
async fn what_the_server_before_has_inside_counts() {
    let scene = Scene::new(RevisionRoute {
        concurrency: 2,
        ..route()
    })
    .await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    scene.ingress.hold(held(&id, 2));
    assert_eq!(scene.demand().in_flight, 2);
    assert!(!scene.ingress.rest(&id), "it must not be frozen");
    assert!(
        scene.ingress.inside().is_empty(),
        "they are not this server's"
    );
    // Both places are taken: one more waits.
    let (address, mut asked) = (scene.address, JoinSet::new());
    asked.spawn(async move {
        let request = http::Request::get(format!("http://{HOST}/hello"));
        call(
            address,
            request
                .body(http_body_util::Empty::<bytes::Bytes>::new())
                .unwrap(),
        )
        .await
    });
    scene.until(|demand| demand.queued == 1).await;
    scene.ingress.hold(held(&id, 1));
    assert_eq!(asked.join_next().await.unwrap().unwrap().text(), "hello");
    scene.until(|demand| demand.in_flight == 1).await;
    // It is retired only once they have ended.
    let mut retired = scene.ingress.retire(&id, PATIENCE);
    assert!((&mut retired).now_or_never().is_none());
    scene.ingress.hold(BTreeMap::new());
    assert!(tokio::time::timeout(PATIENCE, retired).await.unwrap());
    assert_eq!(scene.demand().in_flight, 0);
}

#[tokio::test]
async fn it_may_be_told_before_the_instance_is_found() {
    let scene = Scene::new(route()).await;
    // The scene numbers its instances: the one that is forgotten has the id of nobody else.
    let app = App::new().await;
    let known = scene.ready(&app).await;
    scene.ingress.forget(&known, false);
    assert!(
        scene.ingress.retire(&known, PATIENCE).await,
        "nobody has anything in it"
    );
    scene.ingress.hold(held(&known, 3));
    assert_eq!(scene.demand().in_flight, 0);
    // One that nothing leads to here is stopped only once it is empty.
    let mut stray = scene.ingress.retire(&known, PATIENCE);
    assert!((&mut stray).now_or_never().is_none());
    scene.ingress.admit(
        utsuwa_model::route::InstanceRoute {
            id: known.clone(),
            revision: key(),
            port: 8080,
            age: Duration::ZERO,
        },
        utsuwa_model::instance::StartPhases::default(),
    );
    assert_eq!(scene.demand().in_flight, 3);
    scene.ingress.hold(BTreeMap::new());
    assert!(tokio::time::timeout(PATIENCE, stray).await.unwrap());
}

#[tokio::test]
async fn a_body_that_says_it_is_empty_and_never_ends_keeps_nobody() {
    let mut scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let mut client = Raw::connect(scene.address, &[]).await;
    let open = h2raw::block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", HOST),
        (":path", "/echo"),
        ("content-length", "0"),
    ]);
    let whole = h2raw::get(HOST, "/hello");
    let mut bytes = h2raw::frame(HEADERS, END_HEADERS, 1, &open);
    bytes.extend(h2raw::frame(HEADERS, END_HEADERS | END_STREAM, 3, &whole));
    assert!(client.send(&bytes).await);
    assert!(client.answered(3).await, "so the first was read, too");
    scene.shutdown.cancel();
    tokio::time::timeout(Duration::from_secs(5), scene.ingress.settled())
        .await
        .expect("it would have had a minute");
    drop(client);
    scene.close().await;
}
