//! What becomes of deploys that are overtaken, interrupted or slow, and what their revisions say of themselves.

mod house;

use std::time::Duration;

use house::door::Listens;
use house::{House, template};
use utsuwa_control::seam::ImageError;
use utsuwa_model::instance::Exit;
use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::scaling::Ceiling;
use utsuwa_model::{ConditionState, condition};

async fn hello() -> (House, utsuwa_model::ServiceKey, utsuwa_model::RevisionKey) {
    let house = House::new().await;
    house.images.put("hello:1");
    let key = house.create("hello", template("hello:1")).await;
    house.until_ready(&key).await;
    let revision = house.routed("hello.localhost").expect("routed");
    (house, key, revision)
}

/// The second deploy is good but slow; a bad third one overtakes it.
#[tokio::test(start_paused = true)]
async fn an_overtaken_deploy_has_its_own_end() {
    let (house, key, first) = hello().await;
    house.images.put("hello:2");
    house.door.listens(Listens::NotYet);
    house
        .update(&key, |s| s.spec.template = template("hello:2"))
        .await;
    let second = |h: &House| {
        let created = h.service(&key).status.latest_created;
        created.filter(|id| *id != first.revision)
    };
    house
        .until("the second starts", |h| {
            second(h).is_some() && h.driver.running().len() == 2
        })
        .await;
    let good = second(&house).expect("just seen");
    house
        .update(&key, |s| s.spec.template = template("gone:3"))
        .await;
    house.until_failed(&key).await;
    let outcome = |id: &str| house.store.operation(id).expect("store").expect("there").1;
    assert!(
        matches!(
            outcome("uid-hello-3"),
            Some(GenerationOutcome::Failed { .. })
        ),
        "the third has failed"
    );
    assert_eq!(outcome("uid-hello-2"), None, "the second is under way");
    assert_eq!(house.routed("hello.localhost"), Some(first.clone()));

    house.door.ready_now();
    house
        .until("the second serves", |h| {
            h.routed("hello.localhost").map(|key| key.revision) == Some(good.clone())
        })
        .await;
    house
        .until("the second's operation is done", |_| {
            outcome("uid-hello-2") == Some(GenerationOutcome::Succeeded)
        })
        .await;
    let service = house.service(&key);
    assert_eq!(service.status.latest_ready, Some(good));
    assert_eq!(
        house.ready(&key),
        Some(ConditionState::False),
        "of the third"
    );

    // Rolled back by name, a later bad one changes nothing either.
    let name = first.revision.clone();
    house
        .update(&key, move |s| {
            s.spec.template = template("hello:1");
            s.spec.template.revision = Some(name);
        })
        .await;
    house.until_ready(&key).await;
    assert_eq!(house.routed("hello.localhost"), Some(first.clone()));
    house
        .update(&key, |s| s.spec.template = template("gone:5"))
        .await;
    house.until_failed(&key).await;
    assert_eq!(house.routed("hello.localhost"), Some(first));
}

/// What `Active` says while a revision is proven, serves, is woken in vain, and sleeps.
#[tokio::test(start_paused = true)]
async fn active_follows_what_is_wanted_and_what_is_there() {
    let house = House::new().await;
    house.images.put("hello:1");
    house.door.listens(Listens::NotYet);
    let key = house.create("hello", template("hello:1")).await;
    let active = |h: &House| {
        let all = h.store.revisions_of(&key).expect("store");
        let found = condition::find(&all.first()?.status.conditions, "Active")?;
        Some((found.state, found.reason.clone()))
    };
    let said = |state, reason: &str| Some((state, reason.to_owned()));
    house
        .until("starting", |h| {
            active(h) == said(ConditionState::Unknown, "Deploying")
        })
        .await;
    house.door.listens(Listens::AtOnce);
    house.door.ready_now();
    house.until_ready(&key).await;
    assert_eq!(active(&house), said(ConditionState::True, ""));
    let revision = house.routed("hello.localhost").expect("routed");
    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(active(&house), said(ConditionState::False, "NoTraffic"));

    house.door.listens(Listens::NotYet);
    house.door.arrive(&revision, 1);
    house.pass_time(Duration::from_secs(6)).await;
    assert_eq!(active(&house), said(ConditionState::Unknown, "Queued"));
    // No instance came or went.
    house.door.ready_now();
    house.pass_time(Duration::from_secs(6)).await;
    assert_eq!(active(&house), said(ConditionState::True, ""));

    house.door.finish(&revision);
    house.pass_time(Duration::from_secs(16 * 60)).await;
    assert_eq!(active(&house), said(ConditionState::False, "NoTraffic"));
    house.door.arrive(&revision, 1);
    house.pass_time(Duration::from_secs(6)).await;
    let id = house.driver.running()[0].clone();
    house
        .driver
        .exit_at_start(Some((Exit::Code(1), Vec::new())));
    house.driver.exit(&id, Exit::Code(1), Vec::new());
    house
        .until("refused", |h| !h.door.refused().is_empty())
        .await;
    house.pass_time(Duration::from_secs(20 * 60)).await;
    assert_eq!(active(&house), said(ConditionState::False, "TimedOut"));
    assert_eq!(house.ready(&key), Some(ConditionState::True));

    house.driver.exit_at_start(None);
    house.door.listens(Listens::AtOnce);
    house.door.arrive(&revision, 1);
    house.pass_time(Duration::from_secs(6)).await;
    assert_eq!(active(&house), said(ConditionState::True, ""));
}

/// The outcome was written by a server that ended just then: who reads on must not wait for it for ever.
#[tokio::test(start_paused = true)]
async fn an_outcome_that_somebody_else_wrote_is_taken_in() {
    let house = House::new().await;
    house.images.put("hello:1");
    house.door.listens(Listens::NotYet);
    let key = house.create("hello", template("hello:1")).await;
    house
        .until("started", |h| h.driver.running().len() == 1)
        .await;
    let revision = house.store.revisions_of(&key).expect("store")[0]
        .key
        .clone();
    house
        .store
        .update_revision(&revision, |stored| {
            stored.status.outcome = utsuwa_model::revision::Outcome::Ready;
            true
        })
        .await
        .expect("written");
    house.control.look_at_everything();
    house.until_ready(&key).await;
    house.door.ready_now();
    house.pass_time(Duration::from_secs(15)).await;
    assert!(house.driver.running().is_empty(), "asleep like any other");
}

fn trouble() -> ImageError {
    ImageError {
        reason: "ContainerMissing".to_owned(),
        message: "connection reset".to_owned(),
        transient: true,
    }
}

/// The last revision's failure, written by somebody else; its own next pass is the only one that sees it.
async fn fails_elsewhere(house: &House, key: &utsuwa_model::ServiceKey, generation: u64) {
    let made = house.store.revisions_of(key).expect("store");
    let made = made.iter().find(|r| r.service_generation == generation);
    house
        .store
        .update_revision(&made.expect("made").key, |stored| {
            stored.status.outcome = utsuwa_model::revision::Outcome::Failed {
                reason: "ContainerMissing".to_owned(),
                message: "nowhere".to_owned(),
            };
            true
        })
        .await
        .expect("written");
    // Longer than any back-off, and shorter than the time between two sweeps.
    house.pass_time(Duration::from_secs(40)).await;
}

/// The same with a failure, after the service was looked at: it says that its deploy is under way, and is told otherwise.
#[tokio::test(start_paused = true)]
async fn a_failure_that_somebody_else_wrote_is_taken_in() {
    let house = House::new().await;
    house.images.refuse("hello:1", trouble());
    let key = house.create("hello", template("hello:1")).await;
    house
        .until("under way", |h| {
            h.ready(&key) == Some(ConditionState::Unknown)
        })
        .await;
    house.rest().await;
    fails_elsewhere(&house, &key, 1).await;
    assert_eq!(house.ready(&key), Some(ConditionState::False));
}

/// And with that of a deploy that was overtaken.
#[tokio::test(start_paused = true)]
async fn an_overtaken_failure_that_somebody_else_wrote_is_answered() {
    let (house, key, _) = hello().await;
    house.images.refuse("hello:2", trouble());
    for image in ["hello:2", "hello:1"] {
        house
            .update(&key, |s| s.spec.template = template(image))
            .await;
        house.rest().await;
    }
    house.until_ready(&key).await;
    fails_elsewhere(&house, &key, 2).await;
    let outcome = house.store.operation("uid-hello-2").expect("store");
    let outcome = outcome.expect("there").1;
    assert!(
        matches!(outcome, Some(GenerationOutcome::Failed { .. })),
        "{outcome:?}"
    );
}

/// The time a proof may take counts from the start of its instance, which the driver knows, however often the server begins.
#[tokio::test(start_paused = true)]
async fn a_restart_gives_a_proof_no_new_time() {
    let mut house = House::new().await;
    house.images.put("mute:1");
    house.door.listens(Listens::NotYet);
    let key = house.create("mute", template("mute:1")).await;
    house
        .until("started", |h| h.driver.running().len() == 1)
        .await;
    let id = house.driver.running()[0].clone();
    for age in [150, 300] {
        house.pass_time(Duration::from_secs(150)).await;
        house.restart(None).await;
        let found = house.door.age(&id).expect("admitted").as_secs();
        assert!((age..age + 5).contains(&found), "{found}");
    }
    // 240 s of the probe and 120 s for all that comes before.
    house.pass_time(Duration::from_secs(50)).await;
    assert_eq!(house.ready(&key), Some(ConditionState::Unknown));
    house.pass_time(Duration::from_secs(20)).await;
    assert_eq!(house.ready(&key), Some(ConditionState::False));
}

/// The proof's start is kept, and is what a server knows of the revision after a restart.
#[tokio::test(start_paused = true)]
async fn how_long_the_proof_took_survives_a_restart() {
    let mut house = House::new().await;
    house.images.put("slow:1");
    house.door.listens(Listens::NotYet);
    let key = house.create("slow", template("slow:1")).await;
    house
        .until("started", |h| h.driver.running().len() == 1)
        .await;
    house.pass_time(Duration::from_secs(60)).await;
    house.door.ready_now();
    house.until_ready(&key).await;
    let usual = |h: &House| {
        let revision = h.routed("slow.localhost")?;
        h.door.table().revisions.get(&revision)?.usual_start
    };
    let took = usual(&house).expect("known");
    assert!((59..62).contains(&took.as_secs()), "{took:?}");
    house.restart(None).await;
    house
        .until("known again", |h| {
            usual(h).is_some_and(|t| t.as_secs() == took.as_secs())
        })
        .await;
}

/// A restart in the middle of a deploy, while the registry has a moment's trouble: the deploy isn't to blame.
#[tokio::test(start_paused = true)]
async fn an_interrupted_deploy_outlives_a_short_trouble_of_the_registry() {
    let mut house = House::new().await;
    house.images.refuse("hello:1", trouble());
    let key = house.create("hello", template("hello:1")).await;
    house
        .until("under way", |h| {
            h.ready(&key) == Some(ConditionState::Unknown)
        })
        .await;
    house.control.shutdown(Duration::ZERO).await;
    tokio::time::advance(Duration::from_secs(60)).await;
    house.restart(None).await;
    house.pass_time(Duration::from_secs(5)).await;
    assert_eq!(house.ready(&key), Some(ConditionState::Unknown));
    house.images.put("hello:1");
    house.pass_time(Duration::from_secs(10)).await;
    house.until_ready(&key).await;
}

/// Set to none by hand: the ingress is told that nobody need wait.
#[tokio::test(start_paused = true)]
async fn none_by_hand_is_told_to_the_ingress() {
    let (house, key, revision) = hello().await;
    house
        .update(&key, |s| {
            s.spec.scaling.mode = utsuwa_model::service::ScalingMode::Manual;
            s.spec.scaling.manual = Some(0);
        })
        .await;
    house.until_ready(&key).await;
    let most = || {
        house
            .door
            .table()
            .revisions
            .get(&revision)
            .map(|r| r.max_instances)
    };
    house
        .until("none", |_| most() == Some(Ceiling::AtMost(0)))
        .await;
    house.pass_time(Duration::from_secs(15)).await;
    assert!(house.driver.running().is_empty());
}
