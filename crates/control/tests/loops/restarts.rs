//! What a server finds when it starts, and that at rest it does nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use utsuwa_model::{ConditionState, InstanceId};

use crate::hello;
use crate::house::door::Listens;
use crate::house::{House, template};

#[tokio::test(start_paused = true)]
async fn a_restart_adopts_the_rightful_and_stops_the_rest() {
    let (mut house, key, revision) = hello().await;
    house.door.arrive(&revision, 1);
    house
        .until("in flight", |h| h.door_in_flight(&revision) == 1)
        .await;
    let rightful = house.driver.running();
    let spec = house.driver.spec(&rightful[0]).expect("spec");
    let stray = utsuwa_model::instance::InstanceSpec {
        id: "f".repeat(32).parse().expect("id"),
        revision: "demo/here/gone/gone-00001-abc".parse().expect("key"),
        ..spec
    };
    utsuwa_runtime::Driver::start(&house.driver, stray)
        .await
        .expect("starts");
    house.restart(None).await;
    house
        .until("the stray is gone", |h| h.driver.running() == rightful)
        .await;
    assert_eq!(
        house.routed("hello.localhost"),
        Some(revision.clone()),
        "published at once"
    );
    house.rest().await;
    assert_eq!(house.ready(&key), Some(ConditionState::True));
    house.door.arrive(&revision, 1);
    house
        .until("served by the adopted one", |h| {
            h.door_in_flight(&revision) == 1
        })
        .await;
    assert_eq!(house.driver.running(), rightful);
}

/// They may last for hours, and the next server waits for their end: this one makes place at once.
#[tokio::test(start_paused = true)]
async fn streams_in_an_instance_that_leaves_keep_no_server() {
    let (mut house, _, revision) = hello().await;
    house.door.arrive(&revision, 1);
    house
        .until("in flight", |h| h.door_in_flight(&revision) == 1)
        .await;
    let spec = house.driver.spec(&house.driver.running()[0]).expect("spec");
    let stray = utsuwa_model::instance::InstanceSpec {
        id: "f".repeat(32).parse().expect("id"),
        revision: "demo/here/gone/gone-00001-abc".parse().expect("key"),
        ..spec
    };
    let id = stray.id.clone();
    utsuwa_runtime::Driver::start(&house.driver, stray)
        .await
        .expect("starts");
    let streams = Arc::new(watch::Sender::new(true));
    house.door.streams(Some(Arc::clone(&streams)));
    house.restart(None).await;
    house
        .until("it leaves", |h| h.door.retired().contains(&id))
        .await;
    assert!(house.control.shutdown(Duration::from_secs(1)).await);
    assert!(house.driver.running().contains(&id), "its streams go on");
}

/// The keeper goes on with a start when the server that asked for it ends, and has nobody to tell.
#[tokio::test(start_paused = true)]
async fn what_an_earlier_server_was_starting_is_stopped_soon() {
    let (mut house, _, revision) = hello().await;
    let proof = house.driver.running().pop().expect("the proof");
    let spec = house.driver.spec(&proof).expect("spec");
    house.pass_time(Duration::from_secs(15)).await;
    house.restart(None).await;
    // A start may take longer than the wait for its sandbox: ten seconds, and longer with layers to copy.
    for (id, after) in [("d", 0), ("e", 0), ("f", 70)] {
        house.pass_time(Duration::from_secs(after)).await;
        let late = utsuwa_model::instance::InstanceSpec {
            id: id.repeat(32).parse().expect("id"),
            revision: revision.clone(),
            ..spec.clone()
        };
        utsuwa_runtime::Driver::start(&house.driver, late)
            .await
            .expect("starts");
        house.pass_time(Duration::from_secs(20)).await;
        assert!(house.driver.running().is_empty(), "{id}");
    }
    assert_eq!(house.control.sweep_found(), 0);
}

/// Whoever looks again while its streams end knows that it is on its way out.
#[tokio::test(start_paused = true)]
async fn a_stray_with_streams_in_it_is_told_to_go_once() {
    let (mut house, _, revision) = hello().await;
    let proof = house.driver.running().pop().expect("the proof");
    let spec = house.driver.spec(&proof).expect("spec");
    house.pass_time(Duration::from_secs(15)).await;
    let streams = Arc::new(watch::Sender::new(true));
    house.door.streams(Some(Arc::clone(&streams)));
    let start = |house: &House, id: &str| {
        let id: InstanceId = id.repeat(32).parse().expect("id");
        let stray = utsuwa_model::instance::InstanceSpec {
            id: id.clone(),
            revision: revision.clone(),
            ..spec.clone()
        };
        let driver = house.driver.clone();
        async move {
            utsuwa_runtime::Driver::start(&driver, stray)
                .await
                .expect("starts");
            id
        }
    };
    house.restart(None).await;
    // Found by the looks after late starts, and by every sweep after them.
    let late = start(&house, "e").await;
    house.pass_time(Duration::from_secs(700)).await;
    let other = start(&house, "f").await;
    house.pass_time(Duration::from_secs(700)).await;
    for id in [&late, &other] {
        assert_eq!(house.door.retirements(id), 1);
        assert!(house.driver.running().contains(id), "its streams go on");
    }
    streams.send_replace(false);
    house
        .until("both are gone", |h| h.driver.running().is_empty())
        .await;
    // The same id again is another stray.
    let again = start(&house, "f").await;
    house.pass_time(Duration::from_secs(350)).await;
    assert_eq!(house.door.retirements(&again), 2);
    assert!(house.driver.running().is_empty());
}

/// The time that a deploy has may be over before a server comes back; it is judged by what the ingress finds all the same.
#[tokio::test(start_paused = true)]
async fn a_deploy_that_a_long_outage_interrupted_is_looked_at_before_it_is_judged() {
    for listens in [true, false] {
        let mut house = House::new().await;
        house.images.put("hello:1");
        house.door.listens(Listens::NotYet);
        let key = house.create("hello", template("hello:1")).await;
        house
            .until("the proof runs", |h| h.driver.running().len() == 1)
            .await;
        house.rest().await;
        house.control.shutdown(Duration::ZERO).await;
        tokio::time::advance(Duration::from_secs(400)).await;
        house.restart(None).await;
        house.pass_time(Duration::from_secs(9)).await;
        assert_ne!(house.ready(&key), Some(ConditionState::False), "too early");
        if listens {
            house.door.ready_now();
            house.until_ready(&key).await;
        } else {
            house.pass_time(Duration::from_secs(10)).await;
            house.until_failed(&key).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn at_rest_a_pass_does_nothing() {
    let (house, ..) = hello().await;
    house.pass_time(Duration::from_secs(30)).await;
    let before = (house.driver.log(), *house.store.changes().borrow());
    house.control.look_at_everything();
    house.rest().await;
    assert_eq!(
        (house.driver.log(), *house.store.changes().borrow()),
        before
    );
    assert_eq!(house.control.sweep_found(), 0);
}
