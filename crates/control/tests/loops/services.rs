//! What a service leads to, and its end.

use std::time::Duration;

use utsuwa_model::operation::GenerationOutcome;
use utsuwa_model::route::Access;
use utsuwa_runtime::fake::Call;

use crate::hello;

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
    house.rest().await;
    let table = house.control.loops();
    let left: Vec<_> = table.iter().filter(|l| l.key.contains("hello")).collect();
    assert!(left.is_empty(), "said of what is gone: {left:?}");
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
