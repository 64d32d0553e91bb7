//! The startup CPU boost: given at the start, taken back ten seconds after the instance was ready, also by another server.

mod house;

use std::time::Duration;

use house::{House, template};
use utsuwa_model::InstanceId;
use utsuwa_model::service::RevisionTemplate;

fn boosted() -> RevisionTemplate {
    RevisionTemplate {
        startup_cpu_boost: Some(true),
        ..template("hello:1")
    }
}

fn lowered(house: &House, id: &InstanceId) -> usize {
    let entry = format!("cpu {id} 1000m");
    house.driver.log().iter().filter(|e| **e == entry).count()
}

#[tokio::test(start_paused = true)]
async fn the_boost_ends_ten_seconds_after_the_instance_is_ready() {
    let house = House::new().await;
    house.images.put("hello:1");
    let key = house.create("hello", boosted()).await;
    house.update(&key, |s| s.spec.scaling.min = Some(1)).await;
    house.until_ready(&key).await;
    let id = house.driver.running().remove(0);
    let started = house.driver.spec(&id).expect("it was started");
    assert_eq!(started.limits.cpu.0, 2000, "1 CPU becomes 2");
    house.pass_time(Duration::from_secs(9)).await;
    assert_eq!(lowered(&house, &id), 0, "not yet");
    house.pass_time(Duration::from_secs(2)).await;
    assert_eq!(lowered(&house, &id), 1);
    house.pass_time(Duration::from_secs(100)).await;
    assert_eq!(lowered(&house, &id), 1, "once");
}

#[tokio::test(start_paused = true)]
async fn a_server_started_meanwhile_ends_it_too() {
    let mut house = House::new().await;
    house.images.put("hello:1");
    let key = house.create("hello", boosted()).await;
    house.update(&key, |s| s.spec.scaling.min = Some(1)).await;
    house.until_ready(&key).await;
    let id = house.driver.running().remove(0);
    house.restart(None).await;
    house.pass_time(Duration::from_secs(11)).await;
    assert_eq!(lowered(&house, &id), 1);
}

#[tokio::test(start_paused = true)]
async fn without_the_boost_nothing_changes() {
    let house = House::new().await;
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.update(&key, |s| s.spec.scaling.min = Some(1)).await;
    house.until_ready(&key).await;
    let id = house.driver.running().remove(0);
    let started = house.driver.spec(&id).expect("it was started");
    assert_eq!(started.limits.cpu.0, 1000);
    house.pass_time(Duration::from_secs(60)).await;
    assert_eq!(lowered(&house, &id), 0);
}
