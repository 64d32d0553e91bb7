//! How many instances run, and why.

use std::time::Duration;

use utsuwa_control::seam::Refusal;
use utsuwa_model::demand::Reach;
use utsuwa_model::instance::Exit;
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::route::Access;

use crate::hello;
use crate::house::door::Listens;
use crate::house::{House, template};

#[tokio::test(start_paused = true)]
async fn deploy_wake_sleep() {
    let (house, key, revision) = hello().await;
    let service = house.service(&key);
    assert!(revision.revision.as_str().starts_with("hello-00001-"));
    assert_eq!(service.status.url, "http://hello.localhost:8080");
    assert_eq!(service.status.latest_ready, Some(revision.revision.clone()));
    assert_eq!(service.status.traffic[0].percent, Some(100));
    let (_, outcome) = house
        .store
        .operation("uid-hello-1")
        .expect("store")
        .expect("operation");
    assert_eq!(outcome, Some(GenerationOutcome::Succeeded));
    assert_eq!(
        house.door.table().hosts["hello.localhost"].access,
        Access::Public
    );
    assert_eq!(house.driver.running().len(), 1, "the proof");
    let spec = house.driver.spec(&house.driver.running()[0]).expect("spec");
    assert!(spec.process.env.contains(&"K_SERVICE=hello".to_owned()));
    assert_eq!(spec.process.args, ["/app"]);

    house.pass_time(Duration::from_secs(15)).await;
    assert!(
        house.driver.running().is_empty(),
        "started only to prove the deploy"
    );

    house.door.arrive(&revision, 1);
    house
        .until("woken", |h| h.driver.running().len() == 1)
        .await;
    house
        .until("served", |h| h.door_in_flight(&revision) == 1)
        .await;
    house.door.finish(&revision);
    house.pass_time(Duration::from_secs(14 * 60)).await;
    assert_eq!(house.driver.running().len(), 1, "kept while idle");
    house.pass_time(Duration::from_secs(70)).await;
    assert!(house.driver.running().is_empty(), "asleep after 15 min");
    let retired = house.door.retired();
    for stopped in house
        .driver
        .log()
        .iter()
        .filter_map(|line| line.strip_prefix("stop "))
    {
        let id = stopped.parse().expect("an id");
        assert_eq!(
            utsuwa_decide::invariant::stops_after_retirement(&id, &retired),
            Ok(())
        );
    }
    assert_eq!(house.control.sweep_found(), 0);
}

#[tokio::test(start_paused = true)]
async fn two_hundred_at_once_wake_at_most_two() {
    let house = House::new().await;
    house.images.put("hello:1");
    let mut two = template("hello:1");
    two.max_instances = Some(2);
    let key = house.create("hello", two).await;
    house.until_ready(&key).await;
    let revision = house.routed("hello.localhost").expect("routed");
    house.pass_time(Duration::from_secs(15)).await;
    house.door.arrive(&revision, 200);
    house.until("two", |h| h.driver.running().len() == 2).await;
    house.pass_time(Duration::from_secs(2)).await;
    assert_eq!(house.driver.running().len(), 2);
    let starts = house
        .driver
        .log()
        .iter()
        .filter(|l| l.starts_with("start"))
        .count();
    assert_eq!(starts, 3, "one proof and two");
}

#[tokio::test(start_paused = true)]
async fn a_crash_is_replaced_and_a_loop_of_crashes_slows_down() {
    let (house, _, revision) = hello().await;
    house.door.arrive(&revision, 1);
    house
        .until("in flight", |h| h.door_in_flight(&revision) == 1)
        .await;
    let id = house.driver.running()[0].clone();
    house.driver.exit(&id, Exit::Signal(11), Vec::new());
    house
        .until("noticed", |h| h.door_in_flight(&revision) == 0)
        .await;
    house.door.arrive(&revision, 1);
    house
        .until("replaced", |h| {
            h.driver.running().first().is_some_and(|new| *new != id)
        })
        .await;

    house
        .driver
        .exit_at_start(Some((Exit::Code(1), Vec::new())));
    house.door.listens(Listens::NotYet);
    let id = house.driver.running()[0].clone();
    house.driver.exit(&id, Exit::Code(1), Vec::new());
    for _ in 0..40 {
        house.door.arrive(&revision, 1);
        house.pass_time(Duration::from_secs(1)).await;
    }
    let starts = house
        .driver
        .log()
        .iter()
        .filter(|l| l.starts_with("start"))
        .count();
    assert!(starts <= 10, "{starts} starts in 40 s of crashes");
    assert!(
        house
            .door
            .refused()
            .iter()
            .any(|(_, why)| matches!(why, Refusal::StartFailed { .. }))
    );
}

/// A request that its program ends of is one matter, those that come after it are another: they wait for the next instance.
#[tokio::test(start_paused = true)]
async fn who_ends_while_it_serves_keeps_nobody_else_from_being_served() {
    let (house, key, revision) = hello().await;
    let ends = async || {
        let id = house.driver.running()[0].clone();
        house.driver.exit(&id, Exit::Code(4), Vec::new());
        house
            .until("ended", |h| h.door_in_flight(&revision) == 0)
            .await;
    };
    for round in 0..12 {
        house.door.arrive(&revision, 1);
        let mut seconds = 0;
        while house.door_in_flight(&revision) == 0 {
            assert!(seconds < 9, "{round}");
            house.pass_time(Duration::from_secs(1)).await;
            seconds += 1;
        }
        ends().await;
    }
    assert_eq!(house.door.refused(), []);
    house.door.arrive(&revision, 1);
    house.rest().await;
    let why = house.control.explain(&key)[0].because.clone();
    assert!(
        why.iter()
            .any(|one| one.summary.contains("in a row while it served")),
        "{why:?}"
    );
    // Who lived for a while begins another row: the next one is there at once.
    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(house.door_in_flight(&revision), 1);
    ends().await;
    house.door.arrive(&revision, 1);
    house
        .until("served", |h| h.door_in_flight(&revision) == 1)
        .await;
}

#[tokio::test(start_paused = true)]
async fn an_unhealthy_instance_is_replaced_at_once_and_slower_when_it_repeats() {
    let (house, key, _) = hello().await;
    house.update(&key, |s| s.spec.scaling.min = Some(1)).await;
    house.until("one", |h| h.driver.running().len() == 1).await;
    let unhealthy = || Reach::Unhealthy {
        message: "The liveness probe failed 3 times in a row".to_owned(),
    };
    let first = house.driver.running()[0].clone();
    house.door.turned(&first, unhealthy());
    house
        .until("replaced", |h| {
            h.driver.running().first().is_some_and(|new| *new != first)
        })
        .await;
    let log = house.driver.log();
    assert!(log.contains(&format!("stop {first}")), "{log:?}");
    let starts = |house: &House| {
        let log = house.driver.log();
        log.iter().filter(|l| l.starts_with("start")).count()
    };
    let before = starts(&house);
    for _ in 0..40 {
        for id in house.driver.running() {
            if house.door.known().contains(&id) {
                house.door.turned(&id, unhealthy());
            }
        }
        house.pass_time(Duration::from_secs(1)).await;
    }
    let more = starts(&house) - before;
    assert!((2..=8).contains(&more), "{more} starts in 40 s");
    let why = house.control.explain(&key)[0].because[0].summary.clone();
    house.pass_time(Duration::from_secs(300)).await;
    assert_eq!(
        house.driver.running().len(),
        1,
        "tried again in the end: {why}"
    );
}

#[tokio::test(start_paused = true)]
async fn an_instance_that_is_not_ready_is_kept_and_counts_as_there() {
    let (house, key, revision) = hello().await;
    house.update(&key, |s| s.spec.scaling.min = Some(1)).await;
    house.until("one", |h| h.driver.running().len() == 1).await;
    let id = house.driver.running()[0].clone();
    let log = house.driver.log().len();
    let message = String::new();
    house.door.turned(&id, Reach::Unready { message });
    house.door.arrive(&revision, 1);
    house.pass_time(Duration::from_secs(8)).await;
    assert_eq!(
        house.control.explain(&key)[0].instances[0].state,
        "not ready"
    );
    assert_eq!(
        house.driver.log().len(),
        log,
        "nothing started, nothing stopped"
    );
    house.door.turned(&id, Reach::Ready);
    house
        .until("served", |h| h.door_in_flight(&revision) == 1)
        .await;
    assert_eq!(house.driver.running(), [id]);
}

#[tokio::test(start_paused = true)]
async fn explained_for_those_who_ask_why() {
    let (house, key, revision) = hello().await;
    house.door.arrive(&revision, 1);
    house
        .until("in flight", |h| h.door_in_flight(&revision) == 1)
        .await;
    house.rest().await;
    let explained = house.control.explain(&key);
    assert_eq!(explained.len(), 1);
    assert_eq!((explained[0].percent, explained[0].in_flight), (100, 1));
    assert_eq!(explained[0].instances[0].state, "ready");
    assert!(
        explained[0].because[0].summary.starts_with("keep 1")
            || explained[0].because[0].summary.starts_with("want 1")
    );
    let latest = format!(
        "latest is {}: what was deployed last is ready",
        revision.revision
    );
    let told = |why: &str| why.split("; ").any(|part| part == latest);
    assert!(explained[0].because.iter().any(|b| told(&b.summary)));
    assert!(
        house
            .control
            .loops()
            .iter()
            .any(|l| l.name == "instances" && l.passes > 0)
    );
    let loops = house.control.loops();
    assert!(loops.iter().any(|l| told(&l.because)), "{loops:?}");
}

#[tokio::test(start_paused = true)]
async fn the_minimum_is_there_without_a_request_and_manual_means_that_many() {
    let (house, key, revision) = hello().await;
    house.update(&key, |s| s.spec.scaling.min = Some(2)).await;
    house.until("two", |h| h.driver.running().len() == 2).await;
    house.pass_time(Duration::from_secs(1800)).await;
    assert_eq!(house.driver.running().len(), 2, "kept while routed");
    assert_eq!(
        house.routed("hello.localhost"),
        Some(revision),
        "no new revision"
    );
    house
        .update(&key, |s| {
            s.spec.scaling.mode = utsuwa_model::service::ScalingMode::Manual;
            s.spec.scaling.manual = Some(3);
        })
        .await;
    house
        .until("three", |h| h.driver.running().len() == 3)
        .await;
    house
        .update(&key, |s| s.spec.scaling.manual = Some(0))
        .await;
    house.until("none", |h| h.driver.running().is_empty()).await;
}
