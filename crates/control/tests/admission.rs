//! What happens to an instance in the moment between its start and the ingress knowing it; and how often the ingress is told.
#![expect(
    clippy::disallowed_methods,
    reason = "how long a test waits is real time"
)]

mod house;

use std::sync::Arc;
use std::time::{Duration, Instant};

use house::{House, template};
use utsuwa_model::InstanceId;
use utsuwa_model::instance::Exit;
use utsuwa_model::revision::{Outcome, Revision};

/// Lets other tasks run on this thread's place until `done`.
fn block_until(what: &str, done: impl Fn() -> bool) {
    tokio::task::block_in_place(|| {
        let began = Instant::now();
        while !done() {
            assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
            std::thread::yield_now();
        }
    });
}

/// A program that ends after its start was answered and before the ingress took it in.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_while_being_admitted_is_no_ghost() {
    let house = House::begin(false).await;
    house.images.put("hello:1");
    let (driver, door) = (house.driver.clone(), Arc::downgrade(&house.door));
    let first: Arc<std::sync::OnceLock<InstanceId>> = Arc::default();
    let seen = Arc::clone(&first);
    house.door.before_admit(Some(Arc::new(move |id| {
        if seen.set(id.clone()).is_err() {
            return;
        }
        driver.exit(id, Exit::Code(1), Vec::new());
        let door = door.upgrade().expect("it calls");
        block_until("the end is told", || door.forgotten().contains(id));
    })));
    let key = house.create("hello", template("hello:1")).await;
    house.until_failed(&key).await;
    house.rest().await;
    let ghost = first.get().expect("one was started");
    house
        .until("the ghost is forgotten", |h| {
            !h.door.known().contains(ghost)
        })
        .await;
    assert!(house.door.retired().contains(ghost), "not chosen any more");
}

/// An instance that is told to leave at that moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_must_leave_while_being_admitted_is_no_ghost() {
    let house = House::begin(false).await;
    house.images.put("hello:1");
    let (store, door) = (house.store.clone(), Arc::downgrade(&house.door));
    let first: Arc<std::sync::OnceLock<InstanceId>> = Arc::default();
    let seen = Arc::clone(&first);
    let key = house.key("hello");
    let doomed = key.clone();
    house.door.before_admit(Some(Arc::new(move |id| {
        if seen.set(id.clone()).is_err() {
            return;
        }
        let delete = store.update_service(
            &doomed,
            None,
            utsuwa_model::Timestamp(0),
            None,
            |service| -> Result<(), ()> {
                service.meta.delete_time = Some(service.meta.create_time);
                service.meta.generation += 1;
                Ok(())
            },
        );
        tokio::task::block_in_place(|| tokio::runtime::Handle::current().block_on(delete))
            .expect("written")
            .expect("marked");
        let door = door.upgrade().expect("it calls");
        block_until("told to leave", || door.retired().contains(id));
    })));
    house.create("hello", template("hello:1")).await;
    house.until("started", |_| first.get().is_some()).await;
    house
        .until("deleted", |h| {
            h.store.service(&key).expect("reads").is_none()
        })
        .await;
    house
        .until("nobody is left", |h| h.door.known().is_empty())
        .await;
    assert!(house.driver.running().is_empty());
}

/// The table is made when something in it changed, and not otherwise.
#[tokio::test(start_paused = true)]
async fn nothing_is_published_while_nothing_changed() {
    let house = House::new().await;
    assert_eq!(house.door.published(), 0, "there are no routes yet");
    house.images.put("hello:1");
    house.images.put("hello:2");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    house.pass_time(Duration::from_secs(20)).await;

    let before = house.door.published();
    house.control.look_at_everything();
    house.rest().await;
    house.pass_time(Duration::from_secs(400)).await;
    assert_eq!(house.door.published(), before, "at rest");

    house
        .update(&key, |s| s.spec.template = template("hello:2"))
        .await;
    house.until_ready(&key).await;
    let deploy = house.door.published() - before;
    assert!(
        deploy <= 2,
        "{deploy}: one to prove the revision, one to move the traffic"
    );
    house.pass_time(Duration::from_secs(60)).await;
    let after = house.door.published() - before - deploy;
    assert!(after <= 1, "{after}: the old revision goes");
    let routed = house.routed("hello.localhost").expect("routed");
    assert_eq!(
        house.door.table().revisions.keys().collect::<Vec<_>>(),
        [&routed]
    );
}

/// An outcome is in the store a moment before whoever wrote it goes on: the service may look in between.
#[tokio::test(start_paused = true)]
async fn an_outcome_that_is_seen_before_its_writer_goes_on_moves_the_traffic_once() {
    let house = House::new().await;
    house.images.put("hello:1");
    house.images.put("hello:2");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    house.pass_time(Duration::from_secs(20)).await;
    let first = house.routed("hello.localhost").expect("routed");

    let before = house.door.published();
    let hold = house.hold("revision outcome");
    house
        .update(&key, |s| s.spec.template = template("hello:2"))
        .await;
    house.until("it is proven", |_| hold.is_reached()).await;
    let all = house.store.revisions_of(&key).expect("store");
    let second = all
        .iter()
        .find(|r| r.key != first)
        .expect("made")
        .key
        .clone();
    let outcome = |stored: &mut Revision| {
        stored.status.outcome = Outcome::Ready;
        true
    };
    house
        .store
        .update_revision(&second, outcome)
        .await
        .expect("written");
    house.control.look_at_everything();
    house
        .until("traffic moves", |h| {
            h.routed("hello.localhost") == Some(second.clone())
        })
        .await;
    let route = Arc::clone(&house.door.table().revisions[&second]);
    assert!(route.usual_start.is_some(), "the whole route at once");
    hold.open();
    house.until_ready(&key).await;
    house.rest().await;
    let tables = house.door.published() - before;
    assert_eq!(
        tables, 2,
        "one to prove the revision, one to move the traffic"
    );
}
