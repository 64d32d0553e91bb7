//! Waiting, slots, waking: who gets in, when, and who is told.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use utsuwa_model::route::{Access, RevisionRoute, StartupProbe};
use utsuwa_model::scaling::Ceiling;

use super::app::*;
use super::scene::*;
use crate::Refusal;
use crate::seam::AnsweredBy;

pub(super) fn many(scene: &Scene, count: usize, path: &'static str) -> JoinSet<Reply> {
    let mut all = JoinSet::new();
    for _ in 0..count {
        let address = scene.address;
        all.spawn(async move {
            let request = http::Request::get(path).header("host", HOST);
            call(address, request.body(http_body_util::Empty::new()).unwrap()).await
        });
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_hundred_at_once_wake_one_instance_once_and_are_all_answered() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let all = many(&scene, 200, "/hello");
    let demand = scene.until(|demand| demand.queued == 200).await;
    assert!(demand.wake, "{demand:?}");
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 1);
    scene.ready(&app).await;
    for reply in all.join_all().await {
        assert_eq!((reply.status, reply.text()), (200, "hello"));
    }
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 1);
    let demand = scene.until(|demand| demand.in_flight == 0).await;
    assert_eq!(
        (demand.arrivals, demand.queued, demand.wake),
        (200, 0, false)
    );
    assert!(demand.concurrency_us > 0);
    assert!(app.life.most.load(Ordering::SeqCst) <= 80);
    assert_eq!(scene.records(200).await.len(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrency_one_is_never_exceeded_under_load() {
    let scene = Scene::new(RevisionRoute {
        concurrency: 1,
        ..route()
    })
    .await;
    let apps = [App::new().await, App::new().await, App::new().await];
    for app in &apps {
        scene.ready(app).await;
    }
    for reply in many(&scene, 300, "/hello").join_all().await {
        assert_eq!(reply.status, 200);
    }
    for app in &apps {
        assert_eq!(app.life.most.load(Ordering::SeqCst), 1);
    }
    let served: u32 = apps
        .iter()
        .map(|app| app.life.served.load(Ordering::SeqCst))
        .sum();
    assert_eq!(served, 300);
    let demand = scene.until(|demand| demand.in_flight == 0).await;
    assert!(
        demand
            .instances
            .iter()
            .all(|load| load.in_flight == 0 && load.idle_since.is_some())
    );
}

#[tokio::test]
async fn first_come_first_served() {
    let scene = Scene::new(RevisionRoute {
        concurrency: 1,
        ..route()
    })
    .await;
    let app = App::new().await;
    let paths = ["/first", "/second", "/third", "/fourth"];
    let mut all = JoinSet::new();
    for (index, path) in paths.into_iter().enumerate() {
        let address = scene.address;
        all.spawn(async move {
            let request = http::Request::get(path).header("host", HOST);
            call(address, request.body(http_body_util::Empty::new()).unwrap()).await
        });
        let want = u32::try_from(index + 1).unwrap();
        scene.until(|demand| demand.queued == want).await;
    }
    scene.ready(&app).await;
    all.join_all().await;
    let served: Vec<_> = scene
        .records(4)
        .await
        .into_iter()
        .map(|record| record.path)
        .collect();
    assert_eq!(served, paths);
}

#[tokio::test]
async fn shortage_is_told_while_instances_are_there() {
    let scene = Scene::new(RevisionRoute {
        concurrency: 1,
        ..route()
    })
    .await;
    let app = App::new().await;
    scene.ready(&app).await;
    let _all = many(&scene, 1, "/gate");
    scene.until(|demand| demand.in_flight == 1).await;
    let before = scene.loops.changes.load(Ordering::SeqCst);
    let _more = many(&scene, 8, "/gate");
    let demand = scene.until(|demand| demand.queued == 8).await;
    assert!(!demand.wake, "an instance is there");
    let told = scene.loops.changes.load(Ordering::SeqCst) - before;
    assert!((1..=5).contains(&told), "told {told} times");
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_out_at_once() {
    let scene = Scene::new(route()).await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    stream
        .write_all(format!("GET /gone HTTP/1.1\r\nhost: {HOST}\r\n\r\n").as_bytes())
        .await
        .unwrap();
    scene
        .until(|demand| demand.queued == 1 && demand.wake)
        .await;
    drop(stream);
    let demand = scene.until(|demand| demand.queued == 0).await;
    assert!(!demand.wake);
    let records = scene.records(1).await;
    assert_eq!(records[0].status, 499);
    // The next one wakes anew.
    let _waiting = many(&scene, 1, "/hello");
    scene.until(|demand| demand.queued == 1).await;
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn refused_requests_say_why() {
    let scene = Scene::new(route()).await;
    for round in 1..=2 {
        let mut all = many(&scene, 2, "/hello");
        scene.until(|demand| demand.queued == 2).await;
        scene.ingress.refuse(
            &key(),
            Refusal::StartFailed {
                message: "exited with status 3".to_owned(),
            },
        );
        while let Some(reply) = all.join_next().await {
            let reply = reply.unwrap();
            assert_eq!((reply.status, reply.reason()), (503, "start_failed"));
            assert!(!reply.text().contains("exited"), "{}", reply.text());
        }
        assert_eq!(
            scene.loops.wakes.load(Ordering::SeqCst),
            round,
            "one per time that it was empty before"
        );
    }
    let records = scene.records(4).await;
    let AnsweredBy::Utsuwa { why } = &records[0].answered_by else {
        panic!("{:?}", records[0])
    };
    assert!(why.contains("exited with status 3"), "{why}");
}

/// Paused time. A shortage may end: nobody is sent away for it before their own time is up.
#[tokio::test(start_paused = true)]
async fn a_shortage_is_waited_out_and_then_named() {
    let scene = Scene::new(RevisionRoute {
        usual_start: Some(Duration::from_secs(1)),
        ..route()
    })
    .await;
    let began = tokio::time::Instant::now();
    let mut first = many(&scene, 1, "/hello");
    scene.until(|demand| demand.queued == 1).await;
    let why = Refusal::NoCapacity {
        message: "no memory left".to_owned(),
    };
    scene.ingress.refuse(&key(), why);
    assert_eq!(scene.demand().queued, 1, "still waiting");
    let reply = first.join_next().await.unwrap().unwrap();
    assert_eq!((reply.status, reply.reason()), (500, "no_capacity"));
    let waited = began.elapsed();
    assert!((9..12).contains(&waited.as_secs()), "{waited:?}");
    let record = &scene.records(1).await[0];
    let AnsweredBy::Utsuwa { why } = &record.answered_by else {
        panic!("{record:?}")
    };
    assert!(why.contains("no memory left"), "{why}");

    // It ended in time: served.
    let mut second = many(&scene, 1, "/hello");
    scene.until(|demand| demand.queued == 1).await;
    let app = App::new().await;
    scene.ready(&app).await;
    assert_eq!(second.join_next().await.unwrap().unwrap().status, 200);
}

/// Paused time. Without a start seen by this process, the proof's start says how long one takes; without that, the probe.
#[tokio::test(start_paused = true)]
async fn the_pending_window_knows_how_long_the_proof_took() {
    for (usual, least, most) in [
        (Some(Duration::from_millis(40)), 9, 12),
        (Some(Duration::from_secs(20)), 69, 72),
        (None, 239, 242),
    ] {
        let scene = Scene::new(RevisionRoute {
            usual_start: usual,
            ..route()
        })
        .await;
        let began = tokio::time::Instant::now();
        let mut all = JoinSet::new();
        let address = scene.address;
        all.spawn(async move {
            let request = http::Request::get("/hello").header("host", HOST);
            let request = request.body(http_body_util::Empty::<bytes::Bytes>::new());
            let stream = tokio::net::TcpStream::connect(address).await.unwrap();
            let io = hyper_util::rt::TokioIo::new(stream);
            let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            let mut driver = JoinSet::new();
            driver.spawn(connection);
            // Longer than what others here are given.
            sender
                .send_request(request.unwrap())
                .await
                .unwrap()
                .status()
        });
        let status = all.join_next().await.unwrap().unwrap();
        assert_eq!(status.as_u16(), 500);
        let waited = began.elapsed().as_secs();
        assert!((least..most).contains(&waited), "{usual:?}: {waited} s");
    }
}

/// Manual scaling to zero (§3.6): nobody waits for what will never come.
#[tokio::test]
async fn a_revision_without_instances_answers_at_once() {
    let scene = Scene::new(route()).await;
    let mut waiting = many(&scene, 2, "/hello");
    scene.until(|demand| demand.queued == 2).await;
    let off = RevisionRoute {
        max_instances: Ceiling::AtMost(0),
        ..route()
    };
    scene.publish(table(off, Access::Public));
    while let Some(reply) = waiting.join_next().await {
        let reply = reply.unwrap();
        assert_eq!((reply.status, reply.reason()), (503, "disabled"));
    }
    let wakes = scene.loops.wakes.load(Ordering::SeqCst);
    let reply = scene.get("/hello").await;
    assert_eq!((reply.status, reply.reason()), (503, "disabled"));
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), wakes);
    assert_eq!(scene.records(3).await[2].revision, Some(key()));
}

#[tokio::test]
async fn the_request_timeout_runs_while_waiting() {
    let scene = Scene::new(RevisionRoute {
        timeout: Duration::from_millis(50),
        ..route()
    })
    .await;
    let reply = scene.get("/hello").await;
    assert_eq!(
        (reply.status, reply.text(), reply.reason()),
        (504, "upstream request timeout", "timeout")
    );
    assert_eq!(scene.demand().queued, 0);
}

/// Paused time: ten seconds pass as soon as nothing else can happen.
#[tokio::test(start_paused = true)]
async fn the_pending_window_ends_in_429_at_the_maximum_and_500_below() {
    let short = StartupProbe {
        period: Duration::from_secs(20),
        ..StartupProbe::tcp(8080)
    };
    for (max, status, body) in [
        (Ceiling::AtMost(1), 429, Some("Rate exceeded.")),
        (Ceiling::AtMost(2), 500, None),
    ] {
        let scene = Scene::new(RevisionRoute {
            concurrency: 1,
            max_instances: max,
            startup: short.clone(),
            ..route()
        })
        .await;
        let app = App::new().await;
        scene.ready(&app).await;
        let _busy = many(&scene, 1, "/gate");
        scene.until(|demand| demand.in_flight == 1).await;
        let began = tokio::time::Instant::now();
        let reply = many(&scene, 1, "/hello")
            .join_next()
            .await
            .unwrap()
            .unwrap();
        assert_eq!(reply.status, status);
        let waited = began.elapsed();
        assert!((9..12).contains(&waited.as_secs()), "{waited:?}");
        if let Some(body) = body {
            assert_eq!(reply.text(), body);
        }
    }
}

#[tokio::test]
async fn the_phases_of_a_cold_start_are_told_when_asked() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let address = scene.address;
    let mut all = JoinSet::new();
    all.spawn(async move {
        let request = http::Request::get("/hello")
            .header("host", HOST)
            .header("x-utsuwa-timing", "1");
        call(address, request.body(http_body_util::Empty::new()).unwrap()).await
    });
    scene.until(|demand| demand.wake).await;
    scene.ready(&app).await;
    let reply = all.join_next().await.unwrap().unwrap();
    let timing = reply.header("server-timing").to_owned();
    for phase in [
        "decide;dur=",
        "sandbox;dur=0.100",
        "rootfs;dur=0.200",
        "exec;dur=0.300",
        "listen;dur=",
        "answer;dur=",
    ] {
        assert!(timing.contains(phase), "{phase} in {timing}");
    }
    let cold = scene.records(1).await[0].cold.unwrap();
    assert_eq!(cold.start.exec, Duration::from_micros(300));
    assert!(
        cold.listen + cold.answer <= cold.total && cold.total < PATIENCE,
        "{cold:?}"
    );
    // Warm ones have none, and nobody gets the header who doesn't ask.
    let reply = scene.get("/hello").await;
    assert_eq!(reply.header("server-timing"), "");
    assert_eq!(scene.records(2).await[1].cold, None);
}

/// A body that lies unread would hide that its sender is gone.
#[tokio::test]
async fn a_client_that_sent_a_body_and_leaves_is_out_at_once_too() {
    let scene = Scene::new(route()).await;
    let mut stream = TcpStream::connect(scene.address).await.unwrap();
    let head = format!("POST /gone HTTP/1.1\r\nhost: {HOST}\r\ncontent-length: 5\r\n\r\nab");
    stream.write_all(head.as_bytes()).await.unwrap();
    scene.until(|demand| demand.queued == 1).await;
    stream.write_all(b"cde").await.unwrap();
    drop(stream);
    scene.until(|demand| demand.queued == 0).await;
    let record = &scene.records(1).await[0];
    assert_eq!(record.status, 499);
}

#[tokio::test]
async fn bodies_of_requests_that_waited_arrive_whole() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let mut all = JoinSet::new();
    // Below and above what is read ahead.
    for length in [1, 1000, 16 << 10, (16 << 10) + 1, 1 << 20] {
        let address = scene.address;
        all.spawn(async move {
            let body = http_body_util::Full::new(bytes::Bytes::from(vec![b'x'; length]));
            let request = http::Request::post("/count").header("host", HOST);
            let reply = call(address, request.body(body).unwrap()).await;
            assert_eq!(
                (reply.status, reply.text()),
                (200, length.to_string().as_str())
            );
        });
    }
    scene.until(|demand| demand.queued == 5).await;
    scene.ready(&app).await;
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let mut sizes: Vec<_> = scene
        .records(5)
        .await
        .into_iter()
        .map(|record| record.request_bytes)
        .collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1000, 16 << 10, (16 << 10) + 1, 1 << 20]);
}

/// After a change of servers a request may wait until an instance that runs is reached again: that is no start.
#[tokio::test]
async fn who_waits_for_one_that_ran_before_waits_for_no_start() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    let id = scene.admit_aged(Duration::from_secs(5));
    let mut asked = many(&scene, 1, "/hello");
    scene.until(|demand| demand.queued == 1).await;
    scene.listen(&id, app.address);
    assert_eq!(asked.join_next().await.unwrap().unwrap().text(), "hello");
    let record = &scene.records(1).await[0];
    assert_eq!(record.cold, None);
    assert!(!record.queued.is_zero());
}
