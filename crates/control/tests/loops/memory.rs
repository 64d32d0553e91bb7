//! Who waits and who gives way when memory is short.

use std::time::Duration;

use utsuwa_control::seam::FrontDoor as _;
use utsuwa_control::seam::Refusal;
use utsuwa_model::instance::Exit;
use utsuwa_runtime::DriverError;
use utsuwa_runtime::fake::Call;

use crate::hello;
use crate::house::{House, template};

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

/// The one that goes, the one it goes for, and the next who looks at the log all find the reason.
#[tokio::test(start_paused = true)]
async fn who_gives_way_says_for_whom_and_why() {
    let house = House::new().await;
    let waiting = idle_ones(&house, &["one"]).await.remove(0);
    house.pass_time(Duration::from_secs(16 * 60)).await;
    let others = idle_ones(&house, &["a", "b"]).await;
    house.driver.stop_takes(Duration::from_secs(5));
    *house.clock.memory.lock() = Some(0);
    house.door.arrive(&waiting, 1);
    house.pass_time(Duration::from_millis(10)).await;
    let instances = |key: &utsuwa_model::RevisionKey| {
        let revisions = house.control.explain(&key.service);
        let instances = revisions.into_iter().flat_map(|r| r.instances);
        instances
            .filter(|i| i.state == "retiring")
            .collect::<Vec<_>>()
    };
    let leaving: Vec<_> = others.iter().flat_map(instances).collect();
    assert_eq!(leaving.len(), 1);
    let because = &leaving[0].standing.because;
    let start = format!(
        "it makes room: {} has no memory; 1 of 2 idle instances gives way: it held most memory for longest, 64 MiB for ",
        waiting.revision
    );
    assert!(because.starts_with(&start), "{because}");
    let told: Vec<String> = house.control.explain(&waiting.service)[0]
        .because
        .iter()
        .map(|b| b.summary.clone())
        .collect();
    assert!(
        told.iter()
            .any(|why| why.starts_with("1 of 2 idle instances gives way: ")),
        "{told:?}"
    );
}

/// Who was given room goes on being short until it has it: those that look beside it don't count on the same room.
#[tokio::test(start_paused = true)]
async fn those_that_wake_at_once_get_one_each_at_once() {
    let house = House::new().await;
    let waiting = idle_ones(&house, &["one", "two", "three", "four", "five"]).await;
    house.pass_time(Duration::from_secs(16 * 60)).await;
    idle_ones(&house, &["a", "b", "c", "d", "e", "f"]).await;
    house.driver.stop_takes(Duration::from_secs(5));
    let before = house.door.retired().len();
    *house.clock.memory.lock() = Some(0);
    for revision in &waiting {
        house.door.arrive(revision, 1);
    }
    house.pass_time(Duration::from_millis(10)).await;
    assert_eq!(house.door.retired().len() - before, 5);
    house.pass_time(Duration::from_secs(4)).await;
    assert_eq!(house.door.retired().len() - before, 5, "and no more");
}

/// The same where the driver found no room, and the next try has to wait.
#[tokio::test(start_paused = true)]
async fn those_the_driver_had_no_room_for_get_one_each() {
    let house = House::new().await;
    let waiting = idle_ones(&house, &["one", "two"]).await;
    house.pass_time(Duration::from_secs(16 * 60)).await;
    idle_ones(&house, &["a", "b", "c"]).await;
    house.driver.stop_takes(Duration::from_secs(5));
    let before = house.door.retired().len();
    for (revision, want) in waiting.iter().zip(1..) {
        let full = DriverError::Exhausted("no sandbox is left".to_owned());
        house.driver.fail_next(Call::Start, full);
        house.door.arrive(revision, 1);
        house.pass_time(Duration::from_millis(100)).await;
        assert_eq!(house.door.retired().len() - before, want);
    }
}

/// One that is short, for so long that it looks once a second only, while `a` is busy. Answers it and `a`.
async fn short_for_long(house: &House) -> [utsuwa_model::RevisionKey; 2] {
    let waiting = idle_ones(house, &["one"]).await.remove(0);
    house.pass_time(Duration::from_secs(16 * 60)).await;
    let busy = idle_ones(house, &["a"]).await.remove(0);
    house.door.arrive(&busy, 1);
    house.until("busy", |h| h.door_in_flight(&busy) == 1).await;
    *house.clock.memory.lock() = Some(0);
    house.door.arrive(&waiting, 1);
    house.pass_time(Duration::from_secs(8)).await;
    [waiting, busy]
}

/// However long it was short before, it looks soon after it was given room.
#[tokio::test(start_paused = true)]
async fn who_was_given_room_looks_soon() {
    let house = House::new().await;
    let [waiting, busy] = short_for_long(&house).await;
    let before = house.door.retired().len();
    house.door.finish(&busy);
    while house.door.retired().len() == before {
        house.pass_time(Duration::from_millis(10)).await;
    }
    house
        .until("it ended", |h| h.driver.running().is_empty())
        .await;
    house.rest().await;
    assert_eq!(house.door_in_flight(&waiting), 0, "not seen yet");
    *house.clock.memory.lock() = Some(8 << 30);
    house.pass_time(Duration::from_millis(60)).await;
    assert_eq!(house.door_in_flight(&waiting), 1);
}

/// Whatever an instance ends of, those who are short look at once.
#[tokio::test(start_paused = true)]
async fn an_end_by_itself_is_room_too() {
    let house = House::new().await;
    let [waiting, _] = short_for_long(&house).await;
    house.pass_time(Duration::from_millis(10)).await;
    *house.clock.memory.lock() = Some(8 << 30);
    house.rest().await;
    assert_eq!(house.door_in_flight(&waiting), 0, "looks seldom");
    let ended = house.driver.running().remove(0);
    house.driver.exit(&ended, Exit::Code(0), Vec::new());
    house
        .until("served at once", |h| h.door_in_flight(&waiting) == 1)
        .await;
}
