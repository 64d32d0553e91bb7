//! The startup probe: what it is content with, when it gives up, and what its owner is told meanwhile.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use utsuwa_model::demand::Reach;
use utsuwa_model::route::{Protocol, RevisionRoute, StartupCheck, StartupProbe};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;

use super::app::*;
use super::queue::many;
use super::scene::*;
use crate::IngressSettings;

#[tokio::test]
async fn the_connection_that_proved_an_instance_serves_its_first_request() {
    let scene = Scene::new(route()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    for _ in 0..5 {
        assert_eq!(scene.get("/hello").await.status, 200);
    }
    assert_eq!(app.life.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_probe_that_gives_up_uses_the_spec_s_words_and_says_what_was_tried() {
    let startup = StartupProbe {
        period: Duration::from_millis(60),
        ..StartupProbe::tcp(8080)
    };
    let scene = Scene::with(
        RevisionRoute { startup, ..route() },
        IngressSettings::default(),
    )
    .await;
    let _waiting = many(&scene, 1, "/hello");
    scene.until(|demand| demand.wake).await;
    let id = scene.admit();
    let demand = scene
        .until(|demand| matches!(demand.instances[0].reach, Reach::Failed { .. }))
        .await;
    let Reach::Failed { message } = &demand.instances[0].reach else {
        panic!("{demand:?}")
    };
    for part in [
        "failed to start and listen on the port defined provided by the PORT=8080",
        "connecting to port 8080",
        "connection refused",
        "The app listens on 127.0.0.1:8080 only",
        "it must listen on 0.0.0.0:8080",
    ] {
        assert!(message.contains(part), "{part:?} in {message}");
    }
    assert!(
        demand.wake,
        "somebody waits and nothing is there or starting"
    );
    scene.ingress.forget(&id, false);
    assert!(scene.demand().instances.is_empty());
}

/// Long before its probe gives up, and once. Paused time.
#[tokio::test(start_paused = true)]
async fn an_app_that_listens_for_itself_alone_is_told_of_early() {
    let startup = StartupProbe {
        period: Duration::from_secs(10),
        ..StartupProbe::tcp(8080)
    };
    let scene = Scene::new(RevisionRoute { startup, ..route() }).await;
    let id = scene.admit();
    let began = tokio::time::Instant::now();
    let notes = || scene.records.1.lock().clone();
    eventually(
        || (!notes().is_empty()).then_some(()),
        || "a note".to_owned(),
    )
    .await;
    assert!(began.elapsed() < Duration::from_secs(5));
    scene
        .until(|demand| matches!(demand.instances[0].reach, Reach::Failed { .. }))
        .await;
    let notes = notes();
    let said: Vec<&str> = notes.iter().map(|note| note.text.as_str()).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].starts_with("The app listens on 127.0.0.1:8080 only"));
    assert!(notes.iter().all(|note| note.instance == id));
}

/// Also when it begins to listen in the wrong place late; those who look are told what to do. Paused time.
#[tokio::test(start_paused = true)]
async fn an_app_that_listens_on_another_port_is_told_of_early() {
    let scene = Scene::new(route()).await;
    scene.listen_elsewhere(&[]);
    scene.admit();
    let began = tokio::time::Instant::now();
    tokio::time::sleep(Duration::from_secs(20)).await;
    let notes = || scene.records.1.lock().clone();
    assert!(notes().is_empty(), "nothing to be told yet");
    let changes = scene.loops.changes.load(Ordering::SeqCst);
    scene.listen_elsewhere(&["0.0.0.0:5000", "[::]:5000"]);
    eventually(
        || (!notes().is_empty()).then_some(()),
        || "a note".to_owned(),
    )
    .await;
    assert!(began.elapsed() < Duration::from_secs(25));
    let text = "The container listens on 0.0.0.0:5000 and [::]:5000, not on port 8080 (PORT): set `--port 5000`, or let it read PORT.";
    assert_eq!(notes()[0].text, text);
    let demand = scene.demand();
    assert_eq!(demand.instances[0].reach, Reach::Starting);
    assert_eq!(demand.instances[0].failing[0].advice, text);
    assert!(
        scene.loops.changes.load(Ordering::SeqCst) > changes,
        "the loops look"
    );
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(notes().len(), 1, "once");
}

/// Paused time: it passes as soon as nothing else can happen.
#[tokio::test(start_paused = true)]
async fn the_deadline_counts_from_the_start_of_one_that_was_found_running() {
    for (age, least, most) in [(0, 240, 245), (200, 40, 42), (100_000, 10, 11)] {
        let scene = Scene::new(route()).await;
        let began = tokio::time::Instant::now();
        scene.admit_aged(Duration::from_secs(age));
        // `until` has less patience than a probe.
        let failed = loop {
            if let Reach::Failed { message } = &scene.demand().instances[0].reach {
                break message.clone();
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        let took = began.elapsed().as_secs();
        assert!((least..most).contains(&took), "{age}: {took}");
        let said = format!("had been running for {age} s");
        assert_eq!(failed.contains(&said), age > 0, "{failed}");
    }
}

fn h2c(startup: StartupProbe) -> RevisionRoute {
    RevisionRoute {
        protocol: Protocol::H2c,
        startup,
        ..route()
    }
}

/// Each request would fail with words of HTTP/2's own, and its deploy would have gone well.
#[tokio::test]
async fn an_app_of_http1_whose_port_is_named_h2c_fails_with_the_flag() {
    let probes = [
        StartupProbe::tcp(8080),
        StartupProbe {
            check: StartupCheck::Grpc {
                port: 8080,
                service: String::new(),
            },
            period: Duration::from_millis(20),
            failure_threshold: 2,
            ..StartupProbe::tcp(8080)
        },
    ];
    for startup in probes {
        let (address, _app) = raw_app(|_, mut stream| async move {
            let mut bytes = [0; 4096];
            if stream.read(&mut bytes).await.unwrap_or(0) > 0 {
                let answer =
                    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
                drop(stream.write_all(answer).await);
                // Closed over unread bytes the answer could be lost.
                while stream.read(&mut bytes).await.unwrap_or(0) > 0 {}
            }
        })
        .await;
        let scene = Scene::new(h2c(startup)).await;
        let id = scene.admit();
        scene.listen(&id, address);
        let demand = scene
            .until(|demand| matches!(demand.instances[0].reach, Reach::Failed { .. }))
            .await;
        let Reach::Failed { message } = &demand.instances[0].reach else {
            panic!("{demand:?}")
        };
        for part in ["answers in HTTP/1.1", "named h2c", "--no-use-http2"] {
            assert!(message.contains(part), "{part:?} in {message}");
        }
        assert!(!message.contains("0.0.0.0"), "{message}");
    }
}

/// As gunicorn does: it listens, and its workers take seconds until they answer what they were asked.
#[tokio::test]
async fn an_app_that_answers_late_is_heard_until_its_probe_ends() {
    let short = StartupProbe {
        period: Duration::from_secs(3),
        failure_threshold: 1,
        ..StartupProbe::tcp(8080)
    };
    for (startup, heard) in [(StartupProbe::tcp(8080), true), (short, false)] {
        let (asked, answers) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (app_asked, app_answers) = (Arc::clone(&asked), Arc::clone(&answers));
        let (address, _app) = raw_app(move |_, mut stream| {
            let (asked, answers) = (Arc::clone(&app_asked), Arc::clone(&app_answers));
            async move {
                let mut bytes = [0; 4096];
                drop(stream.read(&mut bytes).await);
                asked.notify_one();
                answers.notified().await;
                drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
                while stream.read(&mut bytes).await.unwrap_or(0) > 0 {}
            }
        })
        .await;
        let scene = Scene::new(h2c(startup)).await;
        let id = scene.admit();
        scene.listen(&id, address);
        asked.notified().await;
        tokio::time::pause();
        tokio::time::advance(Duration::from_secs(5)).await;
        tokio::time::resume();
        answers.notify_one();
        let demand = scene
            .until(|demand| demand.instances[0].reach != Reach::Starting)
            .await;
        let failed = matches!(demand.instances[0].reach, Reach::Failed { .. });
        assert_eq!(failed, heard, "{demand:?}");
    }
}

/// It may be one that isn't ready for more than connections yet: it gets the requests, and the log says what they met.
#[tokio::test]
async fn a_request_that_an_app_without_http2_closes_upon_names_the_flag() {
    let (address, _app) = raw_app(|_, mut stream| async move {
        let mut bytes = [0; 4096];
        drop(stream.read(&mut bytes).await);
    })
    .await;
    let scene = Scene::new(h2c(StartupProbe::tcp(8080))).await;
    scene.ready_at(address).await;
    assert_eq!(scene.get("/hello").await.status, 503);
    let record = scene.records(1).await.remove(0);
    let told = format!("{record:?}");
    assert!(
        told.contains("--no-use-http2") && told.contains("h2c"),
        "{told}"
    );
}
