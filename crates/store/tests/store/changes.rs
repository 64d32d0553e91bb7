//! Commits: shared, told, and outliving a panic.

use super::*;

#[tokio::test]
async fn changes_are_told_once_per_commit_that_changed_something() {
    let store = Store::open_in_memory().unwrap();
    let mut changes = store.changes();
    let before = *changes.borrow_and_update();
    let a = create(&store, "demo/r/a", 1).await;
    assert!(*changes.borrow_and_update() > before);
    store
        .update_service_status(&a.key, None, |_| false)
        .await
        .unwrap();
    assert!(!changes.has_changed().unwrap(), "nothing was written");
    let entry = AuditEntry {
        at: Timestamp(4),
        actor: "anonymous".to_owned(),
        method: "CreateService".to_owned(),
        resource: "r".to_owned(),
        result: "OK".to_owned(),
    };
    store.audit(entry.clone()).await.unwrap();
    let log = store.audit_log(10).unwrap();
    assert_eq!(log[0], entry);
    let (method, resource) = ("test.Create", "projects/demo/locations/r/services/a");
    assert_eq!(
        (log[1].method.as_str(), log[1].resource.as_str()),
        (method, resource),
        "written with the service"
    );
    assert!(changes.has_changed().unwrap());
}

#[tokio::test]
async fn a_panicking_change_ends_only_itself() {
    let store = Store::open_in_memory().unwrap();
    let a = create(&store, "demo/r/a", 1).await;
    let error = store
        .update_service(&a.key, None, Timestamp(2), None, |_| -> Result<(), ()> {
            panic!("a bug in a caller")
        })
        .await
        .unwrap_err();
    assert!(matches!(error, StoreError::Abandoned));
    create(&store, "demo/r/b", 1).await;
    assert_eq!(store.all_service_keys().unwrap().len(), 2);
}

/// Many writers at once share commits: each is acknowledged, none is lost, and there are fewer commits than writes.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writes_that_wait_together_are_committed_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(dir.path()).unwrap());
    let before = *store.changes().borrow();
    let writes = (0..400).map(|n| {
        let store = Arc::clone(&store);
        tokio::spawn(async move { create(&store, &format!("demo/r/s{n}"), n).await })
    });
    for write in writes.collect::<Vec<_>>() {
        write.await.unwrap();
    }
    let commits = *store.changes().borrow() - before;
    assert_eq!(store.all_service_keys().unwrap().len(), 400);
    assert!(commits < 400, "{commits} commits for 400 writes");
}

/// What loops must look at is named exactly; what they wrote themselves, and what came to nothing, is not.
#[tokio::test]
async fn changed_services_are_named() {
    let store = Store::open_in_memory().unwrap();
    let seq = || *store.changes().borrow();
    let since = |before| match store.changed_since(before) {
        Changed::Keys(keys) => keys.iter().map(ToString::to_string).collect::<Vec<_>>(),
        Changed::All => vec!["all".to_owned()],
    };
    let start = seq();
    let a = create(&store, "demo/r/a", 1).await;
    let b = create(&store, "demo/r/b", 1).await;
    assert_eq!(since(start), ["demo/r/a", "demo/r/b"]);

    let before = seq();
    let made = revision(&a, "a-00001-abc", 5, "n");
    let key = made.key.clone();
    store.create_revision(made).await.unwrap();
    store
        .update_revision(&key, |r| {
            r.meta.generation += 1;
            true
        })
        .await
        .unwrap();
    store
        .update_service_status(&a.key, None, |s| {
            s.status.url = "http://a".to_owned();
            true
        })
        .await
        .unwrap();
    let refused = store
        .update_service(&b.key, None, Timestamp(3), None, |_| Err("no"))
        .await;
    assert_eq!(refused.unwrap().unwrap_err(), "no");
    let stale = store
        .set_policy(&b.key, Some("c3RhbGU="), Policy::default())
        .await;
    assert_eq!(stale.unwrap_err().class(), Class::Conflict);
    assert!(seq() > before, "something was written");
    assert_eq!(since(before), [""; 0]);

    let before = seq();
    store
        .set_policy(&b.key, None, Policy::default())
        .await
        .unwrap();
    assert_eq!(since(before), ["demo/r/b"]);

    let before = seq();
    let going = |r: &mut Revision| {
        r.meta.delete_time = Some(Timestamp(9));
        true
    };
    store.update_revision(&key, going).await.unwrap();
    assert_eq!(since(before), ["demo/r/a"]);
    let before = seq();
    store.remove_revision(&key).await.unwrap();
    assert_eq!(since(before), ["demo/r/a"]);
    let before = seq();
    store.remove_revision(&key).await.unwrap();
    store.remove_service(&b.key).await.unwrap();
    store.remove_service(&b.key).await.unwrap();
    assert_eq!(since(before), ["demo/r/b"]);
    assert_eq!(since(seq()), [""; 0]);
}
