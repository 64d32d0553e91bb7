//! Instances and listeners that come and go under load; limits on clients.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::Empty;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use utsuwa_model::demand::Reach;
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{Access, InstanceRoute, RevisionRoute, RouteTable};
use utsuwa_model::{InstanceId, RevisionKey};

use super::app::*;
use super::scene::*;
use crate::IngressSettings;
use crate::seam::AnsweredBy;

fn ask(all: &mut JoinSet<Reply>, scene: &Scene, path: &'static str) {
    let address = scene.address;
    all.spawn(async move {
        let request = Request::get(path).header("host", HOST);
        call(address, request.body(Empty::new()).unwrap()).await
    });
}

#[tokio::test]
async fn retiring_waits_for_the_last_request_and_lets_nobody_in() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    let mut inside = JoinSet::new();
    ask(&mut inside, &scene, "/gate");
    scene.until(|demand| demand.in_flight == 1).await;

    assert!(
        !scene.ingress.retire(&id, Duration::from_millis(20)).await,
        "one is still inside"
    );
    let demand = scene.demand();
    assert_eq!(demand.instances[0].reach, Reach::Retiring);
    // Whoever comes now waits and wakes, though an instance is still there.
    let mut late = JoinSet::new();
    ask(&mut late, &scene, "/hello");
    let demand = scene.until(|demand| demand.queued == 1).await;
    assert!(demand.wake);
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 1);

    let retired = scene.ingress.retire(&id, PATIENCE);
    app.gate.add_permits(1);
    assert!(retired.await);
    assert_eq!(inside.join_next().await.unwrap().unwrap().text(), "through");
    scene.ingress.forget(&id, false);
    scene.ready(&app).await;
    assert_eq!(late.join_next().await.unwrap().unwrap().status, 200);
    assert!(
        scene.ingress.retire(&id, PATIENCE).await,
        "unknown ids answer at once"
    );
}

/// Instances are replaced all the time while clients ask: nothing is lost, nothing is sent into a stopped one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retiring_under_load_loses_nothing() {
    let scene = Scene::new(RevisionRoute {
        concurrency: 4,
        ..route()
    })
    .await;
    let mut app = App::new().await;
    let mut id = scene.ready(&app).await;
    let stop = Arc::new(AtomicBool::new(false));
    let asked = Arc::new(AtomicU32::new(0));
    let mut clients = JoinSet::new();
    for _ in 0..8 {
        let (stop, asked, address) = (Arc::clone(&stop), Arc::clone(&asked), scene.address);
        clients.spawn(async move {
            while !stop.load(Ordering::SeqCst) {
                let request = Request::post("/hello")
                    .header("host", HOST)
                    .body(Empty::new())
                    .unwrap();
                let reply = call(address, request).await;
                assert_eq!((reply.status, reply.text()), (200, "hello"));
                asked.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    for round in 1..=15 {
        let next = App::new().await;
        // Every other time the old one goes before the new one is there.
        if round % 2 == 0 {
            assert!(scene.ingress.retire(&id, PATIENCE).await);
            app.die();
            scene.ingress.forget(&id, false);
            id = scene.ready(&next).await;
        } else {
            let old = std::mem::replace(&mut id, scene.ready(&next).await);
            assert!(scene.ingress.retire(&old, PATIENCE).await);
            app.die();
            scene.ingress.forget(&old, false);
        }
        app = next;
        let seen = asked.load(Ordering::SeqCst);
        eventually(
            || (asked.load(Ordering::SeqCst) > seen + 20).then_some(()),
            || "no progress".to_owned(),
        )
        .await;
    }
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let count = asked.load(Ordering::SeqCst);
    let records = scene.records(usize::try_from(count).unwrap()).await;
    assert_eq!(records.len(), usize::try_from(count).unwrap());
    assert_eq!(scene.demand().arrivals, u64::from(count));
}

#[tokio::test]
async fn an_instance_that_comes_before_its_settings_is_probed_when_they_do() {
    let scene = Scene::new(route()).await;
    scene.publish(Arc::new(RouteTable::default()));
    let app = App::new().await;
    let id = scene.admit();
    scene.listen(&id, app.address);
    assert_eq!(scene.demand().instances[0].reach, Reach::Starting);
    scene.publish(table(route(), Access::Public));
    scene
        .until(|demand| demand.instances[0].reach == Reach::Ready)
        .await;
    assert_eq!(scene.get("/hello").await.status, 200);
}

#[tokio::test]
async fn who_waits_for_a_revision_that_is_removed_is_told() {
    let scene = Scene::new(route()).await;
    let mut all = JoinSet::new();
    ask(&mut all, &scene, "/hello");
    scene.until(|demand| demand.queued == 1).await;
    scene.publish(Arc::new(RouteTable::default()));
    assert_eq!(all.join_next().await.unwrap().unwrap().status, 503);
    assert_eq!(scene.get("/hello").await.status, 404);
    scene.publish(Arc::new(RouteTable::default()));
    assert_eq!(scene.ingress.demand(&key()), None, "forgotten once unused");
}

#[tokio::test]
async fn shutdown_finishes_what_is_in_flight_and_waiting_is_ended_by_word() {
    let mut scene = Scene::new(RevisionRoute {
        concurrency: 1,
        ..route()
    })
    .await;
    let app = App::new().await;
    scene.ready(&app).await;
    let mut inside = JoinSet::new();
    ask(&mut inside, &scene, "/gate");
    scene.until(|demand| demand.in_flight == 1).await;
    let mut waiting = JoinSet::new();
    ask(&mut waiting, &scene, "/hello");
    scene.until(|demand| demand.queued == 1).await;
    // A kept-alive client with nothing to say does not hold the end up.
    let _idle = TcpStream::connect(scene.address).await.unwrap();
    scene.shutdown.cancel();
    scene.ingress.refuse_waiting();
    let reply = waiting.join_next().await.unwrap().unwrap();
    assert_eq!((reply.status, reply.reason()), (503, "shutting_down"));
    app.gate.add_permits(1);
    assert_eq!(inside.join_next().await.unwrap().unwrap().text(), "through");
    scene.close().await;
    assert!(TcpStream::connect(scene.address).await.is_err());
}

#[tokio::test]
async fn what_does_not_end_by_itself_is_cut_at_shutdown() {
    let settings = IngressSettings {
        drain: Duration::from_millis(50),
        ..IngressSettings::default()
    };
    let mut scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream
        .write_all(format!("GET /ticks HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    let mut buffer = [0; 4096];
    assert!(stream.read(&mut buffer).await.unwrap() > 0);
    scene.close().await;
    assert_eq!(scene.demand().in_flight, 0);
    assert!(matches!(
        scene.records(1).await[0].answered_by,
        AnsweredBy::Utsuwa { .. }
    ));
}

#[tokio::test]
async fn slow_heads_large_heads_and_too_many_clients() {
    let settings = IngressSettings {
        header_timeout: Duration::from_millis(100),
        max_header_bytes: 16 << 10,
        max_connections: 2,
        ..IngressSettings::default()
    };
    let scene = Scene::with(route(), settings).await;
    let app = App::new().await;
    scene.ready(&app).await;
    // Nothing, and half a head: both are cut off, and until then nobody else gets in.
    let mut silent = TcpStream::connect(scene.address).await.unwrap();
    let mut half = TcpStream::connect(scene.address).await.unwrap();
    half.write_all(b"GET / HTTP/1.1\r\nhost: he").await.unwrap();
    assert_eq!(
        scene.get("/hello").await.status,
        200,
        "served once one of them was cut off"
    );
    let mut rest = Vec::new();
    tokio::time::timeout(PATIENCE, silent.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();
    assert!(rest.is_empty());
    tokio::time::timeout(PATIENCE, half.read_to_end(&mut rest))
        .await
        .unwrap()
        .unwrap();

    let text = format!(
        "GET /hello HTTP/1.1\r\nhost: {HOST}\r\nx-large: {}\r\nconnection: close\r\n\r\n",
        "y".repeat(20 << 10)
    );
    assert!(scene.raw(&text).await.starts_with("HTTP/1.1 431"));
}

/// Clients that leave, requests that time out, instances that come, go and die, all at once. Whatever happened, in the end
/// every request has one record and nothing is counted any more.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_storm_everything_adds_up() {
    let timeout = Duration::from_millis(300);
    let scene = Scene::new(RevisionRoute {
        concurrency: 3,
        timeout,
        ..route()
    })
    .await;
    let stop = Arc::new(AtomicBool::new(false));
    let mut clients = JoinSet::new();
    for client in 0..24_u64 {
        let (address, stop) = (scene.address, Arc::clone(&stop));
        clients.spawn(async move {
            let mut dice = client * 7919 + 1;
            while !stop.load(Ordering::SeqCst) {
                dice = dice
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let path =
                    ["/hello", "/gate", "/ticks", "/count"][usize::try_from(dice >> 62).unwrap()];
                let mut stream = TcpStream::connect(address).await.unwrap();
                let head =
                    format!("POST {path} HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 3\r\n\r\nabc");
                stream.write_all(head.as_bytes()).await.unwrap();
                // Stays for 0…15 ms, whatever comes.
                let mut buffer = [0; 4096];
                let stay = Duration::from_micros((dice >> 20) % 15_000);
                drop(tokio::time::timeout(stay, stream.read(&mut buffer)).await);
            }
        });
    }
    for round in 0..20 {
        let mut app = App::new().await;
        let id = scene.ready(&app).await;
        let served = || app.life.served.load(Ordering::SeqCst);
        eventually(
            || (served() > 30).then_some(()),
            || format!("{} served", served()),
        )
        .await;
        if round % 2 == 0 {
            app.gate.add_permits(3);
            scene.ingress.retire(&id, Duration::from_millis(5)).await;
        }
        app.die();
        scene.ingress.forget(&id, round % 3 == 0);
    }
    let last = App::new().await;
    scene.ready(&last).await;
    last.gate.add_permits(10_000);
    stop.store(true, Ordering::SeqCst);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    let demand = scene
        .until(|demand| demand.in_flight == 0 && demand.queued == 0)
        .await;
    // A request whose client left before its head was read never arrived.
    let arrived = usize::try_from(demand.arrivals).unwrap();
    assert!(arrived > 500, "{demand:?}");
    let records = scene.records(arrived).await;
    assert_eq!(records.len(), arrived);
}

/// While other services' routes change, revisions that nothing uses are forgotten. One that gets its first instance just then, and its
/// settings later, as a deploy may, keeps it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_comes_before_its_settings_is_not_forgotten() {
    let scene = Scene::new(route()).await;
    let (ingress, done) = (scene.ingress.clone(), Arc::new(AtomicBool::new(false)));
    let until = Arc::clone(&done);
    let others = std::thread::Builder::new().spawn(move || {
        while !until.load(Ordering::Relaxed) {
            ingress.publish(Vec::new());
        }
    });
    let lost: Vec<u32> = (0..20_000)
        .filter(|number| {
            let key: RevisionKey = format!("demo/here/new/new-{number:05}-abc")
                .parse()
                .unwrap();
            let id: InstanceId = format!("{number:032x}").parse().unwrap();
            let instance = InstanceRoute {
                id: id.clone(),
                revision: key.clone(),
                port: 8080,
                age: Duration::ZERO,
            };
            scene.ingress.admit(instance, StartPhases::default());
            let demand = scene.ingress.demand(&key).unwrap_or_default();
            let there = demand.instances.iter().any(|load| load.id == id);
            scene.ingress.forget(&id, false);
            !there
        })
        .collect();
    done.store(true, Ordering::Relaxed);
    others.unwrap().join().unwrap();
    assert_eq!(lost, Vec::<u32>::new());
}
