//! Somebody sets the host's clock, or it wakes from its sleep: nobody has been idle or late for the time that never passed.

use std::time::Duration;

use utsuwa_control::seam::Environment;
use utsuwa_model::ConditionState;
use utsuwa_model::instance::Exit;

use crate::hello;
use crate::house::door::Listens;
use crate::house::{House, template};

const HOUR: i64 = 3600;

#[tokio::test(start_paused = true)]
async fn an_idle_instance_sleeps_when_its_time_has_passed() {
    for set in [HOUR, -HOUR] {
        let (house, _, revision) = hello().await;
        house.pass_time(Duration::from_secs(15)).await;
        house.door.arrive(&revision, 1);
        house
            .until("served", |h| h.door_in_flight(&revision) == 1)
            .await;
        house.door.finish(&revision);
        house.pass_time(Duration::from_secs(60)).await;
        house.clock.set(set);
        house.pass_time(Duration::from_secs(13 * 60)).await;
        assert_eq!(house.driver.running().len(), 1, "{set}: kept while idle");
        house.pass_time(Duration::from_secs(2 * 60)).await;
        assert!(house.driver.running().is_empty(), "{set}: asleep");
    }
}

#[tokio::test(start_paused = true)]
async fn a_deploy_under_way_has_the_time_that_it_always_has() {
    for set in [HOUR, -HOUR] {
        let house = House::new().await;
        house.images.put("slow:1");
        house.door.listens(Listens::NotYet);
        let key = house.create("slow", template("slow:1")).await;
        house
            .until("it starts", |h| h.driver.running().len() == 1)
            .await;
        house.clock.set(set);
        house.pass_time(Duration::from_secs(60)).await;
        assert_eq!(house.ready(&key), Some(ConditionState::Unknown), "{set}");
        house.door.ready_now();
        house.until_ready(&key).await;
    }
}

#[tokio::test(start_paused = true)]
async fn crashes_before_a_clock_was_set_back_keep_nobody_waiting() {
    let (house, _, revision) = hello().await;
    house
        .driver
        .exit_at_start(Some((Exit::Code(1), Vec::new())));
    let proof = house.driver.running()[0].clone();
    house.driver.exit(&proof, Exit::Code(1), Vec::new());
    for _ in 0..40 {
        house.door.arrive(&revision, 1);
        house.pass_time(Duration::from_secs(1)).await;
    }
    house.clock.set(-HOUR);
    house.driver.exit_at_start(None);
    // The longest pause between starts is over.
    for _ in 0..5 * 60 {
        house.door.arrive(&revision, 1);
        house.pass_time(Duration::from_secs(1)).await;
        if house.door_in_flight(&revision) > 0 {
            return;
        }
    }
    panic!("nothing was started again: {:?}", house.driver.log());
}

/// What people read is by the host's clock, and what the keeper tells by it has its true age.
#[tokio::test(start_paused = true)]
async fn what_is_shown_follows_the_clock() {
    for set in [HOUR, -HOUR] {
        let (mut house, key, revision) = hello().await;
        house.door.arrive(&revision, 1);
        house
            .until("served", |h| h.door_in_flight(&revision) == 1)
            .await;
        house.pass_time(Duration::from_secs(10)).await;
        house.clock.set(set);
        let started = |house: &House| house.control.explain(&key)[0].instances[0].started;
        let (before, wall) = (started(&house), house.clock.wall());
        let apart = wall.since(before).max(before.since(wall));
        assert!(apart < Duration::from_secs(60), "{set}: {apart:?}");
        let other = house.create("other", template("hello:1")).await;
        house.until_ready(&other).await;
        let service = house.service(&other);
        let told = service.status.conditions.iter().map(|c| c.last_transition);
        let (newest, wall) = (told.max().unwrap(), house.clock.wall());
        let apart = wall.since(newest).max(newest.since(wall));
        assert!(apart < Duration::from_secs(60), "{set}: {apart:?}");
        // The keeper told when it started before the clock was set: it was started then, whatever is shown now.
        house.restart(None).await;
        house.rest().await;
        assert_eq!(house.driver.running().len(), 2, "both are adopted");
        let (adopted, wall) = (started(&house), house.clock.wall());
        // An hour more is what the clock says, an hour less is before it was started.
        let age = wall.since(adopted);
        let most = u64::try_from(set.max(0)).unwrap() + 60;
        assert!(age <= Duration::from_secs(most), "{set}: {age:?}");
    }
}
