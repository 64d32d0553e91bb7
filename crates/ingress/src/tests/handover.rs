//! Idle connections go on with the next server: their clients notice nothing.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use futures_util::FutureExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::app::*;
use super::leaving::read_until;
use super::scene::*;
use crate::IngressSettings;
use crate::handover::{Giving, Handed, Taking, queue};

/// An ingress that will leave, with an app, and the queue as the keeper has it.
async fn leaving() -> (Scene, App, (OwnedFd, OwnedFd)) {
    let (into, out) = queue().unwrap();
    let kept = into.try_clone().unwrap();
    let prepare = |ingress: &crate::Ingress| ingress.hand_over(into);
    let scene = Scene::prepared(route(), IngressSettings::default(), prepare).await;
    let app = App::new().await;
    scene.ready(&app).await;
    (scene, app, (kept, out))
}

/// The next one, which listens at `listens`, too.
async fn next(app: &App, (into, queue): (OwnedFd, OwnedFd), listens: SocketAddr) -> Scene {
    let mut scene = Scene::new(route()).await;
    scene.ready(app).await;
    let (ingress, shutdown) = (scene.ingress.clone(), scene.shutdown.clone());
    scene.serve_also(async move {
        ingress
            .serve_handed(queue, vec![listens], shutdown)
            .await
            .unwrap();
        drop(into);
    });
    scene
}

/// Ends a scene as a server does.
async fn leave(scene: &mut Scene) {
    scene.shutdown.cancel();
    let settled = scene.ingress.settled();
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    scene.close().await;
}

/// Waits for the end: how many bytes came before it.
async fn closed(stream: &mut TcpStream) -> usize {
    let mut buffer = [0; 1];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut buffer));
    read.await.unwrap().unwrap_or(0)
}

fn hello() -> Vec<u8> {
    format!("GET /hello HTTP/1.1\r\nhost: {HOST}\r\n\r\n").into_bytes()
}

/// Asks for something small, and answers what came.
async fn ask(stream: &mut TcpStream) -> String {
    stream.write_all(&hello()).await.unwrap();
    read_until(stream, "hello").await
}

#[tokio::test]
async fn an_idle_connection_goes_on_whatever_its_client_sends_meanwhile() {
    let (mut scene, app, queue) = leaving().await;
    let address = scene.address;
    let connect = || async { TcpStream::connect(address).await.unwrap() };
    let (mut served, mut new, mut meanwhile) = (connect().await, connect().await, connect().await);
    ask(&mut served).await;
    ask(&mut meanwhile).await;
    // The second is there, and has said nothing; one more may always come.
    let arrived = || (scene.ingress.shared.places.hall.open() == 4).then_some(());
    eventually(arrived, || "not accepted".to_owned()).await;
    leave(&mut scene).await;
    // Nobody serves, and nobody refuses.
    meanwhile.write_all(&hello()).await.unwrap();
    let next = next(&app, queue, address).await;
    read_until(&mut meanwhile, "hello").await;
    for stream in [&mut served, &mut new, &mut meanwhile] {
        for _ in 0..2 {
            let answer = ask(stream).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(!answer.to_lowercase().contains("connection:"), "{answer}");
        }
    }
    let records = next.records(7).await;
    assert!(
        records
            .iter()
            .all(|record| record.remote == address.ip() && record.server_ip == Some(address.ip())),
        "{records:?}"
    );
    // They are idle, as if they had come by themselves: none has a place among the busy ones.
    let idle = || (next.ingress.shared.places.busy() == 0).then_some(());
    eventually(idle, || "busy".to_owned()).await;
}

#[tokio::test]
async fn an_answer_under_way_ends_first() {
    let (mut scene, app, queue) = leaving().await;
    let address = scene.address;
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /echo HTTP/1.1\r\nhost: {HOST}\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let begun = read_until(&mut stream, "one\r\n").await;
    assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    scene.shutdown.cancel();
    let settled = scene.ingress.settled();
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    let next = next(&app, queue, address).await;
    // The end of this request, and the next one right behind it.
    let mut rest = b"3\r\ntwo\r\n0\r\n\r\n".to_vec();
    stream.write_all(&rest).await.unwrap();
    read_until(&mut stream, "two\r\n0\r\n\r\n").await;
    rest = hello();
    stream.write_all(&rest).await.unwrap();
    read_until(&mut stream, "hello").await;
    scene.close().await;
    assert_eq!(scene.records(1).await.len(), 1);
    assert_eq!(next.records(1).await.len(), 1);
}

/// A head that has come in part is read to its end and answered here: what was read can't go.
#[tokio::test]
async fn a_head_in_pieces_is_answered_where_it_began() {
    let (mut scene, app, queue) = leaving().await;
    let address = scene.address;
    let mut stream = TcpStream::connect(address).await.unwrap();
    ask(&mut stream).await;
    let whole = hello();
    let (first, rest) = whole.split_at(20);
    stream.write_all(first).await.unwrap();
    let busy = || (scene.ingress.shared.places.busy() == 1).then_some(());
    eventually(busy, || "not read".to_owned()).await;
    scene.shutdown.cancel();
    let next = next(&app, queue, address).await;
    stream.write_all(rest).await.unwrap();
    read_until(&mut stream, "hello").await;
    leave(&mut scene).await;
    ask(&mut stream).await;
    assert_eq!(scene.records(2).await.len(), 2);
    assert_eq!(next.records(1).await.len(), 1);
}

#[tokio::test]
async fn what_was_accepted_where_nobody_listens_any_more_is_closed() {
    let (mut scene, app, queue) = leaving().await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    ask(&mut stream).await;
    let mut elsewhere = scene.address;
    leave(&mut scene).await;
    elsewhere.set_port(elsewhere.port() ^ 1);
    let _next = next(&app, queue, elsewhere).await;
    assert_eq!(closed(&mut stream).await, 0);
}

/// More than one message, each with what belongs to it.
#[tokio::test]
async fn a_queue_keeps_who_is_who() {
    let (into, out) = queue().unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let taking = Taking::new(out, vec![address]).unwrap();
    let giving = Giving::default();
    assert!(!giving.is_set());
    giving.set(into);
    assert!(giving.is_set());
    let mut clients = Vec::new();
    for number in 0..150_u16 {
        let client = TcpStream::connect(address).await.unwrap();
        let (socket, peer) = listener.accept().await.unwrap();
        assert_eq!(peer, client.local_addr().unwrap());
        let remote = match number % 2 {
            0 => std::net::Ipv4Addr::from(u32::from(number)).into(),
            _ => std::net::Ipv6Addr::from(0x2001_0db8_u128 << 96 | u128::from(number)).into(),
        };
        let new = number % 3 == 0;
        giving.give(Handed {
            socket,
            remote,
            new,
        });
        clients.push((client, remote, new));
    }
    giving.until(std::future::ready(())).await;
    let taken = take(&taking, clients.len()).await;
    for (one, (client, remote, new)) in taken.iter().zip(&clients) {
        let peer = one.socket.peer_addr().unwrap();
        assert_eq!(
            (peer, one.remote, one.new),
            (client.local_addr().unwrap(), *remote, *new)
        );
    }
}

async fn take(taking: &Taking, count: usize) -> Vec<Handed<TcpStream>> {
    let mut taken = Vec::new();
    while taken.len() < count {
        let next = tokio::time::timeout(PATIENCE, taking.next());
        taken.extend(next.await.unwrap().unwrap());
    }
    taken
}

/// A queue that takes two messages, and how it is to give sockets of one connection.
async fn narrow() -> (Giving, Taking, impl Fn(&Giving, usize)) {
    let (into, out) = queue().unwrap();
    rustix::net::sockopt::set_socket_send_buffer_size(&into, 1).unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = TcpStream::connect(address).await.unwrap();
    let (socket, peer) = listener.accept().await.unwrap();
    let socket = socket.into_std().unwrap();
    let giving = Giving::default();
    giving.set(into);
    let give = move |giving: &Giving, count| {
        let _open = &client;
        for _ in 0..count {
            let socket = TcpStream::from_std(socket.try_clone().unwrap()).unwrap();
            let (remote, new) = (peer.ip(), false);
            giving.give(Handed {
                socket,
                remote,
                new,
            });
        }
    };
    let taking = Taking::new(out, vec![address]).unwrap();
    (giving, taking, give)
}

#[tokio::test]
async fn who_leaves_waits_for_room_in_the_queue() {
    let (giving, taking, give) = narrow().await;
    let mut count = 600;
    give(&giving, count);
    {
        // It sends what has room, and waits. Then it is given up and begun anew: nothing is lost, and nothing comes twice.
        let mut sending = Box::pin(giving.until(std::future::ready(())));
        let first = tokio::select! {
            biased;
            () = &mut sending => panic!("there is no room for all"),
            first = take(&taking, 1) => first,
        };
        assert!(first.len() < 600);
        count -= first.len();
    }
    let sending = giving.until(std::future::ready(()));
    let ((), taken) = tokio::join!(sending, take(&taking, count));
    assert_eq!(taken.len(), count);
    let more = taking.next();
    assert!(more.now_or_never().is_none());
}

#[tokio::test]
async fn what_has_no_room_at_the_end_is_closed() {
    let (giving, taking, give) = narrow().await;
    give(&giving, 600);
    giving.end();
    let first = take(&taking, 1).await;
    assert!(!first.is_empty() && first.len() < 600);
    giving.until(std::future::ready(())).await;
}

/// What is sent in the moment in which the server is told to leave is answered by it or by the next one, once.
#[tokio::test]
async fn nothing_sent_at_the_moment_of_leaving_is_lost() {
    let (mut scene, app, queue) = leaving().await;
    let address = scene.address;
    let mut streams = Vec::new();
    for number in 0..40 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        if number % 2 == 0 {
            ask(&mut stream).await;
        }
        streams.push(stream);
    }
    let arrived = || (scene.ingress.shared.places.hall.open() > 40).then_some(());
    eventually(arrived, || "not accepted".to_owned()).await;
    let whole = hello();
    for (number, stream) in streams.iter().enumerate() {
        if number == 20 {
            // Nothing is awaited here: all of it is there when the next task looks.
            scene.shutdown.cancel();
        }
        assert_eq!(stream.try_write(&whole).unwrap(), whole.len());
    }
    leave(&mut scene).await;
    let next = next(&app, queue, address).await;
    for stream in &mut streams {
        read_until(stream, "hello").await;
        ask(stream).await;
    }
    let all = scene.records(20).await.len() + next.records(1).await.len();
    assert_eq!(all, 20 + 40 + 40);
}

/// Has the scene leave while a client waits for its answer.
async fn waits_while_it_leaves(scene: &Scene) -> TcpStream {
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let gate = format!("GET /gate HTTP/1.1\r\nhost: {HOST}\r\n\r\n");
    stream.write_all(gate.as_bytes()).await.unwrap();
    scene.until(|demand| demand.in_flight == 1).await;
    scene.shutdown.cancel();
    let settled = scene.ingress.settled();
    tokio::time::timeout(PATIENCE, settled).await.unwrap();
    stream
}

/// A request behind one that is still answered goes, too: it wasn't read.
#[tokio::test]
async fn a_request_behind_an_unfinished_answer_is_the_next_servers() {
    let (mut scene, app, queue) = leaving().await;
    let address = scene.address;
    let mut stream = waits_while_it_leaves(&scene).await;
    stream.write_all(&hello()).await.unwrap();
    app.gate.add_permits(1);
    read_until(&mut stream, "through").await;
    scene.close().await;
    assert_eq!(scene.records(1).await.len(), 1);
    let next = next(&app, queue, address).await;
    read_until(&mut stream, "hello").await;
    ask(&mut stream).await;
    assert_eq!(next.records(2).await.len(), 2);
}

/// Whoever waits for an answer and leaves, in order or not, is noticed, though nothing is read from it.
#[tokio::test]
async fn a_client_that_leaves_a_leaving_server_is_seen() {
    for breaks in [false, true] {
        let (mut scene, app, _queue) = leaving().await;
        let stream = waits_while_it_leaves(&scene).await;
        if breaks {
            stream.set_zero_linger().unwrap();
        }
        drop(stream);
        scene.until(|demand| demand.in_flight == 0).await;
        scene.close().await;
        drop(app);
    }
}

/// A head whose rest doesn't come keeps nobody from leaving, whether alone or behind a request.
#[tokio::test(start_paused = true)]
async fn a_piece_of_a_head_keeps_no_server() {
    for before in ["", "GET /gate HTTP/1.1\r\nhost: hello.localhost\r\n\r\n"] {
        let (mut scene, app, _queue) = leaving().await;
        let mut stream = TcpStream::connect(scene.address).await.unwrap();
        stream.write_all(before.as_bytes()).await.unwrap();
        let under_way = u32::from(!before.is_empty());
        scene.until(|demand| demand.in_flight == under_way).await;
        stream.write_all(b"G").await.unwrap();
        let busy = || (scene.ingress.shared.places.busy() == 1).then_some(());
        eventually(busy, || "not read".to_owned()).await;
        scene.shutdown.cancel();
        let began = tokio::time::Instant::now();
        scene.ingress.settled().await;
        assert!(began.elapsed() <= std::time::Duration::from_secs(1));
        app.gate.add_permits(1);
        scene.close().await;
    }
}

/// Their files are the queue's until somebody takes them; with it they end.
#[tokio::test]
async fn what_nobody_takes_ends_with_the_queue() {
    let (mut scene, _app, queue) = leaving().await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    ask(&mut stream).await;
    leave(&mut scene).await;
    drop(queue);
    assert_eq!(closed(&mut stream).await, 0);
}
