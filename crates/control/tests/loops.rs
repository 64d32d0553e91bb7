//! The loops on a fake world: deploy, wake, sleep, fail, update, delete, restart.

mod house;

use std::time::Duration;

use house::door::Listens;
use house::{House, template};
use utsuwa_control::seam::FrontDoor as _;
use utsuwa_control::seam::{ImageError, Refusal};
use utsuwa_model::instance::Exit;
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::route::{Access, Target};
use utsuwa_model::service::TrafficTarget;
use utsuwa_model::{ConditionState, condition};
use utsuwa_runtime::DriverError;
use utsuwa_runtime::fake::Call;

async fn hello() -> (House, utsuwa_model::ServiceKey, utsuwa_model::RevisionKey) {
    let house = House::new().await;
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    let revision = house.routed("hello.localhost").expect("routed");
    (house, key, revision)
}

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
async fn a_failed_deploy_changes_nothing_that_serves() {
    let (house, key, revision) = hello().await;
    house.door.arrive(&revision, 1);
    house
        .update(&key, |s| s.spec.template = template("gone:1"))
        .await;
    house.until_failed(&key).await;
    let service = house.service(&key);
    let ready = condition::find(&service.status.conditions, "Ready").expect("ready");
    assert_eq!(
        (ready.reason.as_str(), ready.message.as_str()),
        ("RevisionFailed", "Image 'gone:1' not found.")
    );
    assert_eq!(service.status.latest_ready, Some(revision.revision.clone()));
    assert_ne!(
        service.status.latest_created,
        Some(revision.revision.clone())
    );
    assert_eq!(house.routed("hello.localhost"), Some(revision.clone()));
    assert_eq!(house.driver.running().len(), 1, "what serves still runs");
    let (_, outcome) = house
        .store
        .operation("uid-hello-2")
        .expect("store")
        .expect("operation");
    assert!(
        matches!(&outcome, Some(GenerationOutcome::Failed { reason, .. }) if reason == "ContainerMissing"),
        "{outcome:?}"
    );

    // A later good one recovers.
    house.images.put("hello:2");
    house
        .update(&key, |s| s.spec.template = template("hello:2"))
        .await;
    house.until_ready(&key).await;
    assert_ne!(house.routed("hello.localhost"), Some(revision));
}

#[tokio::test(start_paused = true)]
async fn a_program_that_never_listens_or_ends_fails_the_deploy() {
    let house = House::new().await;
    house.images.put("bad:1");
    house
        .driver
        .exit_at_start(Some((Exit::Code(3), vec!["boom".to_owned()])));
    house.door.listens(Listens::NotYet);
    let key = house.create("bad", template("bad:1")).await;
    house.until_failed(&key).await;
    let service = house.service(&key);
    let ready = condition::find(&service.status.conditions, "Ready").expect("ready");
    assert_eq!(ready.reason, "RevisionFailed");
    for part in [
        "is not ready and cannot serve traffic",
        "PORT=8080",
        "exited with status 3",
        "boom",
    ] {
        assert!(ready.message.contains(part), "{}", ready.message);
    }
    assert!(matches!(
        house.door.table().hosts["bad.localhost"].target,
        Target::NotReady { .. }
    ));

    house.driver.exit_at_start(None);
    house.driver.fail_next(
        Call::Start,
        DriverError::Refused("'/app' is not in the image".to_owned()),
    );
    house
        .update(&key, |s| {
            s.spec
                .template
                .labels
                .insert("n".into(), "2".into())
                .map_or((), drop)
        })
        .await;
    house
        .until("failed again", |h| {
            let service = h.service(&h.key("bad"));
            condition::find(&service.status.conditions, "Ready")
                .is_some_and(|c| c.message.contains("'/app' is not in the image"))
        })
        .await;
    house.door.listens(Listens::Never(
        "Nothing accepted a connection on port 8080.".to_owned(),
    ));
    house
        .update(&key, |s| {
            s.spec
                .template
                .labels
                .insert("n".into(), "3".into())
                .map_or((), drop)
        })
        .await;
    house
        .until("never listened", |h| {
            let service = h.service(&h.key("bad"));
            condition::find(&service.status.conditions, "Ready")
                .is_some_and(|c| c.message.contains("Nothing accepted"))
        })
        .await;
    house.rest().await;
    assert!(house.driver.running().is_empty());
}

#[tokio::test(start_paused = true)]
async fn registry_trouble_is_waited_out_and_then_told() {
    let house = House::new().await;
    let down = ImageError {
        reason: "ContainerMissing".into(),
        message: "registry is down".into(),
        transient: true,
    };
    house.images.refuse("late:1", down.clone());
    let key = house.create("late", template("late:1")).await;
    house.pass_time(Duration::from_secs(5)).await;
    assert_eq!(house.ready(&key), Some(ConditionState::Unknown));
    house.images.put("late:1");
    house.pass_time(Duration::from_secs(40)).await;
    house.until_ready(&key).await;

    house.images.refuse("never:1", down);
    let never = house.create("never", template("never:1")).await;
    house.pass_time(Duration::from_secs(200)).await;
    house.until_failed(&never).await;
}

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

/// Time passes while passes wait: nothing comes to rest.
async fn busy_time(seconds: u64) {
    for _ in 0..seconds / 5 {
        tokio::time::advance(Duration::from_secs(5)).await;
        for _ in 0..20 {
            tokio::task::yield_now().await;
        }
    }
}

/// A pull may take longer than any pass: passes leave it and come back, and others are served meanwhile.
#[tokio::test(start_paused = true)]
async fn a_pull_longer_than_a_pass_is_waited_for() {
    let house = House::new().await;
    house.images.put("large:1");
    house.images.put("hello:1");
    house.images.takes("large:1", Duration::from_secs(2100));
    // More than there are slots for passes over revisions.
    let mut large = Vec::new();
    for number in 0..20 {
        let name = format!("large-{number}");
        large.push(house.create(&name, template("large:1")).await);
    }
    busy_time(60).await;
    let key = house.create("hello", template("hello:1")).await;
    busy_time(60).await;
    house.until_ready(&key).await;
    busy_time(1900).await;
    assert_ne!(house.ready(&large[0]), Some(ConditionState::True));
    let failed = |line: &utsuwa_control::LoopLine| line.last_error.clone();
    let errors: Vec<String> = house.control.loops().iter().filter_map(failed).collect();
    assert_eq!(errors, Vec::<String>::new());
    busy_time(150).await;
    for key in &large {
        house.until_ready(key).await;
    }
}

/// A machine that can make no instance: the deploy says why while it waits, and ends.
#[tokio::test(start_paused = true)]
async fn a_deploy_that_gets_no_instance_says_why_and_ends() {
    let house = House::new().await;
    house.images.put("hello:1");
    let full = || DriverError::Exhausted("processes ran out: raise kernel.pid_max".to_owned());
    (0..12).for_each(|_| house.driver.fail_next(Call::Start, full()));
    let key = house.create("full", template("hello:1")).await;
    let says = |house: &House, key: &utsuwa_model::ServiceKey| {
        let revisions = house.store.revisions_of(key).expect("store");
        let ready = condition::find(&revisions[0].status.conditions, "Ready").expect("ready");
        ready.message.clone()
    };
    house
        .until("the reason while it waits", |h| {
            h.store.revisions_of(&key).is_ok_and(|all| !all.is_empty())
                && says(h, &key).contains("The last attempt failed: processes ran out")
        })
        .await;
    house.pass_time(Duration::from_secs(60)).await;
    assert_ne!(
        house.ready(&key),
        Some(ConditionState::False),
        "room is waited for"
    );
    house.pass_time(Duration::from_secs(60)).await;
    house.until_failed(&key).await;
    let message = says(&house, &key);
    assert!(
        message.starts_with("Initial scale was never achieved.") && message.contains("pid_max"),
        "{message}"
    );

    // Room that is made in time is taken.
    (0..5).for_each(|_| house.driver.fail_next(Call::Start, full()));
    let key = house.create("late", template("hello:1")).await;
    house.pass_time(Duration::from_secs(25)).await;
    house.until_ready(&key).await;

    // Trouble of the machine isn't blamed on the program.
    let broken = || DriverError::Internal("nft: No such file; install nftables".to_owned());
    (0..3).for_each(|_| house.driver.fail_next(Call::Start, broken()));
    let key = house.create("broken", template("hello:1")).await;
    house.pass_time(Duration::from_secs(10)).await;
    house.until_failed(&key).await;
    let message = says(&house, &key);
    assert!(
        message.starts_with("Initial scale was never achieved.") && message.contains("nftables"),
        "{message}"
    );
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

#[tokio::test(start_paused = true)]
async fn delete_goes_from_hosts_to_the_row() {
    let (house, key, revision) = hello().await;
    house.door.arrive(&revision, 1);
    house.delete(&key).await;
    house
        .until("gone", |h| h.store.service(&key).expect("store").is_none())
        .await;
    assert!(house.door.table().hosts.is_empty());
    assert!(house.driver.running().is_empty());
    assert!(house.store.revisions_of(&key).expect("store").is_empty());
    let (_, outcome) = house
        .store
        .operation("uid-hello-2")
        .expect("store")
        .expect("operation");
    assert_eq!(outcome, Some(GenerationOutcome::Succeeded));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_of_a_service_goes_with_it_and_late_lines_after_it() {
    let (house, key, _) = hello().await;
    let ghost = "demo/here/ghost".parse().expect("key");
    let write = |key| house.write(key);
    write(&key);
    // An earlier build left it.
    write(&ghost);
    house.pass_time(house.settings.collect).await;
    assert_eq!(house.papers.kept(), ["hello"], "what is no service's goes");

    house.delete(&key).await;
    house
        .until("gone", |h| h.store.service(&key).expect("store").is_none())
        .await;
    assert_eq!(house.papers.kept(), Vec::<String>::new());
    assert!(house.driver.prepared().is_empty(), "its ids are nobody's");
    assert_eq!(house.driver.log().last().expect("calls"), "release");
    // The end of its last instance is told.
    write(&key);
    house.pass_time(Duration::from_secs(11)).await;
    assert_eq!(house.papers.kept(), Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn a_service_stays_until_what_is_kept_for_it_could_be_let_go_of() {
    let (house, key, _) = hello().await;
    let busy = || utsuwa_runtime::DriverError::Exhausted("in use".to_owned());
    house.driver.fail_next(Call::Release, busy());
    house.driver.fail_next(Call::Release, busy());
    house.write(&key);
    house.delete(&key).await;
    house.rest().await;
    assert!(house.store.service(&key).expect("store").is_some());
    house.pass_time(Duration::from_secs(2)).await;
    assert!(house.store.service(&key).expect("store").is_none());
    assert!(house.papers.kept().is_empty() && house.driver.prepared().is_empty());
}

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

#[tokio::test(start_paused = true)]
async fn short_memory_lets_idle_ones_give_way_and_refuses_the_rest() {
    let (house, _, first) = hello().await;
    house.images.put("other:1");
    let other = house.create("other", template("other:1")).await;
    house.until_ready(&other).await;
    let second = house.routed("other.localhost").expect("routed");
    house.pass_time(Duration::from_secs(15)).await;
    house.door.arrive(&first, 1);
    house
        .until("first runs", |h| h.door_in_flight(&first) == 1)
        .await;
    house.door.finish(&first);
    *house.clock.memory.lock() = Some(0);
    house.door.arrive(&second, 1);
    house
        .until("the idle one gave way", |h| h.driver.running().is_empty())
        .await;
    *house.clock.memory.lock() = Some(8 << 30);
    house.pass_time(Duration::from_secs(1)).await;
    house
        .until("second runs", |h| h.door_in_flight(&second) == 1)
        .await;

    *house.clock.memory.lock() = Some(0);
    house.door.arrive(&first, 1);
    house
        .until("told why", |h| {
            h.door
                .refused()
                .iter()
                .any(|(_, why)| matches!(why, Refusal::NoCapacity { .. }))
        })
        .await;
    assert_eq!(
        house.driver.running().len(),
        1,
        "a busy one never gives way"
    );
    assert_eq!(house.door.demand(&first).expect("known").queued, 1);
    // Room in time: served.
    *house.clock.memory.lock() = Some(8 << 30);
    house.pass_time(Duration::from_secs(1)).await;
    house
        .until("first is served", |h| h.door_in_flight(&first) == 1)
        .await;
}

/// What runs can serve those who wait, and memory may come free: nobody is sent away for a shortage, and it isn't looked at
/// twenty times a second for ever.
#[tokio::test(start_paused = true)]
async fn a_shortage_sends_nobody_away_and_is_looked_at_more_seldom() {
    let house = House::new().await;
    house.images.put("hello:1");
    let mut one = template("hello:1");
    one.concurrency = Some(1);
    one.min_instances = Some(3);
    let key = house.create("hello", one).await;
    house.until_ready(&key).await;
    let revision = house.routed("hello.localhost").expect("routed");
    house
        .until("the minimum runs", |h| h.driver.running().len() == 3)
        .await;
    *house.clock.memory.lock() = Some(0);
    house.door.arrive(&revision, 50);
    house
        .until("busy", |h| h.door_in_flight(&revision) == 3)
        .await;
    let refused = || {
        let all = house.door.refused();
        all.iter()
            .filter(|(_, why)| matches!(why, Refusal::NoCapacity { .. }))
            .count()
    };
    let queued = || house.door.demand(&revision).expect("known").queued;
    house.pass_time(Duration::from_secs(8)).await;
    assert_eq!(queued(), 47, "everybody still waits");
    let looks = refused();
    assert!(looks > 0, "those who wait in vain are told why");
    house.pass_time(Duration::from_secs(8)).await;
    let later = refused() - looks;
    assert!(later <= 10, "{later} looks in 8 s");
    house.door.finish(&revision);
    house
        .until("served by those that run", |_| queued() == 44)
        .await;
    *house.clock.memory.lock() = Some(8 << 30);
    house.pass_time(Duration::from_secs(2)).await;
    house
        .until("more run", |h| h.driver.running().len() > 3)
        .await;
}

/// Deploys `names`, each with one instance that has served and is idle now. Answers their revisions.
async fn idle_ones(house: &House, names: &[&str]) -> Vec<utsuwa_model::RevisionKey> {
    let mut revisions = Vec::new();
    for name in names {
        house.images.put("hello:1");
        let key = house.create(name, template("hello:1")).await;
        house.until_ready(&key).await;
        let host = format!("{name}.localhost");
        let revision = house.routed(&host).expect("routed");
        house.door.arrive(&revision, 1);
        house
            .until("in flight", |h| h.door_in_flight(&revision) == 1)
            .await;
        house.door.finish(&revision);
        revisions.push(revision);
    }
    revisions
}

/// A start that finds no memory sends one idle instance away, however long that one takes to end; whoever waits beside it gets
/// one of his own.
#[tokio::test(start_paused = true)]
async fn as_many_give_way_as_are_needed_however_slowly_they_end() {
    let house = House::new().await;
    let waiting = idle_ones(&house, &["one", "two"]).await;
    house.pass_time(Duration::from_secs(16 * 60)).await;
    assert!(house.driver.running().is_empty(), "those two sleep");
    idle_ones(&house, &["a", "b", "c", "d", "e", "f"]).await;
    assert_eq!(house.driver.running().len(), 6);

    house.driver.stop_takes(Duration::from_secs(5));
    let before = house.door.retired().len();
    let gave_way = |h: &House| h.door.retired().len() - before;
    *house.clock.memory.lock() = Some(0);
    house.door.arrive(&waiting[0], 1);
    house.pass_time(Duration::from_secs(2)).await;
    assert_eq!(gave_way(&house), 1, "one start, one that gives way");
    house.door.arrive(&waiting[1], 1);
    house.pass_time(Duration::from_secs(2)).await;
    assert_eq!(gave_way(&house), 2, "and one for who came later");
    assert_eq!(house.driver.running().len(), 6, "both still end");

    *house.clock.memory.lock() = Some(8 << 30);
    house.pass_time(Duration::from_secs(5)).await;
    for revision in &waiting {
        assert_eq!(house.door_in_flight(revision), 1, "{revision} is served");
    }
    assert_eq!((gave_way(&house), house.driver.running().len()), (2, 6));
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
    assert!(
        house
            .control
            .loops()
            .iter()
            .any(|l| l.name == "instances" && l.passes > 0)
    );
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

#[tokio::test(start_paused = true)]
async fn a_changed_policy_changes_who_may_call() {
    let (house, key, _) = hello().await;
    let policy = house.store.policy(&key).expect("policy");
    let closed = utsuwa_model::iam::Policy {
        bindings: Vec::new(),
        ..policy.clone()
    };
    house
        .store
        .set_policy(&key, Some(&policy.etag), closed)
        .await
        .expect("set");
    house
        .until("closed", |h| {
            h.door.table().hosts["hello.localhost"].access == Access::Authenticated
        })
        .await;
    assert_eq!(house.control.sweep_found(), 0);
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

#[tokio::test(start_paused = true)]
async fn images_are_collected_when_no_revision_needs_them() {
    let (house, key, _) = hello().await;
    house.pass_time(Duration::from_secs(700)).await;
    assert_eq!(house.images.collected.lock().last().map(Vec::len), Some(1));
    house.delete(&key).await;
    house
        .until("gone", |h| h.store.service(&key).expect("store").is_none())
        .await;
    house.pass_time(Duration::from_secs(700)).await;
    assert_eq!(house.images.collected.lock().last().map(Vec::len), Some(0));
    assert!(house.store.images().expect("store").is_empty());
}
