//! Liveness and readiness probes. Time is paused: it passes as soon as nothing else can happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use http::Request;
use http_body_util::Empty;
use tokio::task::JoinSet;
use utsuwa_model::demand::Reach;
use utsuwa_model::route::{HealthCheck, HealthProbe, RevisionRoute, StartupCheck, StartupProbe};
use utsuwa_model::{InstanceId, demand::InstanceLoad};

use super::app::*;
use super::protocols::grpc_health;
use super::scene::*;
use crate::seam::{AnsweredBy, Weight};

pub(super) fn probe() -> HealthProbe {
    HealthProbe {
        initial_delay: Duration::ZERO,
        timeout: Duration::from_millis(50),
        period: Duration::from_millis(100),
        failure_threshold: 3,
        success_threshold: 2,
        check: HealthCheck::Http {
            port: 8080,
            path: "/health".to_owned(),
            headers: Vec::new(),
        },
    }
}

pub(super) fn with_liveness(probe: HealthProbe) -> RevisionRoute {
    RevisionRoute {
        liveness: Some(probe),
        ..route()
    }
}

pub(super) fn with_readiness() -> RevisionRoute {
    RevisionRoute {
        readiness: Some(probe()),
        ..route()
    }
}

pub(super) fn load(scene: &Scene, id: &InstanceId) -> InstanceLoad {
    let demand = scene.demand();
    let found = demand.instances.into_iter().find(|load| load.id == *id);
    found.unwrap()
}

pub(super) async fn until_reach(
    scene: &Scene,
    id: &InstanceId,
    state: impl Fn(&Reach) -> bool,
) -> Reach {
    eventually(
        || Some(load(scene, id).reach).filter(|reach| state(reach)),
        || format!("{:?}", load(scene, id).reach),
    )
    .await
}

pub(super) async fn until_checks(app: &App, count: u32) {
    let checks = || app.life.checks.load(Ordering::SeqCst);
    eventually(
        || (checks() >= count).then_some(()),
        || format!("{} checks", checks()),
    )
    .await;
}

fn ask(all: &mut JoinSet<Reply>, scene: &Scene, path: &'static str) {
    let address = scene.address;
    all.spawn(async move {
        let request = Request::get(path).header("host", HOST);
        call(address, request.body(Empty::new()).unwrap()).await
    });
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_not_ready_gets_nothing_new_and_comes_back() {
    let scene = Scene::new(with_readiness()).await;
    let (one, other) = (App::new().await, App::new().await);
    let (sick, well) = (scene.ready(&one).await, scene.ready(&other).await);
    let mut inside = JoinSet::new();
    ask(&mut inside, &scene, "/gate");
    eventually(
        || (load(&scene, &sick).in_flight == 1).then_some(()),
        || format!("{:?}", scene.demand()),
    )
    .await;
    one.life.sick.store(true, Ordering::SeqCst);
    let changes = scene.loops.changes.load(Ordering::SeqCst);
    let reach = until_reach(&scene, &sick, |reach| !matches!(reach, Reach::Ready)).await;
    let Reach::Unready { message } = reach else {
        panic!("{reach:?}")
    };
    assert_eq!(
        message,
        "The readiness probe failed 3 times in a row: GET /health on port 8080; the last time: HTTP status 503 Service \
         Unavailable."
    );
    assert!(
        scene.loops.changes.load(Ordering::SeqCst) > changes,
        "the loops are told"
    );
    for _ in 0..10 {
        assert_eq!(scene.get("/hello").await.text(), "hello");
    }
    assert_eq!(load(&scene, &sick).in_flight, 1, "what is inside stays");
    one.gate.add_permits(1);
    assert_eq!(inside.join_next().await.unwrap().unwrap().text(), "through");
    let asked = other.life.served.load(Ordering::SeqCst) - other.life.checks.load(Ordering::SeqCst);
    assert_eq!(asked, 10, "all by the other");
    assert_eq!(load(&scene, &well).reach, Reach::Ready);

    let failing = load(&scene, &sick).failing;
    assert_eq!(failing.len(), 1);
    assert_eq!(
        (failing[0].probe.as_str(), failing[0].asks.as_str()),
        ("readiness", "GET /health on port 8080")
    );
    assert_eq!(
        failing[0].last_answer,
        "HTTP status 503 Service Unavailable"
    );
    assert!(failing[0].failures >= 3 && failing[0].failure_threshold == 3);
    assert!(load(&scene, &well).failing.is_empty());

    one.life.sick.store(false, Ordering::SeqCst);
    until_reach(&scene, &sick, |reach| *reach == Reach::Ready).await;
    assert!(load(&scene, &sick).failing.is_empty());
    let notes = scene.records.1.lock().clone();
    let said: Vec<_> = notes
        .iter()
        .map(|note| (note.weight, note.text.as_str()))
        .collect();
    let (weight, text) = said[0];
    assert_eq!(weight, Weight::Warning);
    assert!(
        text.ends_with("The instance gets no new requests until it succeeds 2 times in a row."),
        "{text}"
    );
    assert_eq!(
        said[1..],
        [(
            Weight::Info,
            "The readiness probe succeeded 2 times in a row: GET /health on port 8080. The instance gets requests again."
        )]
    );
    assert!(
        notes
            .iter()
            .all(|note| note.instance == sick && note.revision == key())
    );
}

#[tokio::test(start_paused = true)]
async fn who_finds_no_instance_ready_waits_and_is_told_why() {
    let scene = Scene::new(with_readiness()).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    app.life.sick.store(true, Ordering::SeqCst);
    until_reach(&scene, &id, |reach| matches!(reach, Reach::Unready { .. })).await;
    let mut waiting = JoinSet::new();
    ask(&mut waiting, &scene, "/hello");
    let reply = waiting.join_next().await.unwrap().unwrap();
    assert_eq!((reply.status, reply.reason()), (503, "instances_not_ready"));
    let AnsweredBy::Utsuwa { why } = scene.records(1).await[0].answered_by.clone() else {
        panic!("the app answered")
    };
    assert!(
        why.contains("Instances are there, but none is ready: The readiness probe failed 3 times in a row: GET /health"),
        "{why}"
    );

    ask(&mut waiting, &scene, "/hello");
    let demand = scene.until(|demand| demand.queued == 1).await;
    assert!(!demand.wake, "one is there, and kept");
    app.life.sick.store(false, Ordering::SeqCst);
    assert_eq!(waiting.join_next().await.unwrap().unwrap().text(), "hello");
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 0);
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_not_alive_is_given_up_and_what_is_inside_is_answered() {
    let scene = Scene::new(with_liveness(probe())).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    let mut inside = JoinSet::new();
    ask(&mut inside, &scene, "/gate");
    scene.until(|demand| demand.in_flight == 1).await;
    app.life.sick.store(true, Ordering::SeqCst);
    let reply = inside.join_next().await.unwrap().unwrap();
    assert_eq!((reply.status, reply.reason()), (503, "instance_error"));
    let record = &scene.records(1).await[0];
    let AnsweredBy::Utsuwa { why } = &record.answered_by else {
        panic!("{record:?}")
    };
    assert!(
        why.ends_with("The instance was ended because its liveness probe failed."),
        "{why}"
    );
    let Reach::Unhealthy { message } = load(&scene, &id).reach else {
        panic!("{:?}", scene.demand())
    };
    assert_eq!(
        message,
        "The liveness probe failed 3 times in a row: GET /health on port 8080; the last time: HTTP status 503 Service \
         Unavailable."
    );
    let notes = scene.records.1.lock().clone();
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].weight == Weight::Error && notes[0].text.starts_with(&message));

    // Whoever comes now waits for another; nothing of this one is used or asked any more.
    let checks = app.life.checks.load(Ordering::SeqCst);
    ask(&mut inside, &scene, "/hello");
    assert!(scene.until(|demand| demand.queued == 1).await.wake);
    assert!(scene.ingress.retire(&id, Duration::ZERO).await);
    assert!(
        matches!(load(&scene, &id).reach, Reach::Unhealthy { .. }),
        "the reason stays"
    );
    scene.ingress.forget(&id, false);
    let next = App::new().await;
    scene.ready(&next).await;
    assert_eq!(inside.join_next().await.unwrap().unwrap().text(), "hello");
    until_checks(&next, 5).await;
    assert_eq!(app.life.checks.load(Ordering::SeqCst), checks);
}

#[tokio::test(start_paused = true)]
async fn checks_are_no_load_and_keep_nothing_awake() {
    let route = RevisionRoute {
        readiness: Some(probe()),
        ..with_liveness(probe())
    };
    let scene = Scene::new(route).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    let idle_since = load(&scene, &id).idle_since;
    assert!(idle_since.is_some());
    until_checks(&app, 40).await;
    let demand = scene.demand();
    assert_eq!(
        (demand.arrivals, demand.concurrency_us, demand.last_active),
        (0, 0, None)
    );
    assert_eq!(demand.instances[0].idle_since, idle_since);
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 0);
    assert!(scene.records.1.lock().is_empty());

    assert!(scene.ingress.retire(&id, PATIENCE).await);
    let checks = app.life.checks.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = app.life.checks.load(Ordering::SeqCst);
    assert!(after <= checks + 2, "two may have been under way: {after}");
}

#[tokio::test(start_paused = true)]
async fn nothing_is_asked_before_the_startup_probe_has_succeeded() {
    let startup = StartupProbe {
        initial_delay: Duration::ZERO,
        timeout: Duration::from_secs(1),
        period: Duration::from_secs(1),
        failure_threshold: 100,
        check: StartupCheck::Http {
            port: 8080,
            path: "/gate".to_owned(),
            headers: Vec::new(),
        },
    };
    let delayed = HealthProbe {
        initial_delay: Duration::from_secs(8),
        ..probe()
    };
    let scene = Scene::new(RevisionRoute {
        startup,
        ..with_liveness(delayed)
    })
    .await;
    let app = App::new().await;
    app.life.sick.store(true, Ordering::SeqCst);
    let id = scene.admit();
    scene.listen(&id, app.address);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(load(&scene, &id).reach, Reach::Starting);
    assert_eq!(app.life.checks.load(Ordering::SeqCst), 0);
    app.gate.add_permits(100);
    until_reach(&scene, &id, |reach| *reach == Reach::Ready).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        app.life.checks.load(Ordering::SeqCst),
        0,
        "8 s after the start"
    );
    until_reach(&scene, &id, |reach| {
        matches!(reach, Reach::Unhealthy { .. })
    })
    .await;
    assert_eq!(app.life.checks.load(Ordering::SeqCst), 3);
}

#[tokio::test(start_paused = true)]
async fn a_program_that_hangs_and_one_on_another_port_fail_with_what_came_back() {
    let (hangs, _tasks) = raw_app(|_, stream| async move {
        std::future::pending::<()>().await;
        drop(stream);
    })
    .await;
    let scene = Scene::new(with_liveness(probe())).await;
    let id = scene.admit();
    scene.listen(&id, hangs);
    let unhealthy = |reach: &Reach| matches!(reach, Reach::Unhealthy { .. });
    let Reach::Unhealthy { message } = until_reach(&scene, &id, unhealthy).await else {
        panic!()
    };
    assert!(
        message.ends_with("the last time: no answer within 0.05 s."),
        "{message}"
    );

    let app = App::new().await;
    let gone = scene.ready(&app).await;
    scene.listen(&gone, "127.0.0.1:1".parse().unwrap());
    let Reach::Unhealthy { message } = until_reach(&scene, &gone, unhealthy).await else {
        panic!()
    };
    assert!(message.contains("refused"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn grpc_health_is_asked_for() {
    let status = Arc::new(AtomicU8::new(1));
    let (address, _app) = grpc_health(Arc::clone(&status)).await;
    let scene = Scene::new(with_liveness(HealthProbe {
        check: HealthCheck::Grpc {
            port: 8080,
            service: "a.B".to_owned(),
        },
        ..probe()
    }))
    .await;
    let id = scene.admit();
    scene.listen(&id, address);
    until_reach(&scene, &id, |reach| *reach == Reach::Ready).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(load(&scene, &id).reach, Reach::Ready);
    status.store(2, Ordering::SeqCst);
    let reach = until_reach(&scene, &id, |reach| *reach != Reach::Ready).await;
    let Reach::Unhealthy { message } = reach else {
        panic!("{reach:?}")
    };
    assert!(
        message.contains(
            "Health/Check for service \"a.B\" on port 8080; the last time: status NOT_SERVING"
        ),
        "{message}"
    );
}

/// A frozen instance can't answer: who isn't asked is neither ended nor taken out of choice, and is asked again once awake.
#[tokio::test(start_paused = true)]
async fn an_instance_that_may_be_frozen_is_not_asked() {
    let scene = Scene::new(with_liveness(probe())).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    until_checks(&app, 2).await;
    scene.until(|demand| demand.in_flight == 0).await;
    assert!(scene.ingress.rest(&id));
    app.life.sick.store(true, Ordering::SeqCst);
    tokio::time::advance(probe().period * 2).await;
    let before = app.life.checks.load(Ordering::SeqCst);
    for _ in 0..20 {
        tokio::time::advance(probe().period).await;
    }
    assert_eq!(
        app.life.checks.load(Ordering::SeqCst),
        before,
        "asked while it rests"
    );
    assert_eq!(load(&scene, &id).reach, Reach::Ready);
    // The request is on its way to it, but it is not thawed yet.
    assert_eq!(scene.get("/hello").await.text(), "hello");
    tokio::time::sleep(probe().period * 20).await;
    assert_eq!(app.life.checks.load(Ordering::SeqCst), before);
    scene.ingress.awake(&id);
    until_reach(&scene, &id, |reach| {
        matches!(reach, Reach::Unhealthy { .. })
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn one_that_may_be_frozen_is_asked_once_it_is_known_to_run_again() {
    let scene = Scene::new(with_liveness(probe())).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    until_checks(&app, 3).await;
    assert!(scene.ingress.rest(&id));
    app.life.sick.store(true, Ordering::SeqCst);
    // One may be under way, and is not counted.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let checks = app.life.checks.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(app.life.checks.load(Ordering::SeqCst), checks);
    assert_eq!(load(&scene, &id).reach, Reach::Ready);
    assert!(
        scene.loops.thaws.lock().is_empty(),
        "no check asks for a thaw"
    );

    assert_eq!(scene.get("/hello").await.text(), "hello");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(
        app.life.checks.load(Ordering::SeqCst),
        checks,
        "the thaw is not told yet"
    );
    let before = tokio::time::Instant::now();
    scene.ingress.awake(&id);
    until_checks(&app, checks + 1).await;
    assert!(before.elapsed() < Duration::from_millis(50), "at once");
    until_reach(&scene, &id, |reach| {
        matches!(reach, Reach::Unhealthy { .. })
    })
    .await;
    assert_eq!(app.life.checks.load(Ordering::SeqCst), checks + 3);
}
