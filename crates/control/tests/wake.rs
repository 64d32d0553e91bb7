//! The way from a wake to the driver: one pass, no disk, no timer.
#![expect(clippy::disallowed_methods, reason = "a wake is measured in real time")]

mod house;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use house::{House, template};
use parking_lot::Mutex;

/// In real time on real threads: the middle of fifty wakes. The bound is far above what is measured (tens of microseconds
/// when the machine is quiet), so that a busy machine doesn't fail it; a disk or a timer on the way would.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wake_reaches_the_driver_at_once() {
    // What proved a deploy sleeps at once.
    let house = House::with(false, |s| s.idle_timeout = Duration::ZERO).await;
    house.images.put("hello:1");
    let mut revisions = Vec::new();
    for n in 0..50 {
        let name = format!("s{n}");
        let key = house.create(&name, template("hello:1")).await;
        house.until_ready(&key).await;
        revisions.push(house.routed(&format!("{name}.localhost")).expect("routed"));
    }
    house
        .until("all asleep", |h| h.driver.running().is_empty())
        .await;
    house.rest().await;

    let reached: Arc<Mutex<Option<Instant>>> = Arc::default();
    let seen = Arc::clone(&reached);
    house.driver.gate(Some(Arc::new(move |action: &str| {
        if action.starts_with("start") {
            *seen.lock() = Some(Instant::now());
        }
        std::future::ready(()).boxed()
    })));
    let mut took = Vec::new();
    for revision in &revisions {
        *reached.lock() = None;
        let began = Instant::now();
        house.door.arrive(revision, 1);
        house
            .until("the driver is asked", |_| reached.lock().is_some())
            .await;
        took.push(reached.lock().expect("just seen").duration_since(began));
        house
            .until("served", |h| h.door_in_flight(revision) == 1)
            .await;
    }
    took.sort();
    println!(
        "wake to driver: p50 {:?}, p95 {:?}, longest {:?}",
        took[25], took[47], took[49]
    );
    assert!(took[25] < Duration::from_millis(5), "{took:?}");
}
