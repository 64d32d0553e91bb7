//! What a sleeping service needs not wake for, and what a browser sees while it wakes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use http::Request;
use tokio::task::JoinSet;
use tokio::time::Instant;
use utsuwa_model::route::RevisionRoute;

use super::app::App;
use super::scene::{HOST, Scene, call, route};
use crate::IngressSettings;
use crate::seam::AnsweredBy;

fn settings() -> IngressSettings {
    IngressSettings {
        scanner_paths: ["/.env", "/wp-*"].map(str::to_owned).to_vec(),
        ..IngressSettings::default()
    }
}

#[tokio::test]
async fn scanners_wake_nothing_where_they_are_refused() {
    let refusing = RevisionRoute {
        refuse_scanners: true,
        ..route()
    };
    let mut scene = Scene::with(refusing, settings()).await;
    for path in ["/.env", "//.ENV", "/wp-login.php", "/.env?x=1"] {
        let reply = scene.get(path).await;
        assert_eq!((reply.status, reply.reason()), (404, "scanner"), "{path}");
    }
    assert_eq!(scene.loops.wakes.load(Ordering::SeqCst), 0);
    let demand = scene.demand();
    assert_eq!(
        (demand.arrivals, demand.last_active),
        (0, None),
        "nor does it look used"
    );
    let records = scene.records(4).await;
    for record in &records {
        assert_eq!(record.revision.as_ref(), Some(&super::scene::key()));
        assert!(
            matches!(&record.answered_by, AnsweredBy::Utsuwa { why } if why.contains("scanners")),
            "{record:?}"
        );
    }
    // Awake as asleep; everything else is the app's.
    let app = App::new().await;
    scene.ready(&app).await;
    assert_eq!(scene.get("/.env").await.status, 404);
    assert_eq!(scene.get("/hello").await.status, 200);
    assert_eq!(app.life.served.load(Ordering::SeqCst), 1);
    scene.close().await;
}

#[tokio::test]
async fn scanners_are_the_app_s_where_nothing_was_said() {
    let mut scene = Scene::with(route(), settings()).await;
    let app = App::new().await;
    scene.ready(&app).await;
    assert_eq!(scene.get("/.env").await.status, 200);
    scene.close().await;
}

fn page(method: &str) -> http::request::Builder {
    Request::builder()
        .method(method)
        .uri("/")
        .header("accept", "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
}

async fn patient(scene: &Scene, request: http::request::Builder) -> JoinSet<u16> {
    let request = request
        .header("host", HOST)
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let address = scene.address;
    let mut set = JoinSet::new();
    set.spawn(async move { call(address, request).await.status });
    scene.until(|demand| demand.queued == 1).await;
    set
}

#[tokio::test(start_paused = true)]
async fn a_browser_sees_a_page_that_comes_back() {
    let waking = RevisionRoute {
        waiting_page: true,
        usual_start: Some(Duration::from_secs(1)),
        ..route()
    };
    let mut scene = Scene::new(waking).await;
    let began = Instant::now();
    let reply = scene
        .send(page("GET").header("sec-fetch-mode", "navigate"))
        .await;
    assert_eq!(
        (reply.status, reply.reason(), reply.header("refresh")),
        (202, "starting", "2")
    );
    assert_eq!(reply.header("cache-control"), "no-store");
    assert!(
        reply.text().contains("http-equiv=\"refresh\"") && !reply.text().contains("<script"),
        "{}",
        reply.text()
    );
    assert!(
        (1..3).contains(&began.elapsed().as_secs()),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(
        scene.loops.wakes.load(Ordering::SeqCst),
        1,
        "it woke the service"
    );
    assert_eq!(scene.demand().queued, 0);

    // Programs, parts of pages, and whatever changes something wait for the app.
    for request in [
        page("POST"),
        page("HEAD"),
        page("GET").header("sec-fetch-mode", "cors"),
        Request::get("/").header("accept", "*/*"),
        Request::get("/"),
        Request::get("/").header("accept", "application/json, text/htmlx"),
    ] {
        let mut waiting = patient(&scene, request).await;
        assert_eq!(
            waiting.join_next().await.unwrap().unwrap(),
            500,
            "after its window"
        );
    }
    // A start that takes no longer than the page would is answered by the app.
    let mut quick = patient(&scene, page("GET")).await;
    let app = App::new().await;
    scene.ready(&app).await;
    assert_eq!(quick.join_next().await.unwrap().unwrap(), 200);
    scene.close().await;
}

#[tokio::test(start_paused = true)]
async fn nobody_sees_it_where_nothing_was_said() {
    let quick = RevisionRoute {
        usual_start: Some(Duration::from_secs(1)),
        ..route()
    };
    let mut scene = Scene::new(quick).await;
    assert_eq!(
        scene.send(page("GET")).await.status,
        500,
        "after its window"
    );
    scene.close().await;
}

#[tokio::test]
async fn all_revisions_together_may_not_wait_without_end() {
    let settings = IngressSettings {
        max_waiting: 8,
        ..IngressSettings::default()
    };
    let mut scene = Scene::with(route(), settings).await;
    let mut waiting = JoinSet::new();
    for number in 1..=4 {
        let address = scene.address;
        waiting.spawn(async move {
            let request = Request::get("/hello").header("host", HOST);
            call(
                address,
                request
                    .body(http_body_util::Empty::<bytes::Bytes>::new())
                    .unwrap(),
            )
            .await
            .status
        });
        scene.until(|demand| demand.queued == number).await;
    }
    // The other half is for others.
    let reply = scene.get("/hello").await;
    assert_eq!((reply.status, reply.reason()), (429, "queue_full"));
    let app = App::new().await;
    scene.ready(&app).await;
    while let Some(status) = waiting.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert_eq!(scene.get("/hello").await.status, 200);
    scene.close().await;
}
