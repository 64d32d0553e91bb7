//! Which revisions requests go to.

use utsuwa_model::route::Target;
use utsuwa_model::service::TrafficTarget;
use utsuwa_model::{ConditionState, condition};

use crate::hello;
use crate::house::{House, template};

#[tokio::test(start_paused = true)]
async fn traffic_is_split_tagged_and_held() {
    let (house, key, first) = hello().await;
    house.images.put("hello:2");
    house
        .update(&key, |s| s.spec.template = template("hello:2"))
        .await;
    house.until_ready(&key).await;
    let second = house.routed("hello.localhost").expect("routed");
    let old = first.revision.clone();
    house
        .update(&key, move |s| {
            s.spec.traffic = vec![
                TrafficTarget {
                    latest: true,
                    percent: Some(90),
                    ..TrafficTarget::default()
                },
                TrafficTarget {
                    revision: Some(old),
                    percent: Some(10),
                    tag: Some("old".into()),
                    ..TrafficTarget::default()
                },
            ];
        })
        .await;
    house.until_ready(&key).await;
    let split = Target::Split(vec![(second.clone(), 90), (first.clone(), 10)]);
    assert_eq!(house.door.table().hosts["hello.localhost"].target, split);
    assert_eq!(
        house.door.table().hosts["old---hello.localhost"].target,
        Target::Split(vec![(first.clone(), 100)])
    );
    assert_eq!(
        house.service(&key).status.traffic[1].url,
        "http://old---hello.localhost:8080"
    );

    // One bad target: the whole route stays.
    house
        .update(&key, |s| {
            let revision = Some("hello-nowhere".parse().expect("a name"));
            s.spec.traffic = vec![TrafficTarget {
                revision,
                percent: Some(100),
                ..TrafficTarget::default()
            }];
        })
        .await;
    house.until_failed(&key).await;
    let service = house.service(&key);
    let routes = condition::find(&service.status.conditions, "RoutesReady").expect("condition");
    assert_eq!(routes.reason, "RevisionMissing");
    assert_eq!(house.door.table().hosts["hello.localhost"].target, split);
    assert_eq!(service.status.traffic.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_revision_goes_when_nothing_leads_to_it() {
    let (house, key, first) = hello().await;
    house.images.put("hello:2");
    house
        .update(&key, |s| s.spec.template = template("hello:2"))
        .await;
    house.until_ready(&key).await;
    let now = utsuwa_model::Timestamp(1);
    house
        .store
        .update_revision(&first, move |r| {
            r.meta.delete_time = Some(now);
            true
        })
        .await
        .expect("marked");
    house
        .until("removed", |h| {
            h.store.revision(&first).expect("store").is_none()
        })
        .await;
    assert_eq!(house.ready(&key), Some(ConditionState::True));
}

#[tokio::test(start_paused = true)]
async fn an_explicit_name_is_a_rollback_or_a_clash() {
    let house = House::new().await;
    for image in ["hello:1", "hello:2"] {
        house.images.put(image);
    }
    let named = |image: &str, name: &str| {
        let revision = Some(name.parse().expect("a name"));
        utsuwa_model::service::RevisionTemplate {
            revision,
            ..template(image)
        }
    };
    let key = house.create("hello", named("hello:1", "hello-one")).await;
    house.until_ready(&key).await;
    let two = named("hello:2", "hello-two");
    house.update(&key, move |s| s.spec.template = two).await;
    house.until_ready(&key).await;
    assert_eq!(
        house
            .routed("hello.localhost")
            .expect("routed")
            .revision
            .as_str(),
        "hello-two"
    );

    let back = named("hello:1", "hello-one");
    house.update(&key, move |s| s.spec.template = back).await;
    house.until_ready(&key).await;
    assert_eq!(
        house
            .routed("hello.localhost")
            .expect("routed")
            .revision
            .as_str(),
        "hello-one"
    );
    assert_eq!(
        house.store.revisions_of(&key).expect("store").len(),
        2,
        "the same revision again"
    );

    let clash = named("hello:2", "hello-one");
    house.update(&key, move |s| s.spec.template = clash).await;
    house.until_failed(&key).await;
    let service = house.service(&key);
    let ready = condition::find(&service.status.conditions, "Ready").expect("ready");
    assert_eq!(ready.reason, "RevisionNameTaken");
    assert_eq!(
        house
            .routed("hello.localhost")
            .expect("routed")
            .revision
            .as_str(),
        "hello-one"
    );
}
