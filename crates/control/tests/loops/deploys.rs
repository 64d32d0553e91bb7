//! Deploys that fail, wait or are refused room.

use std::time::Duration;

use utsuwa_control::seam::ImageError;
use utsuwa_model::instance::Exit;
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::route::Target;
use utsuwa_model::{ConditionState, condition};
use utsuwa_runtime::DriverError;
use utsuwa_runtime::fake::Call;

use crate::hello;
use crate::house::door::Listens;
use crate::house::{House, template};

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
    let at = |part| ready.message.find(part).unwrap_or(usize::MAX);
    assert!(
        at("boom") < at("PORT=8080"),
        "the cause first: {}",
        ready.message
    );
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
    let starts = || {
        let log = house.driver.log();
        log.iter().filter(|call| call.starts_with("start ")).count()
    };
    let before = starts();
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
    assert_eq!(starts(), before + 1, "a second attempt proves nothing");
}

/// Four minutes are long: what is wrong is said while the deploy waits.
#[tokio::test(start_paused = true)]
async fn an_app_that_listens_elsewhere_is_told_of_while_the_deploy_waits() {
    let house = House::new().await;
    house.images.put("flask:1");
    let advice =
        "The container listens on 0.0.0.0:5000, not on port 8080 (PORT): set `--port 5000`.";
    house.door.listens(Listens::Elsewhere(advice.to_owned()));
    let key = house.create("flask", template("flask:1")).await;
    house
        .until("told", |h| {
            let service = h.service(&key);
            let told = condition::find(&service.status.conditions, "ConfigurationsReady");
            told.is_some_and(|c| {
                c.state == ConditionState::Unknown
                    && c.message
                        == format!("Waiting for the container to listen on port 8080. {advice}")
            })
        })
        .await;
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
