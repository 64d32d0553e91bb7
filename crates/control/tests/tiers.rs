//! Freezing: an idle instance loses its CPU, the next request gives it back, and whatever fails or dies meanwhile, a request
//! never stays in a frozen one.

mod house;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use house::{House, template};
use utsuwa_control::seam::Environment;
use utsuwa_model::demand::Reach;
use utsuwa_model::instance::Tier;
use utsuwa_model::service::RevisionTemplate;
use utsuwa_model::{InstanceId, RevisionKey};
use utsuwa_runtime::fake::Call;
use utsuwa_runtime::{Driver, DriverError};

/// A service with one instance that stays.
async fn one(template: RevisionTemplate) -> (House, RevisionKey, InstanceId) {
    let house = House::new().await;
    house.images.put("hello:1");
    let key = house.create("hello", template).await;
    house.update(&key, |s| s.spec.scaling.min = Some(1)).await;
    house.until_ready(&key).await;
    let revision = house.routed("hello.localhost").expect("it is routed");
    let id = house.driver.running().remove(0);
    (house, revision, id)
}

fn tier(house: &House, id: &InstanceId) -> Tier {
    house.driver.tier(id).expect("it runs")
}

fn why(house: &House, key: &RevisionKey) -> String {
    let explained = house.control.explain(&key.service);
    let all = explained.iter().flat_map(|revision| &revision.because);
    let texts: Vec<_> = all.map(|because| because.summary.clone()).collect();
    texts.join("; ")
}

#[tokio::test(start_paused = true)]
async fn an_idle_instance_is_frozen_and_the_next_request_thaws_it() {
    let (house, key, id) = one(template("hello:1")).await;
    assert_eq!(tier(&house, &id), Tier::Awake, "not at once");
    house.pass_time(Duration::from_secs(3)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
    let state = house.control.explain(&key.service)[0].instances[0]
        .state
        .clone();
    assert_eq!(state, "frozen");
    let standing = house.control.explain(&key.service)[0].instances[0]
        .standing
        .clone();
    let since = standing.since.expect("it was seen to be frozen");
    assert!(since < house.clock.now(), "{standing:?}");
    assert!(standing.because.starts_with("no request for 1s"));
    assert_eq!(standing.next[0].0, "its memory is given back");
    let minimum = "there are never fewer than 1 instance (minimum)";
    assert_eq!(standing.kept.as_deref(), Some(minimum));
    assert!(why(&house, &key).contains("want 1: the minimum"));
    assert!(
        why(&house, &key).contains("1 frozen"),
        "{}",
        why(&house, &key)
    );

    house.door.arrive(&key, 1);
    house.until("thawed", |h| tier(h, &id) == Tier::Awake).await;
    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(tier(&house, &id), Tier::Awake, "while the request lasts");
    house.door.finish(&key);
    house.pass_time(Duration::from_secs(5)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen, "again");
}

#[tokio::test(start_paused = true)]
async fn who_keeps_its_cpu_is_never_frozen() {
    let keeps = RevisionTemplate {
        cpu_idle: Some(false),
        ..template("hello:1")
    };
    let (house, key, id) = one(keeps).await;
    house.pass_time(Duration::from_secs(100)).await;
    assert_eq!(tier(&house, &id), Tier::Awake);
    assert!(why(&house, &key).contains("--no-cpu-throttling"));
}

#[tokio::test(start_paused = true)]
async fn the_startup_boost_is_used_first() {
    let boosted = RevisionTemplate {
        startup_cpu_boost: Some(true),
        ..template("hello:1")
    };
    let (house, _, id) = one(boosted).await;
    house.pass_time(Duration::from_secs(8)).await;
    assert_eq!(tier(&house, &id), Tier::Awake);
    house.pass_time(Duration::from_secs(5)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
}

/// The request comes after the ingress agreed to the freeze and before the driver has done it.
#[tokio::test(start_paused = true)]
async fn a_request_while_the_freeze_is_under_way_has_the_last_word() {
    let (house, key, id) = one(template("hello:1")).await;
    let (open, gate) = tokio::sync::watch::channel(false);
    house.driver.gate(Some(Arc::new(move |what: &str| {
        let mut gate = gate.clone();
        let freeze = what.starts_with("freeze");
        async move {
            if freeze {
                drop(gate.wait_for(|open| *open).await);
            }
        }
        .boxed()
    })));
    house.pass_time(Duration::from_secs(2)).await;
    assert_eq!(tier(&house, &id), Tier::Awake, "held at the gate");
    house.door.arrive(&key, 1);
    house.rest().await;
    open.send(true).expect("somebody waits");
    house.rest().await;
    let log = house.driver.log();
    assert!(log.contains(&format!("freeze {id}")), "{log:?}");
    assert_eq!(tier(&house, &id), Tier::Awake, "{log:?}");
}

#[tokio::test(start_paused = true)]
async fn a_thaw_that_fails_is_repeated() {
    let (house, key, id) = one(template("hello:1")).await;
    house.pass_time(Duration::from_secs(3)).await;
    for _ in 0..3 {
        let error = DriverError::Unavailable("the keeper is being replaced".to_owned());
        house.driver.fail_next(Call::Thaw, error);
    }
    house.door.arrive(&key, 1);
    house.pass_time(Duration::from_secs(5)).await;
    assert_eq!(tier(&house, &id), Tier::Awake);
}

#[tokio::test(start_paused = true)]
async fn what_can_not_be_frozen_is_left_alone_and_says_why() {
    let house = House::new().await;
    house.images.put("hello:1");
    let refusal = DriverError::Refused("no freezer here".to_owned());
    house.driver.fail_next(Call::Freeze, refusal);
    let key = house.create("hello", template("hello:1")).await;
    house.update(&key, |s| s.spec.scaling.min = Some(1)).await;
    house.until_ready(&key).await;
    house.pass_time(Duration::from_secs(24)).await;
    let id = house.driver.running().remove(0);
    assert_eq!(tier(&house, &id), Tier::Awake);
    let revision = house.routed("hello.localhost").expect("it is routed");
    assert!(why(&house, &revision).contains("not frozen: no freezer here"));
}

#[tokio::test(start_paused = true)]
async fn trouble_of_the_driver_passes() {
    let house = House::new().await;
    house.images.put("hello:1");
    let trouble = DriverError::Internal("for once".to_owned());
    house.driver.fail_next(Call::Freeze, trouble);
    let key = house.create("hello", template("hello:1")).await;
    house.update(&key, |s| s.spec.scaling.min = Some(1)).await;
    house.until_ready(&key).await;
    house.pass_time(Duration::from_secs(20)).await;
    let id = house.driver.running().remove(0);
    assert_eq!(tier(&house, &id), Tier::Frozen);
}

#[tokio::test(start_paused = true)]
async fn a_new_server_thaws_what_it_finds_and_freezes_it_again() {
    let (mut house, key, id) = one(template("hello:1")).await;
    house.pass_time(Duration::from_secs(3)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
    house.restart(None).await;
    house.until("thawed", |h| tier(h, &id) == Tier::Awake).await;
    house.door.arrive(&key, 1);
    house.rest().await;
    assert_eq!(tier(&house, &id), Tier::Awake);
    house.door.finish(&key);
    house.pass_time(Duration::from_secs(5)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
}

#[tokio::test(start_paused = true)]
async fn memory_is_given_back_later_and_comes_with_the_next_request() {
    let (house, key, id) = one(template("hello:1")).await;
    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen, "not yet");
    house.pass_time(Duration::from_secs(60)).await;
    assert_eq!(tier(&house, &id), Tier::Reclaimed);
    let state = house.control.explain(&key.service)[0].instances[0]
        .state
        .clone();
    assert_eq!(state, "reclaimed");
    house.door.arrive(&key, 1);
    house.until("thawed", |h| tier(h, &id) == Tier::Awake).await;
    house.door.finish(&key);
    house.pass_time(Duration::from_secs(10)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen, "one step after the other");
}

#[tokio::test(start_paused = true)]
async fn without_swap_memory_is_kept_and_the_reason_told() {
    let (house, key, id) = one(template("hello:1")).await;
    let refusal = DriverError::Refused("this host has no swap".to_owned());
    house.driver.fail_next(Call::Reclaim, refusal);
    house.pass_time(Duration::from_secs(300)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
    let why = why(&house, &key);
    assert!(
        why.contains("memory of the idle is kept: this host has no swap"),
        "{why}"
    );
}

/// One at a time; who is called while he waits for his turn keeps his memory.
#[tokio::test(start_paused = true)]
async fn memory_is_given_back_one_instance_after_the_other() {
    let (house, key, id) = one(template("hello:1")).await;
    let other = house.create("other", template("hello:1")).await;
    house.update(&other, |s| s.spec.scaling.min = Some(1)).await;
    house.until_ready(&other).await;
    let second = house
        .driver
        .running()
        .into_iter()
        .find(|found| *found != id);
    let second = second.expect("two run");
    let other = house.routed("other.localhost").expect("it is routed");
    let (open, gate) = tokio::sync::watch::channel(false);
    let begun = Arc::new(AtomicUsize::new(0));
    let begun_there = Arc::clone(&begun);
    house.driver.gate(Some(Arc::new(move |what: &str| {
        let mut gate = gate.clone();
        let held = what.starts_with("reclaim");
        begun_there.fetch_add(usize::from(held), Ordering::SeqCst);
        async move {
            if held {
                drop(gate.wait_for(|open| *open).await);
            }
        }
        .boxed()
    })));
    house.pass_time(Duration::from_secs(70)).await;
    assert_eq!(
        [tier(&house, &id), tier(&house, &second)],
        [Tier::Frozen; 2]
    );
    assert_eq!(begun.load(Ordering::SeqCst), 1, "one has its turn");
    // Both are called, then the gate opens.
    for key in [&key, &other] {
        house.door.arrive(key, 1);
    }
    house
        .until("both thawed", |h| {
            [tier(h, &id), tier(h, &second)] == [Tier::Awake; 2]
        })
        .await;
    open.send(true).expect("somebody waits");
    house.rest().await;
    assert_eq!(begun.load(Ordering::SeqCst), 1, "the other is awake");
    let log = house.driver.log();
    assert!(
        !log.iter().any(|call| call.starts_with("reclaim")),
        "{log:?}"
    );
    for key in [&key, &other] {
        house.door.finish(key);
    }
    house.pass_time(Duration::from_secs(100)).await;
    assert_eq!(
        [tier(&house, &id), tier(&house, &second)],
        [Tier::Reclaimed; 2]
    );
}

/// An instance that the driver doesn't know any more, before its end was told, is not asked for again and again.
#[tokio::test(start_paused = true)]
async fn a_freeze_of_what_is_gone_is_not_repeated_at_once() {
    let (house, _, id) = one(template("hello:1")).await;
    for _ in 0..50 {
        let gone = DriverError::NotFound(id.clone());
        house.driver.fail_next(Call::Freeze, gone);
    }
    house.pass_time(Duration::from_secs(5)).await;
    // One failed; the other 49 are still to come, each after a pause.
    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(tier(&house, &id), Tier::Awake);
}

/// The slow sweep's list was made before the freeze and arrives after it.
#[tokio::test(start_paused = true)]
async fn an_old_list_makes_nobody_forget_the_frozen() {
    let (house, key, id) = one(template("hello:1")).await;
    house.door.arrive(&key, 1);
    house.rest().await;
    let (open, gate) = tokio::sync::watch::channel(false);
    let held = Arc::new(AtomicUsize::new(0));
    let frozen = Arc::new(AtomicUsize::new(0));
    let (lists, freezes) = (Arc::clone(&held), Arc::clone(&frozen));
    house.driver.gate(Some(Arc::new(move |what: &str| {
        let (mut gate, list) = (gate.clone(), what == "list");
        lists.fetch_add(usize::from(list), Ordering::SeqCst);
        freezes.fetch_add(usize::from(what.starts_with("freeze")), Ordering::SeqCst);
        async move {
            if list {
                drop(gate.wait_for(|open| *open).await);
            }
        }
        .boxed()
    })));
    house.pass_time(Duration::from_secs(330)).await;
    assert!(held.load(Ordering::SeqCst) > 0, "the sweep has begun");
    house.door.finish(&key);
    house.pass_time(Duration::from_secs(4)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
    open.send(true).expect("somebody waits");
    house.rest().await;
    // A request may come before what was forgotten is frozen again.
    assert_eq!(frozen.load(Ordering::SeqCst), 1, "nothing was forgotten");
}

/// Whatever is believed: who asks for a thaw has a request in there.
#[tokio::test(start_paused = true)]
async fn the_driver_is_asked_for_every_thaw() {
    let (house, key, id) = one(template("hello:1")).await;
    house.door.arrive(&key, 1);
    house.rest().await;
    house.driver.freeze(&id).await.expect("frozen");
    house.control.thaw(&key, &id);
    house.until("thawed", |h| tier(h, &id) == Tier::Awake).await;
}

/// A keeper of an earlier build knows neither freezing nor thawing.
#[tokio::test(start_paused = true)]
async fn a_thaw_that_is_refused_is_not_repeated() {
    let (house, key, id) = one(template("hello:1")).await;
    house.door.arrive(&key, 1);
    house.rest().await;
    let asked = Arc::new(AtomicUsize::new(0));
    let thaws = Arc::clone(&asked);
    house.driver.gate(Some(Arc::new(move |what: &str| {
        if what.starts_with("thaw") {
            thaws.fetch_add(1, Ordering::SeqCst);
        }
        std::future::ready(()).boxed()
    })));
    for _ in 0..100 {
        let refusal = DriverError::Refused("it knows no thaw".to_owned());
        house.driver.fail_next(Call::Thaw, refusal);
    }
    house.control.thaw(&key, &id);
    house.pass_time(Duration::from_secs(2)).await;
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}

/// Whoever rests is not asked for its health; who could not be frozen, or was thawed, is.
#[tokio::test(start_paused = true)]
async fn health_is_asked_for_again_once_the_instance_is_known_to_be_awake() {
    let (house, key, id) = one(template("hello:1")).await;
    let trouble = DriverError::Internal("for once".to_owned());
    house.driver.fail_next(Call::Freeze, trouble);
    house.pass_time(Duration::from_secs(3)).await;
    assert_eq!(tier(&house, &id), Tier::Awake);
    assert!(house.door.asks(&id), "the freeze failed");

    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
    assert!(!house.door.asks(&id));
    let (open, gate) = tokio::sync::watch::channel(false);
    house.driver.gate(Some(Arc::new(move |what: &str| {
        let mut gate = gate.clone();
        let thaw = what.starts_with("thaw");
        async move {
            if thaw {
                drop(gate.wait_for(|open| *open).await);
            }
        }
        .boxed()
    })));
    house.door.arrive(&key, 1);
    house.pass_time(Duration::from_secs(5)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
    assert!(!house.door.asks(&id), "not thawed yet");
    open.send(true).expect("somebody waits");
    house.pass_time(Duration::from_secs(1)).await;
    assert_eq!(tier(&house, &id), Tier::Awake);
    assert!(house.door.asks(&id), "thawed");

    house.door.finish(&key);
    let refusal = DriverError::Refused("no freezer here".to_owned());
    house.driver.fail_next(Call::Freeze, refusal);
    house.pass_time(Duration::from_secs(5)).await;
    assert_eq!(tier(&house, &id), Tier::Awake);
    assert!(house.door.asks(&id), "it can't be frozen");
}

/// No request will wake it: it would stay out of choice for ever.
#[tokio::test(start_paused = true)]
async fn who_is_frozen_and_not_ready_is_thawed_and_asked() {
    let (house, _, id) = one(template("hello:1")).await;
    house.pass_time(Duration::from_secs(3)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
    let message = "sick".to_owned();
    house.door.turned(&id, Reach::Unready { message });
    house.pass_time(Duration::from_secs(1)).await;
    assert_eq!(tier(&house, &id), Tier::Awake);
    assert!(house.door.asks(&id));
}

/// What is told ahead is what will happen on this machine, and not what would on another. Paused time.
#[tokio::test(start_paused = true)]
async fn what_a_machine_can_not_do_is_not_foretold() {
    let (house, key, id) = one(template("hello:1")).await;
    let standing = |house: &House| {
        house.control.explain(&key.service)[0].instances[0]
            .standing
            .clone()
    };
    assert_eq!(standing(&house).next[0].0, "it is frozen");
    house
        .driver
        .bars(Some((Tier::Frozen, "there is no freezer")));
    let told = standing(&house);
    assert_eq!(told.because, "it can't be frozen: there is no freezer");
    assert_eq!(told.next, []);

    house
        .driver
        .bars(Some((Tier::Reclaimed, "there is no swap")));
    assert_eq!(standing(&house).next[0].0, "it is frozen");
    house.pass_time(Duration::from_secs(3)).await;
    assert_eq!(tier(&house, &id), Tier::Frozen);
    let told = standing(&house);
    assert!(
        told.because
            .ends_with("its memory is kept: there is no swap"),
        "{told:?}"
    );
    assert_eq!(told.next, []);
    house.driver.bars(None);
    assert_eq!(standing(&house).next[0].0, "its memory is given back");
}
