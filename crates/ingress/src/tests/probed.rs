//! Which checks count: those that could be made, of an instance that ran all the while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use utsuwa_model::demand::Reach;
use utsuwa_model::route::HealthProbe;

use super::app::*;
use super::health::*;
use super::scene::*;

/// The first failure turns it.
fn strict() -> HealthProbe {
    HealthProbe {
        failure_threshold: 1,
        ..probe()
    }
}

/// It was frozen while it was asked, and thawed just before the time was up.
#[tokio::test(start_paused = true)]
async fn who_rested_during_a_check_and_is_awake_again_is_not_judged_by_it() {
    let (asked, answered) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU32::new(0)),
    );
    let (seen, count) = (Arc::clone(&asked), Arc::clone(&answered));
    let (address, _tasks) = raw_app(move |_, mut stream| {
        let (seen, count) = (Arc::clone(&seen), Arc::clone(&count));
        async move {
            // The startup probe says nothing on its connection.
            let mut bytes = [0; 4096];
            if stream.read(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
            if !seen.swap(true, Ordering::SeqCst) {
                return std::future::pending().await;
            }
            let well = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
            if stream.write_all(well).await.is_ok() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        }
    })
    .await;
    let scene = Scene::new(with_liveness(strict())).await;
    let id = scene.admit();
    scene.listen(&id, address);
    eventually(
        || asked.load(Ordering::SeqCst).then_some(()),
        || "not asked".to_owned(),
    )
    .await;
    assert!(scene.ingress.rest(&id));
    scene.ingress.awake(&id);
    eventually(
        || (answered.load(Ordering::SeqCst) >= 3).then_some(()),
        || format!("{:?}", scene.demand()),
    )
    .await;
    assert_eq!(load(&scene, &id).reach, Reach::Ready);
}

#[tokio::test(start_paused = true)]
async fn want_of_sockets_is_no_fault_of_the_instance() {
    let scene = Scene::new(with_liveness(strict())).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    until_checks(&app, 2).await;
    scene.sockets(Sockets::None);
    tokio::time::sleep(strict().period * 10).await;
    assert_eq!(load(&scene, &id).reach, Reach::Ready, "none could be had");
    // Each comes long after a check would have been given up.
    scene.sockets(Sockets::After(strict().timeout * 10));
    let checks = app.life.checks.load(Ordering::SeqCst);
    until_checks(&app, checks + 3).await;
    assert_eq!(load(&scene, &id).reach, Reach::Ready, "late");
    scene.listen(&id, "127.0.0.1:1".parse().unwrap());
    until_reach(&scene, &id, |reach| {
        matches!(reach, Reach::Unhealthy { .. })
    })
    .await;
}

/// The loops may ask for its rest after its last check and before its probe turned.
#[tokio::test(start_paused = true)]
async fn who_became_unready_while_it_went_to_rest_comes_back() {
    let scene = Scene::new(with_readiness()).await;
    let app = App::new().await;
    let id = scene.ready(&app).await;
    *scene.records.2.lock() = Some((scene.ingress.clone(), id.clone()));
    app.life.sick.store(true, Ordering::SeqCst);
    let changes = scene.loops.changes.load(Ordering::SeqCst);
    until_reach(&scene, &id, |reach| matches!(reach, Reach::Unready { .. })).await;
    let told = scene.loops.changes.load(Ordering::SeqCst);
    assert!(told > changes, "the loops hear of it");
    assert!(scene.records.2.lock().is_none(), "it rests");
    // As they do with whoever isn't ready.
    scene.ingress.awake(&id);
    app.life.sick.store(false, Ordering::SeqCst);
    until_reach(&scene, &id, |reach| *reach == Reach::Ready).await;
}
