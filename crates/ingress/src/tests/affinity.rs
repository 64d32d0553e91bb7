//! Who comes back to where it was.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::task::JoinSet;
use utsuwa_model::InstanceId;
use utsuwa_model::instance::StartPhases;
use utsuwa_model::route::{Access, InstanceRoute, RevisionRoute, Target};

use super::app::*;
use super::scene::*;

fn with_cookie(
    scene: &Scene,
    path: &str,
    cookie: &str,
) -> impl Future<Output = Reply> + Send + use<> {
    let request = http::Request::get(path)
        .header("host", HOST)
        .header("cookie", format!("theme=dark; {cookie}"))
        .body(http_body_util::Empty::new())
        .unwrap();
    let address = scene.address;
    async move { call(address, request).await }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_comes_back_to_its_instance_while_it_has_room() {
    let scene = Scene::new(RevisionRoute {
        concurrency: 4,
        session_affinity: true,
        ..route()
    })
    .await;
    let apps = [App::new().await, App::new().await];
    let mut ids = Vec::new();
    for app in &apps {
        ids.push(scene.ready(app).await);
    }
    let served = |at: usize| apps[at].life.served.load(Ordering::SeqCst);
    // The rule without affinity: the least loaded, first among equals.
    let first = with_cookie(&scene, "/hello", "utsuwa-affinity=nonsense").await;
    let set = first.header("set-cookie").to_owned();
    assert!(
        set.contains("HttpOnly") && set.contains("Max-Age=2592000"),
        "{set}"
    );
    assert_eq!(first.header("cache-control"), "private");
    let cookie = set.split(';').next().unwrap().to_owned();
    assert!(cookie.ends_with(&format!(".{}", ids[0])), "{cookie}");
    // One who was on the second stays there though the first is as free.
    let second = cookie.replace(ids[0].as_str(), ids[1].as_str());
    for _ in 0..5 {
        let reply = with_cookie(&scene, "/hello", &second).await;
        assert_eq!((reply.status, reply.header("set-cookie")), (200, ""));
    }
    assert_eq!((served(0), served(1)), (1, 5));
    // Full: another takes it, and the client learns so.
    let mut held = JoinSet::new();
    for _ in 0..4 {
        held.spawn(with_cookie(&scene, "/gate", &second));
    }
    scene
        .until(|demand| demand.instances[1].in_flight == 4)
        .await;
    let moved = with_cookie(&scene, "/hello", &second).await;
    assert!(moved.header("set-cookie").starts_with(&cookie), "{moved:?}");
    apps[1].gate.add_permits(4);
    for reply in held.join_all().await {
        assert_eq!(reply.status, 200);
    }
    // Gone: the same.
    scene.ingress.forget(&ids[1], false);
    let moved = with_cookie(&scene, "/hello", &second).await;
    assert!(moved.header("set-cookie").starts_with(&cookie), "{moved:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_comes_back_to_its_revision() {
    let scene = Scene::new(route()).await;
    let keys = [key(), "demo/here/hello/hello-00002-abc".parse().unwrap()];
    let mut split = (*table(route(), Access::Public)).clone();
    for key in &keys {
        let settings = RevisionRoute {
            key: key.clone(),
            session_affinity: true,
            ..route()
        };
        split.revisions.insert(key.clone(), Arc::new(settings));
    }
    let mut host = (*split.hosts[HOST]).clone();
    host.target = Target::Split(keys.iter().map(|key| (key.clone(), 50)).collect());
    split.hosts.insert(HOST.to_owned(), Arc::new(host));
    scene.publish(Arc::new(split));
    let app = App::new().await;
    for (number, revision) in keys.iter().enumerate() {
        let id: InstanceId = format!("{:032x}", 100 + number).parse().unwrap();
        scene.listen(&id, app.address);
        let instance = InstanceRoute {
            id,
            revision: revision.clone(),
            port: 8080,
            age: Duration::ZERO,
        };
        scene.ingress.admit(instance, StartPhases::default());
    }
    for revision in &keys {
        // Its instance of then is gone; the revision is still there.
        let cookie = format!("utsuwa-affinity={}.{}", revision.revision, "f".repeat(32));
        let before = scene.records(0).await.len();
        for _ in 0..20 {
            assert_eq!(with_cookie(&scene, "/hello", &cookie).await.status, 200);
        }
        let records = scene.records(before + 20).await;
        assert!(
            records[before..]
                .iter()
                .all(|record| record.revision.as_ref() == Some(revision))
        );
    }
}
