//! What one more deploy costs when many services are there already.
#![expect(
    clippy::disallowed_methods,
    reason = "what a deploy costs is measured in real time"
)]

mod house;

use std::time::{Duration, Instant};

use house::{House, template};
use utsuwa_model::{ConditionState, ServiceKey};

/// Deploys that are measured; the quickest counts, for a busy machine only ever adds.
const SAMPLES: usize = 15;

/// Waits for the store to tell of changes: polling would take the processor from what is measured.
async fn until_ready(house: &House, key: &ServiceKey) {
    let mut changes = house.store.changes();
    let ready = async {
        while house.ready(key) != Some(ConditionState::True) {
            changes.changed().await.expect("the store is there");
        }
    };
    let limit = tokio::time::timeout(Duration::from_secs(20), ready);
    limit.await.expect("deployed in time");
}

/// From the write of a new service to its success, in a house with `services` that are deployed and asleep.
async fn one_more_deploy(services: usize) -> Duration {
    // What proved a deploy sleeps at once.
    let house = House::with(false, |s| s.idle_timeout = Duration::ZERO).await;
    house.images.put("hello:1");
    let mut keys = Vec::with_capacity(services);
    for n in 0..services {
        keys.push(house.create(&format!("s{n}"), template("hello:1")).await);
    }
    for key in &keys {
        until_ready(&house, key).await;
    }
    house
        .until("all asleep", |h| h.driver.running().is_empty())
        .await;
    house.rest().await;

    let mut took = Vec::with_capacity(SAMPLES);
    for n in 0..SAMPLES {
        let began = Instant::now();
        let key = house.create(&format!("more{n}"), template("hello:1")).await;
        until_ready(&house, &key).await;
        took.push(began.elapsed());
        house.rest().await;
    }
    took.into_iter().min().unwrap_or_default()
}

/// Nothing in a deploy grows with the number of services: a look at all rows after each commit, or a copy of all routes, would
/// show.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deploy_among_a_thousand_services_is_like_one_among_ten() {
    let few = one_more_deploy(10).await;
    let many = one_more_deploy(1000).await;
    let ratio = many.as_secs_f64() / few.as_secs_f64();
    println!("one deploy among 10 services: {few:?}, among 1,000: {many:?}, {ratio:.1} times");
    assert!(ratio <= 5.0, "{few:?} among 10, {many:?} among 1,000");
}
