//! Idle connections of clients: they have what nobody else needs, and give it back.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;

use super::app::App;
use super::protocols::{websocket, websocket_app};
use super::scene::{HOST, PATIENCE, Scene, eventually, route};
use super::smuggling::h2raw::{
    ACK, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, Raw, frame, get,
};
use crate::{IngressSettings, Scheme};

/// Open files that all of it may have: four of each kind, eight of requests of instances, of which one has half.
const ALL: usize = 24;

/// Of them, those of a listener that waits for the next connection, of one connection kept to the app, and of the request that
/// takes that.
const OURS: usize = 3;

fn few() -> IngressSettings {
    IngressSettings {
        max_connections: 4,
        max_requests: 4,
        max_instance_connections: 4,
        max_instance_requests: 8,
        max_idle: 4,
        proxies_http: vec!["127.0.0.2".parse().unwrap()],
        ..IngressSettings::default()
    }
}

async fn scene() -> (Scene, App) {
    let scene = Scene::with(route(), few()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    (scene, app)
}

/// A connection that stays after one answered request.
async fn idle(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    assert_eq!(ask(&mut stream, "/hello").await, "HTTP/1.1 200");
    stream
}

/// The same of a client that a proxy names.
async fn idle_of(scene: &Scene, client: &str) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut stream = socket.connect(scene.address).await.unwrap();
    let header = format!("PROXY TCP4 {client} 127.0.0.1 5000 80\r\n");
    stream.write_all(header.as_bytes()).await.unwrap();
    assert_eq!(ask(&mut stream, "/hello").await, "HTTP/1.1 200");
    stream
}

/// The status of an answer, read whole; nothing if the connection is closed.
async fn ask(stream: &mut TcpStream, path: &str) -> String {
    send(stream, path).await;
    heard(stream).await
}

async fn send(stream: &mut TcpStream, path: &str) {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let _closed = stream.write_all(request.as_bytes()).await;
}

async fn heard(stream: &mut TcpStream) -> String {
    let mut answer = vec![0; 4096];
    let read = timeout(PATIENCE, stream.read(&mut answer)).await;
    let length = read.expect("an answer in time").unwrap_or(0);
    answer.truncate(length.min(12));
    String::from_utf8(answer).unwrap()
}

/// Which of them the server has closed.
fn closed(streams: &[TcpStream]) -> Vec<usize> {
    let gone = |stream: &TcpStream| stream.try_read(&mut [0; 1]).is_ok_and(|read| read == 0);
    let all = streams.iter().enumerate();
    all.filter(|(_, stream)| gone(stream))
        .map(|(number, _)| number)
        .collect()
}

async fn until_closed(streams: &[TcpStream], expected: &[usize]) {
    let look = || (closed(streams) == expected).then_some(());
    eventually(look, || format!("{:?}, not {expected:?}", closed(streams))).await;
}

fn open(scene: &Scene) -> usize {
    scene.ingress.shared.places.hall.open()
}

#[tokio::test]
async fn they_fill_what_nobody_needs_and_the_longest_idle_makes_way() {
    let (mut scene, _app) = scene().await;
    let mut streams = Vec::new();
    for _ in 0..ALL - OURS {
        streams.push(idle(scene.address).await);
    }
    assert_eq!(closed(&streams), [0_usize; 0], "all of them have room");
    // Used a moment ago: no longer the one that was idle longest.
    assert_eq!(ask(&mut streams[0], "/hello").await, "HTTP/1.1 200");
    for more in 1..=5 {
        streams.push(idle(scene.address).await);
        let expected: Vec<usize> = (1..=more).collect();
        until_closed(&streams, &expected).await;
        assert!(open(&scene) < ALL, "{}", open(&scene));
    }
    assert_eq!(ask(&mut streams[0], "/hello").await, "HTTP/1.1 200");
    assert_eq!(ask(&mut streams[20], "/hello").await, "HTTP/1.1 200");
    scene.close().await;
}

#[tokio::test]
async fn the_client_with_most_of_them_makes_way() {
    let (mut scene, _app) = scene().await;
    let modest = vec![
        idle_of(&scene, "1.1.1.1").await,
        idle_of(&scene, "2.2.2.2").await,
    ];
    let mut greedy = Vec::new();
    for _ in 0..40 {
        greedy.push(idle_of(&scene, "6.6.6.6").await);
    }
    let mine = 40 - (ALL - OURS - 2);
    until_closed(&greedy, &(0..mine).collect::<Vec<_>>()).await;
    assert_eq!(closed(&modest), [0_usize; 0], "idle longer, but few");
    scene.close().await;
}

#[tokio::test]
async fn what_is_under_way_is_not_taken() {
    let (mut scene, app) = scene().await;
    // Older than all idle ones: a request in an app, and a part of a head.
    let mut streams = vec![idle(scene.address).await, idle(scene.address).await];
    send(&mut streams[0], "/gate").await;
    let inside = || app.life.inside.load(Ordering::SeqCst) == 1;
    eventually(|| inside().then_some(()), || "inside".to_owned()).await;
    streams[1].write_all(b"GET /hello HT").await.unwrap();
    let busy = || {
        let busy = scene.ingress.shared.places.busy();
        (busy == 2).then_some(())
    };
    eventually(busy, || "a part of a head counts".to_owned()).await;
    for _ in 0..2 * ALL {
        streams.push(idle(scene.address).await);
    }
    assert!(closed(&streams).len() > ALL);
    let rest = format!("TP/1.1\r\nhost: {HOST}\r\n\r\n");
    streams[1].write_all(rest.as_bytes()).await.unwrap();
    assert_eq!(heard(&mut streams[1]).await, "HTTP/1.1 200");
    app.gate.add_permits(1);
    assert_eq!(heard(&mut streams[0]).await, "HTTP/1.1 200");
    scene.close().await;
}

/// Idle connections have no place of their own; if all of them ask at once, as many are served as without them.
#[tokio::test]
async fn who_is_idle_and_asks_has_a_place_while_there_are_some() {
    let (mut scene, app) = scene().await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(idle(scene.address).await);
    }
    for stream in &mut streams {
        send(stream, "/gate").await;
    }
    for stream in &mut streams[4..] {
        assert_eq!(heard(stream).await, "HTTP/1.1 503");
    }
    // Room for the four: each needs a socket to its instance. The refused ones are idle again.
    app.gate.add_permits(4);
    for stream in &mut streams[..4] {
        assert_eq!(heard(stream).await, "HTTP/1.1 200");
    }
    for stream in &mut streams {
        assert_eq!(ask(stream, "/hello").await, "HTTP/1.1 200");
    }
    scene.close().await;
}

/// Idle ones ask, and take the place that was promised to who comes in just then: that one waits, and lets all others go on.
async fn crowded_out() {
    let (mut scene, app) = scene().await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(idle(scene.address).await);
    }
    for stream in &mut streams {
        send(stream, "/gate").await;
    }
    let places = &scene.ingress.shared.places;
    let busy = || (places.busy() == 4).then_some(());
    eventually(busy, || format!("{} are busy, not 4", places.busy())).await;
    let mut late = TcpStream::connect(scene.address).await.unwrap();
    send(&mut late, "/hello").await;
    // It, and the listener.
    let waits = || (places.waiting() == 2).then_some(());
    eventually(waits, || format!("{} wait, not 2", places.waiting())).await;
    app.gate.add_permits(4);
    streams.push(late);
    for stream in &mut streams {
        assert_eq!(heard(stream).await, "HTTP/1.1 200");
    }
    scene.close().await;
}

#[test]
fn who_comes_in_while_idle_ones_take_all_places_waits_for_one() {
    let (done, is_done) = std::sync::mpsc::channel();
    let all = move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(crowded_out());
        done.send(()).unwrap();
    };
    // A thread of its own: a task that never lets go would keep this test from ending.
    let named = std::thread::Builder::new().name("crowded out".to_owned());
    let thread = named.spawn(all).unwrap();
    let done = is_done.recv_timeout(PATIENCE);
    done.expect("all are answered, none keeps the others from it");
    thread.join().unwrap();
}

#[tokio::test]
async fn requests_and_instances_get_the_room_that_idle_ones_had() {
    let (mut scene, app) = scene().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let door = listener.local_addr().unwrap();
    let (ingress, shutdown) = (scene.ingress.clone(), scene.shutdown.clone());
    scene.serve_also(async move {
        let nobody = Arc::new(|_| {});
        ingress
            .serve_instance(listener, Scheme::Http, nobody, shutdown)
            .await;
    });
    let mut streams = Vec::new();
    for _ in 0..2 * ALL {
        streams.push(idle(scene.address).await);
    }
    let before = closed(&streams).len();
    let mut inside = Vec::new();
    for number in 1..=4 {
        inside.push(idle(door).await);
        send(&mut inside[number - 1], "/gate").await;
    }
    let begun = || (app.life.inside.load(Ordering::SeqCst) == 4).then_some(());
    eventually(begun, || "all four are there".to_owned()).await;
    // Four connections and four requests, of which one has the socket that was kept.
    let made = || {
        let gone = closed(&streams).len();
        (gone >= before + 7).then_some(gone)
    };
    let gone = eventually(made, || format!("{}", closed(&streams).len())).await;
    assert!(
        gone <= before + 8,
        "no more than it takes: {before}, {gone}"
    );
    app.gate.add_permits(4);
    for stream in &mut inside {
        assert_eq!(heard(stream).await, "HTTP/1.1 200");
    }
    scene.close().await;
}

#[tokio::test]
async fn http2_says_goodbye_and_takes_what_crosses_it() {
    let (mut scene, _app) = scene().await;
    let call = |stream| {
        let flags = END_HEADERS | END_STREAM;
        frame(HEADERS, flags, stream, &get(HOST, "/hello"))
    };
    let mut raw = Raw::connect(scene.address, &[]).await;
    assert!(raw.send(&call(1)).await && raw.answered(1).await);
    let mut kept = Vec::new();
    for _ in 0..ALL - OURS - 1 {
        kept.push(idle(scene.address).await);
    }
    // One more: the first of all is the one to go, and it is still heard.
    let more = tokio::task::JoinSet::from_iter([idle(scene.address)]);
    let goaway = loop {
        let frame = timeout(PATIENCE, raw.next()).await.unwrap().unwrap();
        if frame.kind == GOAWAY {
            break frame;
        }
    };
    assert_eq!(goaway.payload, [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
    assert!(raw.send(&call(3)).await && raw.answered(3).await);
    while let Some(frame) = timeout(PATIENCE, raw.next()).await.unwrap() {
        if frame.kind == PING && frame.flags & ACK == 0 {
            assert!(
                raw.send(&super::smuggling::h2raw::frame(
                    PING,
                    ACK,
                    0,
                    &frame.payload
                ))
                .await
            );
        }
    }
    kept.extend(more.join_all().await);
    // The call that crossed needed room itself, and nobody counts on a connection that it came on.
    assert!(closed(&kept).len() <= 2, "{:?}", closed(&kept));
    scene.close().await;
}

/// A client that answers nothing any more is not waited for.
#[tokio::test]
async fn http2_that_does_not_answer_makes_way_too() {
    let (mut scene, _app) = scene().await;
    let flags = END_HEADERS | END_STREAM;
    let call = frame(HEADERS, flags, 1, &get(HOST, "/hello"));
    let mut deaf = Vec::new();
    for _ in 0..ALL - OURS {
        let mut raw = Raw::connect(scene.address, &[]).await;
        assert!(raw.send(&call).await && raw.answered(1).await);
        deaf.push(raw);
    }
    let mut kept = Vec::new();
    for _ in 0..2 {
        kept.push(idle(scene.address).await);
        assert!(open(&scene) < ALL, "{}", open(&scene));
    }
    let busy = || scene.ingress.shared.places.busy();
    // Cut, not kept as busy ones.
    eventually(
        || (busy() == 0).then_some(()),
        || format!("{} are busy, not 0", busy()),
    )
    .await;
    drop(deaf);
    scene.close().await;
}

/// Its two sockets are open as long as it is, whoever passes its bytes on.
#[tokio::test]
async fn a_websocket_keeps_its_place() {
    let (address, _app) = websocket_app().await;
    let mut scene = Scene::with(route(), few()).await;
    let id = scene.admit();
    scene.listen(&id, address);
    let mut sockets = Vec::new();
    for _ in 0..3 {
        sockets.push(websocket(&scene).await);
    }
    assert_eq!((open(&scene), scene.ingress.shared.places.busy()), (4, 3));
    for socket in &mut sockets {
        socket.send(Message::text("still there")).await.unwrap();
        let answer = timeout(PATIENCE, socket.next()).await;
        assert_eq!(
            answer.unwrap().unwrap().unwrap(),
            Message::text("still there")
        );
    }
    drop(sockets);
    let gone = || (open(&scene) == 1).then_some(());
    eventually(gone, || format!("{}", open(&scene))).await;
    scene.close().await;
}

/// Paused time. A client may send one in front of each request.
#[tokio::test(start_paused = true)]
async fn an_empty_line_now_and_then_keeps_no_connection() {
    let header_timeout = Duration::from_secs(10);
    let settings = IngressSettings {
        header_timeout,
        ..few()
    };
    let mut scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let mut stream = idle(scene.address).await;
    let began = Instant::now();
    loop {
        tokio::select! {
            text = heard(&mut stream) => {
                assert_eq!(text, "");
                break;
            }
            () = tokio::time::sleep(Duration::from_secs(3)) => {
                let _closed = stream.write_all(b"\r\n").await;
            }
        }
        assert!(began.elapsed() < 3 * header_timeout, "it is still open");
    }
    assert!(began.elapsed() >= header_timeout);
    scene.close().await;
}

async fn until_resting(scene: &Scene, count: usize) {
    let resting = || {
        scene
            .ingress
            .shared
            .places
            .hall
            .resting
            .load(Ordering::SeqCst)
    };
    eventually(
        || (resting() == count).then_some(()),
        || format!("{} rest, not {count}", resting()),
    )
    .await;
}

#[tokio::test]
async fn who_has_been_idle_for_a_while_is_its_socket_alone_until_it_asks() {
    let (mut scene, app) = scene().await;
    // Only what is idle: a request under way and a part of a head do not rest.
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(idle(scene.address).await);
    }
    send(&mut streams[2], "/gate").await;
    streams[3].write_all(b"GET /hello HT").await.unwrap();
    until_resting(&scene, 2).await;
    // As often as it likes, in pieces, many at once.
    for _ in 0..2 {
        assert_eq!(ask(&mut streams[0], "/hello").await, "HTTP/1.1 200");
        until_resting(&scene, 2).await;
    }
    let request = format!("GET /hello HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    let (first, rest) = request.split_at(20);
    streams[0].write_all(first.as_bytes()).await.unwrap();
    until_resting(&scene, 1).await;
    streams[0]
        .write_all(format!("{rest}{request}").as_bytes())
        .await
        .unwrap();
    let mut text = String::new();
    while text.matches("hello").count() < 2 {
        let mut piece = [0; 4096];
        let read = timeout(PATIENCE, streams[0].read(&mut piece));
        let read = read.await.unwrap().unwrap();
        assert!(read > 0, "ended after {text:?}");
        text.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    assert_eq!(text.matches("HTTP/1.1 200").count(), 2);
    let rest = format!("TP/1.1\r\nhost: {HOST}\r\n\r\n");
    streams[3].write_all(rest.as_bytes()).await.unwrap();
    assert_eq!(heard(&mut streams[3]).await, "HTTP/1.1 200");
    app.gate.add_permits(1);
    assert_eq!(heard(&mut streams[2]).await, "HTTP/1.1 200");
    // They rest again, and go when their client does, or the server, or when room is wanted.
    until_resting(&scene, 4).await;
    drop(streams.pop());
    until_resting(&scene, 3).await;
    for _ in 0..ALL {
        streams.push(idle(scene.address).await);
    }
    until_closed(&streams[..3], &[0, 1, 2]).await;
    scene.shutdown.cancel();
    for stream in &mut streams {
        assert_eq!(heard(stream).await, "");
    }
    scene.close().await;
}
