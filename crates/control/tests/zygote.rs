//! Starts prepared ahead: what an instance teaches, who is parked for it, and that a parked one is never taken for an instance.

mod house;

use std::collections::BTreeSet;
use std::time::Duration;

use house::door::Listens;
use house::{House, template};
use utsuwa_model::instance::{Exit, Zygote};
use utsuwa_model::service::{RevisionTemplate, ZYGOTE};
use utsuwa_model::{InstanceId, RevisionKey, ServiceKey};
use utsuwa_runtime::fake::Call;
use utsuwa_runtime::{Driver, DriverError};

fn ahead(image: &str) -> RevisionTemplate {
    let mut template = template(image);
    template
        .annotations
        .insert(ZYGOTE.to_owned(), "true".to_owned());
    template
}

fn parked(house: &House) -> Vec<InstanceId> {
    let running = house.driver.running().into_iter();
    running
        .filter(|id| house.driver.parked(id) == Some(true))
        .collect()
}

fn instances(house: &House) -> Vec<InstanceId> {
    let running = house.driver.running().into_iter();
    running
        .filter(|id| house.driver.parked(id) == Some(false))
        .collect()
}

fn why(house: &House, key: &RevisionKey) -> String {
    let explained = house.control.explain(&key.service);
    let all = explained.iter().flat_map(|revision| &revision.because);
    let texts: Vec<_> = all.map(|because| because.summary.clone()).collect();
    texts.join("; ")
}

/// A service that sleeps after it has taught.
async fn asleep(learnt: Result<&[&str], &str>) -> (House, ServiceKey, RevisionKey) {
    let idle = Duration::from_secs(5);
    let house = House::with(true, |settings| settings.idle_timeout = idle).await;
    house.driver.learns(learnt);
    house.images.put("hello:1");
    let key = house.create("hello", ahead("hello:1")).await;
    house.until_ready(&key).await;
    let revision = house.routed("hello.localhost").expect("it is routed");
    house.pass_time(Duration::from_secs(20)).await;
    assert!(instances(&house).is_empty());
    (house, key, revision)
}

async fn answered(house: &House, revision: &RevisionKey) {
    house.door.arrive(revision, 1);
    house
        .until("served", |h| h.door_in_flight(revision) > 0)
        .await;
    house.door.finish(revision);
}

#[tokio::test(start_paused = true)]
async fn the_first_start_teaches_and_the_next_one_goes_on() {
    let (house, _, revision) = asleep(Ok(&["re", "flask", "re"])).await;
    let waiting = parked(&house);
    assert_eq!(waiting.len(), 1);
    assert!(
        why(&house, &revision).contains("1 of 1 parked with 2 modules"),
        "{}",
        why(&house, &revision)
    );
    let modules = vec!["re".to_owned(), "flask".to_owned()];
    let spec = house.driver.spec(&waiting[0]).expect("started");
    assert_eq!(spec.zygote, Some(Zygote::Park { modules }));
    assert!(
        house.control.explain(&revision.service)[0]
            .instances
            .is_empty(),
        "it is no instance"
    );
    house.pass_time(Duration::from_secs(600)).await;
    assert_eq!(parked(&house), waiting, "as long as nobody calls");

    answered(&house, &revision).await;
    assert_eq!(instances(&house), waiting, "the parked one");
    let log = house.driver.log();
    let started = |id: &InstanceId| {
        log.iter()
            .filter(|line| **line == format!("start {id}"))
            .count()
    };
    assert_eq!(started(&waiting[0]), 1);
    assert_eq!(
        log.last(),
        Some(&format!("go {}", waiting[0])),
        "nothing else while it starts"
    );
    house.pass_time(Duration::from_secs(3)).await;
    assert_eq!(parked(&house).len(), 1, "the next one");
    assert_ne!(parked(&house), waiting);
}

#[tokio::test(start_paused = true)]
async fn nobody_who_did_not_ask_for_it_is_prepared() {
    let house = House::new().await;
    house.driver.learns(Ok(&["re"]));
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    let spec = house
        .driver
        .spec(&house.driver.running()[0])
        .expect("started");
    assert_eq!(spec.zygote, None);
    house.pass_time(Duration::from_secs(60)).await;
    assert!(parked(&house).is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_learnt_starts_as_always_and_why_is_told() {
    let (house, _, revision) = asleep(Err("its program is not Python")).await;
    assert!(parked(&house).is_empty());
    assert!(
        why(&house, &revision).contains("not Python"),
        "{}",
        why(&house, &revision)
    );
    answered(&house, &revision).await;
    let spec = house.driver.spec(&instances(&house)[0]).expect("started");
    assert_eq!(spec.zygote, None, "not looked at again");
}

#[tokio::test(start_paused = true)]
async fn one_that_refuses_to_be_parked_is_not_asked_again() {
    let idle = Duration::from_secs(5);
    let house = House::with(true, |settings| settings.idle_timeout = idle).await;
    house.driver.learns(Ok(&["numpy"]));
    house.images.put("hello:1");
    let key = house.create("hello", ahead("hello:1")).await;
    house.until_ready(&key).await;
    let revision = house.routed("hello.localhost").expect("it is routed");
    let why_not = "zygote: importing numpy started 1 thread";
    house
        .driver
        .fail_next(Call::Start, DriverError::Refused(why_not.to_owned()));
    house.pass_time(Duration::from_secs(120)).await;
    assert!(house.driver.running().is_empty());
    assert!(
        why(&house, &revision).contains(why_not),
        "{}",
        why(&house, &revision)
    );
    answered(&house, &revision).await;
    assert_eq!(instances(&house).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn trouble_of_ours_is_tried_again_later() {
    let idle = Duration::from_secs(5);
    let house = House::with(true, |settings| settings.idle_timeout = idle).await;
    house.driver.learns(Ok(&["re"]));
    house.images.put("hello:1");
    let key = house.create("hello", ahead("hello:1")).await;
    house.until_ready(&key).await;
    house
        .driver
        .fail_next(Call::Start, DriverError::Exhausted("no sandbox".to_owned()));
    house.pass_time(Duration::from_secs(8)).await;
    assert!(parked(&house).is_empty());
    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(parked(&house).len(), 1);
    // And after its end.
    let id = parked(&house).remove(0);
    house.driver.exit(&id, Exit::Signal(9), Vec::new());
    house.pass_time(Duration::from_secs(2)).await;
    assert!(parked(&house).is_empty());
    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(parked(&house).len(), 1);
}

#[tokio::test(start_paused = true)]
async fn one_that_can_not_go_on_costs_a_start_and_nothing_else() {
    let (house, _, revision) = asleep(Ok(&["re"])).await;
    let waiting = parked(&house);
    house
        .driver
        .fail_next(Call::GoOn, DriverError::NotFound(waiting[0].clone()));
    answered(&house, &revision).await;
    let served = instances(&house);
    assert_eq!(served.len(), 1);
    assert_ne!(served, waiting, "a new one, by a new id");
    house
        .until("the other one is gone", |h| parked(h).is_empty())
        .await;
    assert!(house.door.refused().is_empty(), "nobody was told of it");
}

#[tokio::test(start_paused = true)]
async fn one_that_ends_before_it_answers_is_the_last_of_its_kind() {
    let (house, _, revision) = asleep(Ok(&["re"])).await;
    let waiting = parked(&house);
    house.door.listens(Listens::NotYet);
    house.door.arrive(&revision, 1);
    house.until("it went on", |h| instances(h) == waiting).await;
    house.driver.exit(&waiting[0], Exit::Code(1), Vec::new());
    house.door.listens(Listens::AtOnce);
    house
        .until("served", |h| h.door_in_flight(&revision) > 0)
        .await;
    house.door.finish(&revision);
    assert!(house.door.refused().is_empty(), "nobody was told of it");
    house.pass_time(Duration::from_secs(60)).await;
    assert!(
        house.driver.running().is_empty(),
        "nothing is parked any more"
    );
    assert!(
        why(&house, &revision).contains("never answered"),
        "{}",
        why(&house, &revision)
    );
}

#[tokio::test(start_paused = true)]
async fn a_new_revision_and_a_delete_let_the_parked_go() {
    let (house, key, _) = asleep(Ok(&["re"])).await;
    let old = parked(&house);
    house.images.put("hello:2");
    house
        .update(&key, |s| s.spec.template = ahead("hello:2"))
        .await;
    house.until_ready(&key).await;
    house.pass_time(Duration::from_secs(30)).await;
    let new = parked(&house);
    assert_eq!(new.len(), 1);
    assert_ne!(new, old, "each revision has its own");
    house.delete(&key).await;
    house
        .until("deleted", |h| h.store.service(&key).unwrap().is_none())
        .await;
    house
        .until("all gone", |h| h.driver.running().is_empty())
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_parked_one_gives_way_first_when_memory_is_short() {
    let (house, _, _) = asleep(Ok(&["re"])).await;
    assert_eq!(parked(&house).len(), 1);
    let other = house.create("other", template("hello:1")).await;
    house.until_ready(&other).await;
    house.pass_time(Duration::from_secs(30)).await;
    let revision = house.routed("other.localhost").expect("it is routed");
    *house.clock.memory.lock() = Some(0);
    house.door.arrive(&revision, 1);
    house
        .until("the parked one is gone", |h| h.driver.running().is_empty())
        .await;
    *house.clock.memory.lock() = None;
    house.pass_time(Duration::from_secs(1)).await;
    house
        .until("served", |h| h.door_in_flight(&revision) > 0)
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_new_server_stops_what_the_old_one_parked_and_learns_anew() {
    let (mut house, _, revision) = asleep(Ok(&["re"])).await;
    let old: BTreeSet<InstanceId> = parked(&house).into_iter().collect();
    house.restart(None).await;
    house
        .until("the parked one is gone", |h| h.driver.running().is_empty())
        .await;
    answered(&house, &revision).await;
    let taught = instances(&house).remove(0);
    assert_eq!(
        house.driver.spec(&taught).expect("started").zygote,
        Some(Zygote::Learn)
    );
    house.pass_time(Duration::from_secs(30)).await;
    assert_eq!(parked(&house).len(), 1);
    assert!(parked(&house).iter().all(|id| !old.contains(id)));
    // It knows them apart from instances and from strays.
    house.control.look_at_everything();
    house.rest().await;
    assert_eq!(parked(&house).len(), 1);
    assert!(
        house
            .driver
            .list()
            .await
            .unwrap()
            .iter()
            .all(|found| found.parked)
    );
}
