//! The promises of the store, against real files.
//!
//! size-waiver: one binary, because each of these tests starts the next process of the same binary to be killed.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "tests; those that spawn wait for their tasks"
)]

#[path = "../../../tests/skip.rs"]
mod skip;

use std::process::{Command, Stdio};
use std::sync::Arc;

use utsuwa_model::iam::{Binding, Policy};
use utsuwa_model::operation::{GenerationOutcome, Operation, OperationKind};
use utsuwa_model::revision::{Revision, RevisionStatus};
use utsuwa_model::service::{
    Meta, RevisionTemplate, Service, ServiceSpec, ServiceStatus, TrafficTarget,
};
use utsuwa_model::{RevisionKey, ServiceKey, Timestamp};
use utsuwa_store::{AuditEntry, Changed, Class, Page, Settings, Store, StoreError};

fn key(text: &str) -> ServiceKey {
    text.parse().unwrap()
}

fn service(at: &str, created: i64) -> Service {
    let key = key(at);
    Service {
        meta: Meta {
            uid: format!("uid-{at}-{created}"),
            generation: 1,
            version: Timestamp(created),
            create_time: Timestamp(created),
            ..Meta::default()
        },
        key,
        spec: ServiceSpec::default(),
        status: ServiceStatus::default(),
    }
}

fn operation(service: &Service, id: &str, kind: OperationKind) -> Operation {
    Operation {
        id: id.to_owned(),
        service: service.key.clone(),
        service_uid: service.meta.uid.clone(),
        generation: service.meta.generation,
        kind,
        create_time: service.meta.create_time,
    }
}

fn revision(service: &Service, name: &str, created: i64, nonce: &str) -> Revision {
    let mut template = RevisionTemplate::default();
    template
        .labels
        .insert("client.knative.dev/nonce".to_owned(), nonce.to_owned());
    Revision {
        key: RevisionKey {
            service: service.key.clone(),
            revision: name.parse().unwrap(),
        },
        meta: Meta {
            create_time: Timestamp(created),
            ..Meta::default()
        },
        service_generation: service.meta.generation,
        service_uid: service.meta.uid.clone(),
        template,
        status: RevisionStatus::default(),
    }
}

async fn create(store: &Store, at: &str, created: i64) -> Service {
    let service = service(at, created);
    let op = operation(
        &service,
        &format!("op-{at}-{created}"),
        OperationKind::Create,
    );
    store.create_service(service, op).await.unwrap()
}

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

#[tokio::test]
async fn revisions_are_unique_per_place_and_found_by_nonce() {
    let store = Store::open_in_memory().unwrap();
    let a = create(&store, "demo/r/a", 1).await;
    let b = create(&store, "demo/r/b", 1).await;
    store
        .create_revision(revision(&a, "a-00001-abc", 5, "first"))
        .await
        .unwrap();
    store
        .create_revision(revision(&a, "a-00002-abc", 6, "second"))
        .await
        .unwrap();
    let clash = store
        .create_revision(revision(&b, "a-00001-abc", 7, "third"))
        .await
        .unwrap_err();
    assert_eq!(clash.class(), Class::AlreadyExists);
    let (demo, r) = ("demo".parse().unwrap(), "r".parse().unwrap());
    let found = store.revisions_with_nonce(&demo, &r, "second").unwrap();
    assert_eq!(
        found
            .iter()
            .map(|v| v.key.revision.as_str())
            .collect::<Vec<_>>(),
        ["a-00002-abc"]
    );
    let oldest: Vec<_> = store
        .revisions_of(&a.key)
        .unwrap()
        .into_iter()
        .map(|v| v.meta.create_time.0)
        .collect();
    assert_eq!(oldest, [5, 6]);
    let newest = store
        .revisions(
            &demo,
            Some(&r),
            Some(&a.key.service),
            Page {
                size: 1,
                token: None,
            },
        )
        .unwrap();
    assert_eq!(newest.items[0].meta.create_time, Timestamp(6));
    assert!(newest.next.is_some());

    let key = found[0].key.clone();
    store
        .update_revision(&key, |v| {
            v.status.observed_generation = 4;
            v.template.concurrency = Some(7);
            true
        })
        .await
        .unwrap();
    let changed = store.revision(&key).unwrap().unwrap();
    assert_eq!(
        (
            changed.status.observed_generation,
            changed.template.concurrency
        ),
        (4, None),
        "the template is immutable"
    );

    let refused = store.remove_service(&a.key).await.unwrap_err();
    assert_eq!(refused.class(), Class::Conflict);
    for revision in store.revisions_of(&a.key).unwrap() {
        store.remove_revision(&revision.key).await.unwrap();
    }
    store.remove_service(&a.key).await.unwrap();
    store.remove_service(&a.key).await.unwrap();
    assert_eq!(store.service(&a.key).unwrap(), None);
}

#[tokio::test]
async fn hosts_are_taken_once() {
    let store = Store::open_in_memory().unwrap();
    let wanted = Settings {
        project: "demo".parse().unwrap(),
        region: "r".parse().unwrap(),
        domain: "localhost".to_owned(),
    };
    assert_eq!(store.settings().unwrap_err().class(), Class::NotFound);
    store.freeze_settings(wanted.clone()).await.unwrap();
    assert_eq!(store.freeze_settings(wanted.clone()).await.unwrap(), wanted);
    let other = Settings {
        domain: "example.org".to_owned(),
        ..wanted.clone()
    };
    assert_eq!(
        store.freeze_settings(other).await.unwrap_err().class(),
        Class::Caller
    );
    assert_eq!(store.settings().unwrap(), wanted);

    let hello = create(&store, "demo/r/hello", 1).await;
    create(&store, "demo/other/hello", 1).await;
    create(&store, "demo/r/blue---hello", 1).await;
    assert_eq!(
        store.host_owner("hello.localhost").unwrap(),
        Some(hello.key.clone())
    );
    let tag = |tag: &'static str| {
        move |s: &mut Service| {
            s.spec.traffic = vec![TrafficTarget {
                latest: true,
                tag: Some(tag.to_owned()),
                ..TrafficTarget::default()
            }];
            Ok::<(), ()>(())
        }
    };
    let clash = store
        .update_service(&hello.key, None, Timestamp(2), None, tag("blue"))
        .await
        .unwrap_err();
    assert!(
        matches!(&clash, StoreError::AlreadyExists { what } if what.contains("blue---hello.localhost")),
        "{clash}"
    );
    assert_eq!(
        store.host_owner("hello.localhost").unwrap(),
        Some(hello.key.clone()),
        "the refused change gave nothing away"
    );
    store
        .update_service(&hello.key, None, Timestamp(2), None, tag("green"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        store.host_owner("green---hello.localhost").unwrap(),
        Some(hello.key.clone())
    );
    store.remove_service(&hello.key).await.unwrap();
    assert_eq!(store.host_owner("green---hello.localhost").unwrap(), None);
}

#[tokio::test]
async fn policies_are_guarded_by_their_etag() {
    let store = Store::open_in_memory().unwrap();
    let a = create(&store, "demo/r/a", 1).await;
    let empty = store.policy(&a.key).unwrap();
    assert!(!empty.etag.is_empty() && empty.bindings.is_empty());
    let public = Policy {
        bindings: vec![Binding {
            role: "roles/run.invoker".to_owned(),
            members: vec!["allUsers".to_owned()],
            condition: None,
        }],
        ..Policy::default()
    };
    let set = store
        .set_policy(&a.key, Some(&empty.etag), public.clone())
        .await
        .unwrap();
    assert!(set.is_public() && set.etag != empty.etag);
    let stale = store
        .set_policy(&a.key, Some(&empty.etag), Policy::default())
        .await
        .unwrap_err();
    assert!(matches!(stale, StoreError::StaleEtag));
    let url_safe = format!("{}=", set.etag.replace('+', "-").replace('/', "_"));
    let again = store
        .set_policy(&a.key, Some(&url_safe), public.clone())
        .await
        .unwrap();
    store
        .set_policy(&a.key, None, public.clone())
        .await
        .unwrap();
    store.remove_service(&a.key).await.unwrap();
    assert_eq!(
        store
            .set_policy(&a.key, None, public)
            .await
            .unwrap_err()
            .class(),
        Class::NotFound
    );
    create(&store, "demo/r/a", 2).await;
    assert!(
        store.policy(&a.key).unwrap().bindings.is_empty(),
        "a new service begins private"
    );
    assert!(
        store
            .set_policy(&a.key, Some(&again.etag), Policy::default())
            .await
            .is_err()
    );
}

#[tokio::test]
async fn uid_ranges_are_kept_and_reused() {
    let store = Store::open_in_memory().unwrap();
    let mut bases = Vec::new();
    for name in ["a", "b", "c"] {
        let made = create(&store, &format!("demo/r/{name}"), 1).await;
        bases.push(store.uid_base(&made.key).await.unwrap());
        assert_eq!(
            store.uid_base(&made.key).await.unwrap(),
            bases[bases.len() - 1]
        );
    }
    assert_eq!(bases, [0x2000_0000, 0x2001_0000, 0x2002_0000]);
    store.remove_service(&key("demo/r/b")).await.unwrap();
    create(&store, "demo/r/d", 1).await;
    assert_eq!(store.uid_base(&key("demo/r/d")).await.unwrap(), bases[1]);
    assert_eq!(
        store
            .uid_base(&key("demo/r/nobody"))
            .await
            .unwrap_err()
            .class(),
        Class::NotFound
    );
}

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
    let (method, resource) = (
        "google.cloud.run.v2.Services.CreateService",
        "projects/demo/locations/r/services/a",
    );
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

#[tokio::test]
async fn a_second_server_is_refused_with_the_first_ones_pid() {
    let dir = tempfile::tempdir().unwrap();
    let first = Store::open(dir.path()).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, StoreError::Locked { pid, .. } if *pid == std::process::id().to_string()),
        "{error}"
    );
    assert_eq!(error.class(), Class::Unavailable);
    drop(first);
    Store::open(dir.path()).unwrap();
}

#[test]
fn files_that_cant_be_used_are_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("state.sqlite");
    std::fs::write(
        &path,
        "this is no database, however long it may be, and never was one".repeat(40),
    )
    .unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
    assert!(error.to_string().contains("state.sqlite"), "{error}");
    assert!(
        std::fs::read_to_string(&path)
            .unwrap()
            .starts_with("this is no database")
    );

    std::fs::remove_file(&path).unwrap();
    let foreign = rusqlite::Connection::open(&path).unwrap();
    foreign.execute_batch("CREATE TABLE theirs (a)").unwrap();
    drop(foreign);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(error.to_string().contains("another program"), "{error}");

    std::fs::remove_file(&path).unwrap();
    drop(Store::open(dir.path()).unwrap());
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer.pragma_update(None, "user_version", 77).unwrap();
    drop(newer);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(error, StoreError::Newer { found: 77, .. }),
        "{error:?}"
    );
    for part in ["state.sqlite", "77", "newer version", "--data-dir"] {
        assert!(error.to_string().contains(part), "{error}");
    }
}

#[tokio::test]
async fn a_damaged_page_is_noticed_at_start() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path()).unwrap();
        for n in 0..50 {
            create(&store, &format!("demo/r/s{n}"), n).await;
        }
    }
    let path = dir.path().join("state.sqlite");
    let mut bytes = std::fs::read(&path).unwrap();
    assert!(
        bytes.len() > 20_000,
        "the log was moved into the file when it was closed"
    );
    for byte in &mut bytes[4096..12_288] {
        *byte = 0xa5;
    }
    std::fs::write(&path, bytes).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error:?}");
}

/// Making and removing services over and over leaves nothing behind for ever.
#[tokio::test]
async fn operations_of_gone_services_are_forgotten_after_a_month() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let day = 24 * 3600 * 1_000_000;
    let old = create(&store, "demo/r/old", 0).await;
    let outcome = Some((1, GenerationOutcome::Succeeded));
    store
        .update_service_status(&old.key, outcome, |_| false)
        .await
        .unwrap();
    store.remove_service(&old.key).await.unwrap();
    create(&store, "demo/r/next", 29 * day).await;
    assert!(store.operation("op-demo/r/old-0").unwrap().is_some());
    let rows = || {
        let reader = rusqlite::Connection::open(dir.path().join("state.sqlite")).unwrap();
        let count = |table: &str| -> i64 {
            let count = format!("SELECT count(*) FROM {table}");
            reader.query_row(&count, [], |row| row.get(0)).unwrap()
        };
        (count("outcomes"), count("removals"))
    };
    assert_eq!(rows(), (1, 1));
    create(&store, "demo/r/late", 31 * day).await;
    assert_eq!(store.operation("op-demo/r/old-0").unwrap(), None);
    assert_eq!(rows(), (0, 0), "nobody can ask for them");
    assert!(
        store
            .operation(&format!("op-demo/r/next-{}", 29 * day))
            .unwrap()
            .is_some()
    );
}

/// What a later version needs to know quickly is taken out of rows that an earlier version wrote.
#[tokio::test]
async fn an_older_database_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let written = {
        let store = Store::open(dir.path()).unwrap();
        let made = create(&store, "demo/r/a", 77).await;
        store
            .set_policy(&made.key, None, Policy::default())
            .await
            .unwrap();
        store
            .create_revision(revision(&made, "a-00001-abc", 5, "n"))
            .await
            .unwrap();
        made
    };
    let path = dir.path().join("state.sqlite");
    let older = rusqlite::Connection::open(&path).unwrap();
    older
        .execute_batch(
            "DROP INDEX revisions_going; ALTER TABLE services DROP COLUMN version; ALTER TABLE policies DROP COLUMN etag;
             ALTER TABLE revisions DROP COLUMN delete_time; PRAGMA user_version = 1",
        )
        .unwrap();
    drop(older);
    let store = Store::open(dir.path()).unwrap();
    let etag = store.policy(&written.key).unwrap().etag;
    store
        .update_revision(&store.revisions_of(&written.key).unwrap()[0].key, |r| {
            r.meta.delete_time = Some(Timestamp(9));
            true
        })
        .await
        .unwrap();
    let columns = rusqlite::Connection::open(&path)
        .unwrap()
        .query_row(
            "SELECT s.version, p.etag, r.delete_time FROM services s, policies p, revisions r",
            [],
            |row| {
                Ok((
                    row.get::<_, i64>(0)?,
                    row.get::<_, String>(1)?,
                    row.get::<_, i64>(2)?,
                ))
            },
        )
        .unwrap();
    assert_eq!(columns, (77, etag, 9));
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

/// Run by `acknowledged_writes_survive_kill_9` in a process of its own: eight writers at once (so that commits are shared)
/// write until they are killed, and say what was acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_that_writes() {
    let Some(dir) = std::env::var_os("UTSUWA_STORE_TEST_DIR") else {
        return;
    };
    let store = Store::open(std::path::Path::new(&dir)).unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let store = store.clone();
        writers.spawn(async move {
            for n in 0.. {
                create(&store, &format!("demo/r/w{writer}-s{n}"), n).await;
                eprintln!("acknowledged demo/r/w{writer}-s{n}");
            }
        });
    }
    while writers.join_next().await.is_some() {}
}

#[test]
fn acknowledged_writes_survive_kill_9() {
    use std::io::{BufRead, BufReader};
    let dir = tempfile::tempdir().unwrap();
    for round in 0..3 {
        let data = dir.path().join(round.to_string());
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_writes", "--nocapture"])
            .env("UTSUWA_STORE_TEST_DIR", &data)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut acknowledged = Vec::new();
        for line in lines {
            // The last line may be cut off: then it doesn't say which write it was.
            let Ok(line) = line else { break };
            if let Some(written) = line.strip_prefix("acknowledged ") {
                acknowledged.push(written.to_owned());
            }
            // Killed at different places; what is still in the pipe afterwards was acknowledged too.
            if acknowledged.len() == 60 + round * 37 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        acknowledged.pop();
        let store = Store::open(&data).unwrap();
        assert!(acknowledged.len() >= 59);
        for written in &acknowledged {
            assert!(
                store.service(&key(written)).unwrap().is_some(),
                "{written} was acknowledged"
            );
            let op = store
                .operation(&format!(
                    "op-{written}-{}",
                    written.rsplit_once('s').unwrap().1
                ))
                .unwrap();
            assert!(op.is_some(), "the operation of {written} came with it");
        }
    }
}

/// A real small file system: the write fails as a whole with the typed error, what was there stays, and after room was
/// made everything goes on. Needs root for the mount; elsewhere it is skipped by name.
#[tokio::test]
async fn a_full_disk_is_an_error_and_nothing_is_half_done() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=1m", "utsuwa-store-test"])
        .arg(dir.path())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if !mounted {
        skip::skip(skip::here!(), "can't mount a tmpfs here");
        return;
    }
    let outcome = fill(dir.path()).await;
    let unmounted = Command::new("umount").arg(dir.path()).status().unwrap();
    assert!(unmounted.success());
    outcome.unwrap();
}

async fn fill(dir: &std::path::Path) -> Result<(), String> {
    let check = |ok: bool, what: &str| if ok { Ok(()) } else { Err(what.to_owned()) };
    let store = Store::open(dir).map_err(|e| e.to_string())?;
    let mut made = 0;
    let error = loop {
        let mut next = service(&format!("demo/r/s{made}"), made);
        next.spec.description = "x".repeat(8_000);
        let op = operation(&next, &format!("op{made}"), OperationKind::Create);
        match store.create_service(next, op).await {
            Ok(_) => made += 1,
            Err(error) => break error,
        }
        check(made < 1_000, "the disk never got full")?;
    };
    check(
        matches!(error, StoreError::DiskFull { .. }),
        &format!("expected DiskFull, got {error:?}"),
    )?;
    let kept = store.all_service_keys().map_err(|e| e.to_string())?.len();
    check(
        i64::try_from(kept) == Ok(made),
        &format!("{kept} services after {made} acknowledgements"),
    )?;
    let none = store
        .operation(&format!("op{made}"))
        .map_err(|e| e.to_string())?;
    check(
        none.is_none(),
        "the refused service left its operation behind",
    )?;
    drop(store);
    let grown = Command::new("mount")
        .args(["-o", "remount,size=16m"])
        .arg(dir)
        .status()
        .map_err(|e| e.to_string())?;
    check(grown.success(), "remount")?;
    let store = Store::open(dir).map_err(|e| e.to_string())?;
    check(
        i64::try_from(store.all_service_keys().map_err(|e| e.to_string())?.len()) == Ok(made),
        "after reopening",
    )?;
    create(&store, "demo/r/room-again", 1).await;
    Ok(())
}
