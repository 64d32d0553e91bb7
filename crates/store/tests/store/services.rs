//! Services: written, versioned, settled, listed.

use super::*;

#[tokio::test]
async fn a_service_reads_back_as_written_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let written = {
        let store = Store::open(dir.path()).unwrap();
        create(&store, "demo/r/a", 5).await
    };
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(store.service(&key("demo/r/a")).unwrap(), Some(written));
    assert_eq!(store.service(&key("demo/r/b")).unwrap(), None);
    assert_eq!(store.projects().unwrap().len(), 1);
}

#[tokio::test]
async fn creating_twice_is_refused_and_writes_nothing() {
    let store = Store::open_in_memory().unwrap();
    let first = create(&store, "demo/r/a", 5).await;
    let again = service("demo/r/a", 6);
    let error = store
        .create_service(
            again.clone(),
            operation(&again, "again", OperationKind::Create),
        )
        .await
        .unwrap_err();
    assert_eq!(error.class(), Class::AlreadyExists);
    assert_eq!(
        store.operation("again").unwrap(),
        None,
        "the operation went with its service"
    );
    assert_eq!(store.service(&first.key).unwrap(), Some(first));
}

#[tokio::test]
async fn versions_increase_and_guard() {
    let store = Store::open_in_memory().unwrap();
    let old = create(&store, "demo/r/a", 100).await;
    let stale = store
        .update_service(&old.key, Some(Timestamp(99)), Timestamp(200), None, |_| {
            Ok::<(), ()>(())
        })
        .await
        .unwrap_err();
    assert!(
        matches!(
            stale,
            StoreError::Conflict {
                sent: Timestamp(99),
                now: Timestamp(100),
                ..
            }
        ),
        "{stale:?}"
    );
    // A clock that goes backwards doesn't make versions do so.
    let new = store
        .update_service(&old.key, Some(Timestamp(100)), Timestamp(7), None, |s| {
            s.spec.description = "new".to_owned();
            Ok::<(), ()>(())
        })
        .await
        .unwrap()
        .unwrap();
    assert_eq!(new.meta.version, Timestamp(101));
    let refused = store
        .update_service(&old.key, None, Timestamp(300), None, |s| {
            s.spec.description = "half done".to_owned();
            Err("no")
        })
        .await
        .unwrap();
    assert_eq!(refused.unwrap_err(), "no");
    assert_eq!(store.service(&old.key).unwrap(), Some(new));
    let missing = store
        .update_service(&key("demo/r/z"), None, Timestamp(1), None, |_| {
            Ok::<(), ()>(())
        })
        .await
        .unwrap_err();
    assert_eq!(missing.class(), Class::NotFound);
}

#[tokio::test]
async fn status_writes_dont_move_the_version() {
    let store = Store::open_in_memory().unwrap();
    let old = create(&store, "demo/r/a", 100).await;
    store
        .update_service_status(&old.key, Some((1, GenerationOutcome::Succeeded)), |s| {
            s.status.url = "http://a".to_owned();
            s.spec.description = "loops don't write the spec".to_owned();
            true
        })
        .await
        .unwrap();
    let new = store.service(&old.key).unwrap().unwrap();
    assert_eq!(
        (
            new.meta.version,
            new.status.url.as_str(),
            new.spec.description.as_str()
        ),
        (Timestamp(100), "http://a", "")
    );
    store
        .update_service_status(&key("demo/r/gone"), None, |_| true)
        .await
        .unwrap();
}

#[tokio::test]
async fn an_operation_is_done_with_its_generation_or_a_later_one() {
    let store = Store::open_in_memory().unwrap();
    let made = create(&store, "demo/r/a", 1).await;
    let op = |id: &str, kind| operation(&made, id, kind);
    let update = store
        .update_service(
            &made.key,
            None,
            Timestamp(2),
            Some(op("second", OperationKind::Update)),
            |s| {
                s.meta.generation += 1;
                Ok::<(), ()>(())
            },
        )
        .await
        .unwrap()
        .unwrap();
    let outcome = |id: &str| store.operation(id).unwrap().unwrap().1;
    assert_eq!(
        store.operation("second").unwrap().unwrap().0.generation,
        update.meta.generation
    );
    assert_eq!(outcome("op-demo/r/a-1"), None);
    let failed = GenerationOutcome::Failed {
        reason: "RevisionFailed".to_owned(),
        message: "no".to_owned(),
    };
    store
        .update_service_status(&made.key, Some((2, failed.clone())), |_| false)
        .await
        .unwrap();
    assert_eq!(
        outcome("op-demo/r/a-1"),
        Some(failed.clone()),
        "a later generation's outcome settles it"
    );
    assert_eq!(outcome("second"), Some(failed.clone()));
    store
        .update_service_status(&made.key, Some((2, GenerationOutcome::Succeeded)), |_| {
            false
        })
        .await
        .unwrap();
    assert_eq!(
        outcome("second"),
        Some(failed),
        "a result that was told stands"
    );

    store
        .update_service(
            &made.key,
            None,
            Timestamp(3),
            Some(op("third", OperationKind::Delete)),
            |s| {
                s.meta.generation += 1;
                s.meta.delete_time = Some(Timestamp(3));
                Ok::<(), ()>(())
            },
        )
        .await
        .unwrap()
        .unwrap();
    store
        .update_service_status(&made.key, Some((3, GenerationOutcome::Succeeded)), |_| {
            false
        })
        .await
        .unwrap();
    assert_eq!(
        outcome("third"),
        None,
        "a deletion is done when the row is gone"
    );
    store.remove_service(&made.key).await.unwrap();
    assert_eq!(outcome("third"), Some(GenerationOutcome::Succeeded));
    let (project, region) = (made.key.project.clone(), made.key.region.clone());
    let ids: Vec<String> = store
        .operations(&project, &region, Page::all())
        .unwrap()
        .items
        .into_iter()
        .map(|(op, _)| op.id)
        .collect();
    assert_eq!(ids.len(), 3);
}

#[tokio::test]
async fn lists_are_newest_first_and_paged_without_gaps() {
    let store = Store::open_in_memory().unwrap();
    for (name, created) in [("a", 3), ("b", 3), ("c", 9), ("d", 1)] {
        create(&store, &format!("demo/r/{name}"), created).await;
    }
    create(&store, "demo/other/e", 20).await;
    create(&store, "elsewhere/r/f", 30).await;
    let (demo, r) = ("demo".parse().unwrap(), "r".parse().unwrap());
    let mut seen = Vec::new();
    let mut token = None;
    loop {
        let page = store
            .services(
                &demo,
                Some(&r),
                Page {
                    size: 2,
                    token: token.take(),
                },
            )
            .unwrap();
        seen.extend(
            page.items
                .into_iter()
                .map(|s| s.key.service.as_str().to_owned()),
        );
        // A row that comes meanwhile must not disturb the pages behind it.
        if seen.len() == 2 {
            create(&store, "demo/r/newest", 99).await;
        }
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["c", "a", "b", "d"]);
    assert_eq!(
        store
            .services(&demo, None, Page::all())
            .unwrap()
            .items
            .len(),
        6
    );
    let token = store
        .services(
            &demo,
            Some(&r),
            Page {
                size: 1,
                token: None,
            },
        )
        .unwrap()
        .next;
    for (region, token) in [
        (None, token),
        (Some(&r), Some("zz".to_owned())),
        (Some(&r), Some("é".to_owned())),
    ] {
        let error = store
            .services(&demo, region, Page { size: 1, token })
            .unwrap_err();
        assert!(matches!(error, StoreError::BadPageToken), "{error:?}");
    }
}

/// A deploy that a newer one overtook waits for what becomes of its own revision.
#[tokio::test]
async fn an_operation_with_a_revision_of_its_own_takes_no_other_outcome() {
    let store = Store::open_in_memory().unwrap();
    let made = create(&store, "demo/r/a", 1).await;
    store
        .create_revision(revision(&made, "a-00001-abc", 1, "first"))
        .await
        .unwrap();
    let update = operation(&made, "second", OperationKind::Update);
    let bump = |s: &mut Service| {
        s.meta.generation += 1;
        Ok::<(), ()>(())
    };
    store
        .update_service(&made.key, None, Timestamp(2), Some(update), bump)
        .await
        .unwrap()
        .unwrap();
    let outcome = |id: &str| store.operation(id).unwrap().unwrap().1;
    let unanswered = |before| store.unanswered(&made.meta.uid, before).unwrap();
    assert_eq!((unanswered(2), unanswered(3)), (vec![1], vec![1, 2]));
    let failed = GenerationOutcome::Failed {
        reason: "ContainerMissing".to_owned(),
        message: "no".to_owned(),
    };
    store
        .update_service_status(&made.key, Some((2, failed.clone())), |_| false)
        .await
        .unwrap();
    assert_eq!(outcome("second"), Some(failed.clone()));
    assert_eq!(outcome("op-demo/r/a-1"), None, "its revision is under way");
    let succeeded = vec![(1, GenerationOutcome::Succeeded)];
    store.record_outcomes(&made.key, succeeded).await.unwrap();
    assert_eq!(outcome("op-demo/r/a-1"), Some(GenerationOutcome::Succeeded));
    assert_eq!(unanswered(3), Vec::<u64>::new());
}
